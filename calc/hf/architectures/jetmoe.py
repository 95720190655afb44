"""JetMoE: experts in the feed-forward, and for queries and output in attention."""

from __future__ import annotations

from dataclasses import replace

from calc.hf.architecture import Architecture
from calc.hf.feed_forward import feed_forwards
from calc.hf.layers import stack
from calc.hf.reader import HEAD_DIM, N_HEADS, N_KV_HEADS, Reader
from calc.model.layers import Attention, Experts, LayerSpec, Mixer
from calc.model.parts import Mlp


def _layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Each attention expert projects the queries for all KV heads and projects their result back."""
    blocks = feed_forwards(reader, arch, n_layers)
    experts = blocks[0][-1]
    if not isinstance(experts, Experts):
        raise reader.fail("num_local_experts missing: a jetmoe model has experts")
    reader.ignore(*N_HEADS)  # KV heads times experts per token
    n_kv_heads, head_dim = reader.count(*N_KV_HEADS), reader.count(*HEAD_DIM)
    inner = n_kv_heads * head_dim
    mixer = Attention(
        n_heads=n_kv_heads * experts.top_k,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        value_dim=head_dim,
        shared=True,  # queries and output are experts below, so that only those that a token uses count as active
        extra_params=2 * inner * hidden_size,
    )
    projections = replace(experts, expert_size=inner, mlp=Mlp.PLAIN)
    mixers: list[tuple[Mixer, ...]] = [(mixer,)] * n_layers
    biased = replace(arch, extra_params=2 * hidden_size)
    return stack(reader, biased, hidden_size, mixers, [(projections, *block) for block in blocks])


ARCHITECTURES = (Architecture(names=("jetmoe",), tied=True, needs_heads=False, layers=_layers),)
