"""The header of a GGUF file: a model by its metadata, its weights by its list of tensors. Untrusted input, bounded.

Format: ggml's docs/gguf.md. Block sizes: ggml-common.h. The metadata is put into the words of a config.json and read
by `calc.hf`, so that there is one set of rules; the tensors give the exact bytes.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calc.errors import CalcError, SourceError, UnsupportedArchitecture
from calc.hf import spec_from_config
from calc.hf.architectures import BY_GGUF
from calc.model.count import parameters
from calc.model.parts import KV, SPLIT, WHOLE
from calc.model.spec import ModelSpec
from calc.sources.safetensors import stored_from

MAX_ENTRIES = 100_000
MAX_TENSORS = 1_000_000
MAX_TEXT = 2**20
MAX_ARRAY = 2**28
MAX_DEPTH = 4
MAX_PARTS = 1_000
SPLIT_NAME = re.compile(r"-(?P<part>\d{5})-of-(?P<count>\d{5})\.gguf$")

SCALARS: Mapping[int, str] = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
TEXT, ARRAY = 8, 9

# ggml type: name, elements per block, bytes per block.
TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36),
}  # fmt: skip

KV_TENSORS = (".attn_k.", ".attn_v.")
WHOLE_TENSORS = ("norm", "ffn_gate_inp", "attn_q_a", "attn_kv_a", "position_embd", "attn_sinks", "rope_freqs")


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's name, dimensions (innermost first) and ggml type."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    elements: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """Metadata (long arrays only by their length, under ``name.length``) and tensors."""

    metadata: Mapping[str, Any]
    tensors: tuple[Tensor, ...]


class _Bytes:
    """Reads a header from the front, never past the end."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data = data
        self.path = path
        self.at = 0

    def fail(self, what: str) -> SourceError:
        return SourceError(f"{self.path}: {what}")

    def take(self, n: int) -> bytes:
        end = self.at + n
        if n < 0 or end > len(self.data):
            raise self.fail("the GGUF header ends too early: the file is cut or damaged")
        part = self.data[self.at : end]
        self.at = end
        return part

    def skip(self, n: int) -> None:
        if n < 0 or self.at + n > len(self.data):
            raise self.fail("the GGUF header ends too early: the file is cut or damaged")
        self.at += n

    def number(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def text(self) -> str:
        length = self.number("<Q")
        if length > MAX_TEXT:
            # A long text (a chat template at most) is passed over.
            self.skip(length)
            return ""
        return self.take(length).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == TEXT:
            return self.text()
        if kind == ARRAY:
            return self.array(depth)
        if kind not in SCALARS:
            raise self.fail(f"metadata of type {kind}, which GGUF does not have")
        return self.number(SCALARS[kind])

    def array(self, depth: int) -> Any:
        """A short array of numbers as a list; of others, such as a vocabulary, their number."""
        kind, n = self.number("<I"), self.number("<Q")
        if n > MAX_ARRAY or depth > MAX_DEPTH:
            raise self.fail(f"an array of {n:,} entries")
        if kind in SCALARS:
            code = SCALARS[kind]
            size = struct.calcsize(code)
            if n > MAX_ENTRIES:
                self.skip(n * size)
                return Length(n)
            return list(struct.unpack(f"<{n}{code[1]}", self.take(n * size)))
        if kind == TEXT:
            self._skip_texts(n)
            return Length(n)
        if kind == ARRAY:
            for _ in range(min(n, MAX_ENTRIES)):
                self.value(ARRAY, depth + 1)
            return Length(n)
        raise self.fail(f"an array of type {kind}, which GGUF does not have")

    def _skip_texts(self, n: int) -> None:
        """Pass over `n` texts: a vocabulary of 128k in a few hundredths of a second."""
        data, at, end, unpack = self.data, self.at, len(self.data), struct.Struct("<Q").unpack_from
        for _ in range(n):
            if at + 8 > end:
                raise self.fail("the GGUF header ends too early: the file is cut or damaged")
            at += 8 + unpack(data, at)[0]
        if at > end:
            raise self.fail("the GGUF header ends too early: the file is cut or damaged")
        self.at = at


@dataclass(frozen=True, slots=True)
class Length:
    """How many entries an array had that was passed over."""

    n: int


def read_header(path: Path) -> Header:
    """Metadata and tensor list of a GGUF file. Raises SourceError, one sentence that starts with the path."""
    try:
        with path.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise SourceError(f"{path}: not a GGUF file: it does not start with GGUF")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _header(_Bytes(data, path))
    except SourceError:
        raise
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (struct.error, ValueError, MemoryError):
        raise SourceError(f"{path}: the GGUF header is damaged") from None


def _header(source: _Bytes) -> Header:
    source.at = 4
    version = source.number("<I")
    if version not in (2, 3):
        raise source.fail(f"GGUF version {version}: kvscope reads 2 and 3 (little-endian)")
    n_tensors, n_entries = source.number("<Q"), source.number("<Q")
    if n_tensors > MAX_TENSORS or n_entries > MAX_ENTRIES:
        raise source.fail(f"a GGUF header of {n_tensors:,} tensors and {n_entries:,} entries")
    metadata = {}
    for _ in range(n_entries):
        key = source.text()
        metadata[key] = source.value(source.number("<I"))
    return Header(metadata, tuple(_tensor(source) for _ in range(n_tensors)))


def _tensor(source: _Bytes) -> Tensor:
    name = source.text()
    n_dims = source.number("<I")
    if n_dims > 8:
        raise source.fail(f"tensor {name[:60]!r} has {n_dims:,} dimensions")
    shape = tuple(source.number("<Q") for _ in range(n_dims))
    kind = source.number("<I")
    source.skip(8)
    if kind not in TYPES:
        raise source.fail(f"tensor {name[:60]!r} is of ggml type {kind}, which kvscope does not know")
    type_name, block, block_bytes = TYPES[kind]
    elements = 1
    for n in shape:
        elements *= n
        if elements > 2**60:
            raise source.fail(f"tensor {name[:60]!r} has too many elements")
    if shape and shape[0] % block:
        raise source.fail(f"tensor {name[:60]!r}: rows of {shape[0]:,} are no whole blocks of {block} ({type_name})")
    return Tensor(name, shape, type_name, elements, elements // block * block_bytes)


def read_gguf(path: str | Path) -> ModelSpec:
    """The model in a GGUF file, its weights as the file holds them. Raises SourceError (UnsupportedArchitecture)."""
    file = Path(path)
    header = read_parts(file)
    config = config_from_gguf(header, str(path))
    stem = SPLIT_NAME.sub("", file.name) if SPLIT_NAME.search(file.name) else file.stem
    name = str(header.metadata.get("general.name") or stem)
    model = spec_from_config(config, name=stem, source=str(path))
    return _with_file(model, header, named=name)


def parts_of(file: Path) -> list[Path]:
    """The files of a model that is split (``m-00001-of-00003.gguf``), in order; of any other the file itself."""
    found = SPLIT_NAME.search(file.name)
    count = int(found["count"]) if found is not None else 1
    if found is None or not 1 <= count <= MAX_PARTS:
        return [file]
    stem = file.name[: found.start()]
    return [file.with_name(f"{stem}-{part:05}-of-{count:05}.gguf") for part in range(1, count + 1)]


def read_parts(file: Path) -> Header:
    """The header of a file, or of all parts of a split model: the first part's metadata, the tensors of all.

    Raises SourceError that names a part that is not there.
    """
    parts = parts_of(file)
    if missing := [part.name for part in parts if not part.is_file()]:
        raise SourceError(f"{file}: {missing[0]} is not beside it: a model in {len(parts)} parts needs all of them")
    headers = [read_header(part) for part in parts]
    return Header(headers[0].metadata, tuple(tensor for header in headers for tensor in header.tensors))


def _with_file(model: ModelSpec, header: Header, *, named: str) -> ModelSpec:
    sizes = {SPLIT: 0, KV: 0, WHOLE: 0}
    formats: dict[str, int] = {}
    elements = 0
    for tensor in header.tensors:
        sizes[_share(tensor.name)] += tensor.n_bytes
        formats[tensor.type_name] = formats.get(tensor.type_name, 0) + tensor.n_bytes
        if not tensor.name.startswith("rope_"):
            elements += tensor.elements
    try:
        stored = stored_from(sizes, formats)
    except CalcError as error:
        raise SourceError(f"{model.source}: {error}") from None
    notes = [f"weights as the file holds them: {stored.total_bytes:,} B in {len(header.tensors):,} tensors ({named})"]
    if (counted := parameters(model).total) != elements:
        notes.append(
            f"the file's tensors have {elements:,} elements, {elements - counted:+,} against the model's count"
        )
    if model.tied:
        notes.append("the head shares the embedding: llama.cpp keeps it twice where all layers are on a GPU")
    kept = [note for note in model.notes if not note.startswith(("tie_word_embeddings", "weights as"))]
    return replace(model, stored=stored, notes=(*notes, *kept))


def _share(name: str) -> str:
    if any(part in f".{name}." for part in KV_TENSORS):
        return KV
    return WHOLE if any(part in name for part in WHOLE_TENSORS) else SPLIT


def config_from_gguf(header: Header, source: str) -> dict[str, Any]:
    """The metadata in the words of a config.json. Raises SourceError, UnsupportedArchitecture."""
    architecture = header.metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise SourceError(f"{source}: general.architecture missing: not a model's GGUF file")
    if architecture not in BY_GGUF:
        raise UnsupportedArchitecture(
            f"{source}: architecture {architecture[:40]!r} is not one that kvscope reads from GGUF "
            f"({', '.join(sorted(BY_GGUF))}): give the model's config.json"
        )
    config = _Translation(header, architecture, source).config()
    return {name: value for name, value in config.items() if value is not None}


class _Translation:
    """One header's way into a config."""

    def __init__(self, header: Header, architecture: str, source: str) -> None:
        self.header = header
        self.architecture = architecture
        self.source = source
        self.names = {tensor.name: tensor for tensor in header.tensors}

    def get(self, key: str) -> Any:
        value = self.header.metadata.get(f"{self.architecture}.{key}")
        return None if isinstance(value, Length) else value

    def same(self, key: str) -> Any:
        """A number; of an array with one per layer, the number that all share."""
        value = self.get(key)
        if not isinstance(value, list):
            return value
        different = {n for n in value if n}
        if len(different) > 1:
            raise UnsupportedArchitecture(
                f"{self.source}: {self.architecture}.{key} differs from layer to layer: give the model's config.json"
            )
        return next(iter(different), None)

    def config(self) -> dict[str, Any]:
        experts = self.get("expert_count")
        config = {
            "model_type": BY_GGUF[self.architecture].names[0],
            "num_hidden_layers": self.get("block_count"),
            "hidden_size": self.get("embedding_length"),
            "intermediate_size": self.same("feed_forward_length"),
            "num_attention_heads": self.same("attention.head_count"),
            "num_key_value_heads": self._kv_heads(),
            "head_dim": self.get("attention.key_length"),
            "max_position_embeddings": self.get("context_length"),
            "vocab_size": self._vocab_size(),
            "tie_word_embeddings": "output.weight" not in self.names,
            "rms_norm_eps": self.get("attention.layer_norm_rms_epsilon"),
            **self._windows(),
            **self._biases(),
        }
        if experts:
            config |= self._experts(experts)
        if self.get("attention.kv_lora_rank"):
            config |= self._latent()
        if self.architecture == "lfm2":
            config |= self._convolutions()
        if self.architecture == "mpt":
            config["expansion_ratio"] = (config["intermediate_size"] or 0) // (config["hidden_size"] or 1)
        return config

    def _kv_heads(self) -> Any:
        """KV heads; a file that does not state them means one for each query head (docs/gguf.md of ggml)."""
        stated = self.same("attention.head_count_kv")
        return self.same("attention.head_count") if stated is None else stated

    def _vocab_size(self) -> int | None:
        """Rows of the embedding: what is held, whatever the tokenizer says."""
        embedding = self.names.get("token_embd.weight")
        return None if embedding is None or len(embedding.shape) != 2 else embedding.shape[1]

    def _windows(self) -> dict[str, Any]:
        window = self.get("attention.sliding_window")
        if BY_GGUF[self.architecture].window == "upper":
            return {}  # llama.cpp has no windows for Qwen, whatever the file says
        if window and self.architecture == "olmo2":
            return {"model_type": "olmo3", "sliding_window": window}  # llama.cpp tells the two by the window
        return {"sliding_window": window or None}

    def _biases(self) -> dict[str, Any]:
        """What tensors say of biases, for the classes that leave it to the config."""
        has = {part: f"blk.0.{part}.bias" in self.names for part in ("attn_q", "attn_qkv", "attn_output", "ffn_up")}
        queries = has["attn_q"] or has["attn_qkv"]
        said: dict[str, Any] = {
            "attention_bias": queries,
            "mlp_bias": has["ffn_up"],
            "use_bias": has["ffn_up"],
            "use_qkv_bias": queries,
            "bias": queries,
        }
        if "blk.0.attn_q_norm.weight" in self.names:
            said |= {"use_qk_norm": True, "qk_layernorm": True}
        if self.architecture == "falcon":
            said["multi_query"] = self.same("attention.head_count_kv") == 1
            said["new_decoder_architecture"] = "blk.0.attn_norm_2.weight" in self.names
        return said

    def _experts(self, n_experts: int) -> dict[str, Any]:
        size = self.get("expert_feed_forward_length") or self.same("feed_forward_length")
        config: dict[str, Any] = {
            "num_local_experts" if self.architecture in ("llama", "gpt-oss") else "num_experts": n_experts,
            "num_experts_per_tok": self.get("expert_used_count"),
            "moe_intermediate_size": size,
            "n_shared_experts": self.get("expert_shared_count"),
            "shared_expert_intermediate_size": self.get("expert_shared_feed_forward_length"),
            "first_k_dense_replace": self.get("leading_dense_block_count"),
        }
        if self.architecture == "llama":
            config["model_type"] = "mixtral"
        return config

    def _latent(self) -> dict[str, Any]:
        rope = self.get("rope.dimension_count")
        key = self.get("attention.key_length_mla") or self.get("attention.key_length")
        return {
            "kv_lora_rank": self.get("attention.kv_lora_rank"),
            "q_lora_rank": self.get("attention.q_lora_rank") or 0,
            "qk_rope_head_dim": rope,
            "qk_nope_head_dim": key - rope if isinstance(key, int) and isinstance(rope, int) else None,
            "v_head_dim": self.get("attention.value_length_mla") or self.get("attention.value_length"),
            "num_key_value_heads": self.same("attention.head_count"),
            "head_dim": None,
        }

    def _convolutions(self) -> dict[str, Any]:
        heads = self.get("attention.head_count_kv")
        kinds = ["full_attention" if n else "conv" for n in heads] if isinstance(heads, list) else None
        return {
            "layer_types": kinds,
            "conv_L_cache": self.get("shortconv.l_cache"),
            "block_auto_adjust_ff_dim": False,
        }
