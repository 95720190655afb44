"""Random models whose layers are given one by one: full, windowed and latent attention, recurrences, experts."""

from __future__ import annotations

from hypothesis import strategies as st

from calc.model.layers import Attention, Dense, Experts, GatedDelta, Latent, LayerSpec, Mamba2
from calc.model.spec import ModelSpec
from calc.model.study import Study
from tests.calc.strategies import device, formats

WIDTH = 64


@st.composite
def mixers(draw: st.DrawFn) -> Attention | Latent | Mamba2 | GatedDelta:
    kind = draw(st.sampled_from(["full", "window", "latent", "mamba", "delta"]))
    heads = draw(st.sampled_from([1, 2, 4]))
    if kind == "latent":
        return Latent(n_heads=heads, kv_lora_rank=32, nope_dim=16, rope_dim=8, value_dim=16, q_lora_rank=24)
    if kind == "mamba":
        return Mamba2(inner=64, n_heads=heads, groups=1, state=16, kernel=4)
    if kind == "delta":
        return GatedDelta(key_heads=heads, key_dim=8, value_heads=2 * heads, value_dim=8, kernel=4)
    window = draw(st.sampled_from([1, 7, 128])) if kind == "window" else None
    n_kv_heads = draw(st.sampled_from([n for n in (1, 2, 4) if n <= heads]))
    return Attention(
        n_heads=heads,
        n_kv_heads=n_kv_heads,
        head_dim=16,
        value_dim=draw(st.sampled_from([8, 16])),
        window=window,
        qkv_bias=draw(st.booleans()),
        o_bias=draw(st.booleans()),
    )


feed_forwards = st.sampled_from(
    [
        (Dense(intermediate_size=96),),
        (Dense(intermediate_size=128, bias=True),),
        (Experts(n_experts=8, top_k=2, expert_size=32, router_params=8 * WIDTH),),
        (Experts(n_experts=6, top_k=1, expert_size=32, router_params=6 * WIDTH), Dense(intermediate_size=32)),
    ]
)


@st.composite
def layered_models(draw: st.DrawFn) -> ModelSpec:
    kinds = draw(
        st.lists(
            st.builds(
                lambda mixer, parts: LayerSpec(
                    hidden_size=WIDTH, norm_params=2 * WIDTH, mixers=(mixer,), feed_forwards=parts
                ),
                mixers(),
                feed_forwards,
            ),
            min_size=1,
            max_size=3,
        )
    )
    layers = tuple(layer for layer in draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=9)))
    return ModelSpec(
        name="layered",
        vocab_size=draw(st.sampled_from([64, 100, 1024])),
        tied=draw(st.booleans()),
        layers=layers,
    )


@st.composite
def layered_studies(draw: st.DrawFn) -> Study:
    return Study(
        model=draw(layered_models()),
        device=device(draw(st.integers(1, 30) | st.integers(10_000, 10**7))),
        context=draw(st.integers(1, 3000)),
        weight_format=draw(formats),
        kv_format=draw(formats),
        tps=(1, 2, 4, 8),
    )
