"""Rotary positions of a config.json: base and scaling, in the old keys and in those of transformers 5.

The formulas behind the magnitudes are those of transformers' modeling_rope_utils (5.23).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from engine.errors import ConfigError, UnsupportedArchitecture
from engine.families.keys import Keys
from engine.model.config import (
    DynamicRopeScaling,
    LinearRopeScaling,
    Llama3RopeScaling,
    LongRopeScaling,
    RopeScaling,
    YarnRopeScaling,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeKeys:
    """The rotary settings of a config.json. ``attention_factor`` multiplies the attention's scale."""

    theta: float
    scaling: RopeScaling | None = None
    attention_factor: float = 1.0


def read_rope(raw: Keys, *, theta: float = 1e4, rotary_dim: int, aliases: dict[str, str] | None = None) -> RopeKeys:
    """Base and scaling from ``rope_parameters`` (transformers 5) or ``rope_theta`` and ``rope_scaling``.

    ``theta``: the family's default base. ``aliases``: names that mean another scaling in this family.
    """
    parameters = raw.section("rope_parameters")
    scaling = parameters or raw.section("rope_scaling")
    base = (parameters if parameters and parameters.get("rope_theta") else raw).positive("rope_theta", theta)
    if scaling is None:
        return RopeKeys(theta=base)
    return read_scaling(raw, scaling, base, rotary_dim=rotary_dim, aliases=aliases or {})


def read_scaling(raw: Keys, scaling: Keys, theta: float, *, rotary_dim: int, aliases: dict[str, str]) -> RopeKeys:
    """The scaling that a JSON object of parameters describes."""
    kind = str(scaling.get("rope_type") or scaling.get("type") or "default")
    kind = aliases.get(kind, kind)
    if kind == "default":
        return RopeKeys(theta=theta)
    reader = _READERS.get(kind)
    if reader is None:
        raise UnsupportedArchitecture(
            f"{scaling.where}: type {kind!r} is not supported; use default, {', '.join(_READERS)}"
        )
    factor = 1.0
    if kind == "yarn":
        weight = scaling.positive("mscale_all_dim") if scaling.get("mscale_all_dim") else 0.0
        factor = mscale(_factor(raw, scaling), weight) ** 2
    return RopeKeys(theta=theta, scaling=reader(raw, scaling, rotary_dim), attention_factor=factor)


def mscale(scale: float, weight: float = 1.0) -> float:
    """YaRN's factor on attention for a stretch by ``scale``: 0.1 weight ln(scale) + 1, or 1 without a stretch."""
    return 1.0 if scale <= 1 else 0.1 * weight * math.log(scale) + 1.0


def _linear(raw: Keys, scaling: Keys, rotary_dim: int) -> LinearRopeScaling:
    return LinearRopeScaling(factor=scaling.positive("factor"))


def _dynamic(raw: Keys, scaling: Keys, rotary_dim: int) -> DynamicRopeScaling:
    if rotary_dim <= 2:
        raise ConfigError(f"{scaling.where}: a dynamic base needs heads that turn in more than one pair")
    return DynamicRopeScaling(
        factor=scaling.positive("factor"), original_max_positions=raw.count("max_position_embeddings")
    )


def _llama3(raw: Keys, scaling: Keys, rotary_dim: int) -> Llama3RopeScaling:
    low, high = scaling.positive("low_freq_factor"), scaling.positive("high_freq_factor")
    if high <= low:
        raise ConfigError(f"{scaling.where}: high_freq_factor {high:g} must exceed low_freq_factor {low:g}")
    return Llama3RopeScaling(
        factor=scaling.positive("factor"),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_positions=scaling.count("original_max_position_embeddings"),
    )


def _yarn(raw: Keys, scaling: Keys, rotary_dim: int) -> YarnRopeScaling:
    factor = _factor(raw, scaling)
    theta = (scaling if scaling.get("rope_theta") is not None else raw).positive("rope_theta", 1e4)
    if theta <= 1:
        raise ConfigError(f"{scaling.where}: rope_theta is {theta:g}; YaRN needs more than 1")
    fast, slow = scaling.positive("beta_fast", 32), scaling.positive("beta_slow", 1)
    if slow >= fast:
        raise ConfigError(f"{scaling.where}: beta_fast {fast:g} must exceed beta_slow {slow:g}")
    return YarnRopeScaling(
        factor=factor,
        original_max_positions=_original(raw, scaling),
        beta_fast=fast,
        beta_slow=slow,
        magnitude=scaling.optional_positive("attention_factor") or _yarn_magnitude(scaling, factor),
        truncate=scaling.flag("truncate", True),
    )


def _yarn_magnitude(scaling: Keys, factor: float) -> float:
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return mscale(factor, scaling.positive("mscale")) / mscale(factor, scaling.positive("mscale_all_dim"))
    return mscale(factor)


def _longrope(raw: Keys, scaling: Keys, rotary_dim: int) -> LongRopeScaling:
    factor, original = _factor(raw, scaling), _original(raw, scaling)
    magnitude = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return LongRopeScaling(
        short_factors=scaling.positives("short_factor", n=rotary_dim // 2),
        long_factors=scaling.positives("long_factor", n=rotary_dim // 2),
        original_max_positions=original,
        magnitude=scaling.optional_positive("attention_factor") or magnitude,
    )


def _factor(raw: Keys, scaling: Keys) -> float:
    """The stated stretch factor, or the declared context length divided by the original one."""
    return scaling.optional_positive("factor") or raw.count("max_position_embeddings") / _original(raw, scaling)


def _original(raw: Keys, scaling: Keys) -> int:
    """The context length before stretching; Phi-3 states it outside the scaling object."""
    where = scaling if scaling.get("original_max_position_embeddings") is not None else raw
    original = where.count("original_max_position_embeddings", raw.count("max_position_embeddings"))
    if original < 2:
        raise ConfigError(f"{where.where}: original_max_position_embeddings is {original}; it must be at least 2")
    return original


_READERS: dict[str, Callable[[Keys, Keys, int], RopeScaling]] = {
    "llama3": _llama3,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
}
