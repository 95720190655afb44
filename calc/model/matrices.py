"""Every matrix of a model by the name that checkpoints give it: what a quantization applies to, or leaves alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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
    Mixer,
    ShortConv,
)
from calc.model.spec import Mlp, ModelSpec

SPLIT, KV, WHOLE = "split", "kv", "whole"
EMBEDDING, HEAD = "embed_tokens", "lm_head"


@dataclass(frozen=True, slots=True)
class Matrix:
    """`count` matrices (rows out, columns in). `name` is a module's path below the model, such as
    ``layers.0.self_attn.q_proj``; `share` says how tensor parallelism divides it."""

    name: str
    rows: int
    columns: int
    count: int
    share: str
    expert: bool = False

    @property
    def params(self) -> int:
        """Elements of all of them."""
        return self.rows * self.columns * self.count


def matrices(model: ModelSpec) -> Iterator[Matrix]:
    """All matrices that a linear layer holds, routers left out; embedding and head by EMBEDDING and HEAD."""
    width = model.embedding_size or model.hidden_size
    yield Matrix(EMBEDDING, model.vocab_size, width, 1, SPLIT)
    if not model.tied:
        yield Matrix(HEAD, model.vocab_size, width, 1, SPLIT)
    for i, layer in enumerate(layers_of(model)):
        for mixer in layer.mixers:
            yield from _mixer(f"layers.{i}", mixer, layer.hidden_size)
        shared = any(isinstance(part, Experts) for part in layer.feed_forwards)
        for part in layer.feed_forwards:
            if isinstance(part, Experts):
                size = part.input_size or layer.hidden_size
                name = f"layers.{i}.mlp.experts.0"
                yield from _mlp(name, size, part.expert_size, part.mlp, part.n_experts, expert=True)
            elif not part.shared:
                name = f"layers.{i}.mlp.shared_experts" if shared else f"layers.{i}.mlp"
                yield from _mlp(name, layer.hidden_size, part.intermediate_size, part.mlp, 1)


def layers_of(model: ModelSpec) -> tuple[LayerSpec, ...]:
    """The layers one by one, of a flat model too."""
    if model.layers:
        return model.layers
    mixer = Attention(
        n_heads=model.n_heads, n_kv_heads=model.n_kv_heads, head_dim=model.head_dim, value_dim=model.head_dim
    )
    dense = Dense(intermediate_size=model.intermediate_size, mlp=model.mlp)
    layer = LayerSpec(hidden_size=model.hidden_size, mixers=(mixer,), feed_forwards=(dense,), norm_params=0)
    return (layer,) * model.n_layers


def _mlp(name: str, size: int, inner: int, mlp: Mlp, count: int, *, expert: bool = False) -> Iterator[Matrix]:
    for part in ("gate_proj", "up_proj") if mlp is Mlp.GATED else ("up_proj",):
        yield Matrix(f"{name}.{part}", inner, size, count, SPLIT, expert)
    yield Matrix(f"{name}.down_proj", size, inner, count, SPLIT, expert)


def _mixer(layer: str, mixer: Mixer, size: int) -> Iterator[Matrix]:
    name = f"{layer}.self_attn"
    match mixer:
        case Attention(shared=True):
            return
        case Attention():
            queries = mixer.n_heads * mixer.head_dim * (2 if mixer.gated else 1)
            yield Matrix(f"{name}.q_proj", queries, size, 1, SPLIT)
            if mixer.keys:
                yield Matrix(f"{name}.k_proj", mixer.n_kv_heads * mixer.head_dim, size, 1, KV)
            if mixer.values:
                yield Matrix(f"{name}.v_proj", mixer.n_kv_heads * mixer.value_dim, size, 1, KV)
            yield Matrix(f"{name}.o_proj", size, mixer.n_heads * mixer.value_dim, 1, SPLIT)
        case Latent():
            yield from _latent(name, mixer, size)
        case _:
            yield from _recurrent(f"{layer}.mixer", mixer, size)


def _latent(name: str, mixer: Latent, size: int) -> Iterator[Matrix]:
    queries = mixer.n_heads * (mixer.nope_dim + mixer.rope_dim)
    if mixer.q_lora_rank:
        yield Matrix(f"{name}.q_a_proj", mixer.q_lora_rank, size, 1, WHOLE)
        yield Matrix(f"{name}.q_b_proj", queries, mixer.q_lora_rank, 1, SPLIT)
    else:
        yield Matrix(f"{name}.q_proj", queries, size, 1, SPLIT)
    rank = mixer.kv_lora_rank
    yield Matrix(f"{name}.kv_a_proj_with_mqa", rank + mixer.rope_dim, size, 1, WHOLE)
    yield Matrix(f"{name}.kv_b_proj", mixer.n_heads * (mixer.nope_dim + mixer.value_dim), rank, 1, SPLIT)
    yield Matrix(f"{name}.o_proj", size, mixer.n_heads * mixer.value_dim, 1, SPLIT)
    if mixer.index_heads:
        from_rank = mixer.q_lora_rank or size
        yield Matrix(f"{name}.indexer.wq_b", mixer.index_heads * mixer.index_dim, from_rank, 1, WHOLE)
        yield Matrix(f"{name}.indexer.wk", mixer.index_dim, size, 1, WHOLE)


def _recurrent(name: str, mixer: Mixer, size: int) -> Iterator[Matrix]:
    match mixer:
        case Mamba1():
            yield Matrix(f"{name}.in_proj", 2 * mixer.inner, size, 1, SPLIT)
            yield Matrix(f"{name}.x_proj", mixer.dt_rank + 2 * mixer.state, mixer.inner, 1, SPLIT)
            yield Matrix(f"{name}.dt_proj", mixer.inner, mixer.dt_rank, 1, SPLIT)
            yield Matrix(f"{name}.out_proj", size, mixer.inner, 1, SPLIT)
        case Mamba2():
            into = 2 * mixer.inner + 2 * mixer.groups * mixer.state + mixer.n_heads
            yield Matrix(f"{name}.in_proj", into, size, 1, SPLIT)
            yield Matrix(f"{name}.out_proj", size, mixer.inner, 1, SPLIT)
        case GatedDelta():
            inner = mixer.value_heads * mixer.value_dim
            keys = mixer.key_heads * mixer.key_dim
            yield Matrix(f"{name}.in_proj_qkvz", 2 * keys + 2 * inner, size, 1, SPLIT)
            yield Matrix(f"{name}.in_proj_ba", 2 * mixer.value_heads, size, 1, SPLIT)
            yield Matrix(f"{name}.out_proj", size, inner, 1, SPLIT)
        case KimiDelta():
            inner = mixer.n_heads * mixer.head_dim
            for part in ("q_proj", "k_proj", "v_proj"):
                yield Matrix(f"{name}.{part}", inner, size, 1, SPLIT)
            yield Matrix(f"{name}.o_proj", size, inner, 1, SPLIT)
        case ShortConv():
            yield Matrix(f"{name}.in_proj", 3 * size, size, 1, SPLIT)
            yield Matrix(f"{name}.out_proj", size, size, 1, SPLIT)
        case _:
            return
