"""The kind of each layer's mixer from the fields of a config: full, sliding, chunked, or a recurrence."""

from __future__ import annotations

from dataclasses import dataclass

from calc.hf.architecture import Architecture
from calc.hf.reader import Reader, shown

FULL, SLIDING, CHUNKED, NONE = "full", "sliding", "chunked", "none"
MAMBA1, MAMBA2, DELTA, CONV = "mamba1", "mamba2", "gated_delta", "conv"

LAYER_TYPES = {
    "full_attention": FULL,
    "attention": FULL,
    "global": FULL,
    "global_attention": FULL,
    "sliding_attention": SLIDING,
    "local": SLIDING,
    "local_attention": SLIDING,
    "sliding_window_attention": SLIDING,
    "chunked_attention": CHUNKED,
    "indexed_attention": FULL,
    "deepseek_sparse_attention": FULL,
    "linear_attention": "linear",
    "mamba": "mamba",
    "mamba2": MAMBA2,
    "conv": CONV,
    "moe": NONE,
    "mlp": NONE,
}
FULL_TYPE, LINEAR_TYPE = "full_attention", "linear_attention"
PATTERN_LETTERS = {"M": MAMBA2, "*": FULL, "E": NONE, "-": NONE}


@dataclass(frozen=True, slots=True)
class Kind:
    """A layer's kind and, if it is sliding or chunked, the tokens it keeps."""

    name: str
    window: int | None = None


def linear_or_full(reader: Reader, n_layers: int) -> list[str] | None:
    """layer_types of a model that has only linear_attention and full_attention; None if it is absent."""
    listed = reader.per_layer("layer_types", n_layers)
    if listed is not None and (unknown := [kind for kind in listed if kind not in (LINEAR_TYPE, FULL_TYPE)]):
        known = f"{LINEAR_TYPE} and {FULL_TYPE}"
        raise reader.fail(f"layer_types has {shown(unknown[0])}: a {reader.model_type} model has {known}")
    return listed


def layer_kinds(reader: Reader, arch: Architecture, n_layers: int) -> list[Kind]:
    """One kind per layer. Raises SourceError if the config names an unknown one."""
    reader.ignore("max_window_layers", "sliding_window_size")  # read if use_sliding_window is on
    names = _listed(reader, n_layers) or _hybrid(reader, n_layers)
    if names is None:
        return [_attention(reader, arch, i, n_layers) for i in range(n_layers)]
    window = _window(reader, arch, needed=SLIDING in names)
    chunk = reader.maybe("attention_chunk_size")
    return [_kind(name, window, chunk) for name in names]


def _kind(name: str, window: int | None, chunk: int | None) -> Kind:
    if name == SLIDING and window is not None:
        return Kind(SLIDING, window)
    if name == CHUNKED and chunk is not None:
        return Kind(CHUNKED, chunk)
    return Kind(FULL if name in (SLIDING, CHUNKED) else name)


def _listed(reader: Reader, n_layers: int) -> list[str] | None:
    """From a list of names, one per layer (layer_types and similar), or a pattern of letters."""
    pattern = reader.get("hybrid_override_pattern")
    if isinstance(pattern, str):
        return _letters(reader, pattern, n_layers)
    for key in ("layer_types", "layers_block_type", "attention_layer_types"):
        values = reader.per_layer(key, n_layers)
        if values is not None:
            return [_named(reader, key, value) for value in values]
    return None


def _named(reader: Reader, key: str, value: object) -> str:
    kind = LAYER_TYPES.get(value) if isinstance(value, str) else None
    if kind is None:
        known = ", ".join(sorted(LAYER_TYPES))
        raise reader.fail(f"{key} has {shown(value)}: kvscope knows {known}")
    return _recurrence(reader) if kind in ("linear", "mamba") else kind


def _recurrence(reader: Reader) -> str:
    """Which recurrence a "linear" or "mamba" layer is, by the fields that come with it."""
    if reader.has("mamba_num_heads", "mamba_n_heads"):
        return MAMBA2
    if reader.has("mamba_dt_rank"):
        return MAMBA1
    if reader.has("linear_num_value_heads"):
        return DELTA
    raise reader.fail("recurrent layers need linear_num_value_heads, mamba_num_heads or mamba_dt_rank")


def _letters(reader: Reader, pattern: str, n_layers: int) -> list[str]:
    unknown = set(pattern) - set(PATTERN_LETTERS)
    if unknown or len(pattern) != n_layers:
        raise reader.fail(
            f"hybrid_override_pattern must have {n_layers} letters out of M, *, E and -, not {shown(pattern)}"
        )
    return [PATTERN_LETTERS[letter] for letter in pattern]


def _hybrid(reader: Reader, n_layers: int) -> list[str] | None:
    """From periods and indices of hybrid models."""
    if (period := reader.maybe("attn_layer_period")) is not None:
        offset = reader.maybe("attn_layer_offset", minimum=0) or 0
        return [FULL if i % period == offset else MAMBA1 for i in range(n_layers)]
    if (interval := reader.maybe("full_attention_interval")) is not None and reader.has("linear_num_value_heads"):
        return [DELTA if (i + 1) % interval else FULL for i in range(n_layers)]
    if "attn_layer_indices" in reader.config and reader.has("mamba_n_heads"):
        full = reader.indices("attn_layer_indices")
        return [FULL if i in full else MAMBA2 for i in range(n_layers)]
    if reader.get("full_attn_idxs") is not None and reader.has("conv_L_cache"):
        full = reader.indices("full_attn_idxs")
        return [FULL if i in full else CONV for i in range(n_layers)]
    if reader.has("attention_chunk_size"):
        return _chunked(reader, n_layers)
    return None


def _chunked(reader: Reader, n_layers: int) -> list[str]:
    """Llama 4: layers with rotary positions are chunked; every fourth layer has none and attends to all tokens."""
    rotary = reader.get("no_rope_layers") or None
    if rotary is None:
        interval = reader.maybe("no_rope_layer_interval") or 4
        return [CHUNKED if (i + 1) % interval else FULL for i in range(n_layers)]
    if not isinstance(rotary, list) or len(rotary) != n_layers:
        raise reader.fail(f"no_rope_layers must be a list of {n_layers} values, one per layer")
    return [CHUNKED if value else FULL for value in rotary]


def _attention(reader: Reader, arch: Architecture, layer: int, n_layers: int) -> Kind:
    """Full or sliding, if the config lists no kinds."""
    window = _window(reader, arch, needed=False)
    if window is None:
        return Kind(FULL)
    return Kind(SLIDING, window) if _slides(reader, arch, layer) else Kind(FULL)


def _slides(reader: Reader, arch: Architecture, layer: int) -> bool:
    pattern = reader.get("sliding_window_pattern")
    if isinstance(pattern, str) and pattern and set(pattern) <= {"L", "G"}:
        return pattern[layer % len(pattern)] == "L"
    if pattern is not None:
        return (layer + 1) % reader.count("sliding_window_pattern") != 0
    rule, _, every = arch.window.partition(":")
    if rule == "" and arch.known:
        _note_once(reader, f"sliding_window is not used: the {reader.model_type} class has no sliding layers")
        return False
    if rule == "every":
        return (layer + 1) % int(every) != 0
    if rule == "upper":
        return reader.flag("use_sliding_window") and layer >= (reader.maybe("max_window_layers", minimum=0) or 0)
    if rule == "all":
        return True
    raise reader.fail(
        f"sliding_window is {reader.count('sliding_window')}, but nothing says which layers are sliding: add "
        "layer_types, with full_attention or sliding_attention per layer"
    )


def _window(reader: Reader, arch: Architecture, *, needed: bool) -> int | None:
    if not reader.flag("use_sliding_window", arch.window != "upper"):
        if reader.has("sliding_window"):
            _note_once(reader, "sliding_window is off: use_sliding_window is not true")
        return None
    for key in ("sliding_window", "sliding_window_size"):
        if key in reader.config:
            return reader.maybe(key, minimum=0) or None
    if arch.default_window is not None:
        _note_once(
            reader,
            f"sliding_window is not in the config: {arch.default_window}, as the {reader.model_type} class assumes",
        )
        return arch.default_window
    if needed:
        raise reader.fail("sliding_window missing, but layer_types has sliding layers")
    return None


def _note_once(reader: Reader, note: str) -> None:
    if note not in reader.notes:
        reader.notes.append(note)
