"""Linear attention by the delta rule: a state of key x value dimension per head.

Sources: Yang et al. 2024 (gated delta), Kimi Team 2025 (Kimi delta).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from calc.explain.terms import Term, derive
from calc.model.latent import is_zero
from calc.model.parts import PARAMS, check_sizes, derived
from calc.model.recurrent import Recurrent, convolution, extra
from calc.model.tensors import NORM, OTHER, Tensor


def gated_delta_params(
    *,
    hidden_size: Any,
    key_heads: Any,
    key_dim: Any,
    value_heads: Any,
    value_dim: Any,
    kernel: Any,
    extra_params: Any = 0,
) -> Any:
    """A gated delta layer: q, k, v, z, b and a projections, convolution, dt and A per head, norm, out."""
    convolved = 2 * key_heads * key_dim + value_heads * value_dim
    into = hidden_size * (convolved + value_heads * value_dim + 2 * value_heads)
    rest = convolved * kernel + 2 * value_heads + value_dim
    return into + rest + value_heads * value_dim * hidden_size + extra_params


def kimi_delta_params(
    *, hidden_size: Any, n_heads: Any, head_dim: Any, kernel: Any, gate_rank: Any = 0, whole_gate: bool = False
) -> Any:
    """A Kimi delta layer: q, k and v with convolutions, decay and output gate (low-rank or full), b, norm, out."""
    inner = n_heads * head_dim
    decay = hidden_size * inner if is_zero(gate_rank) else gate_rank * (hidden_size + inner)
    gate = hidden_size * inner if whole_gate else decay
    into = 3 * hidden_size * inner + decay + gate + hidden_size * n_heads
    return into + 3 * inner * kernel + inner + n_heads + head_dim + inner * hidden_size


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedDelta(Recurrent):
    """A gated delta layer: a state of key x value dimension per value head, and the last convolution inputs.

    `split`: its checkpoints store z separately from Q, K and V, and b separately from a (Qwen 3.5), not fused
    (Qwen3-Next).
    """

    kind: ClassVar[str] = "gated_delta"
    label: ClassVar[str] = "gated delta"
    key_heads: int
    key_dim: int
    value_heads: int
    value_dim: int
    kernel: int
    extra_params: int = 0
    split: bool = False

    def __post_init__(self) -> None:
        check_sizes(self)

    @property
    def conv_channels(self) -> int:
        """Channels of the convolution; its last `kernel` inputs are part of the state."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    @property
    def state_elements(self) -> int:
        """Elements per sequence."""
        return self.value_heads * self.key_dim * self.value_dim + self.conv_channels * self.kernel

    @property
    def state_flops(self) -> int:
        """Per state element: a decay, and a product and a sum each for recall, correction and readout."""
        return 7 * self.value_heads * self.key_dim * self.value_dim

    def heads(self, hidden_size: int) -> tuple[int, int, int]:
        """Query heads, KV heads (the same number) and head dimension, for the flat view of a model."""
        return self.value_heads, self.value_heads, self.value_dim

    def divided(self) -> tuple[tuple[str, int], ...]:
        """Its key heads and value heads."""
        return (("key heads", self.key_heads), ("value heads", self.value_heads))

    def tensors(self, hidden_size: int) -> Iterator[Tensor]:
        """Its tensors."""
        inner = self.value_heads * self.value_dim
        if self.split:
            yield Tensor("in_proj_qkv", self.conv_channels, hidden_size)
            yield Tensor("in_proj_z", inner, hidden_size)
            yield Tensor("in_proj_b", self.value_heads, hidden_size)
            yield Tensor("in_proj_a", self.value_heads, hidden_size)
        else:
            yield Tensor("in_proj_qkvz", self.conv_channels + inner, hidden_size)
            yield Tensor("in_proj_ba", 2 * self.value_heads, hidden_size)
        yield from convolution(self.conv_channels, self.kernel, bias=False)
        for name in ("dt_bias", "A_log"):
            yield Tensor(name, self.value_heads, role=OTHER)
        yield Tensor("norm", self.value_dim, role=NORM)
        yield Tensor("out_proj", hidden_size, inner, summed=True)
        yield from extra(self.extra_params)

    def term(self, hidden_size: int) -> Term:
        """Its parameters."""
        return derived(self, "Gated delta (per layer)", gated_delta_params, hidden_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class KimiDelta(Recurrent):
    """Kimi delta attention: a state of head dimension x head dimension per head, and the last convolution inputs.

    Decay (per channel) and output gate are projected through `gate_rank`, or directly if it is 0; with `whole_gate`,
    the gate is also projected directly.
    """

    kind: ClassVar[str] = "kimi_delta"
    label: ClassVar[str] = "kimi delta"
    n_heads: int
    head_dim: int
    kernel: int
    gate_rank: int = 0
    whole_gate: bool = False

    def __post_init__(self) -> None:
        check_sizes(self)

    @property
    def conv_channels(self) -> int:
        """Channels of the convolution; its last `kernel` inputs are part of the state."""
        return 3 * self.n_heads * self.head_dim

    @property
    def state_elements(self) -> int:
        """Elements per sequence."""
        return self.n_heads * self.head_dim * self.head_dim + self.conv_channels * self.kernel

    @property
    def state_flops(self) -> int:
        """Per state element: a decay, and a product and a sum each for recall, correction and readout."""
        return 7 * self.n_heads * self.head_dim * self.head_dim

    def heads(self, hidden_size: int) -> tuple[int, int, int]:
        """Query heads, KV heads (the same number) and head dimension, for the flat view of a model."""
        return self.n_heads, self.n_heads, self.head_dim

    def divided(self) -> tuple[tuple[str, int], ...]:
        """Its heads."""
        return (("heads", self.n_heads),)

    def tensors(self, hidden_size: int) -> Iterator[Tensor]:
        """Its tensors: q, k and v with their convolutions, decay (f) and output gate (g), b, norm, out."""
        inner = self.n_heads * self.head_dim
        for name in ("q", "k", "v"):
            yield Tensor(f"{name}_proj", inner, hidden_size, fused="qkv_proj")
            yield Tensor(f"{name}_conv1d", inner, self.kernel, role=OTHER)
        for name, whole in (("f", not self.gate_rank), ("g", self.whole_gate or not self.gate_rank)):
            if not whole:
                yield Tensor(f"{name}_a_proj", self.gate_rank, hidden_size, role=OTHER)
                yield Tensor(f"{name}_b_proj", inner, self.gate_rank, role=OTHER)
            else:
                yield Tensor(f"{name}_proj", inner, hidden_size, role=OTHER)
        yield Tensor("b_proj", self.n_heads, hidden_size, role=OTHER)
        yield Tensor("dt_bias", inner, role=OTHER)
        yield Tensor("A_log", self.n_heads, role=OTHER)
        yield Tensor("o_norm", self.head_dim, role=NORM)
        yield Tensor("o_proj", hidden_size, inner, summed=True)

    def term(self, hidden_size: int) -> Term:
        """Its parameters."""
        sizes: dict[str, Any] = {n: getattr(self, n) for n in ("n_heads", "head_dim", "kernel")}
        if self.gate_rank:
            sizes |= {"gate_rank": self.gate_rank, "whole_gate": self.whole_gate}
        return derive("Kimi delta (per layer)", kimi_delta_params, unit=PARAMS, hidden_size=hidden_size, **sizes)
