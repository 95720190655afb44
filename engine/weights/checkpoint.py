"""Weight files to a decoder: .pt (no pickle is ever executed), safetensors, Hugging Face folders, GGUF.

Every fault of a file becomes a CheckpointError that names the file, what is wrong and what was expected.
"""

import contextlib
import ctypes
import math
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

import assets
from engine.errors import CheckpointError, ConfigError, OptionError, TokenizerError
from engine.families.gguf import config_from_gguf, weights_from_gguf
from engine.families.gguf_tokenizer import chat_from_gguf, tokenizer_from_gguf
from engine.families.registry import canonical_names, config_from_hf
from engine.model.config import (
    ModelConfig,
    config_from_reference,
    from_reference_name,
    is_reference,
    n_parameters,
    parameter_shapes,
    to_reference_name,
)
from engine.model.decoder import Decoder
from engine.model.devices import pick_device
from engine.plain import one_line
from engine.weights.chat import MAX_TEMPLATE_CHARACTERS, ChatTemplate
from engine.weights.formats import QUANTIZED, FormatMaker, QuantizedFormat, compute_dtype, held_bytes
from engine.weights.gguf import read_gguf
from engine.weights.hub import locate
from engine.weights.jsonfile import read_json
from engine.weights.lazy import Groups, Stored, StoredGroups, StoredTensor, file_bytes, loaded, read_safetensors
from engine.weights.loading import Watch
from engine.weights.local_models import is_gguf
from engine.weights.tokenizer import Tokenizer

BUNDLED = "bundled"
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
SMALL_MODEL_PARAMETERS = 20_000_000
"""Below, one thread and float32 are fastest: most operations are too small to be split or to profit from 16 bits."""
_PIECE = 1 << 18
"""Elements of a weight that are converted at once."""
_M_MMAP_THRESHOLD = -3  # glibc's malloc.h
_PT_SUFFIXES = (".pt", ".pth", ".bin")
_MAX_CONFIG_BYTES = 64 << 20
_MAX_PICKLE_BYTES = 64 << 20  # the index of a .pt: a few hundred bytes a tensor
_NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model ready to run. ``name``: "bundled", or the folder's or file's name; no tokenizer, no chat: None."""

    name: str
    path: Path
    config: ModelConfig
    decoder: Decoder
    tokenizer: Tokenizer | None
    chat: ChatTemplate | None = None
    weight_format: str | None = None
    """int8 or int4 where linear layers are kept so; None: in the decoder's dtype."""

    @property
    def weight_bytes(self) -> int:
        """Bytes that the weights take in memory."""
        return self.decoder.weight_bytes if self.weight_format is None else held_bytes(self.decoder)

    @property
    def dtype_name(self) -> str:
        """What the weights really are: "auto" is not among the answers."""
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
) -> LoadedModel:
    """Load a .pt, .safetensors, .gguf or model folder; None or "bundled": the model shipped with the engine.

    ``path`` may be org/name of a model in the local Hugging Face cache (see `engine.weights.hub`).
    dtype: one of DTYPES; "int8" or "int4" (linear layers in groups of 32, see `engine.weights.formats`); or "auto":
    as stored, but float32 where a CPU would be slow at 16 bits (see `pick_dtype`). device: see
    `engine.model.devices.pick_device`.
    ``make`` builds the decoder; ``select`` picks the part of each weight that is wanted, before anything is
    converted. ``watch`` counts the bytes of the file as the decoder takes them. Raises CheckpointError, OptionError,
    and Stopped when the watch says so.
    """
    bundled = path is None or str(path) == BUNDLED
    watch = watch or Watch()
    location = assets.path("model") if bundled else locate(str(path), watch)
    target = device if isinstance(device, torch.device) else pick_device(device)
    _map_large_blocks()
    source = _read_gguf(location) if is_gguf(location) else _read_source(location)
    return_freed_memory()  # a vocabulary's texts
    watch.begin(sum(map(file_bytes, source.weights.values())))
    with _one_thread():
        decoder = _decoder(source, dtype, target, make, select, _Taken(source.weights, watch))
    return_freed_memory()
    watch.end()
    return LoadedModel(
        name=BUNDLED if bundled else one_line(location.resolve().name),
        path=location,
        config=source.config,
        decoder=decoder,
        tokenizer=source.tokenizer,
        chat=source.chat,
        weight_format=dtype if dtype in QUANTIZED else None,
    )


def _decoder(
    source: "_Source", dtype: str, device: torch.device, make: MakeDecoder, select: Select | None, taken: "_Taken"
) -> Decoder:
    chosen = _bound(select, source.config)
    if dtype not in QUANTIZED:
        stored = source.weights["model.embed_tokens.weight"].dtype
        wanted = pick_dtype(dtype, stored=stored, device=device, n_parameters=n_parameters(source.config))
        return make(source.config, _Converted(source.weights, wanted, device, taken, select=chosen))
    if select is not None:
        raise OptionError("dtype", f"{dtype} weights run on one rank; use tp 1, or a floating dtype")
    kind: QuantizedFormat = "int8" if dtype == "int8" else "int4"
    exact = _Converted(source.weights, torch.float32, device, taken)
    weights = _Converted(source.weights, compute_dtype(device), device, taken)
    return Decoder(source.config, weights, linear=FormatMaker(kind, exact))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """What a file or folder holds; weights by our names, checked against the config."""

    config: ModelConfig
    weights: Mapping[str, Stored]
    tokenizer: Tokenizer | None
    chat: ChatTemplate | None


def _read_source(location: Path) -> _Source:
    folder, tensors = _read(location)
    config, model_type = _read_config(folder, tensors)
    return _Source(
        config=config,
        weights=_canonical(tensors, config, model_type, location),
        tokenizer=_read_tokenizer(folder),
        chat=read_chat_template(folder),
    )


def _read_gguf(location: Path) -> _Source:
    file = read_gguf(location)
    config = config_from_gguf(file)
    weights = weights_from_gguf(file, config)
    _check_shapes(weights, config, location, implied="its metadata implies")
    return _Source(config=config, weights=weights, tokenizer=tokenizer_from_gguf(file), chat=chat_from_gguf(file))


def pick_dtype(
    name: str, *, stored: torch.dtype, device: torch.device, n_parameters: int = SMALL_MODEL_PARAMETERS
) -> torch.dtype:
    """The arithmetic to use: what is asked for; for "auto" as stored, except for some 16-bit weights on a CPU.

    There float16 always, and bfloat16 where the CPU has no products of it or the model is small, are widened to
    float32: slower never, wrong never. Raises OptionError for a name that is none of DTYPES or "auto".
    """
    if name == "auto":
        # Measured with AVX512-BF16, one row: bfloat16 products take 1.5 times as long as float32 ones at 256 x 1024
        # and 0.65 times at 2048 x 8192.
        fast = stored == compute_dtype(device) and n_parameters >= SMALL_MODEL_PARAMETERS
        return torch.float32 if device.type == "cpu" and stored.itemsize == 2 and not fast else stored
    if name not in DTYPES:
        raise OptionError("dtype", f'dtype "{name}" is not known; use auto, {", ".join((*DTYPES, *QUANTIZED))}')
    return DTYPES[name]


# --- files ------------------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[Path, Mapping[str, Stored]]:
    """(folder whose config.json and tokenizer.json belong to it, tensors by the file's names)."""
    if path.name == "config.json":
        path = path.parent
    if path.is_dir():
        return path, _read_folder(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if path.suffix == ".safetensors":
        return path.parent, read_safetensors(path)
    if path.suffix in _PT_SUFFIXES:
        return path.parent, _read_pt(path)
    raise CheckpointError(
        f"{path} is not a weight file this engine reads; use .pt, .safetensors, .gguf or a Hugging Face folder"
    )


def _read_folder(folder: Path) -> Mapping[str, Stored]:
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.exists():
        return read_safetensors(whole)
    if index.exists():
        tensors: dict[str, StoredTensor] = {}
        for shard in _shards(index):
            tensors |= read_safetensors(folder / shard)
        return tensors
    if (folder / "pytorch_model.bin").exists():
        return _read_pt(folder / "pytorch_model.bin")
    raise CheckpointError(f"{folder} holds no weights: no model.safetensors, its index.json or pytorch_model.bin")


def _shards(index: Path) -> Sequence[str]:
    """File names in an index; they must be plain names, so that it cannot point outside its folder."""
    document = read_json(index, CheckpointError, max_bytes=_MAX_CONFIG_BYTES)
    files = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(files, dict) or not files:
        raise CheckpointError(f"{index} has no weight_map")
    names = sorted({str(name) for name in files.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f'{index} names "{name}"; a .safetensors file beside it was expected')
    return names


def _read_pt(path: Path) -> dict[str, Tensor]:
    """Tensors of a torch.save file. Nothing in it is executed: only tensors and plain containers load."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        is_zip = _check_zip(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats; what matters is refused below
            document = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except UnpicklingError as error:
        raise CheckpointError(f"{path} {_pickle_fault(str(error))}") from None
    except CheckpointError:
        raise
    except Exception:  # a damaged file fails anywhere inside torch.load, in any way
        raise CheckpointError(f"{path} is damaged or not a PyTorch weight file") from None
    return _state_dict(document, path)


def _check_zip(path: Path) -> bool:
    """Whether it is today's zip format; refuse what torch.save never writes and could exhaust memory."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(f"{path} holds compressed entries, which torch.save never makes; refused")
            if entry.filename.endswith(".pkl") and entry.file_size > _MAX_PICKLE_BYTES:
                raise CheckpointError(f"{path} holds a pickle of {entry.file_size:,} bytes; refused")
    return True


def _pickle_fault(message: str) -> str:
    forbidden = re.search(r"GLOBAL ([\w.]+)", message)
    if forbidden:
        return f"is not a plain weight file: it asks to call {forbidden[1]}; refused, nothing was executed"
    return "is damaged or not a PyTorch weight file"


def _state_dict(document: object, path: Path) -> dict[str, Tensor]:
    for wrapper in ("model_state_dict", "state_dict"):
        if isinstance(document, dict) and isinstance(document.get(wrapper), dict):
            document = document[wrapper]
    if not isinstance(document, dict) or not document:
        raise CheckpointError(f"{path} holds no state dict (a dictionary of names and tensors)")
    for name, value in document.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: the entry {name!r} is not a tensor with a name")
        if value.layout != torch.strided or value.nbytes > value.untyped_storage().nbytes():
            raise CheckpointError(f"{path}: {name} claims more elements than the file stores; refused")
    return dict(document)


# --- config and weights against each other ----------------------------------------------------------------


def _read_config(folder: Path, tensors: Mapping[str, Stored]) -> tuple[ModelConfig, str | None]:
    """The config, and the model_type whose weight names are to be translated (None: the assignment's model)."""
    if is_reference(tensors):
        return config_from_reference({name: tuple(t.shape) for name, t in tensors.items()}), None
    path = folder / "config.json"
    if not path.exists():
        raise ConfigError(
            f"there is no config.json in {folder}, and the names of the weights are not the assignment's "
            "(token_embedding.weight, ...), from which sizes could be read"
        )
    document = read_json(path, ConfigError, max_bytes=_MAX_CONFIG_BYTES)
    config = config_from_hf(document)
    config = replace(config, eos_ids=tuple(dict.fromkeys(config.eos_ids + _generation_eos(folder))))
    return config, str(document["model_type"]) if isinstance(document, dict) else None


def _generation_eos(folder: Path) -> tuple[int, ...]:
    """End tokens that only generation_config.json names (a chat model's end of turn)."""
    path = folder / "generation_config.json"
    if not path.exists():
        return ()
    document = read_json(path, ConfigError, max_bytes=_MAX_CONFIG_BYTES)
    value = document.get("eos_token_id") if isinstance(document, dict) else None
    ids = value if isinstance(value, list) else [value]
    return tuple(i for i in ids if isinstance(i, int) and not isinstance(i, bool))


def _read_tokenizer(folder: Path) -> Tokenizer | None:
    path = folder / "tokenizer.json"
    return Tokenizer.from_file(path) if path.exists() else None


def read_chat_template(folder: Path) -> ChatTemplate | None:
    """The chat template of a Hugging Face folder: chat_template.jinja, else tokenizer_config.json's."""
    path = folder / "tokenizer_config.json"
    document = read_json(path, TokenizerError, max_bytes=_MAX_CONFIG_BYTES) if path.exists() else {}
    values = document if isinstance(document, dict) else {}
    source, file = values.get("chat_template"), folder / "chat_template.jinja"
    if file.exists():
        source = _read_text(file, max_bytes=4 * MAX_TEMPLATE_CHARACTERS)
    if isinstance(source, list):  # several, by name
        named = {item.get("name"): item.get("template") for item in source if isinstance(item, dict)}
        source = named.get("default")
    if not isinstance(source, str):
        return None
    return ChatTemplate(source=source, bos=_special(values.get("bos_token")), eos=_special(values.get("eos_token")))


def _special(value: object) -> str:
    """A special token's text, stored plainly or with its settings."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""


def _read_text(path: Path, *, max_bytes: int) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise TokenizerError(f"{path} has more than {max_bytes:,} bytes")
        return data.decode("utf-8")
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise TokenizerError(f"{path} is not UTF-8 text") from None


def _canonical(
    tensors: Mapping[str, Stored], config: ModelConfig, model_type: str | None, path: Path
) -> dict[str, Stored]:
    """Tensors by our names, checked to be exactly those the config asks for. Raises CheckpointError."""
    reference = model_type is None
    if model_type is None:
        ours = {from_reference_name(name): t for name, t in tensors.items()}
    else:
        ours = canonical_names(tensors, model_type=model_type, config=config)
    implied = "the other weights imply" if reference else "config.json implies"
    _check_shapes(ours, config, path, implied=implied, shown=to_reference_name if reference else str)
    return ours


def _check_shapes(
    ours: Mapping[str, Stored],
    config: ModelConfig,
    path: Path,
    *,
    implied: str,
    shown: Callable[[str], str] = str,
) -> None:
    expected = parameter_shapes(config)
    missing = [shown(name) for name in expected if name not in ours]
    if missing:
        raise CheckpointError(f"{path} lacks {_some(missing)}")
    extra = [shown(name) for name in ours if name not in expected]
    if extra:
        raise CheckpointError(f"{path} holds weights that this model does not have: {_some(extra)}")
    for name, shape in expected.items():
        if tuple(ours[name].shape) != shape:
            raise CheckpointError(f"{path}: {shown(name)} has shape {list(ours[name].shape)}; {implied} {list(shape)}")


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


class _Taken:
    """Tells the watch of every weight once, in bytes of its file, however often it is taken."""

    def __init__(self, tensors: Mapping[str, Stored], watch: Watch) -> None:
        self._tensors = tensors
        self._watch = watch
        self._elements: dict[str, int] = {}

    def add(self, name: str, n_elements: int) -> None:
        """Some more elements of a weight. Raises Stopped."""
        stored = self._tensors[name]
        before = self._elements.get(name, 0)
        after = min(before + n_elements, math.prod(stored.shape))
        self._elements[name] = after
        self._watch.add(file_bytes(stored, after) - file_bytes(stored, before))


class _Converted(Mapping[str, Tensor]):
    """Weights in the wanted dtype, made as the decoder takes them: never two copies of a model in memory."""

    def __init__(
        self,
        tensors: Mapping[str, Stored],
        dtype: torch.dtype,
        device: torch.device,
        taken: _Taken,
        *,
        select: Callable[[str, Tensor], Tensor] | None = None,
    ) -> None:
        self._tensors = tensors
        self._taken = taken
        self._select = select
        self._dtype = dtype
        self._device = device

    def __getitem__(self, name: str) -> Tensor:
        if self._select is None:
            return self.joined(name)
        tensor = loaded(self._tensors[name])
        self._taken.add(name, tensor.numel())
        if tensor.shape != self.shape(name):
            raise _wrong_shape(name, self.shape(name))
        part = self._select(name, tensor)
        _check_values(name, part, self._dtype)
        return torch.empty(part.shape, dtype=self._dtype, device=self._device).copy_(part)

    def joined(self, *names: str) -> Tensor:
        """Weights one below the other; of what is read and converted only a piece is there beside them.

        Always a copy: aligned for the vector units, and safe from a file that changes while it is mapped.
        """
        if self._select is not None:
            return torch.cat([self[name] for name in names])
        shapes = [self.shape(name) for name in names]
        n_rows, at = sum(shape[0] for shape in shapes), 0
        whole = torch.empty((n_rows, *shapes[0][1:]), dtype=self._dtype, device=self._device)
        for piece in chain.from_iterable(map(self.pieces, names)):
            whole[at : at + len(piece)] = piece
            at += len(piece)
        return whole

    def shape(self, name: str) -> tuple[int, ...]:
        """As the file declares it."""
        return tuple(self._tensors[name].shape)

    def pieces(self, name: str) -> Iterator[Tensor]:
        """Rows of a weight in order, checked, in the dtype they are stored in; of a large one some at a time."""
        stored, n_rows = self._tensors[name], 0
        for piece in stored.pieces(_PIECE) if isinstance(stored, StoredTensor) else [stored]:
            n_rows += len(piece)
            if piece.shape[1:] != stored.shape[1:] or n_rows > stored.shape[0]:
                raise _wrong_shape(name, self.shape(name))
            _check_values(name, piece, self._dtype)
            self._taken.add(name, piece.numel())
            yield piece
        if n_rows != stored.shape[0]:
            raise _wrong_shape(name, self.shape(name))

    def groups(self, name: str, kind: QuantizedFormat) -> Iterator[Groups] | None:
        """The same of a matrix stored in groups of that format; None where it is not."""
        stored = self._tensors[name]
        if not isinstance(stored, StoredTensor) or stored.groups is None or stored.groups.kind != kind:
            return None
        return self._parts(name, stored, stored.groups)

    def _parts(self, name: str, stored: StoredTensor, groups: StoredGroups) -> Iterator[Groups]:
        width = math.prod(stored.shape[1:])
        for start, stop in stored.spans(_PIECE):
            yield _finite(name, groups.part(start, stop))
            self._taken.add(name, (stop - start) * width)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Loading is hundreds of short copies: torch's threads gain little, and wait for each other on a busy machine.

    Measured on two cores, SmolLM2-135M: 2 s with one thread; with two, 4 s when idle and 11 s beside other work.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _map_large_blocks() -> None:
    """Blocks of 4 MB and more are mapped one by one and given back when they are freed.

    glibc would raise that bound to the largest block it has seen freed, up to 32 MB, and then keep twice as much: a
    prefill of packed weights took 10 to 70 MB more, by chance (bench/load_memory.py).
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 4 << 20)


def return_freed_memory() -> None:
    """What loading took and freed goes back to the system; glibc would keep it (bench/load_memory.py), and so would
    torch on a GPU."""
    torch.cuda.empty_cache()  # nothing where no GPU was used
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _bound(select: Select | None, config: ModelConfig) -> Callable[[str, Tensor], Tensor] | None:
    if select is None:
        return None
    return lambda name, tensor: select(name, tensor, config)


def _check_values(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    """Raise CheckpointError unless all values are numbers that ``dtype`` can hold."""
    if tensor.dtype not in DTYPES.values():
        stored = str(tensor.dtype).removeprefix("torch.")
        raise CheckpointError(f"{name} is stored as {stored}; {', '.join(DTYPES)} can be loaded")
    # Anything not finite makes the sum so, which takes an eighth of the time of the least and the largest.
    if dtype.itemsize >= max(4, tensor.dtype.itemsize) and bool(tensor.sum(dtype=dtype).isfinite()):
        return
    low, high = tensor.aminmax()
    if not (low.isfinite() and high.isfinite()):
        raise _not_finite(name)
    limit = torch.finfo(dtype).max
    if max(-low.item(), high.item()) > limit:
        raise CheckpointError(f"{name} holds values beyond {limit:g}, the largest of {dtype}")


def _finite(name: str, groups: Groups) -> Groups:
    if not groups.scales.isfinite().all():
        raise _not_finite(name)
    return groups


def _not_finite(name: str) -> CheckpointError:
    return CheckpointError(f"{name} holds values that are not finite numbers")


def _wrong_shape(name: str, declared: tuple[int, ...]) -> CheckpointError:
    return CheckpointError(f"{name} does not have the shape {list(declared)} that its file declares")
