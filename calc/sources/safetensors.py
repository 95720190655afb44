"""Headers of safetensors files: what weights a folder holds, without reading a weight. Untrusted input, bounded.

Format: 8 bytes of header length (little-endian), then a JSON object of name -> dtype, shape, data_offsets
(huggingface/safetensors, README).
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calc.errors import SourceError
from calc.hf.reader import read_object
from calc.model.quantization import unquantized
from calc.model.spec import ModelSpec
from calc.model.stored import OF_INDEX, StoredWeights, named_formats
from calc.model.tensors import KV, SPLIT, WHOLE
from calc.units import MAX_BYTES

MAX_HEADER_BYTES = 100 * 2**20
"""The format's own limit."""
MAX_SHARDS = 2_000
MAX_INDEX_BYTES = 64 * 2**20
INDEX = "model.safetensors.index.json"
WHOLE_NAMES = ("norm", "router", "mlp.gate.", "q_a_proj", "kv_a_proj", "embed_positions", "wpe", "rotary", "sinks")
KV_NAMES = (".k_proj.", ".v_proj.", ".attn_k.", ".attn_v.")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor's name, dtype as the file spells it, elements and bytes."""

    name: str
    dtype: str
    elements: int
    n_bytes: int


def tensors_of(path: Path) -> Iterator[StoredTensor]:
    """The tensors that a file's header lists. Raises SourceError that starts with the path."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise SourceError(f"{path}: not a safetensors file: a header of {length:,} B in {size:,} B")
            header = json.loads(stream.read(length))
    except SourceError:
        raise
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise SourceError(f"{path}: not a safetensors file: its header is no JSON") from None
    if not isinstance(header, dict):
        raise SourceError(f"{path}: not a safetensors file: its header is no JSON object")
    for name, entry in header.items():
        if name != "__metadata__":
            yield _tensor(path, name, entry, size - 8 - length)


def _tensor(path: Path, name: str, entry: Any, room: int) -> StoredTensor:
    try:
        begin, end = entry["data_offsets"]
        elements = 1
        for n in entry["shape"]:
            if isinstance(n, bool) or not isinstance(n, int) or not 0 <= n < 2**48:
                raise ValueError
            elements *= n
        if not 0 <= begin <= end <= room or not isinstance(begin, int) or elements > 2**60:
            raise ValueError
        return StoredTensor(name, str(entry["dtype"]), elements, end - begin)
    except (KeyError, TypeError, ValueError):
        raise SourceError(f"{path}: the header's entry of {name[:60]!r} is damaged") from None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold a folder's model; empty where there are none. Raises SourceError."""
    index = folder / INDEX
    if index.is_file():
        return [folder / name for name in _shards(index)]
    whole = folder / "model.safetensors"
    return [whole] if whole.is_file() else []


def stored_by_index(model: ModelSpec, folder: Path) -> StoredWeights | None:
    """The bytes that an index says its files hold together, divided among ranks as the model's own weights are.

    None where there is no index, or one without ``metadata.total_size``.
    """
    index = folder / INDEX
    metadata = read_object(index, limit=MAX_INDEX_BYTES).get("metadata") if index.is_file() else None
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    if isinstance(total, float) and total.is_integer():
        total = int(total)
    if isinstance(total, bool) or not isinstance(total, int) or not 0 < total <= MAX_BYTES:
        return None
    known = model.stored or unquantized(model, 2, "bfloat16")
    kv, whole = (part * total // known.total_bytes for part in (known.kv_bytes, known.whole_bytes))
    return StoredWeights(name=OF_INDEX, split_bytes=total - kv - whole, kv_bytes=kv, whole_bytes=whole)


def _shards(index: Path) -> list[str]:
    """Files named in an index: plain names, so that it cannot point outside its folder."""
    files = read_object(index, limit=MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise SourceError(f"{index}: weight_map missing")
    names = sorted({str(name) for name in files.values()})
    if len(names) > MAX_SHARDS or any("/" in name or "\\" in name or name.startswith(".") for name in names):
        raise SourceError(f"{index}: weight_map must name files beside it")
    return names


def stored_in(files: Iterable[Path], *, skip: tuple[str, ...] = ()) -> tuple[StoredWeights, int]:
    """(bytes of all tensors in `files`, their elements). Tensors whose name starts with one of `skip` are left out."""
    sizes = {SPLIT: 0, KV: 0, WHOLE: 0}
    components: dict[str, int] = {}
    formats: dict[str, int] = {}
    elements = 0
    for path in files:
        for tensor in tensors_of(path):
            if tensor.name.startswith(skip):
                continue
            sizes[share_of(tensor.name)] += tensor.n_bytes
            component = component_of(tensor.name)
            components[component] = components.get(component, 0) + tensor.n_bytes
            formats[tensor.dtype] = formats.get(tensor.dtype, 0) + tensor.n_bytes
            elements += tensor.elements
    stored = StoredWeights(
        name=named_formats(formats),
        split_bytes=sizes[SPLIT],
        kv_bytes=sizes[KV],
        whole_bytes=sizes[WHOLE],
        components=tuple(components.items()),
    )
    return stored, elements


ENCODERS = re.compile(r"vision|visual|audio|image|multi_modal|mm_projector|connector")
COMPONENTS = tuple(
    (component, re.compile(pattern))
    for component, pattern in {
        "other": r"\bwpe\b|embed_positions|router|\.gate\.(weight|bias)|e_score_correction|expert_bias",
        "embedding": r"embed_tokens|\bwte\b|word_embeddings|tok_embeddings|embed_in\b|\bembeddings?\b",
        "head": r"lm_head|embed_out|^output\.",
        "mlp": r"shared_expert|mixer\.(up|down|gate)_proj",
        "experts": r"experts?\b",
        "attention": r"[qk]v?_a_(layer)?norm|(mixer|mamba|linear_attn)\.norm|\bo_norm",
        "norms": r"norm|\bln_|\bln\d",
    }.items()
)
"""Components by what stands in a name; the first that fits. What is left is told by the block that it is in."""
BLOCKS = (
    ("mlp", re.compile(r"mlp|feed_forward|ffn|\bfc\d|dense_h|dense_4h")),
    ("attention", re.compile(r"att|mixer|mamba|conv")),
)


def component_of(name: str) -> str:
    """The component of `Parameters` that the tensor of that name belongs to.

    >>> component_of("model.layers.0.mlp.experts.3.down_proj.weight"), component_of("model.layers.0.mlp.gate.weight")
    ('experts', 'other')
    """
    if ENCODERS.search(name):
        return "other"
    named = (component for component, pattern in (*COMPONENTS, *BLOCKS) if pattern.search(name))
    return next(named, "other")


def share_of(name: str) -> str:
    """How tensor parallelism divides the tensor of that name."""
    padded = f".{name}."
    if any(part in padded for part in KV_NAMES):
        return KV
    return WHOLE if any(part in padded for part in WHOLE_NAMES) else SPLIT
