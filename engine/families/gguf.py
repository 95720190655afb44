"""Models in GGUF files: their config and their tensors by our names.

Changes of values by llama.cpp's conversion are undone, as each family's `GGUFForm` specifies.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from engine.errors import CheckpointError, UnsupportedArchitecture
from engine.families.family import GGUFForm
from engine.families.gguf_ends import end_texts
from engine.families.gguf_keys import shared_keys, token_id
from engine.families.registry import FAMILIES, config_from_hf
from engine.families.tensors import qkv_sizes
from engine.model.config import LongRopeScaling, ModelConfig, YarnRopeScaling
from engine.model.rotary import rope_frequencies
from engine.model.shapes import CHOICE_BIAS
from engine.weights.gguf import GGUFFile, GGUFTensor
from engine.weights.lazy import StoredTensor

_FORMS: dict[str, tuple[str, GGUFForm]] = {
    family.gguf.architecture: (model_type, family.gguf)
    for model_type, family in FAMILIES.items()
    if family.gguf is not None
}
ARCHITECTURES = tuple(_FORMS)
"""llama.cpp's names of the supported architectures."""


def config_from_gguf(file: GGUFFile) -> ModelConfig:
    """The config that a file's metadata and tensor shapes describe. Raises ConfigError, UnsupportedArchitecture."""
    if file.architecture not in _FORMS:
        raise UnsupportedArchitecture(
            f'{file.path} has architecture "{file.architecture}", which the engine cannot run from GGUF; '
            f"it supports {', '.join(ARCHITECTURES)}"
        )
    model_type, form = _FORMS[file.architecture]
    said = {"model_type": model_type} | shared_keys(file) | form.keys(file)
    config = config_from_hf({key: value for key, value in said.items() if value is not None or key in form.off})
    config = form.adapted(config)
    if config.activation == "gelu":  # llama.cpp uses the approximation for exact GELU too
        config = replace(config, activation="gelu_tanh")
    if form.adds_norm_offset:
        config = replace(config, norm_offset=0.0)
    config = _with_attention_factor(_with_rope_factors(config, file), file)
    stated = [i for key in ("eot", "eom") if (i := token_id(file, key)) is not None]
    return replace(config, eos_ids=tuple(dict.fromkeys([*config.eos_ids, *stated, *_end_ids(file)])))


def _end_ids(file: GGUFFile) -> list[int]:
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        return []
    ends = end_texts(tokens)
    return [index for index, text in enumerate(tokens) if text in ends]


def _with_attention_factor(config: ModelConfig, file: GGUFFile) -> ModelConfig:
    """Add llama.cpp's factor on cos and sin, in addition to YaRN's own."""
    factor, scaling = file.get("rope.scaling.attn_factor"), config.rope_scaling
    if not isinstance(factor, float) or factor in (0.0, 1.0) or file.architecture == "phi3":  # Phi-3 has its own key
        return config
    if not 0 < factor < math.inf:
        raise CheckpointError(f"{file.path}: rope.scaling.attn_factor is {factor}; expected a number above 0")
    if isinstance(scaling, YarnRopeScaling | LongRopeScaling):
        return replace(config, rope_scaling=replace(scaling, magnitude=scaling.magnitude * factor))
    turned = config.rotary_dim or config.head_dim
    slowed = rope_frequencies(turned, config.rope_theta, None) / rope_frequencies(turned, config.rope_theta, scaling)
    stretch = tuple(slowed.tolist())
    constant = LongRopeScaling(
        short_factors=stretch, long_factors=stretch, original_max_positions=config.max_positions, magnitude=factor
    )
    return replace(config, rope_scaling=constant)


def _with_rope_factors(config: ModelConfig, file: GGUFFile) -> ModelConfig:
    """Add Llama 3.1's rotary scaling, which the conversion stores as one factor per pair."""
    factors = file.tensors.get("rope_freqs.weight")
    if factors is None:
        return config
    stretch = tuple(factors.stored().load().double().tolist())
    if len(stretch) != config.head_dim // 2:
        raise CheckpointError(f"{file.path}: rope_freqs has {len(stretch)} entries; expected {config.head_dim // 2}")
    if not all(0 < factor < math.inf for factor in stretch):
        raise CheckpointError(f"{file.path}: rope_freqs holds a factor that is not a number above 0")
    scaling = LongRopeScaling(short_factors=stretch, long_factors=stretch, original_max_positions=config.max_positions)
    return replace(config, rope_scaling=scaling)


_ENDS = {
    "token_embd": "model.embed_tokens",
    "position_embd": "model.embed_positions",
    "output_norm": "model.norm",
    "token_embd_norm": "model.norm",
    "output": "lm_head",
}
_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_sinks": "self_attn.sinks",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "exp_probs_b": f"mlp.gate.{CHOICE_BIAS}",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
    "shortconv.conv": "conv.conv",
    "shortconv.in_proj": "conv.in_proj",
    "shortconv.out_proj": "conv.out_proj",
}
_EXPERTS = {
    "ffn_gate_exps": "gate_proj",
    "ffn_up_exps": "up_proj",
    "ffn_down_exps": "down_proj",
    "ffn_gate_up_exps": "gate_up_proj",
}
_NO_WEIGHTS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_LAYER = re.compile(r"blk\.(\d{1,5})\.([a-z0-9_.]+?)(?:\.(weight|bias))?")


def weights_from_gguf(file: GGUFFile, config: ModelConfig) -> dict[str, StoredTensor]:
    """The file's tensors by our names; unknown tensors keep their names."""
    weights: dict[str, StoredTensor] = {}
    _, form = _FORMS[file.architecture]
    for name, tensor in file.tensors.items():
        if name not in _NO_WEIGHTS:
            weights.update(_named(name, tensor, form, config))
    weights.update(form.more(file, config))
    if config.latent is not None:
        _join_latent(weights, config)
    return weights


def _join_latent(weights: dict[str, StoredTensor], config: ModelConfig) -> None:
    """Newer conversions store the two halves of kv_b_proj separately: (H, rank, nope_dim) and (H, value_dim, rank)."""
    for layer in range(config.n_layers):
        prefix = f"model.layers.{layer}"
        keys, values = (weights.pop(f"{prefix}.attn_{part}_b.weight", None) for part in ("k", "v"))
        if keys is not None and values is not None:
            weights[f"{prefix}.self_attn.kv_b_proj.weight"] = _joined(keys, values)


def _joined(keys: StoredTensor, values: StoredTensor) -> StoredTensor:
    if len(keys.shape) != 3 or len(values.shape) != 3 or keys.shape[:2] != (values.shape[0], values.shape[2]):
        raise CheckpointError(
            f"attn_k_b {list(keys.shape)} and attn_v_b {list(values.shape)} do not match; "
            "expected (heads, rank, n) and (heads, m, rank)"
        )
    n_heads, rank, nope_dim = keys.shape
    rows = n_heads * (nope_dim + values.shape[1])

    def load() -> Tensor:
        return torch.cat((keys.load().transpose(1, 2), values.load()), 1).reshape(rows, rank)

    return StoredTensor(shape=(rows, rank), dtype=keys.dtype, load=load, element_bytes=keys.element_bytes)


def _named(name: str, tensor: GGUFTensor, form: GGUFForm, config: ModelConfig) -> Iterator[tuple[str, StoredTensor]]:
    match, names = _LAYER.fullmatch(name), form.parts(config)
    if match is None:
        stem, _, kind = name.rpartition(".")
        yield f"{names.get(stem) or _ENDS.get(stem, stem)}.{kind}", tensor.stored()
        return
    layer, part, kind = match.groups()
    prefix, stored = f"model.layers.{layer}", tensor.stored()
    if part in _EXPERTS:
        for i in range(tensor.shape[0]):
            yield from _expert(tensor.part(i), f"{prefix}.mlp.experts.{i}", _EXPERTS[part], kind)
    elif part == "attn_qkv" and part not in names:
        for ours, rows in _split(stored, f"{prefix}.self_attn", kind, qkv_sizes(config)):
            yield ours, form.restore(ours, rows, config)
    elif part == "ffn_up" and form.fused_gate:
        inner = config.intermediate_size
        yield from _split(stored, f"{prefix}.mlp", kind, {"gate_proj": inner, "up_proj": inner})
    else:
        ours = ".".join((prefix, names.get(part) or _PARTS.get(part, part), *([kind] if kind else [])))
        ours = ours.removesuffix(".bias") if ours.endswith(f"{CHOICE_BIAS}.bias") else ours
        yield from (
            form.apart(ours, stored, config).items() if form.apart else [(ours, form.restore(ours, stored, config))]
        )


def _expert(stored: StoredTensor, prefix: str, part: str, kind: str) -> Iterator[tuple[str, StoredTensor]]:
    """One expert's matrix or its biases; gate and up may be one matrix, the gate's rows first."""
    if part != "gate_up_proj":
        yield f"{prefix}.{part}.{kind}", stored
        return
    inner = stored.shape[0] // 2
    yield from _split(stored, prefix, kind, {"gate_proj": inner, "up_proj": inner})


def _split(stored: StoredTensor, prefix: str, kind: str, sizes: dict[str, int]) -> Iterator[tuple[str, StoredTensor]]:
    start = 0
    for part, size in sizes.items():
        yield f"{prefix}.{part}.{kind}", stored.rows(start, start + size)
        start += size
