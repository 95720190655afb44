"""How the weights of a model fall on tensor-parallel ranks that keep whole heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import TYPE_CHECKING, Any

from calc.explain.terms import Term, derive
from calc.model.count import outer_tensors
from calc.model.tensors import KV, WHOLE, kv_heads_per_rank
from calc.units import whole

if TYPE_CHECKING:
    from calc.model.layers import Mixer
    from calc.model.spec import ModelSpec
    from calc.model.storage import StorageFormat
    from calc.model.stored import StoredWeights


def unshared_tokens(mixer: Mixer) -> str | None:
    """Why ranks cannot share what `mixer` keeps token by token (decode context parallelism); None where they can.

    vLLM's kv_cache_interface.py asserts it of windows ("DCP not support sliding window"); a state has no tokens.
    """
    if not mixer.state_elements and mixer.window is None:
        return None
    what = "a recurrent state" if mixer.state_elements else f"a window of {mixer.window:,} tokens"
    return f"{what} cannot be shared token by token (decode context parallelism is for full attention)"


def rank_weight_bytes(
    *, split_params: Any, tp: Any, n_kv_heads: Any, kv_head_params: Any, whole_params: Any, weight_element_bytes: Any
) -> Any:
    """Weight bytes of a rank that keeps whole KV heads.

    Query, output and feed-forward matrices, embedding and head are divided; K and V projections follow the KV heads;
    norms and output biases are on every rank (Shoeybi et al. 2019, section 3; vLLM QKVParallelLinear).
    """
    own_kv = kv_heads_per_rank(n_kv_heads=n_kv_heads, tp=tp) * kv_head_params
    return (split_params / tp + own_kv + whole_params) * weight_element_bytes


def mixed_rank_weight_bytes(
    *, split_params: Any, tp: Any, whole_params: Any, weight_element_bytes: Any, rank_kv_params: Any = 0
) -> Any:
    """The same for several KV head counts, or none; latent projections, norms and routers are on every rank."""
    return (split_params / tp + rank_kv_params + whole_params) * weight_element_bytes


def stored_rank_weight_bytes(
    *, split_weight_bytes: Any, tp: Any, whole_weight_bytes: Any, kv_weight_bytes: Any = 0, rank_kv_share: Any = 0
) -> Any:
    """The same for a checkpoint with its own tensor formats."""
    return split_weight_bytes / tp + kv_weight_bytes * rank_kv_share + whole_weight_bytes


@dataclass(frozen=True, slots=True)
class Shares:
    """Parameters by rank: divided, on every rank, and K and V projections by the number of KV heads."""

    split: int
    whole: int
    kv: Mapping[int, int]

    def rank_kv(self, tp: int) -> int:
        """K and V projections of a rank of `tp`."""
        return sum(n // heads * int(kv_heads_per_rank(n_kv_heads=heads, tp=tp)) for heads, n in self.kv.items())


def shares(model: ModelSpec) -> Shares:
    """How the model's parameters are distributed over tensor-parallel ranks."""
    split = whole = 0
    kv: dict[int, int] = {}
    groups = [(layer.tensors(), n) for layer, n in model.groups.items()]
    for tensors, n in [(outer_tensors(model), 1), *groups]:
        for tensor in tensors:
            if tensor.share == WHOLE:
                whole += n * tensor.params
            elif tensor.share == KV:
                kv[tensor.kv_heads] = kv.get(tensor.kv_heads, 0) + n * tensor.params
            else:
                split += n * tensor.params
    return Shares(split, whole, kv)


def rank_weights_term(found: Shares, weights: StorageFormat, tp: int) -> Term:
    """Weight bytes of a rank of `tp` with the derivation."""
    if weights.stored is not None:
        return _stored_rank_term(found, weights.stored, tp)
    numbers: dict[str, Any] = {"split_params": found.split, "whole_params": found.whole, "tp": tp}
    numbers["weight_element_bytes"] = weights.bytes_per_element
    if len(found.kv) == 1:
        ((heads, n),) = found.kv.items()
        numbers |= {"n_kv_heads": heads, "kv_head_params": n // heads}
        return derive("Weights per GPU", rank_weight_bytes, unit="B", **numbers)
    if found.kv:
        numbers["rank_kv_params"] = found.rank_kv(tp)
    return derive("Weights per GPU", mixed_rank_weight_bytes, unit="B", **numbers)


def _stored_rank_term(found: Shares, stored: StoredWeights, tp: int) -> Term:
    numbers: dict[str, Any] = {"split_weight_bytes": stored.split_bytes, "whole_weight_bytes": stored.whole_bytes}
    if found.kv:
        share = whole(Fraction(found.rank_kv(tp), sum(found.kv.values())))
        numbers |= {"kv_weight_bytes": stored.kv_bytes, "rank_kv_share": share}
    return derive("Weights per GPU", stored_rank_weight_bytes, unit="B", tp=tp, **numbers)


def tp_problem(model: ModelSpec, tp: int) -> str | None:
    """Why `tp` GPUs cannot share this model in whole heads, or None if they can."""
    mixers = [mixer for layer in model.groups for mixer in layer.mixers]
    feeds = [part for layer in model.groups for part in layer.feed_forwards]
    return next((problem for part in (*mixers, *feeds) if (problem := part.problem(tp)) is not None), None)


VOCAB_MULTIPLE = 64
"""vLLM's DEFAULT_VOCAB_PADDING_SIZE."""


def padded_to(*, vocab_size: Any, multiple: Any) -> Any:
    """The vocabulary as servers store it, rounded up to a multiple.

    >>> padded_to(vocab_size=50_257, multiple=64)
    50304
    """
    return (vocab_size + multiple - 1) // multiple * multiple


def padded_vocab_term(vocab_size: int, tp: int) -> Term:
    """The padded vocabulary that `tp` ranks share, with the derivation.

    vLLM pads to a multiple of 64 and requires that the ranks divide it (``vocab_parallel_embedding.py``, `divide`). If
    they do not, it is padded here to a multiple of both: the smallest size that all ranks can hold in equal parts.
    """
    multiple = lcm(VOCAB_MULTIPLE, tp)
    return derive("Vocabulary, padded", padded_to, unit="tokens", vocab_size=vocab_size, multiple=multiple)


def padded_vocab(vocab_size: int, tp: int) -> int:
    """Total rows over all `tp` ranks.

    >>> padded_vocab(49_155, 1), padded_vocab(32_000, 3)
    (49216, 32064)
    """
    multiple = lcm(VOCAB_MULTIPLE, tp)
    return int(padded_to(vocab_size=vocab_size, multiple=multiple))
