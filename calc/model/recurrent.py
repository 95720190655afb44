"""Recurrent layers: their state per sequence does not grow with the sequence.

Sources: Gu and Dao 2023 (mamba1), Dao and Gu 2024 (mamba2), LFM2 2025 (short convolution). Gated and Kimi
delta layers are in `calc.model.delta`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from calc.explain.terms import Term, derive
from calc.model.parts import PARAMS, check_sizes, derived, stated_params
from calc.model.tensors import BIAS, NORM, OTHER, Tensor


class _WithoutCache:
    """A part that keeps nothing per token."""

    __slots__ = ()
    prefix: ClassVar[str] = "mixer."
    window: ClassVar[None] = None
    cache_elements: ClassVar[int] = 0
    index_elements: ClassVar[int] = 0
    rope_width: ClassVar[int] = 0

    def heads(self, hidden_size: int) -> tuple[int, int, int]:
        """Query heads, KV heads (the same number) and head dimension, for the flat view of a model."""
        return 1, 1, hidden_size

    def attended(self, *, absorbed: bool = True) -> None:
        """It attends to no token."""
        return

    def rank_cache_elements(self, tp: int) -> int:
        """None: it has no cache."""
        return 0


class Recurrent(_WithoutCache):
    """A recurrence that tensor parallelism divides by heads, or by channels if it has no heads."""

    __slots__ = ()
    label: ClassVar[str]

    @property
    def state_elements(self) -> int:
        """Elements per sequence."""
        raise NotImplementedError

    @property
    def state_flops(self) -> int:
        """FLOPs per token of the recurrence itself, without projections and convolution."""
        raise NotImplementedError

    def divided(self) -> tuple[tuple[str, int], ...]:
        """Names and numbers of what is divided."""
        raise NotImplementedError

    def problem(self, tp: int) -> str | None:
        """Why `tp` ranks cannot share it; None if they can."""
        for what, n in self.divided():
            if n % tp:
                return f"the {n:,} {what} of a {self.label} layer are not divisible by {tp:,}"
        return None

    def rank_state_elements(self, tp: int) -> Fraction:
        """State elements per sequence on a rank of `tp`."""
        return Fraction(self.state_elements, tp)


def mamba1_params(
    *,
    hidden_size: Any,
    inner: Any,
    state: Any,
    kernel: Any,
    dt_rank: Any,
    extra_params: Any = 0,
    conv_bias: bool = True,
) -> Any:
    """A Mamba layer: in and out projections, convolution with bias, selective parameters, A and D."""
    projections = 3 * hidden_size * inner
    selective = inner * (dt_rank + 2 * state) + dt_rank * inner + inner
    convolution = inner * (kernel + 1) if conv_bias else inner * kernel
    return projections + convolution + selective + inner * state + inner + extra_params


def mamba2_params(
    *,
    hidden_size: Any,
    inner: Any,
    n_heads: Any,
    groups: Any,
    state: Any,
    kernel: Any,
    extra_params: Any = 0,
    conv_bias: bool = True,
    norm: bool = True,
) -> Any:
    """A Mamba-2 layer: in projection of z, x, B, C and dt; convolution with bias; dt, A and D per head; norm; out."""
    convolved = inner + 2 * groups * state
    into = hidden_size * (inner + convolved + n_heads)
    convolution = convolved * (kernel + 1) if conv_bias else convolved * kernel
    total = into + convolution + 3 * n_heads + inner * hidden_size + extra_params
    return total + inner if norm else total


def short_conv_params(*, hidden_size: Any, kernel: Any, bias: bool = False) -> Any:
    """A gated short convolution (LFM2): in projection of B, C and x, a convolution per channel, out projection."""
    total = 4 * hidden_size * hidden_size + hidden_size * kernel
    return total + 5 * hidden_size if bias else total


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba1(Recurrent):
    """A selective state space layer: a state of inner x state and the last `kernel` inputs of the convolution."""

    kind: ClassVar[str] = "mamba1"
    label: ClassVar[str] = "mamba"
    inner: int
    state: int
    kernel: int
    dt_rank: int
    extra_params: int = 0
    conv_bias: bool = True

    def __post_init__(self) -> None:
        check_sizes(self)

    @property
    def conv_channels(self) -> int:
        """Channels of the convolution; its last `kernel` inputs are part of the state."""
        return self.inner

    @property
    def state_elements(self) -> int:
        """Elements per sequence."""
        return self.inner * self.state + self.conv_channels * self.kernel

    @property
    def state_flops(self) -> int:
        """Per state element: computing the decay (2), decay, input, sum, and a product and a sum for the readout."""
        return 7 * self.inner * self.state

    def heads(self, hidden_size: int) -> tuple[int, int, int]:
        """Query heads, KV heads (the same number) and head dimension, for the flat view of a model."""
        return 1, 1, self.inner

    def divided(self) -> tuple[tuple[str, int], ...]:
        """Its channels."""
        return (("channels", self.inner),)

    def tensors(self, hidden_size: int) -> Iterator[Tensor]:
        """Its tensors."""
        inner = self.inner
        yield Tensor("in_proj", 2 * inner, hidden_size)
        yield from convolution(inner, self.kernel, bias=self.conv_bias)
        yield Tensor("x_proj", self.dt_rank + 2 * self.state, inner)
        yield Tensor("dt_proj", inner, self.dt_rank)
        yield Tensor("dt_proj.bias", inner, role=BIAS)
        yield Tensor("A_log", inner, self.state, role=OTHER)
        yield Tensor("D", inner, role=OTHER)
        yield Tensor("out_proj", hidden_size, inner, summed=True)
        yield from extra(self.extra_params)

    def term(self, hidden_size: int) -> Term:
        """Its parameters."""
        return derived(self, "Mamba (per layer)", mamba1_params, hidden_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba2(Recurrent):
    """A Mamba-2 layer: a state of n_heads x head dimension x state and the last `kernel` convolution inputs."""

    kind: ClassVar[str] = "mamba2"
    label: ClassVar[str] = "mamba-2"
    inner: int
    n_heads: int
    groups: int
    state: int
    kernel: int
    extra_params: int = 0
    conv_bias: bool = True
    norm: bool = True

    def __post_init__(self) -> None:
        check_sizes(self)

    @property
    def conv_channels(self) -> int:
        """Channels of the convolution; its last `kernel` inputs are part of the state."""
        return self.inner + 2 * self.groups * self.state

    @property
    def state_elements(self) -> int:
        """Elements per sequence."""
        return self.inner * self.state + self.conv_channels * self.kernel

    @property
    def state_flops(self) -> int:
        """Per state element: decay, input, sum, and a product and a sum for the readout."""
        return 5 * self.inner * self.state

    def heads(self, hidden_size: int) -> tuple[int, int, int]:
        """Query heads, KV heads (the same number) and head dimension, for the flat view of a model."""
        return self.n_heads, self.n_heads, max(1, self.inner // self.n_heads)

    def divided(self) -> tuple[tuple[str, int], ...]:
        """Its heads."""
        return (("heads", self.n_heads),)

    def problem(self, tp: int) -> str | None:
        """The problem if heads cannot be divided, or groups can be neither divided nor repeated."""
        if (text := Recurrent.problem(self, tp)) is not None:
            return text
        if self.groups % tp and tp % self.groups:
            return f"the {self.groups:,} groups of a mamba-2 layer are not divisible by {tp:,} and do not repeat evenly"
        return None

    def rank_state_elements(self, tp: int) -> Fraction:
        """Heads are divided; every rank keeps at least one group."""
        if self.groups % tp:
            channels = Fraction(self.inner, tp)
            return channels * self.state + (channels + 2 * self.state) * self.kernel
        return Fraction(self.state_elements, tp)

    def tensors(self, hidden_size: int) -> Iterator[Tensor]:
        """Its tensors: z, x, B, C and dt are one projection."""
        yield Tensor("in_proj", self.inner + self.conv_channels + self.n_heads, hidden_size)
        yield from convolution(self.conv_channels, self.kernel, bias=self.conv_bias)
        for name in ("dt_bias", "A_log", "D"):
            yield Tensor(name, self.n_heads, role=OTHER)
        if self.norm:
            yield Tensor("norm", self.inner, role=NORM)
        yield Tensor("out_proj", hidden_size, self.inner, summed=True)
        yield from extra(self.extra_params)

    def term(self, hidden_size: int) -> Term:
        """Its parameters."""
        return derived(self, "Mamba-2 (per layer)", mamba2_params, hidden_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortConv(Recurrent):
    """A gated short convolution over `width` channels; its last `kernel` inputs are the state."""

    kind: ClassVar[str] = "conv"
    label: ClassVar[str] = "short convolution"
    kernel: int
    width: int
    bias: bool = False

    def __post_init__(self) -> None:
        check_sizes(self)

    @property
    def conv_channels(self) -> int:
        """Channels of the convolution; its last `kernel` inputs are part of the state."""
        return self.width

    @property
    def state_elements(self) -> int:
        """Elements per sequence."""
        return self.width * self.kernel

    @property
    def state_flops(self) -> int:
        """Two gates per channel."""
        return 2 * self.width

    def divided(self) -> tuple[tuple[str, int], ...]:
        """Its channels."""
        return (("channels", self.width),)

    def tensors(self, hidden_size: int) -> Iterator[Tensor]:
        """Its tensors: in projection of B, C and x, the convolution, out projection."""
        yield Tensor("in_proj", 3 * hidden_size, hidden_size)
        yield from convolution(hidden_size, self.kernel, bias=self.bias)
        yield Tensor("out_proj", hidden_size, hidden_size, summed=True)
        if self.bias:
            yield Tensor("in_proj.bias", 3 * hidden_size, role=BIAS)
            yield Tensor("out_proj.bias", hidden_size, role=BIAS)

    def term(self, hidden_size: int) -> Term:
        """Its parameters."""
        sizes: dict[str, Any] = {"hidden_size": hidden_size, "kernel": self.kernel}
        return derive("Short convolution (per layer)", short_conv_params, unit=PARAMS, bias=self.bias, **sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stated(_WithoutCache):
    """A rarer recurrence, given by its parameter and state counts, which are computed when its config is read.

    If it has a convolution over `conv_channels`, its last `kernel` inputs are part of the state.
    """

    kind: ClassVar[str] = "stated"
    label: str
    params: int
    state_elements: int
    conv_channels: int = 0
    kernel: int = 1

    def __post_init__(self) -> None:
        check_sizes(self)

    @property
    def state_flops(self) -> int:
        """Its computation is not known: assumed to be as much per state element as Mamba-2."""
        return 5 * self.state_elements

    def problem(self, tp: int) -> None:
        """None: it is not known which parts cannot be divided."""
        return

    def rank_state_elements(self, tp: int) -> Fraction:
        """State elements per sequence on a rank of `tp`."""
        return Fraction(self.state_elements, tp)

    def tensors(self, hidden_size: int) -> Iterator[Tensor]:
        """All parameters as one tensor: its shapes are not known here."""
        yield Tensor("stated", self.params, role=OTHER)

    def term(self, hidden_size: int) -> Term:
        """Its parameters."""
        return derive(f"{self.label.capitalize()} (per layer)", stated_params, unit=PARAMS, params=self.params)


def convolution(channels: int, kernel: int, *, bias: bool) -> Iterator[Tensor]:
    """A convolution per channel over its last `kernel` inputs."""
    yield Tensor("conv1d", channels, kernel, role=OTHER)
    if bias:
        yield Tensor("conv1d.bias", channels, role=BIAS)


def extra(params: int) -> Iterator[Tensor]:
    """Parameters of a part in addition to its matrices, by their count."""
    if params:
        yield Tensor("extra", params, role=OTHER)
