"""Models whose layers are not all alike, made by hand: what the tests of the panes share."""

from __future__ import annotations

from calc.model.layers import Attention, Dense, Experts, GatedDelta, Latent, LayerSpec, Mixer
from calc.model.spec import ModelSpec

HIDDEN = 2048


def _layer(mixer: Mixer, *, experts: bool) -> LayerSpec:
    routed = Experts(n_experts=256, top_k=8, expert_size=512, router_params=256 * HIDDEN)
    feed = routed if experts else Dense(intermediate_size=5632)
    return LayerSpec(hidden_size=HIDDEN, mixers=(mixer,), feed_forwards=(feed,), norm_params=2 * HIDDEN)


def _model(name: str, layers: tuple[LayerSpec, ...]) -> ModelSpec:
    return ModelSpec(name=name, vocab_size=151_936, layers=layers, source="made by hand")


def hybrid() -> ModelSpec:
    """Forty layers: three gated delta, then one of full attention; a dense layer first, then experts."""
    delta = GatedDelta(key_heads=16, key_dim=128, value_heads=32, value_dim=128, kernel=4)
    full = Attention(n_heads=16, n_kv_heads=2, head_dim=256, value_dim=256, gated=True)
    kinds: list[Mixer] = [full if i % 4 == 3 else delta for i in range(40)]
    return _model("hybrid-40", tuple(_layer(mixer, experts=i > 0) for i, mixer in enumerate(kinds)))


def windowed() -> ModelSpec:
    """Forty-eight layers: five with a window of 1,024, then one of full attention."""
    shape = {"n_heads": 16, "n_kv_heads": 8, "head_dim": 256, "value_dim": 256}
    full, near = Attention(**shape), Attention(**shape, window=1024)
    return _model("windowed-48", tuple(_layer(full if i % 6 == 5 else near, experts=False) for i in range(48)))


def latent() -> ModelSpec:
    """Sixty-one latent layers, the first three dense."""
    mixer = Latent(n_heads=16, kv_lora_rank=512, nope_dim=128, rope_dim=64, value_dim=128, q_lora_rank=1536)
    return _model("latent-61", tuple(_layer(mixer, experts=i >= 3) for i in range(61)))
