"""SGLang's defaults by version and device: tokens per prefill chunk, graphs, and the static share of memory.

Source: server_args.py of 0.4.9, 0.4.10, 0.5.6, 0.5.8, 0.5.10 and memory_hook.py of 0.5.23. Sizes there are in MiB.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from calc.servers.versions import SGLANG_BY_CHUNK, SGLANG_PREFILL_GRAPHS, Version

LARGE_MIB = 60 * 1024
LEAST_LARGE_RESERVE = 10 * 1024


@dataclass(frozen=True, slots=True)
class Tier:
    """Defaults of devices below `below_gib`: chunk, and largest batch with a graph (below TP 4, from TP 4)."""

    below_gib: float
    chunk: int
    graph_batch: tuple[int, int]


TIERS = (
    Tier(20, 2048, (8, 8)),
    Tier(35, 4096, (48, 160)),
    Tier(60, 4096, (32, 160)),
    Tier(160, 8192, (256, 512)),
    Tier(float("inf"), 16_384, (512, 512)),
)
"""As in 0.5.23; before, devices of 20 to 35 GiB used 2,048 tokens and 24 or 80."""
OLD_SMALL = Tier(35, 2048, (24, 80))


@dataclass(frozen=True, slots=True, kw_only=True)
class SglangSetting:
    """What the share depends on. `latent`: whether attention is latent (MLA)."""

    total_mib: int
    tp: int
    dp_attention: int
    version: Version
    latent: bool
    multimodal: bool
    drafted: bool


def tier(setting: SglangSetting) -> Tier:
    """The defaults of the device."""
    found = next(tier for tier in TIERS if setting.total_mib < tier.below_gib * 1024)
    return OLD_SMALL if found.below_gib == OLD_SMALL.below_gib and setting.version < SGLANG_PREFILL_GRAPHS else found


def graph_batch(setting: SglangSetting) -> int:
    """The largest batch for which a decode graph is captured."""
    return tier(setting).graph_batch[setting.tp >= 4]


def prefill_sizes(most: int) -> int:
    """Number of prefill lengths with a captured graph, up to `most` tokens.

    >>> prefill_sizes(8192), prefill_sizes(2048)
    (58, 42)
    """
    steps = ((4, 32, 4), (48, 256, 16), (288, 512, 32), (576, 1024, 64), (1280, 4096, 256), (4608, most, 512))
    return sum(size <= most for first, last, step in steps for size in range(first, last + 1, step))


def static_fraction(setting: SglangSetting, chunk: int) -> Fraction:
    """--mem-fraction-static: what the activations of a chunk and the graphs leave, to three decimals."""
    reserved = _by_chunk(setting, chunk) if setting.version >= SGLANG_BY_CHUNK else _by_device(setting)
    share = Fraction(round(1000 * (setting.total_mib - reserved) / setting.total_mib), 1000)
    return max(Fraction(1, 10), share * Fraction(95, 100) if setting.multimodal else share)


def _by_chunk(setting: SglangSetting, chunk: int) -> float:
    graphs, groups = graph_batch(setting), setting.dp_attention
    reserved = 512 + max(chunk, 2048) * 1.5 + graphs * 2 + setting.tp * 128
    if groups > 1:
        reserved += graphs * groups * (4.5 if graphs > 300 else 3)
    if setting.version >= SGLANG_PREFILL_GRAPHS:
        reserved += 1.5 * 1024 if setting.latent else prefill_sizes(chunk) * 8
    if setting.total_mib > LARGE_MIB:
        reserved = max(reserved, LEAST_LARGE_RESERVE)
    return reserved + (2 * 1024 if setting.drafted else 0)


def _by_device(setting: SglangSetting) -> float:
    """Before 0.5: from a table of devices."""
    total, n = setting.total_mib / 1024, setting.tp
    small, middle, large = 2.8 + n / 10, 9.5 + n / 2, 12 + n / 2
    reserved = small if total < 35 else middle if total < 90 else large if total < 160 else 32.0
    return (reserved + (2 if setting.drafted else 0) + (4 if setting.dp_attention > 1 else 0)) * 1024
