"""Nemotron-H, a stack of single blocks, and Nemotron NAS, a Llama whose blocks were pruned one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from calc.hf.architecture import BIASED, MLP_BIAS, Architecture
from calc.hf.attention import full_attention
from calc.hf.feed_forward import EXPERT_SIZE, N_EXPERTS, N_SHARED, SHARED_SIZE, TOP_K, dense_block
from calc.hf.layer_kinds import MAMBA2, layer_kinds
from calc.hf.layers import layers_by_fields
from calc.hf.reader import HEAD_DIM, N_HEADS, N_KV_HEADS, Reader, shown
from calc.hf.recurrences import recurrent_mixer
from calc.model.layers import Dense, Experts, FeedForward, LayerSpec, Mixer
from calc.model.parts import Mlp

_LETTERS = {
    "linear_attention": "M", "mamba": "M", "full_attention": "*", "attention": "*", "moe": "E", "mlp": "-",
}  # fmt: skip
_KEYS = {
    "M": ("mamba_num_heads", "mamba_head_dim", "n_groups", "ssm_state_size", "conv_kernel"),
    "*": (*N_HEADS, *N_KV_HEADS, *HEAD_DIM),
    "E": (*N_EXPERTS, *TOP_K, *EXPERT_SIZE, *SHARED_SIZE, *N_SHARED, "moe_latent_size"),
}
"""The keys of each kind of block, which are unused if no layer is of that kind."""


def _single_blocks(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Nemotron-H: every layer is one block of Mamba-2 (M), attention (*), experts (E) or MLP (-), and one norm."""
    pattern = _letters(reader, arch, n_layers)
    for letter in _KEYS.keys() - {*pattern}:
        reader.ignore(*_KEYS[letter])
    made: dict[str, LayerSpec] = {}
    for letter in dict.fromkeys(pattern):
        mixers: tuple[Mixer, ...] = ()
        feed: tuple[FeedForward, ...] = ()
        if letter == "M":
            mixers = (recurrent_mixer(reader, arch, MAMBA2, hidden_size),)
        elif letter == "*":
            mixers = (full_attention(reader, arch),)
        elif letter == "-":
            feed = (dense_block(reader, arch),)
        else:
            feed = _experts(reader, hidden_size)
        made[letter] = LayerSpec(hidden_size=hidden_size, mixers=mixers, feed_forwards=feed, norm_params=hidden_size)
    return [made[letter] for letter in pattern]


def _letters(reader: Reader, arch: Architecture, n_layers: int) -> str:
    """The pattern of letters, or one made from layers_block_type."""
    if isinstance(pattern := reader.get("hybrid_override_pattern"), str):
        layer_kinds(reader, arch, n_layers)
        return pattern
    listed = reader.per_layer("layers_block_type", n_layers)
    if listed is None:
        raise reader.fail("hybrid_override_pattern missing: it gives the kind of each layer")
    if wrong := [word for word in listed if word not in _LETTERS]:
        raise reader.fail(f"layers_block_type has {shown(wrong[0])}: kvscope knows {', '.join(_LETTERS)}")
    return "".join(_LETTERS[word] for word in listed)


def _experts(reader: Reader, hidden_size: int) -> tuple[FeedForward, ...]:
    """Experts without a gate; with moe_latent_size they read a smaller input, projected in and out."""
    n_experts = reader.count(*N_EXPERTS)
    latent = reader.maybe("moe_latent_size")
    shared = reader.count("moe_shared_expert_intermediate_size") if reader.maybe("n_shared_experts", minimum=0) else 0
    bias = latent + hidden_size if latent and reader.flag("mlp_bias") else 0
    into_latent = 2 * hidden_size * latent + bias if latent else 0
    experts = Experts(
        n_experts=n_experts,
        top_k=reader.count(*TOP_K),
        expert_size=reader.count(*EXPERT_SIZE),
        router_params=n_experts * hidden_size + into_latent,
        mlp=Mlp.PLAIN,
        input_size=latent,
    )
    if not shared:
        return (experts,)
    return (Dense(intermediate_size=shared, mlp=Mlp.PLAIN, bias=reader.flag("mlp_bias")), experts)


def _nas_layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Nemotron NAS: each block has its own heads and inner size, or no attention or no feed-forward at all."""
    blocks = reader.per_layer("block_configs", n_layers)
    if blocks is None:
        return layers_by_fields(reader, arch, n_layers, hidden_size)
    reader.put("num_key_value_heads", reader.count(*N_HEADS))  # each block has its own
    reader.ignore("intermediate_size")
    return [_block(reader, arch, block, hidden_size) for block in blocks]


def _block(reader: Reader, arch: Architecture, block: object, hidden_size: int) -> LayerSpec:
    if not isinstance(block, dict) or not all(isinstance(block.get(k), dict) for k in ("attention", "ffn")):
        raise reader.fail("block_configs must hold objects with attention and ffn")
    attention, ffn = block["attention"], block["ffn"]
    mixers: tuple[Mixer, ...] = ()
    feed: tuple[FeedForward, ...] = ()
    extra = 0
    if attention.get("replace_with_linear"):
        extra += hidden_size * hidden_size
    elif not attention.get("no_op"):
        group = reader.checked("n_heads_in_group", attention.get("n_heads_in_group"))
        mixer = full_attention(reader, arch)
        mixers = (replace(mixer, n_kv_heads=mixer.n_heads // group),)
    if ffn.get("replace_with_linear"):
        extra += hidden_size * hidden_size
    elif not ffn.get("no_op"):
        feed = (Dense(intermediate_size=_nas_inner(reader, ffn, hidden_size)),)
    norms = sum(not part.get("no_op") for part in (attention, ffn))
    return LayerSpec(
        hidden_size=hidden_size, mixers=mixers, feed_forwards=feed, norm_params=norms * hidden_size + extra
    )


def _nas_inner(reader: Reader, ffn: dict[str, Any], hidden_size: int) -> int:
    if ffn.get("intermediate_size") is not None:
        return reader.checked("intermediate_size", ffn["intermediate_size"])
    factor = ffn.get("ffn_mult")
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < 1000:
        raise reader.fail(f"ffn_mult must be a number above 0, not {shown(factor)}")
    return -(-int(2 * factor * hidden_size / 3) // 256) * 256


ARCHITECTURES = (
    Architecture(
        names=("nemotron_h",),
        gated=False,
        mlp_bias=MLP_BIAS,
        needs_inner=False,
        unused=("expand", "intermediate_size", "time_step_rank"),
        state_biases=(("use_bias",), ("use_bias",)),
        layers=_single_blocks,
    ),
    replace(BIASED, names=("nemotron-nas", "deci"), mlp_bias=MLP_BIAS, layers=_nas_layers),
)
