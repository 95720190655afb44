"""Rotary positions: tables of cos and sin for every scaling, and the rotation itself.

Shapes: B rows, T new tokens, r rotated dimensions of a head.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.model.config import (
    DynamicRopeScaling,
    LinearRopeScaling,
    Llama3RopeScaling,
    LongRopeScaling,
    Rope,
    RopeScaling,
    YarnRopeScaling,
)


class Rotary:
    """Tables of cos and sin for one kind of layer, extended when later positions are requested."""

    def __init__(self, rope: Rope, *, dtype: torch.dtype, device: torch.device) -> None:
        magnitude = rope_magnitude(rope.scaling)
        short = rope_frequencies(rope.rotary_dim, rope.theta, rope.scaling)
        self.dim = rope.rotary_dim
        self._short = _Table(short, magnitude, dtype, device)
        self._long: _Table | None = None
        self.original_context = 0
        scaling = rope.scaling
        if isinstance(scaling, LongRopeScaling) and scaling.short_factors != scaling.long_factors:
            frequencies = rope_frequencies(rope.rotary_dim, rope.theta, rope.scaling, long=True)
            self._long = _Table(frequencies, magnitude, dtype, device)
            self.original_context = scaling.original_max_positions

    @property
    def inverse_frequencies(self) -> Tensor:
        """Angle per token of each pair, float64 (r/2,); for LongRoPE those of the original context."""
        return self._short.frequencies

    @property
    def long_frequencies(self) -> Tensor | None:
        """The same for a text longer than ``original_context``; None if the length does not matter."""
        return self._long.frequencies if self._long is not None else None

    def rows(self, start: int, stop: int, *, long: int = 0) -> tuple[Tensor, Tensor]:
        """cos and sin of positions start..stop-1, each (stop - start, 1, r).

        ``long``: the length of a text that is longer than ``original_context``, else 0.
        """
        return self._table(long > 0).rows(start, stop)

    def rows_at(self, positions: Tensor, stop: int, *, long: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """cos and sin of positions (B, T), all below ``stop``, each (B, T, 1, r); ``long`` as in `rows`, per row."""
        cos, sin = self._table(all(long) and bool(long)).rows(0, stop)
        cos, sin = cos[positions], sin[positions]
        if any(long) and not all(long):
            rows = torch.tensor(long, device=positions.device)[:, None, None, None] > 0
            cos, sin = (
                torch.where(rows, table[positions], part)
                for table, part in zip(self._table(True).rows(0, stop), (cos, sin), strict=True)
            )
        return cos, sin

    def _table(self, long: bool) -> "_Table":
        return self._long if self._long is not None and long else self._short


class DynamicRotary(Rotary):
    """Beyond the original context the rotary base depends on the text length (`DynamicRopeScaling`)."""

    def __init__(self, rope: Rope, scaling: DynamicRopeScaling, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(rope, dtype=dtype, device=device)
        self.original_context = scaling.original_max_positions
        self._theta = rope.theta
        self._factor = scaling.factor
        self._dtype = dtype
        self._device = device

    def rows(self, start: int, stop: int, *, long: int = 0) -> tuple[Tensor, Tensor]:
        """As `Rotary.rows`."""
        if max(stop, long) <= self.original_context:
            return super().rows(start, stop)
        cos, sin = self._grown(torch.arange(start, stop)[None], (long,))
        return cos[0], sin[0]

    def rows_at(self, positions: Tensor, stop: int, *, long: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """As `Rotary.rows_at`."""
        if stop <= self.original_context and not any(long):
            return super().rows_at(positions, stop)
        return self._grown(positions.cpu(), long)

    def _grown(self, positions: Tensor, long: Sequence[int]) -> tuple[Tensor, Tensor]:
        """For a text of T tokens the base is theta (factor T / original - factor + 1)^(r / (r - 2))."""
        texts = torch.maximum(positions + 1, torch.tensor(long)[:, None]).clamp_min(self.original_context).double()
        growth = self._factor * texts / self.original_context - (self._factor - 1)
        exponents = torch.arange(0, self.dim, 2, dtype=torch.float64) / self.dim
        bases = self._theta * growth ** (self.dim / (self.dim - 2))
        angles = positions[..., None] * bases[..., None] ** -exponents
        return _turns(angles[..., None, :], 1.0, self._dtype, self._device)


def make_rotary(rope: Rope, *, dtype: torch.dtype, device: torch.device) -> Rotary:
    """The rotary tables for the positions of a layer."""
    if isinstance(rope.scaling, DynamicRopeScaling):
        return DynamicRotary(rope, rope.scaling, dtype=dtype, device=device)
    return Rotary(rope, dtype=dtype, device=device)


def _turns(angles: Tensor, magnitude: float, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin (.., r) of angles (.., r/2). The first half holds -sin: with the sign in the table, a rotation is
    two products and a sum.
    """
    cos, sin = angles.cos() * magnitude, angles.sin() * magnitude
    return torch.cat((cos, cos), -1).to(device, dtype), torch.cat((-sin, sin), -1).to(device, dtype)


class _Table:
    def __init__(self, frequencies: Tensor, magnitude: float, dtype: torch.dtype, device: torch.device) -> None:
        self.frequencies = frequencies
        self.magnitude = magnitude
        self.dtype = dtype
        self.device = device
        self._cos = self._sin = torch.empty(0, 1, 2 * frequencies.numel(), dtype=dtype, device=device)

    def rows(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        if stop > self._cos.size(0):
            self._grow(1 << (stop - 1).bit_length())
        return self._cos[start:stop], self._sin[start:stop]

    def _grow(self, n_rows: int) -> None:
        positions = torch.arange(n_rows, dtype=torch.float64)
        angles = torch.outer(positions, self.frequencies)[:, None]  # (rows, 1, r/2)
        self._cos, self._sin = _turns(angles, self.magnitude, self.dtype, self.device)


def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate x (B, T, heads, r) by its positions, in place: x cos + (x with its halves swapped) sin."""
    swapped = x.roll(x.size(-1) // 2, -1)
    x.mul_(cos).addcmul_(swapped, sin)


def rope_magnitude(scaling: RopeScaling | None) -> float:
    """The factor on cos and sin."""
    return scaling.magnitude if isinstance(scaling, YarnRopeScaling | LongRopeScaling) else 1.0


def rope_frequencies(rotary_dim: int, theta: float, scaling: RopeScaling | None, *, long: bool = False) -> Tensor:
    """Angle per token of each pair, float64 (r/2,): theta^(-2i/r), changed by ``scaling``.

    ``long``: LongRoPE's second set. Formulas: transformers' modeling_rope_utils.
    """
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim
    frequencies = theta**-exponents
    match scaling:
        case None | DynamicRopeScaling():  # dynamic: the base grows only beyond the original context
            return frequencies
        case LinearRopeScaling():
            return frequencies / scaling.factor
        case Llama3RopeScaling():
            return _llama3(frequencies, scaling)
        case YarnRopeScaling():
            return _yarn(frequencies, theta, scaling)
        case LongRopeScaling():
            factors = scaling.long_factors if long else scaling.short_factors
            return frequencies / torch.tensor(factors, dtype=torch.float64)


def _llama3(frequencies: Tensor, scaling: Llama3RopeScaling) -> Tensor:
    """Wavelengths longer than original/low_freq_factor are slowed by ``factor``, those shorter than
    original/high_freq_factor are unchanged, and those between are interpolated linearly in original/wavelength.
    """
    periods_in_context = scaling.original_max_positions * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((periods_in_context - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def _yarn(frequencies: Tensor, theta: float, scaling: YarnRopeScaling) -> Tensor:
    """Pairs that rotate more than beta_fast times over the original context are unchanged, those that rotate less than
    beta_slow times are slowed by ``factor``, and those between are interpolated linearly in the pair index.
    """
    n_pairs = frequencies.numel()
    dim = 2 * n_pairs

    def pair_of(turns: float) -> float:
        return dim * math.log(scaling.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low if high != low else 0.001
    slowed = ((torch.arange(n_pairs, dtype=torch.float64) - low) / width).clamp(0, 1)
    return frequencies * (1 - slowed + slowed / scaling.factor)
