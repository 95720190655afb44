"""Zaya: convolved keys and queries, half of each value from the previous token, small MLPs as routers."""

from __future__ import annotations

from dataclasses import replace

from calc.hf.architecture import BIASED, Architecture, Outer
from calc.hf.attention import full_attention
from calc.hf.feed_forward import EXPERT_SIZE, N_EXPERTS, TOP_K
from calc.hf.reader import HIDDEN_SIZE, Reader, shown
from calc.model.layers import Attention, Experts, LayerSpec, Mixer, Stated

FULL, SLIDING = "hybrid", "hybrid_sliding"


def _layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    types = reader.per_layer("layer_types", n_layers) or [FULL] * n_layers
    if unknown := [kind for kind in types if kind not in (FULL, SLIDING)]:
        raise reader.fail(f"layer_types has {shown(unknown[0])}: kvscope knows {FULL} and {SLIDING}")
    full = full_attention(reader, arch)
    full = replace(full, extra_params=full.n_kv_heads)  # a temperature per head
    of: dict[str, tuple[Mixer, ...]] = {FULL: (full, _convolved(reader, full))}
    if SLIDING in types:
        near = replace(full, window=reader.count("sliding_window"))
        of[SLIDING] = (near, _convolved(reader, full))
    else:
        reader.ignore("sliding_window")
    norms = (2 + 8) * hidden_size  # two norms; scale and bias of both residuals and of what is added to them
    return [
        LayerSpec(
            hidden_size=hidden_size,
            mixers=of[kind],
            feed_forwards=(_experts(reader, hidden_size, first=i == 0),),
            norm_params=norms,
        )
        for i, kind in enumerate(types)
    ]


def _convolved(reader: Reader, full: Attention) -> Stated:
    """A convolution per channel of Q and K, then one within each head; half of a value is delayed by one token."""
    channels = (full.n_heads + full.n_kv_heads) * full.head_dim
    each, within = reader.count("cca_time0"), reader.count("cca_time1")
    params = channels * (each + 1) + channels * (full.head_dim * within + 1)
    state = channels * (each + within - 2) + full.n_kv_heads * full.head_dim // 2
    return Stated(label="query and key convolution", params=params, state_elements=state)


def _experts(reader: Reader, hidden_size: int, *, first: bool) -> Experts:
    """The router has one more output that skips all experts; from the second layer upwards it scales earlier states."""
    n_experts, width = reader.count(*N_EXPERTS), reader.count("router_hidden_size")
    router = (hidden_size + 1) * width + width + 2 * (width + 1) * width + width * (n_experts + 1)
    return Experts(
        n_experts=n_experts,
        top_k=reader.count(*TOP_K),
        expert_size=reader.count(*EXPERT_SIZE),
        router_params=router + (0 if first else width),
    )


def _outer(reader: Reader) -> Outer:
    """Scale and bias of the input of the first layer."""
    return Outer(2 * reader.count(*HIDDEN_SIZE))


ARCHITECTURES = (
    replace(
        BIASED,
        names=("zaya",),
        unused=("intermediate_size",),
        tied=True,
        head_bias=("lm_head_bias", False),
        needs_inner=False,
        layers=_layers,
        outer=_outer,
    ),
)
