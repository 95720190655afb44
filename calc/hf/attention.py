"""Attention that caches K and V, from the fields of a config."""

from __future__ import annotations

from calc.hf.families import Bias, Family
from calc.hf.kinds import CHUNKED, Kind
from calc.hf.reader import HIDDEN_SIZE, N_HEADS, N_KV_HEADS, Reader
from calc.model.layers import Attention


def has_bias(reader: Reader, bias: Bias) -> bool:
    """What a family's bias comes to in this config."""
    return bias if isinstance(bias, bool) else reader.flag(*bias)


def attention_mixer(reader: Reader, family: Family, kind: Kind) -> Attention:
    """The mixer of a full, sliding or chunked layer. Raises SourceError where heads are not determined."""
    n_heads = reader.count(*N_HEADS)
    n_kv_heads, head_dim = kv_heads(reader, family, n_heads), head_size(reader, family, n_heads)
    keys_are_values = False
    if kind.window is None:
        head_dim = reader.maybe("global_head_dim") or head_dim
        if keys_are_values := reader.flag("attention_k_eq_v"):
            n_kv_heads = reader.maybe("num_global_key_value_heads") or n_kv_heads
    if n_heads % n_kv_heads:
        raise reader.fail(f"num_key_value_heads {n_kv_heads} does not divide num_attention_heads {n_heads}")
    return Attention(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        value_dim=reader.maybe("v_head_dim", minimum=0) or head_dim,
        window=kind.window,
        chunked=kind.name == CHUNKED,
        qkv_bias=has_bias(reader, family.qkv_bias),
        o_bias=has_bias(reader, family.o_bias),
        gated=family.gated_attention and reader.flag("attn_output_gate", True),
        values=not keys_are_values,
        extra_params=(n_heads if family.sinks else 0)
        + family.extra_head_dims * head_dim
        + (reader.count(*HIDDEN_SIZE) * n_heads * head_dim if family.separate_gate else 0),
    )


def kv_heads(reader: Reader, family: Family, n_heads: int) -> int:
    """KV heads; a config that says nothing has one for each query head, or what its class assumes."""
    if reader.flag("multi_query") and not reader.flag("new_decoder_architecture"):
        return 1
    if reader.flag("multi_query_attention"):
        return reader.count("multi_query_group_num")
    if (found := reader.maybe(*N_KV_HEADS)) is not None:
        return found
    if any(key in reader.config for key in N_KV_HEADS):
        reader.notes.append(f"num_key_value_heads is null: {n_heads}, a KV head for each query head")
        return n_heads
    if family.n_kv_heads is not None:
        reader.assume("num_key_value_heads", family.n_kv_heads)
        return family.n_kv_heads
    if not any(note.startswith("num_key_value_heads") for note in reader.notes) and family.gated:
        reader.assume("num_key_value_heads", n_heads)
    return n_heads


def head_size(reader: Reader, family: Family, n_heads: int) -> int:
    """head_dim, or hidden_size / n_heads where the class divides so."""
    if (found := reader.maybe("head_dim", "attention_head_dim", "kv_channels")) is not None:
        return found
    if family.head_dim is not None:
        if "head_dim" in reader.config:
            raise reader.fail(f"head_dim must be a whole number, not null: a {reader.model_type} model has its own")
        reader.assume("head_dim", family.head_dim)
        return family.head_dim
    hidden_size = reader.count(*HIDDEN_SIZE)
    if hidden_size % n_heads:
        raise reader.fail(
            f"head_dim missing, and hidden_size {hidden_size} is not a multiple of num_attention_heads {n_heads}"
        )
    return hidden_size // n_heads


def qk_norm_params(reader: Reader, family: Family, mixer: Attention) -> int:
    """Weights of the norms of Q and K."""
    if not family.qk_norm or (family.qk_key is not None and not reader.flag(*family.qk_key)):
        return 0
    widths = {
        "head": 2 * mixer.head_dim,
        "full": (mixer.n_heads + mixer.n_kv_heads) * mixer.head_dim,
        "each": (mixer.n_heads + mixer.n_kv_heads) * mixer.head_dim,
    }
    biased = family.norm == "layer" and family.qk_norm != "each"
    return widths[family.qk_norm] * (2 if biased else 1)
