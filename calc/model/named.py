"""Named weight formats without a fixed size per weight: GGUF mixes and quantized checkpoints.

The size of each is computed tensor by tensor for one model: a mix by llama.cpp's rule (`calc.model.gguf_rule`), a
checkpoint by the quantization_config that the method's own tools write (`calc.model.quantization`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from calc.model.gguf_rule import MIXES, PLAIN, GgufTensor, tensor_types, type_bytes
from calc.model.gguf_tensors import UNKNOWN, file_facts, gguf_tensors
from calc.model.storage import FORMATS, StorageFormat, format_key, known_format, unknown_format
from calc.model.stored import LayerBytes, StoredWeights
from calc.model.stored_format import format_of
from calc.model.tensors import KV, SPLIT, WHOLE

if TYPE_CHECKING:
    from calc.errors import QuantityError
    from calc.model.spec import ModelSpec

COMPONENTS = ("embedding", "attention", "mlp", "experts", "norms", "head", "other")
GGUF = "gguf-"
"""The prefix of a mix whose name is also that of a fixed-size format (gguf-q8_0)."""
BNB_4BIT = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True}


def _compressed(layout: str, **weights: Any) -> dict[str, Any]:
    """What llm-compressor writes for all linear layers except the head."""
    group = {"targets": ["Linear"], "weights": {"symmetric": True, **weights}}
    whole = {"quant_method": "compressed-tensors", "format": layout, "ignore": ["lm_head"]}
    return {**whole, "config_groups": {"group_0": group}}


CHECKPOINTS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True},
        "4 bits in groups of 128 with zero points (AutoAWQ)",
    ),
    "gptq": (
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
        "4 bits in groups of 128 with zero points and a group index (GPTQ)",
    ),
    "gptq-int8": (
        {"quant_method": "gptq", "bits": 8, "group_size": 128},
        "8 bits in groups of 128 with zero points and a group index (GPTQ)",
    ),
    "gptq-int3": (
        {"quant_method": "gptq", "bits": 3, "group_size": 128},
        "3 bits in groups of 128 with zero points and a group index (GPTQ)",
    ),
    "auto-round": (
        {"quant_method": "auto-round", "bits": 4, "group_size": 128},
        "4 bits in groups of 128 with zero points (AutoRound)",
    ),
    "hqq": (
        {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}},
        "4 bits in groups of 64 with a scale and a zero point (HQQ)",
    ),
    "eetq": ({"quant_method": "eetq"}, "8 bits with a scale per row (EETQ)"),
    "nf4": (
        {**BNB_4BIT, "bnb_4bit_quant_type": "nf4"},
        "4 bits (bitsandbytes NF4, double quantization of the absmax)",
    ),
    "fp4": (
        {**BNB_4BIT, "bnb_4bit_quant_type": "fp4"},
        "4 bits (bitsandbytes FP4, double quantization of the absmax)",
    ),
    "llm.int8": (
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        "8 bits with an absmax per row (bitsandbytes LLM.int8)",
    ),
    "w4a16": (
        _compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=128),
        "4 bits in groups of 128 (llm-compressor W4A16)",
    ),
    "w8a16": (
        _compressed("pack-quantized", num_bits=8, type="int", strategy="channel"),
        "8 bits with a scale per row (llm-compressor W8A16)",
    ),
    "w8a8": (
        _compressed("int-quantized", num_bits=8, type="int", strategy="channel"),
        "8 bits with a scale per row (llm-compressor W8A8)",
    ),
    "fp8-dynamic": (
        _compressed("float-quantized", num_bits=8, type="float", strategy="channel"),
        "fp8 with a scale per row (llm-compressor FP8-dynamic)",
    ),
    "fp8-static": (
        {"quant_method": "fp8", "activation_scheme": "static"},
        "fp8 with one scale per matrix and one for its inputs (AutoFP8, llm-compressor FP8)",
    ),
    "fp8-block": (
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        "fp8 with a scale per 128 x 128 block (DeepSeek's and Qwen's own)",
    ),
    "mlx-4bit": ({"bits": 4, "group_size": 64}, "4 bits in groups of 64 with a scale and a bias (MLX)"),
    "mlx-8bit": ({"bits": 8, "group_size": 64}, "8 bits in groups of 64 with a scale and a bias (MLX)"),
}
"""What the method's own tool writes into quantization_config by default, and a description."""
OTHER_NAMES: Mapping[str, str] = {
    "q3_k": "Q3_K_M", "awq-int4": "awq", "awq-4bit": "awq", "int4-awq": "awq", "awq_marlin": "awq",
    "gptq-int4": "gptq", "gptq-4bit": "gptq", "int4-gptq": "gptq", "gptq_marlin": "gptq", "gptq-8bit": "gptq-int8",
    "int8-gptq": "gptq-int8", "gptq-3bit": "gptq-int3", "autoround-int4": "auto-round", "autoround-4bit": "auto-round",
    "int4-autoround": "auto-round", "hqq-int4": "hqq", "hqq-4bit": "hqq", "fp8-per-tensor": "fp8-static",
    "fp8-per-channel": "fp8-dynamic", "smoothquant": "w8a8", "int8-w8a16": "w8a16", "w8a16-int8": "w8a16",
    "bnb": "nf4", "bnb-4bit": "nf4", "bitsandbytes": "nf4", "bnb-nf4": "nf4", "qlora": "nf4", "bnb-fp4": "fp4",
    "w8a8-int8": "w8a8", "int8-w8a8": "w8a8", "int4-w4a16": "w4a16", "mlx": "mlx-4bit",
    "bnb-8bit": "llm.int8", "bnb-int8": "llm.int8", "llm_int8": "llm.int8",
}  # fmt: skip
"""Alternative names."""


EXL = re.compile(r"exl([23])(\d+(?:\.\d+)?)(?:bpw|bits?)?")
"""An ExLlama file by its format and its bits per weight, after `format_key`: exl2-4.25bpw."""
EXL_HEAD_BITS = 6


@dataclass(frozen=True, slots=True)
class NamedFormat:
    """A mix or a quantized checkpoint by its name, before a model is known."""

    name: str


def named_format(text: str) -> NamedFormat:
    """The format called `text` (any case, ``-`` or ``_``). Raises QuantityError with near names."""
    if (found := known_name(text)) is not None:
        return found
    raise _unknown(text)


def known_name(text: str) -> NamedFormat | None:
    """The format called `text`; None if there is none, or if it is a fixed-size format."""
    found = _BY_KEY.get(format_key(text)) or _exl_name(text)
    return None if found is None or known_format(text) is not None else NamedFormat(found)


def _exl_name(text: str) -> str | None:
    """The usual name of an ExLlama file with that many bits per weight.

    >>> _exl_name("EXL3_4.0bpw"), _exl_name("exl2-4.25")
    ('exl3-4bpw', 'exl2-4.25bpw')
    """
    found = EXL.fullmatch(format_key(text))
    return f"exl{found[1]}-{float(found[2]):g}bpw" if found is not None and 1 <= float(found[2]) <= 8 else None


def _checkpoint(name: str) -> tuple[Mapping[str, Any], str] | None:
    """The quantization_config of a checkpoint by its usual name, and a description; None for a mix."""
    if name in CHECKPOINTS:
        return CHECKPOINTS[name]
    if not name.startswith("exl"):
        return None
    method, _, bits = name.removesuffix("bpw").partition("-")
    config = {"quant_method": method, "bits": float(bits), "head_bits": EXL_HEAD_BITS}
    return config, f"{bits} bits on average, and {EXL_HEAD_BITS} in the head (ExLlama{method[-1]})"


def _unknown(text: str) -> QuantityError:
    if format_key(text) in ("exl2", "exl3"):
        return unknown_format(text, (), f"add the bits per weight: {text.strip().lower()}-4.0bpw")
    if format_key(text).startswith("ud"):
        hint = "Unsloth's dynamic mixes follow no published rule: pass the .gguf file to --model"
        return unknown_format(text, (), hint)
    return unknown_format(text, weight_names())


def option_name(mix: str) -> str:
    """A mix as an option value: its name, with the prefix ``gguf-`` if a fixed-size format has that name."""
    return mix if known_format(mix) is None else GGUF + mix


def weight_names() -> tuple[str, ...]:
    """Every name of a weight format."""
    return (*FORMATS, *CHECKPOINTS, *map(option_name, MIXES))


_BY_KEY: Mapping[str, str] = {
    **{format_key(other): name for other, name in OTHER_NAMES.items()},
    **{format_key(name): name for name in CHECKPOINTS},
    **{format_key(name): name for name in MIXES},
    **{format_key(GGUF + name): name for name in MIXES},
}


def weights_as(chosen: StorageFormat | NamedFormat, model: ModelSpec) -> StorageFormat:
    """The format that stores the weights of `model` as `chosen`."""
    if isinstance(chosen, StorageFormat):
        return chosen
    if (checkpoint := _checkpoint(chosen.name)) is not None:
        return _as_checkpoint(chosen.name, *checkpoint, model)
    return _as_mix(chosen.name, model)


def _as_checkpoint(name: str, config: Mapping[str, Any], said: str, model: ModelSpec) -> StorageFormat:
    from calc.model.quantization import stored_weights

    stored = stored_weights({"quantization_config": dict(config), "dtype": "bfloat16"}, model, name)
    assert stored is not None
    kept = "the embedding" if model.tied else "embedding, head"
    where = f"for the linear layers; {kept}, norms and routers stay in 16 bits"
    if name.startswith("exl"):
        where = "for the linear layers; the embedding and norms stay in 16 bits"
    if "quant_method" not in config:  # MLX
        where = "for every matrix, including embedding, head and routers; norms stay in 16 bits"
    note = f"Weights as {name}: {said} {where}."
    return format_of(model, replace(stored, name=name), note)


def _as_mix(mix: str, model: ModelSpec) -> StorageFormat:
    importance = mix.startswith("IQ")
    held = tensor_types(mix, gguf_tensors(model), file_facts(model, importance=importance))
    matrix = "" if mix in PLAIN else f", {'with' if importance else 'without'} an importance matrix"
    note = (
        f"Weights as a {mix} GGUF file, by llama.cpp's rule{matrix}: {_types(held, MIXES[mix])}. The file's header "
        "and vocabulary are not counted."
    )
    return format_of(model, _stored(option_name(mix), held, model.n_layers), note)


def _stored(name: str, held: list[tuple[GgufTensor, str]], n_layers: int) -> StoredWeights:
    """The bytes of tensors in their types, by rank, component and layer."""
    shares, components = {SPLIT: 0, KV: 0, WHOLE: 0}, dict.fromkeys(COMPONENTS, 0)
    layers, experts = [0] * n_layers, [0] * n_layers
    for tensor, type_name in held:
        n_bytes = type_bytes(type_name, tensor)
        shares[tensor.share] += n_bytes
        components[tensor.component] += n_bytes
        if tensor.layer >= 0:
            layers[tensor.layer] += n_bytes
            experts[tensor.layer] += n_bytes if tensor.component == "experts" else 0
    return StoredWeights(
        name=name,
        split_bytes=shares[SPLIT],
        kv_bytes=shares[KV],
        whole_bytes=shares[WHOLE],
        components=tuple(components.items()),
        layers=tuple(map(LayerBytes, layers, experts)),
    )


def _types(held: list[tuple[GgufTensor, str]], usual: str) -> str:
    """Which tensors have which type, in words: the most common type first, norms and other small tensors last."""
    kinds: dict[str, dict[str, int]] = {}
    for tensor, type_name in held:
        if not tensor.fixed:
            counts = kinds.setdefault(type_name, {})
            kind = _kind(tensor.name)
            counts[kind] = counts.get(kind, 0) + 1
    said = [f"{usual} for most matrices"] if usual in kinds else []
    for type_name, counts in kinds.items():
        if type_name != usual:
            said.append(f"{type_name} for {_listed(counts)}")
    if any(tensor.fixed for tensor, _ in held):
        said.append("F32 for norms, biases and routers")
    return ", ".join(said)


def _kind(name: str) -> str:
    """A tensor's name without its layer."""
    if name.endswith(UNKNOWN):
        return "parts with unknown tensors"
    parts = name.removesuffix(".weight").split(".")
    return ".".join(parts[2:] if parts[0] == "blk" else parts)


def _listed(counts: Mapping[str, int]) -> str:
    named = [kind if n == 1 else f"{n} {kind}" for kind, n in counts.items()]
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"
