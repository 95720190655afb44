"""The weights of every family under the names of `engine.model.config.parameter_shapes`.

Most families use these names already. Others fuse projections (Phi-3, GPT-2), store them transposed (GPT-2),
call their parts differently (Mixtral, the image models of Gemma 3) or order a rotated head by neighbouring
pairs (DeepSeek-V2) where the engine turns the first half against the second.
"""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from engine.errors import CheckpointError
from engine.model.config import ModelConfig
from engine.weights.lazy import Stored, StoredTensor, loaded

Tensors = Mapping[str, Tensor]

_BUFFERS = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")  # tables that old writers stored


def canonical_names(tensors: Mapping[str, Stored], *, model_type: str, config: ModelConfig) -> dict[str, Stored]:
    """Tensors of a Hugging Face checkpoint by our names; views where possible. Unknown names are kept."""
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(_BUFFERS)}
    if config.tied:
        kept.pop("lm_head.weight", None)
    if model_type in _RENAMED:
        return _RENAMED[model_type](kept, config)
    if model_type in _CHANGED:
        return dict(_CHANGED[model_type]({name: loaded(tensor) for name, tensor in kept.items()}, config))
    return kept


def half_split(weight: Tensor, *, rotary_dim: int) -> Tensor:
    """Rows (..., rotary_dim, inputs) from pairs side by side (0 1 2 3) to halves (0 2 1 3)."""
    *lead, rows, inputs = weight.shape
    if rows != rotary_dim:
        raise CheckpointError(f"{rows} rows were to be turned; {rotary_dim} were expected")
    return weight.reshape(*lead, rotary_dim // 2, 2, inputs).transpose(-3, -2).reshape(*lead, rows, inputs)


# --- GPT-2 ------------------------------------------------------------------------------------------------

_GPT2_PARTS = {
    "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.up_proj",
    "mlp.c_proj": "mlp.down_proj",
}
_GPT2_ENDS = {"wte": "model.embed_tokens", "wpe": "model.embed_positions", "ln_f": "model.norm"}
_GPT2_LAYER = re.compile(r"h\.(\d{1,5})\.(.+)\.(weight|bias)")


def _gpt2(tensors: Tensors, config: ModelConfig) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for full_name, tensor in tensors.items():
        name = full_name.removeprefix("transformer.")
        match = _GPT2_LAYER.fullmatch(name)
        if match is None:
            stem, _, kind = name.rpartition(".")
            out[f"{_GPT2_ENDS[stem]}.{kind}" if stem in _GPT2_ENDS else full_name] = tensor
            continue
        layer, part, kind = match.groups()
        prefix = f"model.layers.{layer}."
        value = tensor.t() if tensor.dim() == 2 else tensor  # GPT-2's "Conv1D" stores (inputs, outputs)
        if part == "attn.c_attn":
            out |= _split_qkv(value, f"{prefix}self_attn", kind, config)
        else:
            out[f"{prefix}{_GPT2_PARTS.get(part, part)}.{kind}"] = value
    return out


# --- Phi-3 ------------------------------------------------------------------------------------------------


def _phi3(tensors: Tensors, config: ModelConfig) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        if stem.endswith(".qkv_proj"):
            out |= _split_qkv(tensor, stem.removesuffix(".qkv_proj"), kind, config)
        elif stem.endswith(".gate_up_proj"):
            out |= _split(tensor, stem.removesuffix("gate_up_proj"), kind, gate_proj=config.intermediate_size)
        else:
            out[name] = tensor
    return out


def _split_qkv(tensor: Tensor, prefix: str, kind: str, config: ModelConfig) -> dict[str, Tensor]:
    q_size, kv_size = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    if tensor.size(0) != q_size + 2 * kv_size:
        raise CheckpointError(
            f"{prefix}: the fused q, k and v have {tensor.size(0)} rows; {q_size + 2 * kv_size} were expected"
        )
    q, k, v = torch.split(tensor, [q_size, kv_size, kv_size])
    return {f"{prefix}.q_proj.{kind}": q, f"{prefix}.k_proj.{kind}": k, f"{prefix}.v_proj.{kind}": v}


def _split(tensor: Tensor, prefix: str, kind: str, *, gate_proj: int) -> dict[str, Tensor]:
    return {f"{prefix}gate_proj.{kind}": tensor[:gate_proj], f"{prefix}up_proj.{kind}": tensor[gate_proj:]}


# --- Mixtral, Gemma 3, DeepSeek-V2 ------------------------------------------------------------------------

_MIXTRAL_PARTS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_MIXTRAL_EXPERT = re.compile(r"(.+)\.experts\.(\d{1,5})\.(w[123])\.weight")


def _mixtral(tensors: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    return {_mixtral_name(name): tensor for name, tensor in tensors.items()}


def _mixtral_name(name: str) -> str:
    name = name.replace(".block_sparse_moe.", ".mlp.")
    match = _MIXTRAL_EXPERT.fullmatch(name)
    return f"{match[1]}.experts.{match[2]}.{_MIXTRAL_PARTS[match[3]]}.weight" if match else name


_IMAGE_PARTS = re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\.")
_TEXT_PART = re.compile(r"(model\.language_model\.(?:model\.)?|language_model\.model\.)")


def _gemma3(tensors: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    """The decoder of an image model: the part that sees is left out."""
    out: dict[str, Stored] = {}
    for name, tensor in tensors.items():
        if _IMAGE_PARTS.match(name):
            continue
        out[_TEXT_PART.sub("model.", name, count=1).removeprefix("language_model.")] = tensor
    if config.tied:
        out.pop("lm_head.weight", None)
    return out


def _deepseek(tensors: Tensors, config: ModelConfig) -> dict[str, Tensor]:
    return {name: deepseek_order(name, tensor, config) for name, tensor in tensors.items()}


def deepseek_order(name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    """Queries: the rotated rows at the end of every head; keys: the rotated rows after the compressed ones."""
    latent = config.latent
    assert latent is not None
    bias = tensor.dim() == 1
    matrix = tensor[:, None] if bias else tensor
    if name.endswith((".q_proj.weight", ".q_b_proj.weight")) and matrix.size(0) % config.n_heads == 0:
        heads = matrix.view(config.n_heads, -1, matrix.size(-1))
    elif ".kv_a_proj_with_mqa." in name:
        heads = matrix[None]
    else:
        return tensor
    rest = heads.size(1) - latent.rope_dim
    if rest < 0:
        return tensor  # its shape is refused where all shapes are checked
    turned = half_split(heads[:, rest:], rotary_dim=latent.rope_dim)
    ordered = torch.cat((heads[:, :rest], turned), 1).reshape(matrix.shape)
    return ordered[:, 0] if bias else ordered


# --- gpt-oss ----------------------------------------------------------------------------------------------

_OSS_EXPERTS = re.compile(r"(model\.layers\.\d{1,5}\.mlp)\.experts\.(gate_up|down)_proj(_bias|_blocks|_scales)?")
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""E2M1: two bits of exponent, one of mantissa (OCP Microscaling Formats 1.0, section 5.3.3)."""


def _gpt_oss(tensors: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    """Experts one by one (theirs lie in one tensor, inputs first, gate and up taking turns); MXFP4 is widened."""
    out: dict[str, Stored] = {}
    for name, stored in tensors.items():
        match = _OSS_EXPERTS.fullmatch(name)
        if match is None:
            name = name.replace(".mlp.router.", ".mlp.gate.")
            out[f"{name}.weight" if name.endswith(".sinks") else name] = stored
            continue
        prefix, part, kind = match.groups()
        if kind == "_scales":
            continue  # taken with their blocks
        scales = tensors.get(f"{prefix}.experts.{part}_proj_scales")
        for i in range(stored.shape[0]):
            one = _oss_expert(stored, i, scales, kind)
            out |= _oss_parts(one, f"{prefix}.experts.{i}", part, "bias" if kind == "_bias" else "weight")
    return out


def _oss_expert(stored: Stored, i: int, scales: Stored | None, kind: str | None) -> Stored:
    """One expert's matrix, outputs first, or its biases."""
    if kind == "_blocks" and scales is not None:
        rows, groups = stored.shape[1:3]
        return StoredTensor(
            shape=(rows, groups * 32),
            dtype=torch.float32,
            load=lambda: widen_mxfp4(loaded(stored)[i], loaded(scales)[i]),
            element_bytes=17 / 32,  # 16 bytes of halves and one of the scale
        )
    if kind == "_bias":
        return _then(stored, lambda t: t[i], tuple(stored.shape[1:]))
    return _then(stored, lambda t: t[i].t(), tuple(reversed(stored.shape[1:])))


def _oss_parts(one: Stored, prefix: str, part: str, kind: str) -> dict[str, Stored]:
    if part == "down":
        return {f"{prefix}.down_proj.{kind}": one}
    half = (one.shape[0] // 2, *one.shape[1:])
    return {
        f"{prefix}.gate_proj.{kind}": _then(one, lambda t: t[::2], half),
        f"{prefix}.up_proj.{kind}": _then(one, lambda t: t[1::2], half),
    }


def _then(stored: Stored, change: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Stored:
    return change(stored) if isinstance(stored, Tensor) else stored.then(change, shape)


def widen_mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """blocks (rows, groups, 16) uint8, two numbers a byte, the low half first; scales (rows, groups): 2^(s - 127)."""
    values = torch.tensor(FP4)
    pairs = torch.stack((values[(blocks & 15).long()], values[(blocks >> 4).long()]), -1)
    wide = torch.ldexp(pairs.flatten(-2), scales[..., None].int() - 127)
    return wide.flatten(-2)


_RENAMED: dict[str, Callable[[Mapping[str, Stored], ModelConfig], dict[str, Stored]]] = {
    "mixtral": _mixtral,
    "gemma3": _gemma3,
    "gpt_oss": _gpt_oss,
}
_CHANGED: dict[str, Callable[[Tensors, ModelConfig], dict[str, Tensor]]] = {
    "gpt2": _gpt2,
    "phi3": _phi3,
    "deepseek_v2": _deepseek,
}
