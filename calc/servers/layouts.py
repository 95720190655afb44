"""Which server supports which rarer cache, and since when: anything else is refused by name.

Sources: models/deepseek_v4, models/minimax_m3 and layers/mamba of vLLM 0.19 to 0.33 and its list of removed models;
mem_cache/memory_pool.py of SGLang 0.5.23; modeling_deepseek_v4.py, modeling_minimax_m3_vl.py and modeling_minimax.py of
transformers 5.23; llama-kv-cache-dsv4.cpp, -msa.cpp and llama-memory-recurrent.cpp of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from calc.errors import SpecError
from calc.model.spec import ModelSpec
from calc.servers.cache_layers import COMPRESSED, LATENT, RECURRENT, CacheLayers, cache_layers
from calc.servers.llamacpp.builds import build_of
from calc.servers.versions import MEASURED_VLLM, NEWEST, Version, parse_version


class Since(NamedTuple):
    """Versions that have a layout: from `first`, before `gone`; None means no limit."""

    first: Version | None = None
    gone: Version | None = None

    def has(self, version: Version | None) -> bool:
        """Whether `version` has it; always true for a server whose version does not matter."""
        if version is None:
            return True
        return (self.first is None or version >= self.first) and (self.gone is None or version < self.gone)


COMPRESSED_ROWS, BLOCK_INDEX = "the cache of compressed attention", "the keys of a block indexer"
MIXED_INDEX, POOLED_INDEX = (
    "the keys of a block indexer beside recurrent layers", "the keys of a latent indexer beside recurrent layers",
)  # fmt: skip
LIGHTNING = "the state of a lightning attention layer"
ALWAYS = Since()
KNOWN: Mapping[str, Mapping[str, Since]] = {
    COMPRESSED_ROWS: {"vllm": Since((0, 20)), "transformers": ALWAYS, "llamacpp": Since((9510,))},
    BLOCK_INDEX: {
        "vllm": Since((0, 24)), "sglang": Since((0, 5, 20)), "transformers": ALWAYS, "llamacpp": Since((9510,)),
    },
    MIXED_INDEX: {"transformers": ALWAYS, "llamacpp": Since((9510,))},
    POOLED_INDEX: {"llamacpp": Since((9510,))},
    LIGHTNING: {"vllm": Since((0, 11), (0, 23)), "transformers": ALWAYS, "llamacpp": ALWAYS},
    "the state of a RWKV layer": {"llamacpp": ALWAYS},
    "the state of a Mamba layer with heads": {"llamacpp": ALWAYS},
}  # fmt: skip
"""The servers by what they can keep. DeepSeek-V4 (pull request 24162) cannot be in llama.cpp before b9510; the oldest
SGLang source that was read and has MiniMax-M3 is 0.5.20."""
USUAL = frozenset(("mamba1", "mamba2", "gated_delta", "kimi_delta", "conv"))
"""Recurrences whose states every server supports."""


def check_layouts(model: ModelSpec, engine: str, version: str | None) -> None:
    """Raise SpecError if it is not known how the server stores what the model's layers keep."""
    for what in _rarer(cache_layers(model)):
        since = KNOWN.get(what, {}).get(engine)
        if since is None:
            raise SpecError("layers", f"how {engine} stores {what} is not known")
        asked = version or default_version(engine, model)
        if not since.has(_version(engine, asked)):
            raise SpecError("engine_version", f"{engine} {asked} does not support {what}: {_when(engine, since)}")


def _rarer(cached: Sequence[CacheLayers]) -> list[str]:
    recurrent = any(layer.kind == RECURRENT for layer in cached)
    found = {_what(layer, recurrent=recurrent): None for layer in cached}
    return [what for what in found if what is not None]


def _what(layer: CacheLayers, *, recurrent: bool) -> str | None:
    if layer.kind == COMPRESSED:
        return COMPRESSED_ROWS
    if layer.kind == RECURRENT:
        return None if layer.mixer in USUAL else f"the state of a {layer.mixer} layer"
    if layer.kind == LATENT and layer.window is not None:
        return "a latent for a window of tokens"
    if not layer.index_elements:
        return None
    if layer.kind == LATENT:
        return POOLED_INDEX if recurrent else None
    return MIXED_INDEX if recurrent else BLOCK_INDEX


def default_version(engine: str, model: ModelSpec) -> str:
    """The default version: vLLM's measured one, or its newest if that one lacks the model."""
    newest = NEWEST.get(engine, "")
    if engine != "vllm":
        return newest
    rarer = [KNOWN.get(what, {}).get(engine, ALWAYS) for what in _rarer(cache_layers(model))]
    measured = parse_version(MEASURED_VLLM)
    return MEASURED_VLLM if all(since.has(measured) for since in rarer) else newest


def _version(engine: str, text: str) -> Version | None:
    if engine == "llamacpp":
        return (build_of(text or None),)
    return parse_version(text) if text and engine != "transformers" else None


def _when(engine: str, since: Since) -> str:
    first = ".".join(map(str, since.first)) if since.first else ""
    gone = ".".join(map(str, since.gone)) if since.gone else ""
    build = "b" if engine == "llamacpp" else ""
    if not gone:
        return f"it came with {build}{first}" if build else f"use --engine-version {first} or later"
    return f"only versions from {first} to before {gone} have it"
