"""Weight bytes of one rank: tensors as stored by a server, by tensor-parallel rank and pipeline stage.

Linear layers use the weight format; embedding, head, norms, routers and biases stay in the activations' dtype (vLLM's
quantization methods). K and V projections repeat if there are more ranks than KV heads; the vocabulary is padded to 64
rows and then divided (``vocab_parallel_embedding.py``); projections into a latent are on every rank.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from calc.model.parts import LayerSpec
from calc.model.shares import padded_vocab
from calc.model.spec import ModelSpec
from calc.model.storage import StorageFormat
from calc.model.tensors import LINEAR, Tensor, rank_elements
from calc.servers.records import ModelFacts
from calc.units import MIB

INT4_GROUP = 128
LARGE_TENSOR = 10 * MIB
SEGMENT = 2 * MIB


@dataclass(frozen=True, slots=True)
class Held:
    """`elements` of a rank's tensor; `linear` ones are stored in the weight format."""

    elements: int
    linear: bool = False


def layer_tensors(layer: LayerSpec, tp: int, attention_tp: int | None = None) -> tuple[Held, ...]:
    """The tensors of one layer on a rank, fused as in servers; small tensors are counted as one.

    `attention_tp`: the ranks that share attention if data-parallel groups each hold all of it.

    A recurrence is one linear tensor: it is not known which of its parts a server quantizes.
    """
    held: dict[str, int] = {}
    small = 0
    for mixer in layer.mixers:
        tensors = list(mixer.tensors(layer.hidden_size))
        if mixer.kind not in ("attention", "latent", "expanded_latent"):
            shared = -(-sum(tensor.params for tensor in tensors) // (attention_tp or tp))
            held[mixer.kind] = held.get(mixer.kind, 0) + shared
            continue
        small += _fuse(held, mixer.prefix, tensors, attention_tp or tp)
    small += _fuse(held, "", layer.rest(), tp)
    return tuple(Held(n, linear) for n, linear in [*((n, True) for n in held.values()), (small, False)] if n)


def _fuse(held: dict[str, int], prefix: str, tensors: Iterable[Tensor], tp: int) -> int:
    """Add the linear tensors to `held` by fused name; returns the elements of the others."""
    small = 0
    for tensor in tensors:
        if tensor.role == LINEAR:
            name = prefix + tensor.fused_name
            held[name] = held.get(name, 0) + rank_elements(tensor, tp)
        else:
            small += rank_elements(tensor, tp)
    return small


def outer_held(
    model: ModelSpec, *, tp: int, first: bool, last: bool, attention_tp: int | None = None
) -> tuple[Held, ...]:
    """Embedding and positions on the first stage, head and final norm on the last; a tied head is on both."""
    shared = ((model.vocab_size, attention_tp or tp), (model.head_size, tp))
    rows, head = (padded_vocab(n, ranks) // ranks for n, ranks in shared)
    width = model.embedding_width
    tensors = []
    if first:
        positions = model.n_learned_positions * model.hidden_size
        tensors += [Held(rows * width * model.embeds), Held(positions), Held(model.other_params)]
    if last:
        if not (model.tied and first):
            tensors.append(Held(head * width))
        tensors.append(Held(head * model.head_bias + 2 * model.hidden_size))
    return tuple(tensor for tensor in tensors if tensor.elements)


def format_bytes_each(model: ModelSpec, weight_format: StorageFormat, plain: int) -> int | Fraction:
    """Bytes per linear weight: int4 in groups of 128 with a 16-bit scale and a 4-bit zero point.

    For a quantized checkpoint: what its bytes leave for the linear weights after the unquantized ones.
    """
    if (stored := weight_format.stored) is not None:
        tensors = [t for layer in model.layers for t in layer_tensors(layer, 1)]
        tensors += outer_held(model, tp=1, first=True, last=True)
        linear = sum(t.elements for t in tensors if t.linear)
        other = sum(t.elements for t in tensors if not t.linear) * plain
        if 0 < stored.total_bytes - other < linear * plain:
            return Fraction(stored.total_bytes - other, linear)
    each = weight_format.bytes_per_element
    return each + Fraction(5, 2) / INT4_GROUP if weight_format.name == "int4" else each


def allocated(size: int) -> int:
    """Bytes that PyTorch's CUDA allocator uses for a tensor: multiples of 2 MiB above 10 MiB; a large rest is returned.

    Source: c10/cuda/CUDACachingAllocator.cpp (get_allocation_size, should_split).

    >>> allocated(75 * MIB) == 76 * MIB, allocated(5 * MIB) == 5 * MIB, allocated(43 * MIB - MIB // 2) == 43 * MIB
    (True, True, False)
    """
    if size < LARGE_TENSOR:
        return size
    slack = -size % SEGMENT
    return size + slack if slack <= MIB else size


def tensor_bytes(tensor: Held, each: int | Fraction, plain: int) -> int:
    """Bytes of a tensor: in the weight format if it is linear and the format is narrower, else `plain` per element."""
    return ceil(tensor.elements * each) if tensor.linear and each < plain else tensor.elements * plain


def rope_bytes(model: ModelSpec, facts: ModelFacts, plain: int) -> int:
    """The precomputed rotary tables: one row of head_dim per position of the model's context."""
    if facts.rope_elements is not None:
        return facts.rope_elements * plain
    if model.n_learned_positions or model.max_context is None:
        return 0
    mixers = [mixer for layer in model.groups for mixer in layer.mixers]
    width = next((mixer.rope_width for mixer in mixers if mixer.rope_width), 0)
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
    attention_tp: int | None = None,
) -> int:
    """Weight bytes of a rank of one stage as its allocator counts them, including tables and encoders."""
    first, last = stage[0] == 0, stage[1] == model.n_layers
    layers = model.layers
    each = format_bytes_each(model, weight_format, plain)
    counts: dict[LayerSpec, int] = {}
    for layer in layers[stage[0] : stage[1]]:
        counts[layer] = counts.get(layer, 0) + 1
    if last and speculative_layers:
        counts[layers[-1]] = counts.get(layers[-1], 0) + speculative_layers
    total = sum(
        n * sum(allocated(tensor_bytes(tensor, each, plain)) for tensor in layer_tensors(layer, tp, attention_tp))
        for layer, n in counts.items()
    )
    outer = outer_held(model, tp=tp, first=first, last=last, attention_tp=attention_tp)
    total += sum(allocated(tensor_bytes(tensor, each, plain)) for tensor in outer)
    total += rope_bytes(model, facts, plain)
    if not first or (each < plain and weight_format.stored is not None and weight_format.stored.of_files):
        return total  # the linear weights already include everything in the files, also encoders
    return total + -(-(model.encoder_params or facts.vision_params) * plain // tp)


def widest_dense(model: ModelSpec) -> int:
    """The widest feed-forward that every token uses; 0 if there are only experts."""
    dense = (part for layer in model.groups for part in layer.feed_forwards if part.kind == "dense")
    return max((part.inner for part in dense), default=0)
