"""OLMo: no norm weights in OLMo 1, norms over all heads of Q and K since OLMo 2, gated delta layers in the hybrid."""

from __future__ import annotations

from dataclasses import replace

from calc.hf.architecture import BIASED, Architecture
from calc.hf.attention import full_attention
from calc.hf.feed_forward import feed_forwards
from calc.hf.layer_kinds import FULL_TYPE, LINEAR_TYPE, linear_or_full
from calc.hf.layers import stack
from calc.hf.reader import N_HEADS, Reader
from calc.model.layers import GatedDelta, LayerSpec, Mixer

_OLMO2 = replace(BIASED, qk_norm="full")


def _hybrid_layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Gated delta layers; every fourth layer and the last one are full."""
    n_heads = reader.count(*N_HEADS)
    key_heads = reader.maybe("linear_num_key_heads") or n_heads
    key_dim = reader.maybe("linear_key_head_dim") or 3 * hidden_size // (4 * key_heads)
    delta = GatedDelta(
        key_heads=key_heads,
        key_dim=key_dim,
        value_heads=reader.maybe("linear_num_value_heads") or n_heads,
        value_dim=reader.maybe("linear_value_head_dim") or 2 * key_dim,
        kernel=reader.count("linear_conv_kernel_dim", default=4),
    )
    types = linear_or_full(reader, n_layers) or [FULL_TYPE if i % 4 == 3 else LINEAR_TYPE for i in range(n_layers)]
    if FULL_TYPE not in types:
        types = [*types[:-1], FULL_TYPE]
    of: dict[str, tuple[Mixer, ...]] = {LINEAR_TYPE: (delta,), FULL_TYPE: (full_attention(reader, arch),)}
    return stack(reader, arch, hidden_size, [of[kind] for kind in types], feed_forwards(reader, arch, n_layers))


ARCHITECTURES = (
    replace(BIASED, names=("olmo",), norm="none"),
    replace(_OLMO2, names=("olmo2",)),
    replace(_OLMO2, names=("olmo3",), window="every:4", default_window=4096),
    replace(_OLMO2, names=("olmoe",)),
    replace(_OLMO2, names=("flex_olmo",)),
    replace(_OLMO2, names=("olmo_hybrid",), layers=_hybrid_layers),
)
