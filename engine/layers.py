"""The parts of a decoder: small records of read-only weights, each with the arithmetic it takes part in.

They are plain classes, not ``nn.Module``s: a decode step of a small model is a few dozen operators of one
or two microseconds, and module calls and attribute look-ups would cost as much again (bench/decode_step.py).

Shapes: B rows, T new tokens, S tokens in sight (cached and new), N = B x T, D hidden size,
H query heads, K KV heads, h head_dim. Hidden states are kept as (N, D).
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.cache import KVCache
from engine.config import Activation, Llama3RopeScaling, ModelConfig

Weights = Mapping[str, Tensor]


def activation(kind: Activation) -> Callable[[Tensor], Tensor]:
    """The function by name. May work in place: it gets a fresh result of a linear layer."""
    match kind:
        case "relu":
            return torch.relu_
        case "silu":
            return partial(F.silu, inplace=True)
        case "gelu":
            return F.gelu


class Linear:
    """y = x W^T + b, with W (outputs, inputs) as checkpoints store it."""

    __slots__ = ("bias", "weight", "weight_t")

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = weight
        self.weight_t = weight.t()
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual + x W^T + b; the sum is part of the matrix product, one operator fewer."""
        y = torch.addmm(residual, x, self.weight_t)
        return y if self.bias is None else y.add_(self.bias)

    @classmethod
    def of(cls, weights: Weights, *names: str) -> "Linear":
        """One layer from one or several that read the same input: their outputs side by side."""
        biases = [weights[f"{name}.bias"] for name in names if f"{name}.bias" in weights]
        return cls(_join([weights[f"{name}.weight"] for name in names]), _join(biases) if biases else None)


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class Norm:
    """LayerNorm (with a bias) or RMSNorm (without) over the last dimension."""

    __slots__ = ("bias", "eps", "shape", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None, eps: float) -> None:
        self.weight = weight
        self.bias = bias
        self.eps = eps
        self.shape = (weight.size(-1),)

    def __call__(self, x: Tensor) -> Tensor:
        if self.bias is None:
            return torch.rms_norm(x, self.shape, self.weight, self.eps)
        return torch.layer_norm(x, self.shape, self.weight, self.bias, self.eps)

    @classmethod
    def of(cls, weights: Weights, name: str, eps: float) -> "Norm":
        return cls(weights[f"{name}.weight"], weights.get(f"{name}.bias"), eps)


class Rotary:
    """Rotary position tables, computed in float64 and grown when a longer context is first seen.

    Halves convention of Hugging Face: element i turns with element i + h/2, by angle p / theta^(2i/h).
    """

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        self.device = device
        self.inverse_frequencies = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        self._grow(64)

    def rows(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """cos and signed sin of positions start..stop-1, each (stop - start, 1, h)."""
        if stop > self._cos.size(0):
            self._grow(1 << (stop - 1).bit_length())
        return self._cos[start:stop], self._sin[start:stop]

    def _grow(self, n_rows: int) -> None:
        positions = torch.arange(n_rows, dtype=torch.float64)
        angles = torch.outer(positions, self.inverse_frequencies)[:, None]  # (rows, 1, h/2)
        cos, sin = angles.cos(), angles.sin()
        self._cos = torch.cat((cos, cos), -1).to(self.device, self.dtype)
        # The first half is turned by -sin: with the sign in the table a rotation is two products and a sum.
        self._sin = torch.cat((-sin, sin), -1).to(self.device, self.dtype)


def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Turn x (B, T, heads, h) by its positions, in place: x cos + (x with its halves swapped) sin."""
    swapped = x.roll(x.size(-1) // 2, -1)
    x.mul_(cos).addcmul_(swapped, sin)


def rope_frequencies(head_dim: int, theta: float, scaling: Llama3RopeScaling | None) -> Tensor:
    """Turns per token of each pair, float64 (h/2,): theta^(-2i/h), stretched for Llama 3.1.

    Scaling (Llama 3.1 report and transformers' modeling_rope_utils): wavelengths longer than
    original/low_freq_factor are slowed by ``factor``, those shorter than original/high_freq_factor are
    kept, and those between are blended linearly in original/wavelength.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    frequencies = theta**-exponents
    if scaling is None:
        return frequencies
    periods_in_context = scaling.original_max_positions * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((periods_in_context - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor)


class Step(NamedTuple):
    """What all layers share in one forward pass over T new tokens after those cached."""

    batch_size: int
    n_new: int
    mask: Tensor | None  # (T, S), True where a query may look; None: nothing is hidden, or `causal`
    causal: bool  # plain triangle, which the attention kernel knows without a mask
    cos: Tensor | None
    sin: Tensor | None


def attention_mask(n_new: int, past: int, window: int | None, device: torch.device) -> Tensor:
    """(T, past + T), True where query past + t may look: at itself and before, at most window - 1 back."""
    n_all = past + n_new
    mask = torch.ones(n_new, n_all, dtype=torch.bool, device=device).tril_(past)
    return mask if window is None else mask.triu_(past - window + 1)


class Attention:
    """Self-attention with grouped heads: query heads h, h+1, ... of a group share one KV head."""

    def __init__(self, config: ModelConfig, weights: Weights, layer: int) -> None:
        name = f"model.layers.{layer}.self_attn"
        self.layer = layer
        self.n_heads = config.n_heads
        self.n_kv_heads = config.n_kv_heads
        self.head_dim = config.head_dim
        self.scale = config.attention_scale
        self.window = config.sliding_window
        self.norm_eps = config.norm_eps
        self.qkv = Linear.of(weights, f"{name}.q_proj", f"{name}.k_proj", f"{name}.v_proj")
        self.output = Linear.of(weights, f"{name}.o_proj")
        self.qk_norm = _qk_norm(config, weights, name) if config.qk_norm else None

    def add_to(self, residual: Tensor, x: Tensor, step: Step, cache: KVCache | None) -> Tensor:
        """residual + attention(x); both (N, D)."""
        n_turned = self.n_heads + self.n_kv_heads  # q and k heads lie side by side, then v
        heads = self.qkv(x).view(step.batch_size, step.n_new, n_turned + self.n_kv_heads, self.head_dim)
        if self.qk_norm is not None:
            qk = heads[:, :, :n_turned]
            qk.copy_(torch.rms_norm(qk, (self.head_dim,), None, self.norm_eps)).mul_(self.qk_norm)
        if step.cos is not None and step.sin is not None:
            rotate_(heads[:, :, :n_turned], step.cos, step.sin)
        keys, values = self._keys_values(heads, step, cache)
        mixed = self._attend(heads[:, :, : self.n_heads], keys, values, step)
        return self.output.add_to(residual, mixed)

    def _keys_values(self, heads: Tensor, step: Step, cache: KVCache | None) -> tuple[Tensor, Tensor]:
        """All keys and values in sight, each (B, K, S, h)."""
        kv = heads[:, :, self.n_heads :].view(step.batch_size, step.n_new, 2, self.n_kv_heads, self.head_dim)
        kv = kv.permute(2, 0, 3, 1, 4)  # (2, B, K, T, h)
        if cache is not None:
            return cache.append(self.layer, kv)
        keys, values = kv.unbind(0)
        return keys, values

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, step: Step) -> Tensor:
        """softmax(scale q k^T) v: q (B, T, H, h) -> (N, H x h)."""
        if step.n_new == 1:
            # One query sees all that is kept, so the queries of a group can stand as rows of one matrix:
            # no mask, and no copy of K and V for the heads that share them.
            if self.window is not None and keys.size(2) > self.window:
                keys, values = keys[:, :, -self.window :], values[:, :, -self.window :]
            rows = q.view(step.batch_size, self.n_kv_heads, -1, self.head_dim)
            mixed = F.scaled_dot_product_attention(rows, keys, values, scale=self.scale)
            return mixed.reshape(step.batch_size, -1)
        mixed = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            keys,
            values,
            attn_mask=step.mask,
            is_causal=step.causal,
            scale=self.scale,
            enable_gqa=self.n_heads != self.n_kv_heads,
        )
        return mixed.transpose(1, 2).reshape(step.batch_size * step.n_new, -1)


def _qk_norm(config: ModelConfig, weights: Weights, name: str) -> Tensor:
    """Qwen3's two norm weights (h,), one row a head (H + K, h), so that one product scales q and k."""
    q = weights[f"{name}.q_norm.weight"].expand(config.n_heads, -1)
    k = weights[f"{name}.k_norm.weight"].expand(config.n_kv_heads, -1)
    return torch.cat((q, k))


class MLP:
    """down(act(up x)), or down(act(gate x) * up x) when gated."""

    def __init__(self, config: ModelConfig, weights: Weights, layer: int) -> None:
        name = f"model.layers.{layer}.mlp"
        self.gated = config.gated_mlp
        self.activate = activation(config.activation)
        inputs = (f"{name}.gate_proj", f"{name}.up_proj") if self.gated else (f"{name}.up_proj",)
        self.up = Linear.of(weights, *inputs)
        self.down = Linear.of(weights, f"{name}.down_proj")

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual + mlp(x); both (N, D)."""
        inner = self.up(x)
        if self.gated:
            gate, inner = inner.chunk(2, -1)
            inner = self.activate(gate).mul_(inner)
        else:
            inner = self.activate(inner)
        return self.down.add_to(residual, inner)


class Block:
    """One pre-norm layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, weights: Weights, layer: int) -> None:
        name = f"model.layers.{layer}"
        self.attention_norm = Norm.of(weights, f"{name}.input_layernorm", config.norm_eps)
        self.attention = Attention(config, weights, layer)
        self.mlp_norm = Norm.of(weights, f"{name}.post_attention_layernorm", config.norm_eps)
        self.mlp = MLP(config, weights, layer)

    def forward(self, x: Tensor, step: Step, cache: KVCache | None) -> Tensor:
        """x (N, D) -> (N, D)."""
        x = self.attention.add_to(x, self.attention_norm(x), step, cache)
        return self.mlp.add_to(x, self.mlp_norm(x))
