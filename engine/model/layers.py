"""The parts of a decoder: small records of read-only weights, each with its arithmetic.

They are plain classes, not ``nn.Module``s: a decode step of a small model is a few dozen operators of one
or two microseconds, and module calls and attribute look-ups would cost as much again (bench/decode_step.py).

Shapes: B rows, T new tokens, S tokens in sight (cached and new), N = B x T, D hidden size,
H query heads, K KV heads, h head_dim. Hidden states are kept as (N, D).
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.model.cache import Cache
from engine.model.config import Activation, ModelConfig
from engine.model.rotary import rotate_

Weights = Mapping[str, Tensor]


def activation(kind: Activation, weights: Weights, name: str) -> Callable[[Tensor], Tensor]:
    """The activation function by name. It may work in place, because its input is the fresh output of a linear layer.

    ``name``: of the MLP, for functions with learned weights.
    """
    match kind:
        case "xielu":
            return XIELU(weights[f"{name}.act_fn.alpha_p"], weights[f"{name}.act_fn.alpha_n"])
        case "relu":
            return torch.relu_
        case "relu2":
            return lambda x: torch.relu_(x).square_()
        case "gelu_sigmoid":
            return lambda x: x.mul_((1.702 * x).sigmoid_())
        case "silu":
            return partial(F.silu, inplace=True)
        case "gelu":
            return F.gelu
        case "gelu_tanh":
            return partial(F.gelu, approximate="tanh")


class XIELU:
    """A parabola above 0 and an exponential below, each with a learned curvature (arXiv 2411.13010; Apertus)."""

    beta, eps = 0.5, -1e-6

    def __init__(self, alpha_p: Tensor, alpha_n: Tensor) -> None:
        self.above = F.softplus(alpha_p)
        self.below = F.softplus(alpha_n) + self.beta

    def __call__(self, x: Tensor) -> Tensor:
        bent = torch.where(x > 0, self.above * x * x, (torch.expm1(x.clamp(max=self.eps)) - x) * self.below)
        return bent.add_(x, alpha=self.beta)


class LinearLike(Protocol):
    """A linear layer whose weight may have any format."""

    def __call__(self, x: Tensor) -> Tensor:
        """x (N, inputs) -> (N, outputs)."""
        ...

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual + the result of `__call__`; must not modify the residual."""
        ...


class LinearMaker(Protocol):
    """Builds one layer from one or several named weights that read the same input."""

    def __call__(self, weights: Weights, *names: str) -> LinearLike: ...


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
        """One layer from one or several that read the same input: their outputs are concatenated."""
        biases = [f"{name}.bias" for name in names if f"{name}.bias" in weights]
        return cls(join(weights, *(f"{name}.weight" for name in names)), join(weights, *biases) if biases else None)


class ByteInputs:
    """A linear layer whose input is rounded to 8 bits, each row by its largest value (BitNet)."""

    def __init__(self, layer: LinearLike) -> None:
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        return self.layer(in_bytes(x))

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual + the result of `__call__`."""
        return self.layer.add_to(residual, in_bytes(x))

    @classmethod
    def maker(cls, linear: LinearMaker) -> LinearMaker:
        """A maker that wraps the layers of another maker in this class."""
        return lambda weights, *names: cls(linear(weights, *names))


def in_bytes(x: Tensor) -> Tensor:
    """Rows (N, D) rounded to multiples of their largest absolute value / 127."""
    wide = x if x.dtype == torch.float64 else x.float()
    scale = 127 / wide.abs().amax(-1, keepdim=True).clamp_(min=1e-5)
    return ((wide * scale).round().clamp_(-128, 127) / scale).to(x.dtype)


@runtime_checkable
class Joining(Protocol):
    """Weights that can be concatenated by rows without a copy of each."""

    def joined(self, *names: str) -> Tensor: ...


def join(weights: Weights, *names: str) -> Tensor:
    """The weights concatenated by rows."""
    if len(names) == 1:
        return weights[names[0]]
    return weights.joined(*names) if isinstance(weights, Joining) else torch.cat([weights[name] for name in names])


@runtime_checkable
class Table(Protocol):
    """An embedding table, in any format."""

    dtype: torch.dtype
    device: torch.device

    def rows(self, ids: Tensor) -> Tensor:
        """The embeddings of ids of any shape, in ``dtype``: a fresh tensor (.., hidden size)."""
        ...


class Norm:
    """LayerNorm or RMSNorm over the last dimension. A LayerNorm always has a bias: zeros if the model has none."""

    __slots__ = ("bias", "centred", "eps", "shape", "signs", "twice", "weight")

    def __init__(
        self, weight: Tensor | None, bias: Tensor | None, eps: float, *, width: int = 0, centred: bool | None = None
    ) -> None:
        """``weight`` None: a norm of ``width`` values without weights."""
        self.weight = weight
        self.bias = bias
        self.eps = eps
        self.centred = bias is not None if centred is None else centred
        self.shape = (width if weight is None else weight.size(-1),)
        self.twice = self.signs = None
        if not self.centred and weight is not None and weight.device.type == "cpu":
            self.twice = torch.stack((weight, weight))
            self.signs = weight.new_tensor([[1.0], [-1.0]])

    def __call__(self, x: Tensor) -> Tensor:
        if self.centred:
            return torch.layer_norm(x, self.shape, self.weight, self.bias, self.eps)
        if self.twice is not None and self.signs is not None and x.dim() == 2 and x.size(0) == 1:
            # RMSNorm as the first half of a LayerNorm of (x, -x), whose mean is 0 and whose variance is x's mean
            # square: one kernel where torch has six small ones for RMSNorm on the CPU.
            return torch.layer_norm(self.signs * x, self.twice.shape, self.twice, None, self.eps)[:1]
        return torch.rms_norm(x, self.shape, self.weight, self.eps)

    @classmethod
    def of(cls, weights: Weights, name: str, config: ModelConfig) -> "Norm":
        """The norm by name, of the kind that the config asks for."""
        centred = config.norm == "layernorm"
        if not config.norm_weights:
            return cls(None, None, config.norm_eps, width=config.hidden_size, centred=centred)
        weight = weights[f"{name}.weight"]
        if config.norm_offset:  # Gemma stores w - 1
            weight = weight + config.norm_offset
        bias = weights[f"{name}.bias"] if centred and config.norm_bias else None
        return cls(weight, torch.zeros_like(weight) if centred and bias is None else bias, config.norm_eps)


class KindContext(NamedTuple):
    """The data that layers of one kind (window, positions) share in a forward pass."""

    mask: Tensor | None  # (T, S) or (B, 1, T, S), True where a query may look; None: nothing hidden, or `causal`
    causal: bool  # a plain causal triangle, which the attention kernel applies without a mask tensor
    cos: Tensor | None
    sin: Tensor | None


class ForwardContext(NamedTuple):
    """The data that all layers share in one forward pass over T new tokens after the cached ones."""

    batch_size: int
    n_new: int
    kinds: tuple[KindContext, ...]


class Attention:
    """Self-attention with grouped heads: query heads h, h+1, ... of a group share one KV head."""

    def __init__(
        self, config: ModelConfig, weights: Weights, layer: int, *, kind: int = 0, linear: LinearMaker = Linear.of
    ) -> None:
        name = f"model.layers.{layer}.self_attn"
        self.layer = layer
        self.kind = kind
        self.n_heads = config.n_heads
        self.n_kv_heads = config.n_kv_heads
        self.head_dim = config.head_dim
        self.scale = config.attention_scale
        self.softcap = config.attention_softcap
        self.window = config.layer(layer).window
        self.rotary_dim = config.rotary_dim if config.rotary_dim != config.head_dim else None
        self.qkv = linear(weights, f"{name}.q_proj", f"{name}.k_proj", f"{name}.v_proj")
        self.output = linear(weights, f"{name}.o_proj")
        self.qk_norm = QKNorm(config, weights, name) if config.qk_norm else None
        self.norm_late = config.qk_norm_late
        self.gate = linear(weights, f"{name}.q_gate_proj") if config.attention_gate else None
        self.sub_norm = Norm.of(weights, f"{name}.attn_sub_norm", config) if config.sub_norms else None
        # (K, g, 1): per query head, the score of a sink without a value
        sinks = weights[f"{name}.sinks.weight"] if config.sinks else None
        self.sinks = sinks.view(config.n_kv_heads, -1, 1) if sinks is not None else None
        slopes = alibi_slopes(config.n_heads) * config.alibi_scale if config.positions == "alibi" else None
        self.slopes = slopes.view(config.n_kv_heads, -1, 1) if slopes is not None else None
        self.by_hand = config.scores_by_hand

    def add_to(self, residual: Tensor, x: Tensor, context: ForwardContext, cache: Cache | None) -> Tensor:
        """residual + attention(x); both (N, D)."""
        return self.output.add_to(residual, self.mix(x, context, cache))

    def __call__(self, x: Tensor, context: ForwardContext, cache: Cache | None) -> Tensor:
        """attention(x), (N, D)."""
        return self.output(self.mix(x, context, cache))

    def mix(self, x: Tensor, context: ForwardContext, cache: Cache | None) -> Tensor:
        """The concatenated outputs of the heads, (N, H x h)."""
        n_turned = self.n_heads + self.n_kv_heads  # the q heads, then the k heads, then v
        shared = context.kinds[self.kind]
        heads = self.qkv(x).view(context.batch_size, context.n_new, n_turned + self.n_kv_heads, self.head_dim)
        turned = heads[:, :, :n_turned]
        if self.qk_norm is not None and not self.norm_late:
            self.qk_norm(turned)
        if shared.cos is not None and shared.sin is not None:
            rotate_(turned if self.rotary_dim is None else turned[..., : self.rotary_dim], shared.cos, shared.sin)
        if self.qk_norm is not None and self.norm_late:
            self.qk_norm(turned)
        keys, values = self._keys_values(heads, context, cache)
        mixed = self._attend(heads[:, :, : self.n_heads], keys, values, context)
        mixed = mixed if self.gate is None else mixed * self.gate(x).sigmoid()
        return mixed if self.sub_norm is None else self.sub_norm(mixed)

    def _keys_values(self, heads: Tensor, context: ForwardContext, cache: Cache | None) -> tuple[Tensor, Tensor]:
        """All visible keys and values, each (B, K, S, h)."""
        kv = heads[:, :, self.n_heads :].view(context.batch_size, context.n_new, 2, self.n_kv_heads, self.head_dim)
        kv = kv.permute(2, 0, 3, 1, 4)  # (2, B, K, T, h)
        if cache is not None:
            return cache.append(self.layer, kv)
        keys, values = kv.unbind(0)
        return keys, values

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, context: ForwardContext) -> Tensor:
        """softmax(scale q k^T) v: q (B, T, H, h) -> (N, H x h)."""
        mask = context.kinds[self.kind].mask
        if context.n_new == 1:
            # One query attends to the whole cache, so the queries of a group can be the rows of one matrix:
            # no copy of K and V for the heads that share them, and no mask unless rows are padded.
            if self.window is not None and mask is None and keys.size(2) > self.window:
                keys, values = keys[:, :, -self.window :], values[:, :, -self.window :]
            rows = q.view(context.batch_size, self.n_kv_heads, -1, self.head_dim)
            if self.by_hand:
                bias = None if self.slopes is None else _by_distance(self.slopes, 1, keys)[..., 0, :]
                mixed = attention_by_hand(
                    rows, keys, values, mask, self.scale, cap=self.softcap, sinks=self.sinks, bias=bias
                )
                return mixed.reshape(context.batch_size, -1)
            mixed = F.scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=self.scale)
            return mixed.reshape(context.batch_size, -1)
        if self.by_hand:
            return self._attend_by_hand(q, keys, values, mask)
        mixed = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            keys,
            values,
            attn_mask=mask,
            is_causal=context.kinds[self.kind].causal,
            scale=self.scale,
            enable_gqa=self.n_heads != self.n_kv_heads,
        )
        return mixed.transpose(1, 2).reshape(context.batch_size * context.n_new, -1)

    def _attend_by_hand(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of several queries: the heads of a group are one batch, so that K and V are not copied per head."""
        n_rows, n_new = q.shape[:2]
        grouped = q.view(n_rows, n_new, self.n_kv_heads, -1, self.head_dim).permute(0, 2, 3, 1, 4)  # (B, K, g, T, h)
        if mask is not None and mask.dim() == 4:
            mask = mask[:, None]
        sinks = self.sinks[..., None] if self.sinks is not None else None
        bias = None if self.slopes is None else _by_distance(self.slopes, n_new, keys)
        keys, values = keys[:, :, None], values[:, :, None]
        mixed = attention_by_hand(grouped, keys, values, mask, self.scale, cap=self.softcap, sinks=sinks, bias=bias)
        return mixed.permute(0, 3, 1, 2, 4).reshape(n_rows * n_new, -1)


def attention_by_hand(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scale: float,
    *,
    cap: float | None = None,
    sinks: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """softmax(scale q k^T) v for any leading shape, with features that no torch kernel has.

    ``cap``: scores become cap tanh(score / cap) (Gemma 2). ``sinks``: one more score per head, which takes a
    share of the softmax but has no value (gpt-oss). ``bias`` is added to the scores (ALiBi).
    """
    scores = q @ keys.transpose(-1, -2)
    scores = scores.mul_(scale) if cap is None else scores.mul_(scale / cap).tanh_().mul_(cap)
    if bias is not None:
        scores = scores.add_(bias)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    if sinks is None:
        return scores.softmax(-1) @ values
    joined = torch.cat((scores, sinks.expand(*scores.shape[:-1], 1)), -1)
    return joined.softmax(-1)[..., :-1] @ values


def alibi_slopes(n_heads: int) -> Tensor:
    """How fast each head's scores fall per token, float64 (H,): 2^(-8 i / n) for the power of two n below, and for the
    heads beyond it every other slope of twice as many (arXiv 2108.12409, section 3).
    """
    n = 1 << (n_heads.bit_length() - 1)
    exponents = [8 * i / n for i in range(1, n + 1)] + [8 * (2 * i - 1) / (2 * n) for i in range(1, n_heads - n + 1)]
    return 2.0 ** -torch.tensor(exponents, dtype=torch.float64)


def _by_distance(slopes: Tensor, n_new: int, keys: Tensor) -> Tensor:
    """The ALiBi bias on the scores of the last ``n_new`` of S tokens: slopes (K, g, 1) -> (K, g, T, S)."""
    at = torch.arange(keys.size(2), dtype=torch.float64)
    distance = at - at[at.numel() - n_new :, None]
    return (slopes[..., None] * distance).to(keys)


class QKNorm:
    """The norm of queries and keys: per head, or over all heads together.

    ``weights``: one row per head (H + K, h), so that one product scales both; None where the norm has none.
    """

    __slots__ = ("centred", "eps", "kind", "n_heads", "weights")

    def __init__(self, config: ModelConfig, weights: Weights, name: str) -> None:
        self.kind = config.qk_norm_kind
        self.n_heads = [config.n_heads, config.n_kv_heads]
        self.eps = config.norm_eps
        self.centred = self.kind == "each" and config.norm == "layernorm"
        self.weights = _head_rows(config, weights, name) if config.norm_weights else None

    def __call__(self, qk: Tensor) -> None:
        """qk (B, T, H + K, h), in place."""
        if self.kind == "all":
            for part in torch.split(qk, self.n_heads, 2):
                wide = part.flatten(2)
                part.copy_(torch.rms_norm(wide, wide.shape[-1:], None, self.eps).view_as(part))
        else:
            norm = torch.layer_norm if self.centred else torch.rms_norm
            qk.copy_(norm(qk, qk.shape[-1:], eps=self.eps))
        if self.weights is not None:
            qk.mul_(self.weights)


def _head_rows(config: ModelConfig, weights: Weights, name: str) -> Tensor:
    """The norm weights as one row per head (H + K, h), repeated if the heads share them."""
    heads = ("q_norm", config.n_heads), ("k_norm", config.n_kv_heads)
    both = torch.cat([weights[f"{name}.{norm}.weight"].view(-1, config.head_dim).expand(n, -1) for norm, n in heads])
    return both + config.norm_offset if config.norm_offset else both


class MLP:
    """down(act(up x)), or down(act(gate x) * up x) when gated."""

    def __init__(self, config: ModelConfig, weights: Weights, name: str, *, linear: LinearMaker = Linear.of) -> None:
        self.gated = config.gated_mlp
        self.limit = config.swiglu_limit
        self.activate = activation(config.activation, weights, name)
        inputs = (f"{name}.gate_proj", f"{name}.up_proj") if self.gated else (f"{name}.up_proj",)
        self.up = linear(weights, *inputs)
        self.down = linear(weights, f"{name}.down_proj")
        self.sub_norm = Norm.of(weights, f"{name}.ffn_sub_norm", config) if config.sub_norms else None

    def __call__(self, x: Tensor) -> Tensor:
        """mlp(x), (N, D)."""
        return self.down(self._inner(x))

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual + mlp(x); both (N, D)."""
        return self.down.add_to(residual, self._inner(x))

    def _inner(self, x: Tensor) -> Tensor:
        inner = self._activated(x)
        return inner if self.sub_norm is None else self.sub_norm(inner)

    def _activated(self, x: Tensor) -> Tensor:
        inner = self.up(x)
        if not self.gated:
            return self.activate(inner)
        gate, inner = inner.chunk(2, -1)
        if self.limit is not None:
            return clamped_swiglu(gate, inner, self.limit)
        return self.activate(gate).mul_(inner)


def clamped_swiglu(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    """gpt-oss: (up + 1) gate sigmoid(1.702 gate), the gate clamped above, up on both sides."""
    gate = gate.clamp(max=limit)
    return gate.mul((gate * 1.702).sigmoid_()).mul_(up.clamp(-limit, limit).add_(1))
