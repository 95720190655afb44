"""The metadata that all GGUF files share, as the keys of a config.json."""

from typing import Any

from engine.errors import CheckpointError
from engine.families.common import FULL, SLIDING
from engine.model.config import MAX_LAYERS, ModelConfig
from engine.weights.gguf import GGUFFile


def shared_keys(file: GGUFFile) -> dict[str, Any]:
    """Keys of a config.json, except model_type; None if the file does not state one. Raises CheckpointError."""
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{file.path} has no matrix token_embd.weight, which gives the vocabulary")
    return {
        "num_hidden_layers": n_layers(file),
        "hidden_size": file.get("embedding_length"),
        "intermediate_size": file.get("feed_forward_length"),
        "num_attention_heads": file.get("attention.head_count"),
        "num_key_value_heads": file.get("attention.head_count_kv") or file.get("attention.head_count"),
        "head_dim": file.get("attention.key_length") or head_width(file),
        "max_position_embeddings": file.get("context_length"),
        "vocab_size": embedding.shape[0],
        "rms_norm_eps": file.get("attention.layer_norm_rms_epsilon"),
        "rope_theta": file.get("rope.freq_base") or 10_000.0,
        "rope_scaling": rope_scaling(file),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": has_qkv_bias(file),
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        "eos_token_id": token_id(file, "eos"),
        "bos_token_id": token_id(file, "bos"),
    }


def n_layers(file: GGUFFile) -> Any:
    """The layers that predict the next token; any layers after them predict later tokens (MTP)."""
    every, behind = file.get("block_count"), file.get("nextn_predict_layers")
    return every - behind if isinstance(every, int) and isinstance(behind, int) else every


def has_qkv_bias(file: GGUFFile) -> bool:
    """Whether queries, keys and values have a bias, in one matrix or in three."""
    return not {"blk.0.attn_q.bias", "blk.0.attn_qkv.bias"}.isdisjoint(file.tensors)


def expert_keys(file: GGUFFile) -> dict[str, Any]:
    """Experts in all, chosen per token, and their inner size: by default the MLP's divided by the chosen ones."""
    inner, chosen = file.get("feed_forward_length"), file.get("expert_used_count")
    shared_out = inner // chosen if isinstance(inner, int) and isinstance(chosen, int) and chosen else None
    return {
        "num_experts": file.get("expert_count"),
        "num_local_experts": file.get("expert_count"),
        "n_routed_experts": file.get("expert_count"),
        "num_experts_per_tok": chosen,
        "moe_intermediate_size": file.get("expert_feed_forward_length") or shared_out,
    }


def sigmoid_keys(file: GGUFFile) -> dict[str, Any]:
    """The keys of experts chosen as in DeepSeek-V3, for models with other attention."""
    return {
        **expert_keys(file),
        "n_shared_experts": file.get("expert_shared_count"),
        "first_k_dense_replace": file.get("leading_dense_block_count"),
        "routed_scaling_factor": file.get("expert_weights_scale"),
        "norm_topk_prob": file.get("expert_weights_norm") or False,
        "n_group": file.get("expert_group_count") or 1,
        "topk_group": file.get("expert_group_used_count") or 1,
    }


def token_id(file: GGUFFile, name: str) -> int | None:
    """The id of a special token: eos, bos, eot, eom."""
    value = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
    return value if isinstance(value, int) else None


def head_width(file: GGUFFile) -> int | None:
    """Hidden size / heads, where both are stated."""
    width, heads = file.get("embedding_length"), file.get("attention.head_count")
    return width // heads if isinstance(width, int) and isinstance(heads, int) and heads else None


def layer_norm_keys(file: GGUFFile) -> dict[str, Any]:
    """The epsilon of LayerNorms, under the families' different names."""
    eps = file.get("attention.layer_norm_epsilon")
    return {"layer_norm_eps": eps, "layer_norm_epsilon": eps, "norm_epsilon": eps}


def turned_share(file: GGUFFile) -> dict[str, Any]:
    """The share of each head that is rotated."""
    turned, width = file.get("rope.dimension_count"), file.get("attention.key_length") or head_width(file)
    return {"partial_rotary_factor": turned / width} if isinstance(turned, int) and width else {}


def layer_kinds(file: GGUFFile, *, every: int, window: int | None = None) -> list[str] | None:
    """layer_types of a model with a window: as in the file, else full attention in every ``every``-th layer.

    ``window``: the default if the file states none.
    """
    if not (file.get("attention.sliding_window") or window):
        return None
    pattern, n_layers = file.get("attention.sliding_window_pattern"), file.get("block_count")
    if not isinstance(pattern, list) and isinstance(n_layers, int):
        every = pattern if isinstance(pattern, int) and pattern > 0 else every
        pattern = [(i + 1) % every != 0 for i in range(min(n_layers, MAX_LAYERS))]
    return [SLIDING if near else FULL for near in pattern] if isinstance(pattern, list) else None


def both_sides(config: ModelConfig) -> dict[str, str]:
    """Tensor names of a layer with norms before and after attention and MLP."""
    return {"ffn_norm": "pre_feedforward_layernorm"}


def rope_scaling(file: GGUFFile) -> dict[str, Any] | None:
    """The keys of rope_scaling; None if positions are not scaled."""
    kind, factor = file.get("rope.scaling.type"), file.get("rope.scaling.factor") or file.get("rope.scale_linear")
    if kind is None and factor not in (None, 1):
        kind = "linear"  # llama.cpp's default if only the factor is stated; its first files had scale_linear
    if kind is None or kind == "none":
        return None
    return {
        "rope_type": kind,
        "factor": factor,
        "original_max_position_embeddings": file.get("rope.scaling.original_context_length"),
        **_magnitudes(file),
    }


def _magnitudes(file: GGUFFile) -> dict[str, float]:
    """The mscale values behind YaRN's magnitudes, if llama.cpp reads them; DeepSeek's conversion stores a tenth."""
    weight = file.get("rope.scaling.yarn_log_multiplier") or 0.0
    match file.architecture:
        case "deepseek2":
            return {"mscale": 10 * weight, "mscale_all_dim": 10 * weight}
        case "mistral3" if weight:
            return {"mscale": 1.0, "mscale_all_dim": weight}
    return {}
