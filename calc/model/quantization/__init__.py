"""``quantization_config`` of a config.json as bytes: quantized matrices with scales and zero points, the rest
unchanged.

`methods` finds the method; its family reads the fields (`integers`, `floats`, `compressed`, `codebooks`, `torchao`) and
makes a `Scheme`. Here the scheme is applied to the model's matrices, whose names `modules` matches. Biases, norms,
routers and convolutions are not quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from calc.errors import SourceError, SpecError
from calc.model.components import component_of
from calc.model.count import EMBED_TOKENS, model_tensors, parameters
from calc.model.quantization.methods import scheme_of
from calc.model.quantization.modules import Modules, published
from calc.model.quantization.scheme import Scheme, Size, integer_bytes
from calc.model.spec import ModelSpec
from calc.model.stored import StoredWeights
from calc.model.tensors import EMBEDDING, KV, LINEAR, ROUTER, SPLIT, WHOLE, Tensor

__all__ = ["integer_bytes", "scheme_of", "stored_weights", "unquantized"]

DTYPE_BYTES: Mapping[str, int] = {"bfloat16": 2, "float16": 2, "half": 2, "float32": 4, "float": 4, "float64": 8}


def stored_weights(config: Mapping[str, Any], model: ModelSpec, source: str) -> StoredWeights | None:
    """Stored bytes of `model` according to its config; None for plain 16-bit weights. Raises SourceError."""
    scheme = scheme_of(config, source)
    dtype = config.get("dtype") or config.get("torch_dtype")
    each = DTYPE_BYTES.get(str(dtype).removeprefix("torch."), 2)
    if scheme is None:
        return None if each == 2 else unquantized(model, each, str(dtype))
    try:
        size_of = _sizes(scheme, model.model_type)
    except SourceError as error:
        raise SourceError(f"{source}: {error}") from None
    _check_every(scheme, model, source)
    try:
        return _stored(scheme, model, each, size_of, source)
    except SpecError as error:
        raise SourceError(f"{source}: {error}") from None


def _stored(
    scheme: Scheme, model: ModelSpec, each: int, size_of: Callable[[Tensor], Size | None], source: str
) -> StoredWeights:
    """The bytes of quantized matrices beside the rest at `each` bytes per element."""
    sizes = {SPLIT: 0, KV: 0, WHOLE: 0}
    counts = parameters(model)
    components = {name: n * each for name, n in counts.components.items()}
    quantized = left_kv = 0
    for matrix in _matrices(model, routers=scheme.routers_too):
        size = size_of(matrix)
        if size is None:
            left_kv += matrix.params if matrix.share == KV else 0
            continue
        n_bytes = matrix.copies * size(matrix.rows, matrix.columns)
        sizes[matrix.share] += n_bytes
        components[component_of(matrix)] += n_bytes - matrix.params * each
        quantized += matrix.params
    if not quantized and (scheme.groups or scheme.others_too):
        raise SourceError(f"{source}: quantization_config ({scheme.name}) names no matrix of this model")
    rest = counts.total - quantized - left_kv
    whole = min(rest, _small_params(model, routers=not scheme.routers_too))
    sizes[KV] += left_kv * each
    sizes[WHOLE] += whole * each
    sizes[SPLIT] += (rest - whole) * each
    return StoredWeights(
        name=scheme.name,
        split_bytes=sizes[SPLIT],
        kv_bytes=sizes[KV],
        whole_bytes=sizes[WHOLE],
        components=tuple(components.items()),
    )


def _check_every(scheme: Scheme, model: ModelSpec, source: str) -> None:
    """Raise SourceError if a required module is not in the model."""
    names = {published(matrix.name, model.model_type) for matrix in _matrices(model)} if scheme.every else set()
    for wanted in scheme.every:
        if not any(Modules((wanted,)).name(name) for name in names):
            raise SourceError(f"{source}: quantization_config names {wanted[:60]}, which is not a module of this model")


def _matrices(model: ModelSpec, *, routers: bool = False) -> Iterator[Tensor]:
    """What a quantization can apply to: embedding, head and linear layers, and routers for some methods."""
    roles = (LINEAR, EMBEDDING, ROUTER) if routers else (LINEAR, EMBEDDING)
    return (tensor for tensor in model_tensors(model) if tensor.role in roles)


def unquantized(model: ModelSpec, each: int, name: str) -> StoredWeights:
    """All weights of `model` at `each` bytes per element."""
    kv = sum(matrix.params for matrix in _matrices(model) if matrix.share == KV)
    whole = _small_params(model)
    counts = parameters(model)
    rest = counts.total - kv - whole
    return StoredWeights(
        name=name,
        split_bytes=rest * each,
        kv_bytes=kv * each,
        whole_bytes=whole * each,
        components=tuple((part, n * each) for part, n in counts.components.items()),
    )


def _small_params(model: ModelSpec, *, routers: bool = True) -> int:
    """What every rank holds in any format: norms and routers."""
    counts = parameters(model)
    return counts.norms + (counts.other if routers else 0)


def _sizes(scheme: Scheme, model_type: str) -> Callable[[Tensor], Size | None]:
    """The function for the bytes of a matrix; None if it is not quantized. Raises SourceError for a bad pattern."""
    ignored = Modules(scheme.ignored)
    groups = [(Modules(names), size) for names, size in scheme.groups]

    def size_of(matrix: Tensor) -> Size | None:
        if matrix.name == EMBED_TOKENS and not scheme.embedding_too:
            return None
        name = published(matrix.name, model_type)
        if (scheme.experts_alone and not matrix.expert) or ignored.name(name):
            return None
        for modules, size in groups:
            if modules.name(name):
                return size
        return scheme.matrix_bytes if scheme.others_too else None

    return size_of
