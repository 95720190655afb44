"""Parts of layers: parameters and state against sums worked out by hand, records that survive a file."""

import pytest

from calc.errors import SpecError
from calc.model.layers import (
    Attention,
    Dense,
    Experts,
    GatedDelta,
    KimiDelta,
    Latent,
    LayerSpec,
    Mamba1,
    Mamba2,
    ShortConv,
    Stated,
    layers_document,
    layers_from_document,
)
from calc.model.parts import Mlp
from calc.model.spec import ModelSpec

PARTS = {
    # q 8*16, k 8*8, v 8*6, o 12*8
    "attention": (Attention(n_heads=4, n_kv_heads=2, head_dim=4, value_dim=3), 128 + 64 + 48 + 96, 14, 0),
    "window": (Attention(n_heads=4, n_kv_heads=2, head_dim=4, value_dim=4, window=9), 384, 16, 0),
    "biases": (
        Attention(n_heads=4, n_kv_heads=2, head_dim=4, value_dim=4, qkv_bias=True, o_bias=True),
        384 + 32 + 8, 16, 0,
    ),
    "another's cache": (
        Attention(n_heads=4, n_kv_heads=2, head_dim=4, value_dim=4, keys=False, values=False), 128 + 128, 0, 0,
    ),
    "v from k": (Attention(n_heads=4, n_kv_heads=2, head_dim=4, value_dim=4, values=False), 384 - 64, 16, 0),
    "gate": (Attention(n_heads=4, n_kv_heads=2, head_dim=4, value_dim=4, gated=True), 384 + 128, 16, 0),
    "shared": (Attention(n_heads=4, n_kv_heads=2, head_dim=4, value_dim=4, shared=True, extra_params=7), 7, 16, 0),
    "latent": (Latent(n_heads=2, kv_lora_rank=4, nope_dim=3, rope_dim=2, value_dim=5), 80 + 48 + 4 + 64 + 80, 6, 0),
    "mamba": (
        Mamba1(inner=16, state=4, kernel=3, dt_rank=2),
        8 * 32 + 16 * 3 + 16 + 16 * (2 + 8) + 2 * 16 + 16 + 16 * 4 + 16 + 16 * 8, 0, 16 * 4 + 16 * 3,
    ),
    "mamba2": (
        Mamba2(inner=16, n_heads=4, groups=2, state=3, kernel=4),
        8 * (16 + 28 + 4) + 28 * 5 + 3 * 4 + 16 + 16 * 8, 0, 16 * 3 + 28 * 4,
    ),
    "gated delta": (
        GatedDelta(key_heads=2, key_dim=3, value_heads=4, value_dim=5, kernel=4),
        8 * (32 + 20 + 8) + 32 * 4 + 8 + 5 + 20 * 8, 0, 4 * 15 + 32 * 4,
    ),
    "kimi delta": (
        KimiDelta(n_heads=2, head_dim=5, kernel=4, gate_rank=3, whole_gate=True),
        3 * 80 + 3 * 18 + 80 + 16 + 30 * 4 + 10 + 2 + 5 + 80, 0, 2 * 25 + 30 * 4,
    ),
    "Kimi delta, both gates of a rank": (
        KimiDelta(n_heads=2, head_dim=5, kernel=4, gate_rank=3),
        3 * 80 + 2 * (24 + 30) + 16 + 30 * 4 + 10 + 2 + 5 + 80, 0, 2 * 25 + 30 * 4,
    ),
    "kimi delta, whole gates": (
        KimiDelta(n_heads=2, head_dim=5, kernel=4), 3 * 80 + 2 * 80 + 16 + 30 * 4 + 10 + 2 + 5 + 80, 0, 2 * 25 + 30 * 4,
    ),
    "short convolution": (ShortConv(kernel=3, width=8, bias=True), 24 * 8 + 8 * 8 + 8 * 3 + 5 * 8, 0, 24),
    "stated": (Stated(label="other recurrence", params=11, state_elements=13), 11, 0, 13),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_parameters_cache_and_state(name):
    mixer, params, cached, state = PARTS[name]
    assert (mixer.term(8).value, mixer.cache_elements, mixer.state_elements) == (params, cached, state)


@pytest.mark.parametrize(
    ("part", "params"),
    [
        (Dense(intermediate_size=6), 3 * 8 * 6),
        (Dense(intermediate_size=6, mlp=Mlp.PLAIN, bias=True), 2 * 8 * 6 + 6 + 8),
        (Dense(intermediate_size=6, shared=True), 0),
        (Experts(n_experts=4, top_k=2, expert_size=6, router_params=32), 3 * 8 * 6),
        (Experts(n_experts=4, top_k=2, expert_size=6, router_params=32, input_size=4), 3 * 4 * 6),
    ],
)
def test_feed_forwards(part, params):
    assert part.term(8).value == params


def test_every_part_survives_a_file():
    layers = tuple(
        LayerSpec(hidden_size=8, norm_params=16, mixers=(mixer,), feed_forwards=(Dense(intermediate_size=6),))
        for mixer, *_ in PARTS.values()
    )
    again = layers_from_document(layers_document((*layers, layers[0], layers[0])))
    assert again == (*layers, layers[0], layers[0])


@pytest.mark.parametrize("document", [{}, {"kinds": [], "order": [[1, 0]]}, {"kinds": None, "order": []}])
def test_a_damaged_file_is_refused(document):
    with pytest.raises(SpecError, match="layers must be as kvscope writes them"):
        layers_from_document(document)


def test_more_experts_per_token_than_there_are_is_refused():
    with pytest.raises(SpecError, match="5 experts per token, but there are 4"):
        Experts(n_experts=4, top_k=5, expert_size=6, router_params=32)


def test_the_summary_is_the_commonest_layer():
    full, window = PARTS["attention"][0], PARTS["window"][0]
    layers = tuple(
        LayerSpec(hidden_size=8, norm_params=16, mixers=(mixer,), feed_forwards=(Dense(intermediate_size=6),))
        for mixer in (window, full, window)
    )
    found = ModelSpec(name="three", vocab_size=8, layers=layers)
    assert (found.n_layers, found.n_sliding_layers, found.window, found.head_dim) == (3, 2, 9, 4)
