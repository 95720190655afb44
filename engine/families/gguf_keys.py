"""The metadata that all GGUF files share, as the keys of a config.json."""

from typing import Any

from engine.errors import CheckpointError
from engine.families.common import FULL, SLIDING
from engine.model.config import MAX_LAYERS, ModelConfig
from engine.weights.gguf import GGUFFile


def shared_keys(file: GGUFFile) -> dict[str, Any]:
    """Keys of a config.json, all but model_type; None where the file does not state one. Raises CheckpointError."""
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{file.path} has no matrix token_embd.weight, which gives the vocabulary")
    return {
        "num_hidden_layers": file.get("block_count"),
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
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        "eos_token_id": token_id(file, "eos"),
        "bos_token_id": token_id(file, "bos"),
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
    """How exact LayerNorms are, under the names that the families give it."""
    eps = file.get("attention.layer_norm_epsilon")
    return {"layer_norm_eps": eps, "layer_norm_epsilon": eps, "norm_epsilon": eps}


def turned_share(file: GGUFFile) -> dict[str, Any]:
    """The share of a head that turns."""
    turned, width = file.get("rope.dimension_count"), file.get("attention.key_length") or head_width(file)
    return {"partial_rotary_factor": turned / width} if isinstance(turned, int) and width else {}


def layer_kinds(file: GGUFFile, *, every: int) -> list[str] | None:
    """layer_types of a model with a window: as the file says, else every ``every``-th layer sees everything."""
    if file.get("attention.sliding_window") is None:
        return None
    pattern, n_layers = file.get("attention.sliding_window_pattern"), file.get("block_count")
    if not isinstance(pattern, list) and isinstance(n_layers, int):
        every = pattern if isinstance(pattern, int) and pattern > 0 else every
        pattern = [(i + 1) % every != 0 for i in range(min(n_layers, MAX_LAYERS))]
    return [SLIDING if near else FULL for near in pattern] if isinstance(pattern, list) else None


def both_sides(config: ModelConfig) -> dict[str, str]:
    """Names of the parts of a layer that normalises what goes in and what comes out."""
    return {"ffn_norm": "pre_feedforward_layernorm"}


def rope_scaling(file: GGUFFile) -> dict[str, Any] | None:
    """The keys of rope_scaling; None where positions are not stretched."""
    kind, factor = file.get("rope.scaling.type"), file.get("rope.scaling.factor") or file.get("rope.scale_linear")
    if kind is None and factor not in (None, 1):
        kind = "linear"  # what llama.cpp takes where only the factor is stated; its first files had scale_linear
    if kind is None or kind == "none":
        return None
    weight = 10 * (file.get("rope.scaling.yarn_log_multiplier") or 0.0)  # the conversion stores a tenth of it
    return {
        "rope_type": kind,
        "factor": factor,
        "original_max_position_embeddings": file.get("rope.scaling.original_context_length"),
        "mscale": weight,
        "mscale_all_dim": weight,
    }


# Texts that end a turn or a text wherever they are tokens (llama.cpp's list of end-of-generation tokens).
_ENDS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>",
    "<EOT>", "_<EOT>", "<|end_of_text|>", "<end_of_utterance>", "<\uff5cend\u2581of\u2581sentence\uff5c>",
)  # fmt: skip


def end_ids(file: GGUFFile) -> tuple[int, ...]:
    """Tokens that are known to end a turn by their text, whatever the file says of them."""
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    found = {text: i for i, text in enumerate(tokens) if text in _ENDS} if isinstance(tokens, list) else {}
    if "<|return|>" in found and "<|call|>" in found:
        found.pop("<|end|>", None)  # gpt-oss ends a message with it, not a turn
    return tuple(found.values())
