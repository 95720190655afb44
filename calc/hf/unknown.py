"""A model_type that no table knows: read by its fields alone where they leave nothing open, else refused by name."""

from __future__ import annotations

from calc.errors import UnsupportedArchitecture
from calc.hf.families import ATTENTION_BIAS, Family
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

UNDERSTOOD = frozenset(
    """
    hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim intermediate_size vocab_size
    max_position_embeddings rms_norm_eps tie_word_embeddings attention_bias mlp_bias layer_types sliding_window
    use_sliding_window max_window_layers sliding_window_pattern kv_lora_rank q_lora_rank qk_nope_head_dim
    qk_rope_head_dim v_head_dim qk_head_dim first_k_dense_replace n_routed_experts num_experts num_local_experts
    n_shared_experts num_shared_experts num_experts_per_tok moe_intermediate_size moe_layer_freq decoder_sparse_step
    mlp_only_layers mlp_layer_types shared_expert_intermediate_size use_qk_norm qk_layernorm
    """.split()
)
"""Keys that say how large something is and that the readers take account of."""
SIZES = ("size", "_dim", "_rank", "num_", "n_", "layers", "heads", "expert", "kernel", "mamba", "ssm", "conv", "altup")
HARMLESS = frozenset(
    """
    num_labels n_group topk_group num_logits_to_keep num_return_sequences no_repeat_ngram_size num_beams
    num_beam_groups chunk_size_feed_forward encoder_no_repeat_ngram_size layerdrop num_nextn_predict_layers
    mtp_num_hidden_layers expert_dropout router_aux_loss_coef num_mtp_layers pretraining_tp initializer_range
    ep_size norm_topk_prob layer_norm_eps layer_norm_epsilon n_positions model_max_length bos_token_id
    norm_expert_weight num_attention_heads_per_group image_token_index transformers_version
    original_max_position_embeddings
    """.split()
)


def assumed_family(reader: Reader, by_hand: str) -> Family:
    """A gated decoder with RMSNorm, every assumption noted.

    Raises UnsupportedArchitecture where fields hint at more.
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
            f"{reader.source}: model_type {named} is not one that kvscope knows, and its fields do not determine it "
            f"({', '.join(missing)} missing): {by_hand}"
        )
    if strange := _strange(reader):
        raise UnsupportedArchitecture(
            f"{reader.source}: model_type {named} is not one that kvscope knows, and it has fields that may add "
            f"weights or caches ({', '.join(strange[:4])}): {by_hand}"
        )
    reader.notes.append(
        f"model_type {named} is not one that kvscope knows: read by its fields as a pre-norm decoder with RMSNorm, "
        "a gated MLP" + (", latent attention" if is_latent(reader) else "") + " and biases only where a key says so"
    )
    qk_key = "use_qk_norm" if reader.has("use_qk_norm") else "qk_layernorm"
    return Family(
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        mlp_bias=("mlp_bias", False),
        qk_norm="head",
        qk_key=(qk_key, False),
        window="upper" if reader.has("max_window_layers") else "",
        known=False,
    )


def _strange(reader: Reader) -> list[str]:
    """Keys with a positive number that look like a size and that nothing here takes account of."""
    return sorted(
        key
        for key, value in reader.config.items()
        if key not in UNDERSTOOD
        and key not in HARMLESS
        and any(part in key for part in SIZES)
        and not key.endswith(("_token_id", "_token_index", "_eps", "_coef", "_ids"))
        and (isinstance(value, dict) or (isinstance(value, int | list) and not isinstance(value, bool) and value))
    )
