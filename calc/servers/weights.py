"""Weight bytes of one rank: tensors as a server stores them, by tensor-parallel rank and pipeline stage.

Linear layers take the weight format; embedding, head, norms, routers and biases stay in the activations' type
(vLLM's quantization methods). K and V projections repeat where there are more ranks than KV heads; the vocabulary is
padded to 64 rows and then divided (``vocab_parallel_embedding.py``); what goes into a latent is on every rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import ceil
from typing import Any

from calc.model.cache import kv_heads_per_rank
from calc.model.layers import Attention, Dense, Experts, Latent, LayerSpec, Mixer
from calc.model.params import layer_norm_params
from calc.model.spec import Mlp, ModelSpec
from calc.model.storage import StorageFormat
from calc.model.stored import is_as_stored
from calc.servers.records import ModelFacts

MIB = 2**20
VOCAB_PADDING = 64
INT4_GROUP = 128
LARGE_TENSOR = 10 * MIB
SEGMENT = 2 * MIB


@dataclass(frozen=True, slots=True)
class Tensor:
    """`elements` of a rank's tensor; `linear` ones are stored in the weight format."""

    elements: int
    linear: bool = False


def stage_layers(n_layers: int, pp: int) -> tuple[tuple[int, int], ...]:
    """First and last (excluded) layer of every pipeline stage: what is over goes to the last but one, and before.

    >>> stage_layers(10, 4)
    ((0, 2), (2, 5), (5, 8), (8, 10))
    """
    each, over = divmod(n_layers, pp)
    sizes = [each] * pp
    for back in range(2, over + 2):
        sizes[-min(back, pp)] += 1
    ends = [sum(sizes[: i + 1]) for i in range(pp)]
    return tuple(zip([0, *ends[:-1]], ends, strict=True))


def padded_vocab(vocab_size: int, tp: int) -> int:
    """Vocabulary rows of a rank.

    >>> padded_vocab(49_155, 1), padded_vocab(32_000, 3)
    (49216, 10667)
    """
    return -(-(-(-vocab_size // VOCAB_PADDING) * VOCAB_PADDING) // tp)


@lru_cache(maxsize=4)
def layers_of(model: ModelSpec) -> tuple[LayerSpec, ...]:
    """The model's layers one by one; those of a flat ModelSpec are all alike but for the window."""
    if model.layers:
        return model.layers
    norms = layer_norm_params(
        hidden_size=model.hidden_size, head_dim=model.head_dim, norm=model.norm, qk_norm=model.qk_norm
    )
    mixer = Attention(
        n_heads=model.n_heads,
        n_kv_heads=model.n_kv_heads,
        head_dim=model.head_dim,
        value_dim=model.head_dim,
        qkv_bias=model.qkv_bias,
        o_bias=model.o_bias,
    )
    part = Dense(intermediate_size=model.intermediate_size, mlp=model.mlp, bias=model.mlp_bias)
    layer = LayerSpec(hidden_size=model.hidden_size, mixers=(mixer,), feed_forwards=(part,), norm_params=norms)
    return (layer,) * model.n_layers


def _attention(mixer: Attention, hidden: int, tp: int) -> Iterator[Tensor]:
    own_kv = kv_heads_per_rank(n_kv_heads=mixer.n_kv_heads, tp=tp)
    rows = mixer.n_heads * mixer.head_dim * (2 if mixer.gated else 1) // tp
    rows += own_kv * ((mixer.head_dim if mixer.keys else 0) + (mixer.value_dim if mixer.values else 0))
    yield Tensor(hidden * rows, linear=True)
    yield Tensor(mixer.n_heads * mixer.value_dim * hidden // tp, linear=True)
    yield Tensor(mixer.extra_params + rows * mixer.qkv_bias + hidden * mixer.o_bias)


def _latent(mixer: Latent, hidden: int, tp: int) -> Iterator[Tensor]:
    queries = mixer.n_heads * (mixer.nope_dim + mixer.rope_dim) // tp
    down = mixer.kv_lora_rank + mixer.rope_dim
    yield Tensor(hidden * (down + mixer.q_lora_rank), linear=True)
    yield Tensor((mixer.q_lora_rank or hidden) * queries, linear=True)
    yield Tensor(mixer.kv_lora_rank * mixer.n_heads * (mixer.nope_dim + mixer.value_dim) // tp, linear=True)
    yield Tensor(mixer.n_heads * mixer.value_dim * hidden // tp, linear=True)
    yield Tensor(mixer.kv_lora_rank + mixer.q_lora_rank + mixer.extra_params + mixer.bias * (down + hidden))
    if mixer.index_heads:
        yield Tensor((mixer.q_lora_rank or hidden) * mixer.index_heads * mixer.index_dim, linear=True)
        yield Tensor(hidden * (mixer.index_dim + mixer.index_heads) + 2 * mixer.index_dim)


def _mixer(mixer: Mixer, hidden: int, tp: int) -> Iterator[Tensor]:
    if isinstance(mixer, Attention):
        yield from _attention(mixer, hidden, tp)
    elif isinstance(mixer, Latent):
        yield from _latent(mixer, hidden, tp)
    else:
        yield Tensor(-(-int(mixer.term(hidden).value) // tp), linear=True)


def _experts(part: Experts, hidden: int, tp: int) -> Iterator[Tensor]:
    width = part.input_size or hidden
    first = part.n_experts * part.expert_size * width * (2 if part.mlp is Mlp.GATED else 1)
    yield Tensor(first // tp, linear=True)
    yield Tensor(part.n_experts * part.expert_size * width // tp, linear=True)
    biases = part.n_experts * (part.expert_size * (2 if part.mlp is Mlp.GATED else 1) // tp + width)
    yield Tensor(part.router_params + biases * part.bias)


def layer_tensors(layer: LayerSpec, tp: int) -> tuple[Tensor, ...]:
    """The tensors of one layer on a rank."""
    tensors = [tensor for mixer in layer.mixers for tensor in _mixer(mixer, layer.hidden_size, tp)]
    for part in layer.feed_forwards:
        if isinstance(part, Experts):
            tensors += _experts(part, layer.hidden_size, tp)
            continue
        first = part.intermediate_size * (2 if part.mlp is Mlp.GATED else 1) // tp
        tensors.append(Tensor(layer.hidden_size * first, linear=True))
        tensors.append(Tensor(layer.hidden_size * part.intermediate_size // tp, linear=True))
        tensors.append(Tensor(part.extra_params + part.bias * (first + layer.hidden_size)))
    tensors.append(Tensor(layer.norm_params))
    return tuple(tensor for tensor in tensors if tensor.elements)


def outer_tensors(model: ModelSpec, *, tp: int, first: bool, last: bool) -> tuple[Tensor, ...]:
    """Embedding and positions on the first stage, head and final norm on the last; a tied head needs both there."""
    rows = padded_vocab(model.vocab_size, tp)
    width = model.hidden_size if model.embedding_size is None else model.embedding_size
    tensors = []
    if first:
        tensors += [Tensor(rows * width), Tensor(model.n_learned_positions * model.hidden_size)]
        tensors.append(Tensor(model.other_params))
    if last:
        if not (model.tied and first):
            tensors.append(Tensor(rows * width))
        tensors.append(Tensor(rows * model.head_bias + 2 * model.hidden_size))
    return tuple(tensor for tensor in tensors if tensor.elements)


def format_bytes_each(model: ModelSpec, weight_format: StorageFormat, plain: int) -> int | Fraction:
    """Bytes a linear weight takes: int4 in groups of 128 with a 16-bit scale and a 4-bit zero point.

    Of a checkpoint that is quantized: what its bytes leave for the linear weights beside the plain ones.
    """
    if model.stored is not None and is_as_stored(model, weight_format):
        tensors = [t for layer in layers_of(model) for t in layer_tensors(layer, 1)]
        tensors += outer_tensors(model, tp=1, first=True, last=True)
        linear = sum(t.elements for t in tensors if t.linear)
        other = sum(t.elements for t in tensors if not t.linear) * plain
        if 0 < model.stored.total_bytes - other < linear * plain:
            return Fraction(model.stored.total_bytes - other, linear)
    each = weight_format.bytes_per_element
    return each + Fraction(5, 2) / INT4_GROUP if weight_format.name == "int4" else each


def allocated(size: int) -> int:
    """Bytes that PyTorch's CUDA allocator books for a tensor: above 10 MiB whole 2 MiB, a large rest given back.

    Source: c10/cuda/CUDACachingAllocator.cpp (get_allocation_size, should_split).

    >>> allocated(75 * MIB) == 76 * MIB, allocated(5 * MIB) == 5 * MIB, allocated(43 * MIB - MIB // 2) == 43 * MIB
    (True, True, False)
    """
    if size < LARGE_TENSOR:
        return size
    slack = -size % SEGMENT
    return size + slack if slack <= MIB else size


def tensor_bytes(tensor: Tensor, each: int | Fraction, plain: int) -> int:
    """Bytes of a tensor: in the weight format where it is linear and that is narrower, else `plain` an element."""
    return ceil(tensor.elements * each) if tensor.linear and each < plain else tensor.elements * plain


def rope_bytes(model: ModelSpec, facts: ModelFacts, plain: int) -> int:
    """The precomputed tables of rotary positions: one row of head_dim for every position of the model's context."""
    if facts.rope_elements is not None:
        return facts.rope_elements * plain
    if model.n_learned_positions or model.max_context is None:
        return 0
    mixers = [mixer for layer in layers_of(model) for mixer in layer.mixers]
    width = next((m.rope_dim if isinstance(m, Latent) else m.head_dim for m in mixers if hasattr(m, "n_heads")
                  and isinstance(m, Attention | Latent)), 0)  # fmt: skip
    return model.max_context * width * plain


def stage_weight_bytes(
    model: ModelSpec,
    weight_format: StorageFormat,
    *,
    tp: int,
    stage: tuple[int, int],
    plain: int,
    facts: ModelFacts,
    speculative_layers: int = 0,
) -> int:
    """Weight bytes of a rank of one stage, as its allocator counts them, tables and encoders included."""
    first, last = stage[0] == 0, stage[1] == model.n_layers
    layers: Sequence[LayerSpec] = layers_of(model)
    each = format_bytes_each(model, weight_format, plain)
    counts: dict[LayerSpec, int] = {}
    for layer in layers[stage[0] : stage[1]]:
        counts[layer] = counts.get(layer, 0) + 1
    if last and speculative_layers:
        counts[layers[-1]] = counts.get(layers[-1], 0) + speculative_layers
    total = sum(
        n * sum(allocated(tensor_bytes(tensor, each, plain)) for tensor in layer_tensors(layer, tp))
        for layer, n in counts.items()
    )
    outer = outer_tensors(model, tp=tp, first=first, last=last)
    total += sum(allocated(tensor_bytes(tensor, each, plain)) for tensor in outer)
    total += rope_bytes(model, facts, plain)
    return total + (-(-facts.vision_params * plain // tp) if first else 0)


def widest_dense(model: ModelSpec) -> int:
    """The widest feed-forward that every token goes through; 0 where there are only experts."""
    parts: list[Any] = [part for layer in layers_of(model) for part in layer.feed_forwards]
    return max((part.intermediate_size for part in parts if isinstance(part, Dense)), default=0)
