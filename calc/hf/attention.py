"""Attention that caches K and V, from the fields of a config."""

from __future__ import annotations

from calc.hf.architecture import Architecture, Bias
from calc.hf.layer_kinds import CHUNKED, FULL, Kind
from calc.hf.reader import HEAD_DIM, HIDDEN_SIZE, N_HEADS, N_KV_HEADS, Reader
from calc.model.layers import Attention

BIAS_FLAGS = ("attention_bias", "qkv_bias", "use_qkv_bias", "add_qkv_bias", "attn_bias", "bias")


def has_bias(reader: Reader, bias: Bias) -> bool:
    """The value of an architecture's bias setting in this config."""
    if isinstance(bias, bool):
        reader.ignore(*BIAS_FLAGS)  # the class decides, whatever the config says
    return bias if isinstance(bias, bool) else reader.flag(*bias)


def full_attention(reader: Reader, arch: Architecture) -> Attention:
    """The mixer of a layer that attends to every token. Raises SourceError if the heads are not determined."""
    return attention_mixer(reader, arch, Kind(FULL))


def attention_mixer(reader: Reader, arch: Architecture, kind: Kind) -> Attention:
    """The mixer of a full, sliding or chunked layer. Raises SourceError if the heads are not determined."""
    n_heads = reader.count(*N_HEADS)
    n_kv_heads, head_dim = kv_heads(reader, arch, n_heads), head_size(reader, n_heads)
    keys_are_values = False
    if kind.window is None:
        head_dim = reader.maybe("global_head_dim") or head_dim
        if keys_are_values := reader.flag("attention_k_eq_v"):
            n_kv_heads = reader.maybe("num_global_key_value_heads") or n_kv_heads
        else:
            reader.ignore("num_global_key_value_heads")
    if n_heads % n_kv_heads:
        raise reader.fail(f"num_key_value_heads {n_kv_heads} does not divide num_attention_heads {n_heads}")
    return Attention(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        value_dim=reader.maybe("v_head_dim", minimum=0) or head_dim,
        window=kind.window,
        chunked=kind.name == CHUNKED,
        qkv_bias=has_bias(reader, arch.qkv_bias),
        o_bias=has_bias(reader, arch.o_bias),
        gated=arch.gated_attention and reader.flag("attn_output_gate", True),
        values=not keys_are_values,
        extra_params=(n_heads if arch.sinks else 0)
        + arch.extra_head_dims * head_dim
        + (reader.count(*HIDDEN_SIZE) * n_heads * head_dim if arch.separate_gate else 0),
    )


def kv_heads(reader: Reader, arch: Architecture, n_heads: int) -> int:
    """KV heads; without a value in the config, one per query head, or what the class assumes."""
    if reader.flag("multi_query") and not reader.flag("new_decoder_architecture"):
        reader.ignore(*N_KV_HEADS)
        return 1
    if reader.flag("multi_query_attention"):
        return reader.count("multi_query_group_num")
    if (found := reader.maybe(*N_KV_HEADS)) is not None:
        return found
    if any(key in reader.config for key in N_KV_HEADS):
        reader.notes.append(f"num_key_value_heads is null: {n_heads}, one KV head per query head")
        return n_heads
    if not any(note.startswith("num_key_value_heads") for note in reader.notes) and arch.gated:
        reader.assume("num_key_value_heads", n_heads)
    return n_heads


def head_size(reader: Reader, n_heads: int) -> int:
    """head_dim, or hidden_size / n_heads if the class divides this way."""
    if (found := reader.maybe(*HEAD_DIM)) is not None:
        return found
    if "head_dim" in reader.of_class and "head_dim" in reader.config:
        raise reader.fail(f"head_dim must be a whole number, not null: a {reader.model_type} model has its own")
    hidden_size = reader.count(*HIDDEN_SIZE)
    if hidden_size % n_heads:
        raise reader.fail(
            f"head_dim missing, and hidden_size {hidden_size} is not a multiple of num_attention_heads {n_heads}"
        )
    return hidden_size // n_heads


def qk_norm_params(reader: Reader, arch: Architecture, mixer: Attention) -> int:
    """Weights of the Q and K norms."""
    if not arch.qk_norm or (arch.qk_key is not None and not reader.flag(*arch.qk_key)):
        return 0
    widths = {
        "head": 2 * mixer.head_dim,
        "full": (mixer.n_heads + mixer.n_kv_heads) * mixer.head_dim,
        "each": (mixer.n_heads + mixer.n_kv_heads) * mixer.head_dim,
    }
    biased = arch.norm == "layer" and arch.qk_norm != "each"
    return widths[arch.qk_norm] * (2 if biased else 1)
