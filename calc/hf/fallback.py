"""A model_type without a record: read by its fields if they determine everything, else refused by name."""

from __future__ import annotations

from calc.errors import UnsupportedArchitecture
from calc.hf.architecture import ATTENTION_BIAS, MLP_BIAS, Architecture
from calc.hf.latent import is_latent
from calc.hf.reader import (
    HIDDEN_SIZE,
    INTERMEDIATE_SIZE,
    N_HEADS,
    N_KV_HEADS,
    N_LAYERS,
    VOCAB_SIZE,
    Reader,
    shown,
)

BY_HAND = (
    "give the numbers by hand with --n-layers, --n-heads, --n-kv-heads, --head-dim, --hidden-size, "
    "--intermediate-size and --vocab-size"
)
NOT_DECODERS = frozenset(
    "albert bert bart blip clip convbert deberta deberta-v2 distilbert electra ernie longformer marian mbart "
    "mpnet m2m_100 nllb-moe pegasus roberta siglip switch_transformers t5 mt5 umt5 t5gemma vit whisper "
    "wav2vec2 xlm-roberta xlnet".split()
)
NOT_COUNTED = frozenset("blt rwkv6 rwkv7 xlstm plamo2 arctic".split())
"""Decoders known to have more or other parts than their fields say."""
OTHER_NORMS = ("query_pre_attn_scalar", "post_norm_eps")
"""Keys of architectures whose layers have more norms than a Llama's (Gemma, Muse)."""
UNGATED = ("relu2", "relu", "xielu", "gelu_new", "gelu_fast")
"""Activations of feed-forwards without a gate, in almost every architecture that uses them."""


def refuse_by_name(reader: Reader) -> None:
    """Raise UnsupportedArchitecture for a model_type that is not a decoder, or that kvscope cannot count."""
    named = f"{reader.source}: model_type {shown(reader.model_type)}"
    if reader.get("is_encoder_decoder") is True or reader.model_type in NOT_DECODERS:
        raise UnsupportedArchitecture(f"{named} is not a decoder-only language model: kvscope supports no other kind")
    if reader.model_type in NOT_COUNTED:
        raise UnsupportedArchitecture(f"{named} has layers that kvscope does not support: {BY_HAND}")


def assumed(reader: Reader) -> Architecture:
    """A gated decoder with RMSNorm; every assumption becomes a note.

    Raises UnsupportedArchitecture if the fields do not determine the sizes.
    """
    named = shown(reader.model_type)
    missing = [
        names[0] for names in (N_LAYERS, HIDDEN_SIZE, N_HEADS, INTERMEDIATE_SIZE, VOCAB_SIZE) if not reader.has(*names)
    ]
    missing += [] if is_latent(reader) or any(k in reader.config for k in N_KV_HEADS) else [N_KV_HEADS[0]]
    if "rms_norm_eps" not in reader.config:
        missing.append("rms_norm_eps")
    if missing:
        raise UnsupportedArchitecture(
            f"{reader.source}: kvscope does not know model_type {named}, and its fields do not determine it "
            f"({', '.join(missing)} missing): {BY_HAND}"
        )
    reader.notes.append(
        f"kvscope does not know model_type {named}: its fields are read as a pre-norm decoder with RMSNorm, a gated "
        "MLP" + (", latent attention" if is_latent(reader) else "") + " and biases only if a key says so"
    )
    if hints := [key for key in OTHER_NORMS if reader.get(key) is not None]:
        raise UnsupportedArchitecture(
            f"{reader.source}: kvscope does not know model_type {named}, and {hints[0]} suggests norms that its "
            f"fields do not state: {BY_HAND}"
        )
    if (activation := reader.get("hidden_act")) in UNGATED:
        raise UnsupportedArchitecture(
            f"{reader.source}: kvscope does not know model_type {named}, and hidden_act {activation} suggests a "
            f"feed-forward without a gate: {BY_HAND}"
        )
    qk_key = "use_qk_norm" if reader.has("use_qk_norm") else "qk_layernorm"
    return Architecture(
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        mlp_bias=MLP_BIAS,
        qk_norm="head",
        qk_key=(qk_key, False),
        window="upper" if reader.has("max_window_layers") else "",
    )
