"""Which build of llama.cpp introduced what. A build before a feature refuses its option or uses the older accounting.

Numbers of builds: release tags and the dates of the pull requests named here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from calc.errors import SpecError

MEASURED = 11549
"""The default build, whose buffers were compared: that of the PyPI wheel xllamacpp 2026.10.11549."""
QUANTIZED_KEYS = 1620
"""--cache-type-k (pull request 4309, December 2023)."""
SPLIT_BY_LAYER = 1842
"""Several devices share whole layers, --split-mode layer (4918, January 2024); before, rows of every matrix."""
QUANTIZED_VALUES = 3068
"""--cache-type-v, which needs flash attention (5021 and 7527, June 2024)."""
LATENT_CACHE = 5140
"""One row per token for latent attention (12801, April 2025); before, K and V of every head."""
WINDOW_CACHE = 5554
"""Window layers keep their window and one batch (13194 and 13833, May 2025); before, the whole context."""
UNIFIED = 5920
"""--kv-unified (14363, July 2025); before, all slots always shared one cache."""
HOST_EXPERTS = 6089
"""--n-cpu-moe (15077, August 2025)."""
FLASH_WORDS = 6325
"""--flash-attn takes on, off or auto (15434, August 2025); before, it is a flag."""
HOST_PROMPTS = 6725
"""The server keeps prompts on the host, 8 GiB by default, --cache-ram (16391, October 2025)."""
FEW_OUTPUTS = 9510
"""Logits are reserved for one token per slot (23861, June 2026); before, for every token of a batch."""

SINCE: Mapping[str, tuple[int, str]] = {
    "n_cpu_moe": (HOST_EXPERTS, "--n-cpu-moe"),
    "swa_full": (WINDOW_CACHE, "--swa-full"),
    "cache_ram_bytes": (HOST_PROMPTS, "--cache-ram"),
    "tensor_split": (SPLIT_BY_LAYER, "--tensor-split by whole layers"),
}
"""Options by field, with the first build that has them and their names."""


def build_of(version: str | None) -> int:
    """The number of a build: ``b4800``, ``4800``, ``b7003 (596a297cb)``; the measured one if none is given.

    >>> build_of("b4800"), build_of("7003 (596a297cb)")
    (4800, 7003)
    """
    if version is None:
        return MEASURED
    match = re.match(r"b?(\d{3,6})(?![\d.])", version.strip().lower())
    if match is None:
        raise SpecError("engine_version", f"a build of llama.cpp looks like b6089, not {version[:40]!r}")
    return int(match[1])


def check_build(build: int, given: Mapping[str, object]) -> None:
    """Raise SpecError for an option that this build does not have."""
    for name, (first, words) in SINCE.items():
        if given.get(name) and build < first:
            raise SpecError(name, f"llama.cpp b{build} has no {words}: it came with b{first}")
