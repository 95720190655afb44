"""Build a decoder from weight files: choose dtype and device, and keep the memory needed for loading low."""

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

import assets
from engine.errors import OptionError
from engine.model.config import ModelConfig
from engine.model.decoder import Decoder
from engine.model.devices import pick_device
from engine.model.shapes import n_parameters
from engine.plain import one_line
from engine.weights.chat import ChatTemplate
from engine.weights.convert import DTYPES, Converted, Taken
from engine.weights.files import Source, read_source
from engine.weights.formats import (
    QUANTIZED,
    FormatMaker,
    PackedTable,
    QuantizedFormat,
    StoredMaker,
    compute_dtype,
    form_names,
    held_bytes,
)
from engine.weights.generation_config import ModelSampling
from engine.weights.hub import locate
from engine.weights.lazy import Stored, StoredTensor, file_bytes
from engine.weights.loading import Watch
from engine.weights.tokenizer import Tokenizer

BUNDLED = "bundled"
SMALL_MODEL_PARAMETERS = 20_000_000
"""Below this size, one thread and float32 are fastest: most operations are too small for threads or 16 bits to pay."""
_M_MMAP_THRESHOLD = -3  # glibc's malloc.h


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model ready to run. ``name``: "bundled", or the folder's or file's name; no tokenizer, no chat: None."""

    name: str
    path: Path
    config: ModelConfig
    decoder: Decoder
    tokenizer: Tokenizer | None
    chat: ChatTemplate | None = None
    sampling: ModelSampling = field(default_factory=ModelSampling)
    """The sampling options that its authors suggest."""
    notes: tuple[str, ...] = ()
    """Notes for the user on how the file was read, one sentence each."""
    weight_format: str | None = None
    """The formats of linear layers, if not the decoder's dtype: int4, or int4+int6."""

    @property
    def weight_bytes(self) -> int:
        """Bytes that the weights take in memory."""
        return self.decoder.weight_bytes if self.weight_format is None else held_bytes(self.decoder)

    @property
    def is_mix(self) -> bool:
        """Whether every matrix keeps the format it has in the file."""
        return _keeps_mix(self.decoder)

    @property
    def dtype_name(self) -> str:
        """The actual dtype of the weights, never "auto"."""
        return self.weight_format or str(self.decoder.dtype).removeprefix("torch.")


MakeDecoder = Callable[[ModelConfig, Mapping[str, Tensor]], Decoder]
Select = Callable[[str, Tensor, ModelConfig], Tensor]


def load_checkpoint(
    path: Path | str | None = None,
    *,
    dtype: str = "auto",
    device: torch.device | str = "cpu",
    make: MakeDecoder = Decoder,
    select: Select | None = None,
    watch: Watch | None = None,
    n_heads: int | None = None,
) -> LoadedModel:
    """Load a .pt, .safetensors, .gguf or model folder; None or "bundled": the model shipped with the engine.

    ``path`` may be org/name of a model in the local Hugging Face cache (see `engine.weights.hub`).
    dtype: one of DTYPES; "int8" or "int4" (linear layers in groups of 32, see `engine.weights.formats`); or "auto":
    every matrix as stored, but float32 where a CPU would be slow at 16 bits (see `pick_dtype`). device: see
    `engine.model.devices.pick_device`.
    ``make`` builds the decoder; ``select`` picks the needed part of each weight before conversion. ``n_heads``: for
    weights of the assignment's form, which do not state it (default 1). ``watch`` counts the bytes of the file as the
    decoder takes them. Raises CheckpointError, OptionError, and Stopped if the watch is cancelled.
    """
    bundled = path is None or str(path) == BUNDLED
    watch = watch or Watch()
    location = assets.path("model") if bundled else locate(str(path), watch)
    target = device if isinstance(device, torch.device) else pick_device(device)
    _map_large_blocks()
    source = read_source(location, n_heads=n_heads)
    return_freed_memory()  # the texts of the vocabulary
    watch.begin(sum(map(file_bytes, source.weights.values())))
    with _one_thread():
        decoder = _decoder(source, dtype, target, make, select, Taken(source.weights, watch))
    return_freed_memory()
    watch.end()
    return LoadedModel(
        name=BUNDLED if bundled else one_line(location.resolve().name),
        path=location,
        config=source.config,
        decoder=decoder,
        tokenizer=source.tokenizer,
        chat=source.chat,
        sampling=source.sampling,
        notes=source.notes,
        weight_format=_weight_format(decoder, dtype),
    )


def _weight_format(decoder: Decoder, dtype: str) -> str | None:
    if dtype in QUANTIZED:
        return dtype
    return form_names(decoder) if _keeps_mix(decoder) else None


def _keeps_mix(decoder: Decoder) -> bool:
    """Whether the matrices keep the formats of the file; an object built by ``make`` may have no matrices."""
    return isinstance(getattr(decoder, "embedding", None), PackedTable)


def _decoder(
    source: Source, dtype: str, device: torch.device, make: MakeDecoder, select: Select | None, taken: Taken
) -> Decoder:
    chosen = _bound(select, source.config)
    if dtype == "auto" and select is None and make is Decoder and device.type == "cpu" and keeps_forms(source.weights):
        return _as_stored(source, device, taken)
    if dtype not in QUANTIZED:
        stored = source.weights["model.embed_tokens.weight"].dtype
        wanted = pick_dtype(dtype, stored=stored, device=device, n_parameters=n_parameters(source.config))
        return make(source.config, Converted(source.weights, wanted, device, taken, select=chosen))
    if select is not None:
        raise OptionError("dtype", f"{dtype} weights run on one rank only; use tp 1 or a floating-point dtype")
    kind: QuantizedFormat = "int8" if dtype == "int8" else "int4"
    exact = Converted(source.weights, torch.float32, device, taken)
    weights = Converted(source.weights, compute_dtype(device), device, taken)
    return Decoder(source.config, weights, linear=FormatMaker(kind, exact))


def keeps_forms(weights: Mapping[str, Stored]) -> bool:
    """Whether some matrix has a form that widening would lose: blocks of few bits, or float16."""
    matrices = [stored for stored in weights.values() if isinstance(stored, StoredTensor) and len(stored.shape) == 2]
    return any(stored.groups is not None or stored.dtype == torch.float16 for stored in matrices)


def _as_stored(source: Source, device: torch.device, taken: Taken) -> Decoder:
    """Every matrix as stored; with quantised blocks, activations in bfloat16 if that is fast, else in float32."""
    blocks = any(isinstance(stored, StoredTensor) and stored.groups is not None for stored in source.weights.values())
    large = n_parameters(source.config) >= SMALL_MODEL_PARAMETERS
    dtype = compute_dtype(device) if blocks and large else torch.float32
    weights = Converted(source.weights, dtype, device, taken)
    maker = StoredMaker(weights, dtype)
    return Decoder(source.config, weights, linear=maker, table=maker.table())


def _bound(select: Select | None, config: ModelConfig) -> Callable[[str, Tensor], Tensor] | None:
    if select is None:
        return None
    return lambda name, tensor: select(name, tensor, config)


def pick_dtype(
    name: str, *, stored: torch.dtype, device: torch.device, n_parameters: int = SMALL_MODEL_PARAMETERS
) -> torch.dtype:
    """The dtype to compute in: the requested one; for "auto" as stored, except for some 16-bit weights on a CPU.

    On a CPU, float16 is always widened to float32, and so is bfloat16 if the CPU has no bfloat16 products or the model
    is small: this is never slower and never less exact. Raises OptionError for a name not in DTYPES or "auto".
    """
    if name == "auto":
        # Measured with AVX512-BF16, one row: bfloat16 products take 1.5 times as long as float32 ones at 256 x 1024
        # and 0.65 times at 2048 x 8192.
        fast = stored == compute_dtype(device) and n_parameters >= SMALL_MODEL_PARAMETERS
        return torch.float32 if device.type == "cpu" and stored.itemsize == 2 and not fast else stored
    if name not in DTYPES:
        raise OptionError("dtype", f'dtype "{name}" is not known; use auto, {", ".join((*DTYPES, *QUANTIZED))}')
    return DTYPES[name]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Load with one torch thread: on hundreds of short copies more threads gain little and wait for each other.

    Measured on two cores, SmolLM2-135M: 2 s with one thread; with two, 4 s when idle and 11 s beside other work.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _map_large_blocks() -> None:
    """Make glibc map blocks of 4 MB and more individually, so that they return to the system when freed.

    By default glibc raises that threshold to the largest block freed so far, up to 32 MB, and then retains twice as
    much: a prefill with packed weights took 10 to 70 MB more, at random (bench/load_memory.py).
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 4 << 20)


def return_freed_memory() -> None:
    """Return memory freed after loading to the system; glibc would keep it (bench/load_memory.py), and so would
    torch on a GPU."""
    torch.cuda.empty_cache()  # does nothing if no GPU was used
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
