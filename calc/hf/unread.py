"""Unread keys that look like a size or a part: a model with such a key is refused, whatever its type.

Ignoring them would give a wrong count without any sign (Kimi K3's experts have an input of routed_expert_hidden_size).
A reader marks keys that it does not need with `Reader.ignore`; keys that never affect weights or caches are listed
here, once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from calc.hf.reader import Reader

SIZE_WORDS = frozenset(
    """
    size sizes dim dims width depth channels rank num n number d heads layers experts blocks groups kernel conv mamba
    ssm lora hidden inner intermediate ffn streams expand mult ratio altup
    """.split()
)
"""Words in a key, between underscores, that indicate a size or a count."""
PART_WORDS = frozenset("gate gates gated gating bias biases norm norms layernorm layernorms sink sinks".split())
"""Words in a key that indicate that the flag, if true, adds weights (use_full_rank_gate, attention_output_gate)."""

NO_SIZE: Mapping[str, frozenset[str]] = {
    "how text is generated": frozenset(
        """
        num_return_sequences num_beams num_beam_groups no_repeat_ngram_size encoder_no_repeat_ngram_size
        num_logits_to_keep task_specific_params generation_config
        """.split()
    ),
    "how the model is trained or run": frozenset(
        """
        ep_size pretraining_tp num_labels chunk_size_feed_forward prefill_chunk_size context_window_size chunk_size
        mamba_chunk_size dim_model_base quantization_config quantization compression_config
        """.split()
    ),
    "how tokens choose experts": frozenset("n_group topk_group num_expert_group".split()),
    "how positions are encoded": frozenset(
        "rotary_dim no_rope_layers no_rope_layer_interval rope_scaling rope_parameters".split()
    ),
    "the length of the context, not the size of a token": frozenset("n_ctx n_positions".split()),
    "how expert outputs are weighted, and factors of weights": frozenset(
        """
        norm_topk_prob moe_renormalize use_routing_bias use_moe_router_bias moe_router_enable_expert_bias
        moe_router_use_expert_bias use_expert_bias use_gemma_norm use_rmsnorm norm_softmax norm_before_gate
        mamba_norm_before_gate rms_norm
        rescale_prenorm_residual norm_after_topk use_router_bias router_bias normalize_router_prob norm_expert_weight
        """.split()
    ),
    "a size that another key states": frozenset("num_attention_heads_per_group org_vocab_size".split()),
}
"""Keys that look like sizes but affect neither weights nor caches, by topic."""
NOT_SIZES = frozenset().union(*NO_SIZE.values())

ENCODER_WORDS = frozenset("vision image img audio video mm vit speech sound perceiver projector".split())
"""Image and audio encoders, which are not counted here (a note says so)."""
PREDICTOR_WORDS = frozenset("mtp nextn".split())
"""Layers for multi-token prediction, which are not counted (a note says so)."""
MAX_DEPTH = 4
"""Maximum depth of nested sections that are searched; no published config is as deep."""
ID_ENDINGS = ("_id", "_ids", "_index", "_token", "_idx")
"""Endings of keys that name a token or a position."""


def unread_sizes(reader: Reader) -> list[str]:
    """Unread keys of the config and its sections that look like sizes, sorted.

    A key of a section is written as "section.key".
    """
    stated = {key: value for key, value in reader.config.items() if key in reader.stated}
    return sorted(_unread(stated, reader, reader.read))


def _unread(config: Mapping[str, Any], reader: Reader | None, read_by_path: set[str], depth: int = 0) -> Iterator[str]:
    read = set() if reader is None else reader.read
    for key, value in config.items():
        if not isinstance(key, str) or _says_no_size(key):
            continue
        if isinstance(value, dict) and depth < MAX_DEPTH:
            section = None if reader is None else reader.sections.get(key)
            if section is not None or key not in read:
                yield from (
                    path
                    for inner in _unread(value, section, set(), depth + 1)
                    if (path := f"{key}.{inner}") not in read_by_path
                )
        elif key not in read and ((SIZE_WORDS & _words(key) and _is_size(value)) or _is_part(key, value)):
            yield key


def _says_no_size(key: str) -> bool:
    words = _words(key)
    encoder = words & ENCODER_WORDS and "vocab" not in words
    return bool(key in NOT_SIZES or encoder or words & PREDICTOR_WORDS or key.endswith(ID_ENDINGS))


def _words(key: str) -> set[str]:
    return set(key.lower().split("_"))


def _is_part(key: str, value: object) -> bool:
    """Whether a flag is true and its key names a part with weights."""
    return value is True and bool(PART_WORDS & _words(key))


def _is_size(value: object) -> bool:
    """Whether it is a whole number above 0, or a list of numbers with one."""
    if isinstance(value, list):
        return any(isinstance(each, int) and _is_size(each) for each in value[:1000])
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
