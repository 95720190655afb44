"""Modules by their names in checkpoints: plain paths, globs and ``re:`` patterns, with any prefix."""

from __future__ import annotations

import re
from collections.abc import Mapping

from calc.errors import SourceError

PREFIXES = frozenset("model language_model backbone transformer thinker text_model llm".split())
"""Prefixes that a checkpoint may put before a module's path."""
ALIASES: Mapping[str, tuple[str, ...]] = {
    "mixer": ("mixer", "linear_attn", "mamba", "self_attn", "conv", "short_conv"),
    "self_attn": ("self_attn", "attention", "attn", "mixer"),
    "mlp": ("mlp", "feed_forward", "ffn", "block_sparse_moe", "mixer"),
    "shared_experts": ("shared_experts", "shared_expert", "shared_mlp"),
    "in_proj_qkvz": ("in_proj_qkvz", "in_proj_qkv"),
    "in_proj_ba": ("in_proj_ba", "in_proj_b"),
    "gate_proj": ("gate_proj", "w1"),
    "down_proj": ("down_proj", "w2"),
    "up_proj": ("up_proj", "w3"),
}
"""Parts of a module's path that have different names in checkpoints."""

LAYOUTS: Mapping[str, Mapping[str, str]] = {
    "gemma4_text": {"mlp.experts.": "experts.", "mlp.shared_experts.": "mlp.", "mlp.gate": "router.proj"},
}
"""Types with modules at another path than usual: Gemma 4 has its experts beside `mlp`, not in it."""


def published(path: str, model_type: str) -> str:
    """The module's path in checkpoints of that type."""
    for usual, own in LAYOUTS.get(model_type, {}).items():
        if f".{usual}" in path:
            return path.replace(f".{usual}", f".{own}")
    return path


class Modules:
    """A set of modules by checkpoint names: plain paths, globs and ``re:`` patterns."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.everything = "Linear" in names
        self.plain = {_below_model(name) for name in names if "*" not in name and not name.startswith("re:")}
        self.firsts = {name.split(".", 1)[0] for name in self.plain}
        globs = [_below_model(name) for name in names if "*" in name and not name.startswith("re:")]
        self.starts = tuple(
            glob[:-1] for glob in globs if glob.startswith("layers.") and glob.index("*") == len(glob) - 1
        )
        others = [_glob(glob) for glob in globs if glob[:-1] not in self.starts]
        self.patterns = [*others, *(pattern for name in names if (pattern := _pattern(name)) is not None)]

    def name(self, path: str) -> bool:
        """Whether the set contains the module at that path or one of its parents, by its path or a part of it."""
        return self.everything or any(self._names(alias) for alias in _aliases(path))

    def _names(self, path: str) -> bool:
        if path.startswith(self.starts) or self._holds_a_plain_name(path.split(".")):
            return True
        full = (path, f"model.{path}", f"model.language_model.{path}", f"language_model.model.{path}")
        return any(pattern.search(each) for pattern in self.patterns for each in full)

    def _holds_a_plain_name(self, parts: list[str]) -> bool:
        begins = (i for i, part in enumerate(parts) if part in self.firsts)
        return any(".".join(parts[i:n]) in self.plain for i in begins for n in range(i + 1, len(parts) + 1))


def _aliases(path: str) -> list[str]:
    """The checkpoint names of the module at that path."""
    found = [""]
    for part in path.split("."):
        found = [f"{start}.{name}" if start else name for start in found for name in ALIASES.get(part, (part,))]
    return found


def _below_model(name: str) -> str:
    """A module's path without the prefix before the layers: ``model.language_model.layers.0`` is ``layers.0``."""
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in PREFIXES:
        parts = parts[1:]
    return ".".join(parts)


def _glob(name: str) -> re.Pattern[str]:
    body = ".*".join(map(re.escape, name.split("*")))
    return re.compile(rf"(^|\.){body}($|\.)")


def _pattern(name: str) -> re.Pattern[str] | None:
    """A ``re:`` entry as a pattern. Raises SourceError for one that could take forever: files are untrusted."""
    if not name.startswith("re:"):
        return None
    text = name[3:]
    repeated = re.search(r"[*+?}]\s*[*+{]|\([^)]*[*+][^)]*\)[*+{]", text)
    if re.fullmatch(r"[\w.,*^$|()\[\]\\/?+!:=-]*", text) is None or repeated or text.count("*") > 8:
        raise SourceError(f"kvscope does not support the pattern {text[:60]!r} of a quantization_config")
    try:
        return re.compile(text)
    except re.error:
        raise SourceError(f"the pattern {text[:60]!r} of a quantization_config cannot be read") from None
