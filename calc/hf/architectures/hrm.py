"""HRM-Text: two stacks of layers that a token passes several times, each time with a separate cache."""

from __future__ import annotations

from dataclasses import replace

from calc.hf.architecture import BIASED, MLP_BIAS, Architecture, Outer
from calc.hf.attention import full_attention
from calc.hf.feed_forward import dense_block
from calc.hf.reader import HIDDEN_SIZE, Reader
from calc.model.layers import LayerSpec


def _count(reader: Reader) -> int:
    """Layers, counted once per pass."""
    return _per_stack(reader) * reader.count("H_cycles") * (reader.count("L_cycles") + 1)


def _per_stack(reader: Reader) -> int:
    """num_layers_per_stack; without it, num_hidden_layers has the same meaning, else it counts all rounds together."""
    stated = reader.count("num_hidden_layers")
    return reader.maybe("num_layers_per_stack") or stated


def _layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Each cycle runs the low stack `L_cycles` times, then the high stack; matrices are counted at their first use."""
    per_stack, low = _per_stack(reader), reader.count("L_cycles")
    attention, dense = full_attention(reader, arch), dense_block(reader, arch)
    gate_bias = attention.n_heads * attention.head_dim if attention.qkv_bias else 0
    attention = replace(attention, extra_params=attention.extra_params + gate_bias)
    own = LayerSpec(hidden_size=hidden_size, mixers=(attention,), feed_forwards=(dense,), norm_params=0)
    again = replace(
        own, mixers=(replace(attention, shared=True, extra_params=0),), feed_forwards=(replace(dense, shared=True),)
    )
    first = {0, low}  # rounds in which a stack is used for the first time
    return [own if i // per_stack in first else again for i in range(n_layers)]


def _outer(reader: Reader) -> Outer:
    """The initial state of the low stack."""
    return Outer(reader.count(*HIDDEN_SIZE))


ARCHITECTURES = (
    replace(
        BIASED,
        names=("hrm_text",),
        norm="none",
        mlp_bias=MLP_BIAS,
        separate_gate=True,
        count_layers=_count,
        layers=_layers,
        outer=_outer,
    ),
)
