"""Mixers that keep a state instead of a cache, from the tensors of a layer and the metadata."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from calc.errors import SpecError
from calc.model.delta import GatedDelta, KimiDelta
from calc.model.recurrent import Mamba1, Mamba2, ShortConv, Stated
from calc.sources.gguf.attention import heads
from calc.sources.gguf.facts import Block, Facts, Undetermined

if TYPE_CHECKING:
    from calc.model.layers import Mixer

LIGHTNING, LIGHTNING_INTERVAL = "minimax-01", 8


def recurrence(facts: Facts, block: Block, elements: int) -> tuple[Mixer, bool] | None:
    """(The recurrence of a layer, whether it is all of its mixing); None where it has none. Raises Undetermined.

    `elements` of tensors are the layer's mixers in all.
    """
    if (make := _kind(facts, block)) is None:
        return None
    try:
        mixer = make(facts, block, elements)
    except SpecError as error:
        raise Undetermined(f"layer {block.index}: {error}") from None
    beside = isinstance(mixer, Mamba1 | Mamba2) and block.has("attn_k", "attn_qkv")
    return mixer, not beside


def _kind(facts: Facts, block: Block) -> Callable[[Facts, Block, int], Mixer] | None:
    if "ssm_conv1d_q" in block:
        return _kimi_delta
    if block.has("ssm_ba", "ssm_alpha"):
        return _gated_delta
    if "ssm_x" in block:
        return _mamba1 if block.rows("ssm_dt") == block.columns("ssm_out") else _plamo2
    if "ssm_in" in block:
        return _mamba2
    if "shortconv.conv" in block:
        return _short_conv
    if "time_mix_key" in block:
        return _rwkv
    return _lightning if _is_lightning(facts, block) else None


def _kimi_delta(facts: Facts, block: Block, elements: int) -> Mixer:
    inner, head_dim = block.rows("attn_q"), block.columns("ssm_norm")
    return KimiDelta(
        n_heads=inner // head_dim,
        head_dim=head_dim,
        kernel=block.columns("ssm_conv1d_q"),
        gate_rank=block.rows("ssm_f_a") if "ssm_f_b" in block else 0,
        whole_gate="ssm_g" in block,
    )


def _gated_delta(facts: Facts, block: Block, elements: int) -> Mixer:
    value_dim = block.columns("ssm_norm")
    return GatedDelta(
        key_heads=facts.count("ssm.group_count"),
        key_dim=facts.count("ssm.state_size"),
        value_heads=block.columns("ssm_out") // value_dim,
        value_dim=value_dim,
        kernel=block.columns("ssm_conv1d"),
    )


def _mamba1(facts: Facts, block: Block, elements: int) -> Mixer:
    dt_rank = block.columns("ssm_dt")
    return Mamba1(
        inner=block.columns("ssm_out"),
        state=(block.rows("ssm_x") - dt_rank) // 2,
        kernel=block.columns("ssm_conv1d"),
        dt_rank=dt_rank,
        conv_bias="ssm_conv1d.bias" in block.tensors,
    )


def _mamba2(facts: Facts, block: Block, elements: int) -> Mixer:
    inner, channels = block.columns("ssm_out"), block.rows("ssm_conv1d")
    groups = facts.count("ssm.group_count")
    return Mamba2(
        inner=inner,
        n_heads=block.rows("ssm_in") - inner - channels,
        groups=groups,
        state=(channels - inner) // 2 // groups,
        kernel=block.columns("ssm_conv1d"),
        conv_bias="ssm_conv1d.bias" in block.tensors,
        norm="ssm_norm" in block,
    )


def _plamo2(facts: Facts, block: Block, elements: int) -> Mixer:
    """PLaMo 2: a Mamba whose steps are those of heads, not of channels."""
    inner, kernel = block.columns("ssm_out"), block.columns("ssm_conv1d")
    return Stated(
        label="mamba with heads",
        params=elements,
        state_elements=inner * (facts.count("ssm.state_size") + kernel),
        conv_channels=inner,
        kernel=kernel,
    )


def _short_conv(facts: Facts, block: Block, elements: int) -> Mixer:
    return ShortConv(kernel=block.columns("shortconv.conv"), width=block.columns("shortconv.in_proj"))


def _rwkv(facts: Facts, block: Block, elements: int) -> Mixer:
    """RWKV: a state of a head's width per channel, and the last token's input of each mixing (``n_embd_r``)."""
    width, shifts = block.columns("time_mix_output"), facts.maybe("token_shift_count")
    state = width * (facts.count("wkv.head_size") + (2 if shifts is None else shifts))
    return Stated(label="RWKV", params=elements, state_elements=state)


def _is_lightning(facts: Facts, block: Block) -> bool:
    """Whether a layer of MiniMax-01 has lightning attention: as listed, else all but the last of each period."""
    if facts.architecture != LIGHTNING:
        return False
    if isinstance(facts.get("attention.recurrent_layers"), list):
        return bool(facts.at("attention.recurrent_layers", block.index))
    period = facts.maybe("full_attention_interval") or LIGHTNING_INTERVAL
    return (block.index + 1) % period != 0


def _lightning(facts: Facts, block: Block, elements: int) -> Mixer:
    n_heads, _ = heads(facts, block.index)
    head_dim = block.columns("attn_output") // n_heads
    return Stated(label="lightning attention", params=elements, state_elements=n_heads * head_dim * head_dim)
