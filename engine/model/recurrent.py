"""Layers without attention: they read a state of fixed size in place of keys and values that grow with the text.

Each stores its state in a cache (`engine.model.states`); without a cache it starts from zero.

Shapes: B rows, T new tokens, D hidden size, w width of the convolution.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.model.cache import Cache
from engine.model.config import ConvConfig, DeltaConfig, ModelConfig
from engine.model.layers import ForwardContext, Linear, LinearMaker, Weights
from engine.model.states import StateCache

_L2_EPS = 1e-6  # of the FLA library, which these models were trained with


class _Mixer:
    """The base of both kinds: layer index, output projection, and the convolution over the last w tokens."""

    def __init__(self, weights: Weights, layer: int, name: str, conv: str, *, linear: LinearMaker) -> None:
        self.layer = layer
        self.output = linear(weights, f"{name}.out_proj")
        self.kernel = weights[f"{conv}.weight"]  # (channels, 1, w)
        self.kernel_bias = weights.get(f"{conv}.bias")

    def add_to(self, residual: Tensor, x: Tensor, context: ForwardContext, cache: Cache | None) -> Tensor:
        """residual + mixer(x); both (N, D)."""
        return self.output.add_to(residual, self.mix(x, context, cache))

    def __call__(self, x: Tensor, context: ForwardContext, cache: Cache | None) -> Tensor:
        """mixer(x), (N, D)."""
        return self.output(self.mix(x, context, cache))

    def mix(self, x: Tensor, context: ForwardContext, cache: Cache | None) -> Tensor:
        raise NotImplementedError

    def _convolve(self, x: Tensor, cache: Cache | None) -> Tensor:
        """Causal convolution of x (B, T, channels), each channel over w tokens; earlier tokens come from the cache."""
        channels, _, width = self.kernel.shape
        before = _state(cache, self.layer, "conv")
        if before is None:
            before = x.new_zeros(x.size(0), width - 1, channels)
        seen = torch.cat((before, x), 1)
        _keep(cache, self.layer, "conv", seen[:, seen.size(1) - (width - 1) :])
        return F.conv1d(seen.transpose(1, 2), self.kernel, self.kernel_bias, groups=channels).transpose(1, 2)


class ShortConv(_Mixer):
    """LFM2: out(c * conv(b * x)), where b, c and x are three projections of the input."""

    def __init__(
        self, config: ModelConfig, conv: ConvConfig, weights: Weights, layer: int, *, linear: LinearMaker = Linear.of
    ) -> None:
        name = f"model.layers.{layer}.conv"
        super().__init__(weights, layer, name, f"{name}.conv", linear=linear)
        self.input = linear(weights, f"{name}.in_proj")

    def mix(self, x: Tensor, context: ForwardContext, cache: Cache | None) -> Tensor:
        """(N, D) -> (N, D)."""
        b, c, inner = self.input(x).view(context.batch_size, context.n_new, -1).chunk(3, -1)
        mixed: Tensor = c * self._convolve(_without_padding(b * inner, cache), cache)
        return mixed.reshape(context.batch_size * context.n_new, -1)


class GatedDelta(_Mixer):
    """Qwen3-Next: a state matrix per head that decays by exp(g) and learns the value for a key at rate beta."""

    def __init__(
        self, config: ModelConfig, delta: DeltaConfig, weights: Weights, layer: int, *, linear: LinearMaker = Linear.of
    ) -> None:
        name = f"model.layers.{layer}.linear_attn"
        super().__init__(weights, layer, name, f"{name}.conv1d", linear=linear)
        self.delta = delta
        self.eps = config.norm_eps
        self.input = linear(weights, f"{name}.in_proj_qkv", f"{name}.in_proj_z")
        self.rates = Linear.of(weights, f"{name}.in_proj_b", f"{name}.in_proj_a")
        self.decay = -weights[f"{name}.A_log"].double().exp()
        self.step_bias = weights[f"{name}.dt_bias"]
        self.norm_weight = weights[f"{name}.norm.weight"]

    def mix(self, x: Tensor, context: ForwardContext, cache: Cache | None) -> Tensor:
        """(N, D) -> (N, width of all value heads)."""
        d, shape = self.delta, (context.batch_size, context.n_new)
        x = _without_padding(x.view(*shape, -1), cache).reshape(x.shape)
        mixed, z = self._projected(x, shape)
        mixed = F.silu(self._convolve(mixed, cache))
        query, key, value = torch.split(mixed, [d.key_size, d.key_size, d.value_size], -1)
        beta, g = self._learning(x, shape)
        heads = self._recur(query, key, value.view(*shape, d.n_value_heads, -1), beta, g, cache)
        normed = torch.rms_norm(heads.to(x.dtype), (d.value_dim,), self.norm_weight, self.eps)
        return (normed * F.silu(z)).reshape(context.batch_size * context.n_new, -1)

    def _projected(self, x: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """q, k and v concatenated (B, T, channels), and the gate z (B, T, value heads, h)."""
        d = self.delta
        mixed, z = torch.split(self.input(x).view(*shape, -1), [2 * d.key_size + d.value_size, d.value_size], -1)
        return mixed, z.view(*shape, d.n_value_heads, d.value_dim)

    def _learning(self, x: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """beta and g (B, T, value heads), at least float32."""
        rates = self.rates(x).view(*shape, 2, -1)
        wide = rates if rates.dtype == torch.float64 else rates.float()
        b, a = wide.unbind(2)
        return b.sigmoid(), self.decay.to(wide.dtype) * F.softplus(a + self.step_bias.to(wide.dtype))

    def _recur(self, query: Tensor, key: Tensor, value: Tensor, beta: Tensor, g: Tensor, cache: Cache | None) -> Tensor:
        """Token by token: S <- exp(g) S, S <- S + k (beta (v - S k)), out S q. (B, T, value heads, h)."""
        query, key = (_unit(self._by_value_head(part).to(g.dtype)) for part in (query, key))
        query = query / self.delta.key_dim**0.5
        value, forget = value.to(g.dtype), g.exp()
        state = _state(cache, self.layer, "delta")
        if state is None:
            state = value.new_zeros(*value.shape[:1], *value.shape[2:3], self.delta.key_dim, self.delta.value_dim)
        out = torch.empty_like(value)
        for t in range(value.size(1)):
            k = key[:, t, :, :, None]
            state = state * forget[:, t, :, None, None]
            error = (value[:, t] - (state * k).sum(-2)) * beta[:, t, :, None]
            state = state + k * error[:, :, None]
            out[:, t] = (state * query[:, t, :, :, None]).sum(-2)
        _keep(cache, self.layer, "delta", state)
        return out

    def _by_value_head(self, part: Tensor) -> Tensor:
        """(B, T, width of all key heads), repeated for each value head: (B, T, value heads, h)."""
        d = self.delta
        heads, times = part.view(*part.shape[:2], d.n_key_heads, d.key_dim), d.n_value_heads // d.n_key_heads
        return heads.repeat(1, 1, times, 1) if d.tiled else heads.repeat_interleave(times, dim=2)


def _unit(x: Tensor) -> Tensor:
    """The vectors scaled to length 1."""
    return x * (x.square().sum(-1, keepdim=True) + _L2_EPS).rsqrt()


def _state(cache: Cache | None, layer: int, name: str) -> Tensor | None:
    return cache.state(layer, name) if isinstance(cache, StateCache) else None


def _keep(cache: Cache | None, layer: int, name: str, state: Tensor) -> None:
    if isinstance(cache, StateCache):
        cache.keep(layer, name, state)


def _without_padding(x: Tensor, cache: Cache | None) -> Tensor:
    """x (B, T, ..) with zeros in the padding, so that padding does not change the states."""
    if cache is None or cache.padding is None:
        return x
    at = torch.arange(cache.length, cache.length + x.size(1), device=x.device)
    return x * (at >= cache.padding[:, None])[..., None]
