"""Inkling: relative positions and four short convolutions per layer; Inkling 2 adds gates, sinks, mixed residuals."""

from __future__ import annotations

from dataclasses import dataclass, replace

from calc.hf.architecture import Architecture, Outer
from calc.hf.feed_forward import feed_forwards
from calc.hf.layers import Block, stack
from calc.hf.reader import HIDDEN_SIZE, Reader, shown
from calc.model.layers import Attention, Dense, Experts, LayerSpec, Mixer, Stated

FULL, SLIDING = "hybrid", "hybrid_sliding"


@dataclass(frozen=True, slots=True)
class _Shape:
    """Attention of one kind of layer. `extent`: number of distances with their own relative position."""

    heads: int
    kv_heads: int
    head_dim: int
    extent: int
    window: int | None = None

    @property
    def kept(self) -> int:
        """Channels of the keys and of the values."""
        return self.kv_heads * self.head_dim


def _shapes(reader: Reader) -> dict[str, _Shape]:
    window = reader.count("sliding_window_size", "sliding_window")
    names = ("num_attention_heads", "num_key_value_heads", "head_dim")
    heads, kv_heads, head_dim = (reader.count(name) for name in names)
    full = _Shape(heads, kv_heads, head_dim, extent=reader.count("rel_extent"))
    heads, kv_heads, head_dim = (reader.count(f"swa_{name}") for name in names)
    return {FULL: full, SLIDING: _Shape(heads, kv_heads, head_dim, extent=window, window=window)}


def _types(reader: Reader, n_layers: int) -> list[str]:
    """layer_types, or local_layer_ids, or every sixth layer full."""
    if (listed := reader.per_layer("layer_types", n_layers)) is not None:
        reader.ignore("local_layer_ids")
        if unknown := [kind for kind in listed if kind not in (FULL, SLIDING)]:
            raise reader.fail(f"layer_types has {shown(unknown[0])}: kvscope knows {FULL} and {SLIDING}")
        return list(listed)
    if reader.has("local_layer_ids"):
        local = reader.indices("local_layer_ids")
        return [SLIDING if i in local else FULL for i in range(n_layers)]
    reader.assume("layer_types", "every sixth layer full")
    return [SLIDING if (i + 1) % 6 else FULL for i in range(n_layers)]


def _attention(reader: Reader, shape: _Shape, hidden_size: int, more: int = 0) -> Attention:
    """Relative positions are a projection of `d_rel` per head, and a table."""
    relative = reader.count("d_rel") * (shape.heads * hidden_size + shape.extent)
    return Attention(
        n_heads=shape.heads,
        n_kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        value_dim=shape.head_dim,
        window=shape.window,
        extra_params=relative + more,
    )


def _convolutions(reader: Reader, shape: _Shape, hidden_size: int, more: int = 0) -> Stated:
    """Convolutions of keys, values, attention output and feed-forward output; `kernel` inputs of each are kept."""
    elements = 2 * (shape.kept + hidden_size) * reader.count("conv_kernel_size")
    return Stated(label="short convolution", params=elements + more, state_elements=elements)


def _inkling_layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """In published files, intermediate_size is the experts' size if dense_intermediate_size is also present."""
    if reader.has("dense_intermediate_size"):
        reader.put("moe_intermediate_size", reader.count("intermediate_size"))
    if not reader.has("mlp_layer_types"):
        reader.put("first_k_dense_replace", reader.maybe("dense_mlp_idx", minimum=0) or 0)
    reader.ignore("dense_mlp_idx")
    mixers: dict[str, tuple[Mixer, ...]] = {
        kind: (_attention(reader, shape, hidden_size), _convolutions(reader, shape, hidden_size))
        for kind, shape in _shapes(reader).items()
    }
    blocks = [_scaled(reader, block, hidden_size) for block in feed_forwards(reader, arch, n_layers)]
    return stack(reader, arch, hidden_size, [mixers[kind] for kind in _types(reader, n_layers)], blocks)


def _scaled(reader: Reader, block: Block, hidden_size: int) -> Block:
    """One factor for the whole block; the router also has a row per shared expert."""
    *first, last = block
    if isinstance(last, Experts):
        rows = reader.maybe("n_shared_experts", minimum=0) or 0
        return (*first, replace(last, router_params=last.router_params + rows * hidden_size + 1))
    return (replace(last, extra_params=last.extra_params + 1),) if isinstance(last, Dense) else block


def _inkling2_layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Full layers normalize the inputs of Q, K and V separately, and their convolutions depend on the input."""
    reader.ignore("n_layers_per_attn_res_block")  # says what is mixed, without effect on sizes
    kernel, shapes, types = reader.count("conv_kernel_size"), _shapes(reader), _types(reader, n_layers)
    blocks = feed_forwards(reader, arch, n_layers)
    layers: list[LayerSpec] = []
    for i, kind in enumerate(types):
        shape, inputs = shapes[kind], 3 if kind == FULL else 1
        inner = shape.heads * shape.head_dim
        gate = hidden_size * (inner + shape.heads) + inner + shape.heads * reader.count("d_rel")
        weights = 2 * hidden_size * shape.kv_heads * kernel if kind == FULL else 0
        mixed = (inputs if i else 0) + 1  # queries over the residuals of earlier blocks
        layers.append(
            LayerSpec(
                hidden_size=hidden_size,
                mixers=(
                    _attention(reader, shape, hidden_size, gate),
                    _convolutions(reader, shape, hidden_size, weights),
                ),
                feed_forwards=blocks[i],
                norm_params=(inputs + 1 + mixed) * hidden_size,
            )
        )
    return layers


def _untied(reader: Reader, arch: Architecture) -> Architecture:
    """The head is never tied to the embedding, whatever the config says."""
    reader.put("tie_word_embeddings", False)
    return arch


def _embedding_norm(reader: Reader) -> Outer:
    return Outer(reader.count(*HIDDEN_SIZE) if reader.flag("use_embed_norm", True) else 0)


def _inkling2_outer(reader: Reader) -> Outer:
    """The embedding's norm, and before the head the query over the residuals."""
    return Outer(2 * reader.count(*HIDDEN_SIZE))


_INKLING = Architecture(
    unused=(
        "unpadded_vocab_size",
        "log_scaling_n_floor",
        "number_of_conv_states",
        "shared_expert_sink",
        "use_gate_bias",
    ),
    adapt=_untied,
    rename={"model_max_length": "max_position_embeddings", "sconv_kernel_size": "conv_kernel_size"},
)

ARCHITECTURES = (
    replace(
        _INKLING,
        names=("inkling_text", "inkling_model", "inkling_mm_model"),
        qk_norm="head",
        layers=_inkling_layers,
        outer=_embedding_norm,
    ),
    replace(
        _INKLING,
        names=("inkling2_text", "inkling2"),
        needs_inner=False,
        layers=_inkling2_layers,
        outer=_inkling2_outer,
    ),
)
