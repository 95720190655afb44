"""Latent attention (MLA), from the fields of a config: kv_lora_rank says that a model has it."""

from __future__ import annotations

from calc.hf.families import Family
from calc.hf.reader import HIDDEN_SIZE, N_HEADS, Reader
from calc.model.layers import Latent


def is_latent(reader: Reader) -> bool:
    """Whether K and V come from a latent."""
    return reader.has("kv_lora_rank")


def latent_mixer(reader: Reader, family: Family) -> Latent:
    """The mixer of a latent layer; a null q_lora_rank means that queries are projected directly."""
    if "q_lora_rank" not in reader.config:
        raise reader.fail("q_lora_rank missing: write null where queries have no latent")
    bias = family.qkv_bias is not False and reader.flag("attention_bias")
    return Latent(
        n_heads=reader.count(*N_HEADS),
        kv_lora_rank=reader.count("kv_lora_rank"),
        nope_dim=reader.count("qk_nope_head_dim"),
        rope_dim=reader.count("qk_rope_head_dim"),
        value_dim=_value_dim(reader),
        q_lora_rank=reader.maybe("q_lora_rank", minimum=0) or 0,
        index_heads=reader.maybe("index_n_heads", minimum=0) or 0,
        index_dim=reader.maybe("index_head_dim", minimum=0) or 0,
        bias=bias,
    )


def _value_dim(reader: Reader) -> int:
    """v_head_dim; MiniCPM3's configs leave it out, and its class divides hidden_size."""
    if reader.has("v_head_dim") or reader.model_type != "minicpm3":
        return reader.count("v_head_dim")
    each = reader.count(*HIDDEN_SIZE) // reader.count(*N_HEADS)
    reader.assume("v_head_dim", f"{each}, hidden_size divided by the heads")
    return each
