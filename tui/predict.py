"""What calc says about the model that the engine runs: the prediction beside every measurement."""

from __future__ import annotations

from dataclasses import dataclass

from calc.attention import Attention, Phase, attention_work
from calc.explain import Number, Term
from calc.kv_cache import request_term, token_term
from calc.specs import Mlp, ModelSpec, Norm
from calc.storage import FORMATS, StorageFormat
from calc.traffic import linear_flops, linear_params
from engine.events import ModelInfo

DTYPES = {
    "float64": StorageFormat("float64", 1, 8),
    "float32": FORMATS["fp32"],
    "bfloat16": FORMATS["bf16"],
    "float16": FORMATS["fp16"],
}
"""torch's dtypes as storage formats."""


def spec_of(info: ModelInfo) -> ModelSpec:
    """The calculator's spec of a loaded model. No window: the engine's cache keeps every token."""
    return ModelSpec(
        name=info.name,
        n_layers=info.n_layers,
        n_heads=info.n_heads,
        n_kv_heads=info.n_kv_heads,
        head_dim=info.head_dim,
        hidden_size=info.hidden_size,
        intermediate_size=info.intermediate_size,
        vocab_size=info.vocab_size,
        mlp=Mlp.GATED if info.gated_mlp else Mlp.PLAIN,
        norm=Norm.LAYER if info.norm == "layernorm" else Norm.RMS,
        tied=info.tied,
        qkv_bias=info.qkv_bias,
        o_bias=info.o_bias,
        mlp_bias=info.mlp_bias,
        head_bias=info.head_bias,
        qk_norm=info.qk_norm,
        n_learned_positions=info.max_positions if info.learned_positions else 0,
        max_context=info.max_positions,
        source=info.path,
    )


def cache_token_term(info: ModelInfo) -> Term:
    """Cache bytes a token of the loaded model at its dtype, with the derivation."""
    return token_term(spec_of(info), DTYPES[info.dtype])


def predicted_cache_bytes(info: ModelInfo, tokens: int) -> Number:
    """calc's figure for a cache that holds `tokens` tokens."""
    return request_term(spec_of(info), DTYPES[info.dtype], tokens).value if tokens else 0


@dataclass(frozen=True, slots=True)
class Work:
    """FLOPs of a whole generation in both ways."""

    with_cache_flops: int
    without_cache_flops: int

    @property
    def ratio(self) -> float:
        """How many times more work it is without the cache."""
        return self.without_cache_flops / self.with_cache_flops


def generation_work(spec: ModelSpec, *, prompt_tokens: int, new_tokens: int) -> Work:
    """FLOPs of prefill and `new_tokens` - 1 further steps, with the cache and with full recomputation.

    With the cache a step puts one token through the linear layers and attends over the n tokens there are: linear
    in n. Without it the step does the prefill of n tokens again: n times the linear layers, attention in n².
    So both sums are those of n and of n² over the steps, and are taken in closed form.
    """
    first, last = prompt_tokens, prompt_tokens + new_tokens - 1
    per_token = int(linear_flops(batch=1, parameters=linear_params(spec)))
    decode, prefill = _attention_unit(spec, Phase.DECODE), _attention_unit(spec, Phase.PREFILL)
    later = _sum(last) - _sum(first)
    cached = per_token * (first + new_tokens - 1) + prefill * first**2 + decode * later
    recomputed = per_token * (_sum(last) - _sum(first - 1)) + prefill * (_squares(last) - _squares(first - 1))
    return Work(cached, recomputed)


def _attention_unit(spec: ModelSpec, phase: Phase) -> int:
    """FLOPs of attention in all layers and heads at one token of context: what n or n² is multiplied with."""
    flops, _ = attention_work(
        Attention.STANDARD,
        phase,
        n_keys=1,
        head_dim=spec.head_dim,
        group_size=spec.group_size,
        softmax_flops=5,
        element_bytes=1,
    )
    return int(flops) * spec.n_layers * spec.n_kv_heads


def _sum(n: int) -> int:
    return n * (n + 1) // 2


def _squares(n: int) -> int:
    return n * (n + 1) * (2 * n + 1) // 6
