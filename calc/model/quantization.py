"""``quantization_config`` of a config.json as bytes: quantized matrices with scales and zero points, the rest as is.

Layouts: AutoAWQ and AutoGPTQ (int32 words of packed weights and zeros, 16-bit scales; GPTQ's g_idx), transformers'
finegrained FP8 (one fp32 scale per block), compressed-tensors (packed or plain, scales by tensor, channel, group or
block), OCP microscaling MXFP4, NVFP4 of TensorRT Model Optimizer (an fp8 scale for 16 elements), bitsandbytes (NF4
absmax for 64 elements, nested absmax; int8 with a row's absmax). Biases, norms, routers and convolutions stay as is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from calc.errors import SourceError, SpecError
from calc.model.components import component_of
from calc.model.count import EMBED_TOKENS, LM_HEAD, model_tensors, parameters
from calc.model.parts import EMBEDDING, KV, LINEAR, SPLIT, WHOLE, Tensor
from calc.model.spec import ModelSpec
from calc.model.stored import StoredWeights

DTYPE_BYTES: Mapping[str, int] = {"bfloat16": 2, "float16": 2, "half": 2, "float32": 4, "float": 4, "float64": 8}
MAX_PATTERNS = 20_000
MAX_PATTERN = 500
MAX_MODULES = 200_000


Size = Callable[[int, int], int]
"""(rows, columns) -> bytes of one quantized matrix with its scales."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """How matrices are stored: `matrix_bytes` for each one but the `ignored`, which stay as they are.

    `groups` are (targets, size) for modules that are stored in another way, first match first; with `others_too`
    off, a matrix that no group names stays as it is. Names are those of modules, ``re:`` patterns or globs.
    """

    name: str
    matrix_bytes: Size
    experts_alone: bool = False
    ignored: tuple[str, ...] = (LM_HEAD,)
    groups: tuple[tuple[tuple[str, ...], Size], ...] = ()
    others_too: bool = True


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def integer_bytes(rows: int, columns: int, *, bits: int, group: int, zeros: bool, order: bool, scale: int) -> int:
    """Packed integers of `bits`, a scale of `scale` bytes and a zero point a group of inputs, an index where ordered.

    >>> integer_bytes(4096, 4096, bits=4, group=128, zeros=True, order=False, scale=2)
    8716288
    """
    groups = cdiv(columns, group) if group > 0 else 1
    words = cdiv(columns * bits, 32) * rows * 4
    zero_words = groups * cdiv(rows * bits, 32) * 4 if zeros else 0
    return words + groups * rows * scale + zero_words + (4 * columns if order else 0)


def scheme_of(config: Mapping[str, Any], source: str) -> Scheme | None:
    """What a config's quantization_config means; None where there is none.

    Raises SourceError for a method that is not known, or one whose fields do not determine the bytes.
    """
    raw = config.get("quantization_config")
    if raw is None or raw == {}:
        return None
    if not isinstance(raw, dict):
        raise SourceError(f"{source}: quantization_config must be an object")
    quant = _Quant(raw, f"{source}: quantization_config")
    method = str(raw.get("quant_method") or raw.get("quant_algo") or "").lower().replace("_", "-")
    if not method and raw.get("config_groups"):
        method = "compressed-tensors"
    if not method and (raw.get("load_in_4bit") or raw.get("load_in_8bit")):
        method = "bitsandbytes"
    reader = _METHODS.get(method)
    if reader is None:
        named = f"quant_method {method[:40]!r} is not one" if method else "quant_method missing: not one"
        raise quant.fail(f"{named} that kvscope knows ({', '.join(_METHODS)}): give --weight-format")
    return reader(quant)


class _Quant:
    """Typed access to a quantization_config."""

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        self.raw = raw
        self.where = where

    def fail(self, what: str) -> SourceError:
        return SourceError(f"{self.where}: {what}")

    def count(self, *keys: str, default: int | None = None, lowest: int = 1) -> int:
        for key in keys:
            value = self.raw.get(key)
            if value is not None:
                if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= 2**20:
                    raise self.fail(f"{key} must be a whole number, not {str(value)[:40]!r}")
                return value
        if default is None:
            raise self.fail(f"{keys[0]} missing")
        return default

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.raw.get(key, default)
        return default if value is None else bool(value)

    def names(self, *keys: str) -> tuple[str, ...]:
        found: list[str] = []
        for key in keys:
            value = self.raw.get(key) or []
            if not isinstance(value, list) or len(value) > MAX_PATTERNS:
                raise self.fail(f"{key} must be a list of names")
            found += [str(name)[:MAX_PATTERN] for name in value]
        return tuple(found)


def _awq(quant: _Quant) -> Scheme:
    bits, group = quant.count("bits", "w_bit"), quant.count("group_size", "q_group_size", lowest=-1)
    zeros = quant.flag("zero_point", True)

    def size(rows: int, columns: int) -> int:
        return integer_bytes(rows, columns, bits=bits, group=group, zeros=zeros, order=False, scale=2)

    return Scheme(_grouped(f"awq int{bits}", group), size, ignored=(LM_HEAD, *quant.names("modules_to_not_convert")))


def _gptq(quant: _Quant) -> Scheme:
    bits, group = quant.count("bits"), quant.count("group_size", lowest=-1)
    ignored = () if quant.flag("lm_head") else (LM_HEAD,)
    skipped, groups = _dynamic(quant, bits, group)
    return Scheme(
        _grouped(f"gptq int{bits}", group),
        _gptq_size(bits, group),
        ignored=(*ignored, *quant.names("modules_to_not_convert"), *skipped),
        groups=groups,
    )


def _gptq_size(bits: int, group: int) -> Size:
    def size(rows: int, columns: int) -> int:
        return integer_bytes(rows, columns, bits=bits, group=group, zeros=True, order=True, scale=2)

    return size


def _dynamic(quant: _Quant, bits: int, group: int) -> tuple[list[str], tuple[tuple[tuple[str, ...], Size], ...]]:
    """(names left out, groups of their own) of GPTQModel's `dynamic`: "-:pattern" leaves out, others override."""
    rules = quant.raw.get("dynamic") or {}
    if not isinstance(rules, dict) or len(rules) > MAX_PATTERNS:
        raise quant.fail("dynamic must be an object of patterns")
    skipped = [f"re:{rule[2:]}" for rule in map(str, rules) if rule.startswith("-:")]
    groups = []
    for rule, values in rules.items():
        if rule.startswith("-:") or not isinstance(values, dict) or not values:
            continue
        own = _Quant(values, f"{quant.where}: dynamic")
        size = _gptq_size(own.count("bits", default=bits), own.count("group_size", default=group, lowest=-1))
        groups.append(((f"re:{rule.removeprefix('+:')}",), size))
    return skipped, tuple(groups)


def _grouped(name: str, group: int) -> str:
    return f"{name}, groups of {group}" if group > 0 else f"{name}, by row"


def _fp8(quant: _Quant) -> Scheme:
    ignored = (LM_HEAD, *quant.names("modules_to_not_convert", "ignored_layers", "ignore"))
    block = quant.raw.get("weight_block_size")
    static = quant.raw.get("activation_scheme") == "static"
    if block is None:
        return Scheme("fp8", lambda rows, columns: rows * columns + (8 if static else 4), ignored=ignored)
    if not isinstance(block, list) or len(block) != 2 or not all(isinstance(n, int) and 0 < n < 2**20 for n in block):
        raise quant.fail("weight_block_size must be two numbers such as [128, 128]")
    high, wide = block
    fp4_experts = str(quant.raw.get("expert_dtype")) == "fp4"
    scale = 1 if fp4_experts and quant.raw.get("scale_fmt") == "ue8m0" else 4

    def size(rows: int, columns: int) -> int:
        return rows * columns + scale * cdiv(rows, high) * cdiv(columns, wide)

    name = f"fp8, blocks of {high} x {wide}"
    if fp4_experts:  # DeepSeek-V4
        return Scheme(f"{name}, experts in mxfp4", size, ignored=ignored, groups=((("experts",), _mxfp4_bytes),))
    return Scheme(name, size, ignored=ignored)


def _fbgemm(quant: _Quant) -> Scheme:
    ignored = (LM_HEAD, *quant.names("modules_to_not_convert"))
    return Scheme("fp8 by row", lambda rows, columns: rows * columns + 4 * rows, ignored=ignored)


def _mxfp4(quant: _Quant) -> Scheme:
    ignored = (LM_HEAD, *quant.names("modules_to_not_convert"))
    return Scheme("mxfp4", _mxfp4_bytes, experts_alone=True, ignored=ignored)


def _mxfp4_bytes(rows: int, columns: int) -> int:
    """Half a byte per element and a scale of a byte for 32 of them."""
    return rows * cdiv(columns, 32) * 17


def _nvfp4_bytes(rows: int, columns: int) -> int:
    """Half a byte per element, an fp8 scale for 16, a scale of the matrix and one of its inputs."""
    return rows * (cdiv(columns, 2) + cdiv(columns, 16)) + 8


def _fp8_bytes(rows: int, columns: int) -> int:
    """A byte per element, a scale of the matrix and one of its inputs."""
    return rows * columns + 8


MODELOPT: Mapping[str, tuple[str, Size]] = {
    "NVFP4": ("nvfp4", _nvfp4_bytes),
    "NVFP4_AWQ": ("nvfp4", _nvfp4_bytes),
    "W4A16_NVFP4": ("nvfp4", _nvfp4_bytes),
    "FP8": ("fp8", _fp8_bytes),
    "W4A16_AWQ": ("int4, groups of 128", lambda rows, columns: cdiv(rows * columns, 2) + 2 * rows * cdiv(columns, 128)),
    "MXFP4": ("mxfp4", _mxfp4_bytes),
}


def _modelopt(quant: _Quant) -> Scheme:
    inner = quant.raw.get("quantization")
    if isinstance(inner, dict):
        quant = _Quant({**quant.raw, **inner}, quant.where)
    ignored = (LM_HEAD, *quant.names("ignore", "exclude_modules"))
    algorithm = str(quant.raw.get("quant_algo", "")).upper()
    if algorithm == "MIXED_PRECISION":
        return _mixed_precision(quant, ignored)
    name, size = _modelopt_format(quant, algorithm)
    return Scheme(name, size, ignored=ignored)


def _modelopt_format(quant: _Quant, algorithm: str) -> tuple[str, Size]:
    if algorithm not in MODELOPT:
        known = ", ".join((*MODELOPT, "MIXED_PRECISION"))
        raise quant.fail(f"quant_algo {algorithm[:40]!r} is not one that kvscope knows ({known}): give --weight-format")
    return MODELOPT[algorithm]


def _mixed_precision(quant: _Quant, ignored: tuple[str, ...]) -> Scheme:
    """Every quantized module is named with its format; the others stay as they are."""
    listed = quant.raw.get("quantized_layers")
    if not isinstance(listed, dict) or not listed or len(listed) > MAX_MODULES:
        raise quant.fail("quantized_layers missing: it names the format of each module")
    modules: dict[str, list[str]] = {}
    for module, values in listed.items():
        algorithm = values.get("quant_algo") if isinstance(values, dict) else None
        modules.setdefault(str(algorithm or "").upper(), []).append(str(module)[:MAX_PATTERN])
    formats = {algorithm: _modelopt_format(quant, algorithm) for algorithm in modules}
    groups = tuple((tuple(names), formats[algorithm][1]) for algorithm, names in modules.items())
    named = " and ".join(dict.fromkeys(name for name, _ in formats.values()))
    kept = tuple(name for name in ignored if name != LM_HEAD)
    return Scheme(named, _fp8_bytes, ignored=kept, groups=groups, others_too=False)


def _quark(quant: _Quant) -> Scheme:
    whole = quant.raw.get("global_quant_config")
    weight = whole.get("weight") if isinstance(whole, dict) else None
    if not isinstance(weight, dict):
        raise quant.fail("global_quant_config must say weight")
    dtype, scheme = str(weight.get("dtype")), str(weight.get("qscheme"))
    ignored = quant.names("exclude")
    if dtype == "fp4" and weight.get("group_size") == 32:
        return Scheme("mxfp4", _mxfp4_bytes, ignored=ignored)
    if dtype == "fp8_e4m3" and scheme == "per_tensor":
        return Scheme("fp8", _fp8_bytes, ignored=ignored)
    raise quant.fail(
        f"weights of {dtype[:20]!r} {scheme[:20]!r} are not ones that kvscope counts: give --weight-format"
    )


def _bitsandbytes(quant: _Quant) -> Scheme:
    ignored = (LM_HEAD, *quant.names("llm_int8_skip_modules"))
    if quant.flag("load_in_8bit") or quant.flag("_load_in_8bit"):
        return Scheme("bitsandbytes int8", lambda rows, columns: rows * columns + 4 * rows, ignored=ignored)
    nested = quant.flag("bnb_4bit_use_double_quant")

    def size(rows: int, columns: int) -> int:
        blocks = cdiv(rows * columns, 64)
        absmax = blocks + 4 * cdiv(blocks, 256) + 1024 + 4 if nested else 4 * blocks
        return cdiv(rows * columns, 2) + absmax + 64

    kind = str(quant.raw.get("bnb_4bit_quant_type", "fp4"))[:8]
    return Scheme(f"bitsandbytes {kind}{' nested' if nested else ''}", size, ignored=ignored)


def _compressed(quant: _Quant) -> Scheme:
    groups = quant.raw.get("config_groups")
    if not isinstance(groups, dict) or not groups or len(groups) > MAX_PATTERNS:
        raise quant.fail("config_groups must hold a group")
    made = [_compressed_group(quant, group) for group in groups.values()]
    ignored = quant.names("ignore")
    (targets, name, size), others = made[0], made[1:]
    if not others and "Linear" in targets:
        return Scheme(name, size, ignored=ignored)
    named = " and ".join(dict.fromkeys(name for _, name, _ in made))
    return Scheme(named, size, ignored=ignored, groups=tuple((t, s) for t, _, s in made), others_too=False)


def _compressed_group(quant: _Quant, group: Any) -> tuple[tuple[str, ...], str, Size]:
    """(targets, name, size of a matrix) of one of `config_groups`."""
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        raise quant.fail("config_groups must say weights")
    layout = str(group.get("format") or quant.raw.get("format") or "")
    targets = _Quant(group, f"{quant.where}: config_groups").names("targets") or ("Linear",)
    return targets, *_compressed_format(_Quant(weights, f"{quant.where}: weights"), group, layout)


def _compressed_format(weights: _Quant, group: Mapping[str, Any], layout: str) -> tuple[str, Size]:
    bits, kind = weights.count("num_bits"), str(weights.raw.get("type", "int"))
    strategy = str(weights.raw.get("strategy") or "tensor")
    if "mxfp4" in layout:
        return "mxfp4", _mxfp4_bytes
    if kind == "float" and bits == 4:
        return ("mxfp4", _mxfp4_bytes) if weights.raw.get("group_size") == 32 else ("nvfp4", _nvfp4_bytes)
    inputs = group.get("input_activations")
    static = 4 if isinstance(inputs, dict) and inputs.get("dynamic") is False else 0
    packed = bits < 8 or "pack" in layout
    size = weights.count("group_size", default=0, lowest=-1) if strategy == "group" else 0
    zeros = kind == "int" and not weights.flag("symmetric", True)
    order = weights.raw.get("actorder") in ("group", True)
    block = weights.raw.get("block_structure") if strategy == "block" else None

    def matrix_bytes(rows: int, columns: int) -> int:
        if packed:
            whole = integer_bytes(rows, columns, bits=bits, group=size, zeros=zeros, order=order, scale=2)
            return whole + 16
        if isinstance(block, list) and len(block) == 2:
            return rows * columns + 4 * cdiv(rows, int(block[0])) * cdiv(columns, int(block[1]))
        scales = {"tensor": 1, "channel": rows, "group": rows * cdiv(columns, size or columns)}.get(strategy, 1)
        return rows * columns + scales * (2 + int(zeros)) + static

    named = _grouped(f"{kind}{bits}", size) if strategy == "group" else f"{kind}{bits} by {strategy}"
    return named, matrix_bytes


_METHODS: Mapping[str, Callable[[_Quant], Scheme]] = {
    "awq": _awq,
    "gptq": _gptq,
    "fp8": _fp8,
    "fbgemm-fp8": _fbgemm,
    "mxfp4": _mxfp4,
    "modelopt": _modelopt,
    "compressed-tensors": _compressed,
    "bitsandbytes": _bitsandbytes,
    "quark": _quark,
}


def stored_weights(config: Mapping[str, Any], model: ModelSpec, source: str) -> StoredWeights | None:
    """Bytes of `model` as its config says they are stored; None for plain 16-bit weights. Raises SourceError."""
    scheme = scheme_of(config, source)
    dtype = config.get("dtype") or config.get("torch_dtype")
    each = DTYPE_BYTES.get(str(dtype).removeprefix("torch."), 2)
    if scheme is None:
        return None if each == 2 else unquantized(model, each, str(dtype))
    sizes = {SPLIT: 0, KV: 0, WHOLE: 0}
    counts = parameters(model)
    components = {name: n * each for name, n in counts.components.items()}
    quantized = left_kv = 0
    try:
        size_of = _sizes(scheme)
    except SourceError as error:
        raise SourceError(f"{source}: {error}") from None
    for matrix in _matrices(model):
        size = size_of(matrix)
        if size is None:
            left_kv += matrix.params if matrix.share == KV else 0
            continue
        n_bytes = matrix.copies * size(matrix.rows, matrix.columns)
        sizes[matrix.share] += n_bytes
        components[component_of(matrix)] += n_bytes - matrix.params * each
        quantized += matrix.params
    rest = counts.total - quantized - left_kv
    whole = min(rest, _small_params(model))
    sizes[KV] += left_kv * each
    sizes[WHOLE] += whole * each
    sizes[SPLIT] += (rest - whole) * each
    try:
        return StoredWeights(
            name=scheme.name,
            split_bytes=sizes[SPLIT],
            kv_bytes=sizes[KV],
            whole_bytes=sizes[WHOLE],
            components=tuple(components.items()),
        )
    except SpecError as error:
        raise SourceError(f"{source}: {error}") from None


def _matrices(model: ModelSpec) -> Iterator[Tensor]:
    """What a quantization could apply to: embedding, head and the linear layers, routers left out."""
    return (tensor for tensor in model_tensors(model) if tensor.role in (LINEAR, EMBEDDING))


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


def _small_params(model: ModelSpec) -> int:
    """What every rank holds whatever the format: norms and routers."""
    counts = parameters(model)
    return counts.norms + counts.other


def _sizes(scheme: Scheme) -> Callable[[Tensor], Size | None]:
    """What says the bytes of a matrix; None where it stays as it is. Raises SourceError for a pattern."""
    ignored = _Modules(scheme.ignored)
    groups = [(_Modules(names), size) for names, size in scheme.groups]

    def size_of(matrix: Tensor) -> Size | None:
        if matrix.name == EMBED_TOKENS or (scheme.experts_alone and not matrix.expert) or ignored.name(matrix.name):
            return None
        for modules, size in groups:
            if modules.name(matrix.name):
                return size
        return scheme.matrix_bytes if scheme.others_too else None

    return size_of


PREFIXES = frozenset("model language_model backbone transformer thinker text_model llm".split())
"""What a checkpoint may put before a module's path below the model."""
ALIASES: Mapping[str, tuple[str, ...]] = {
    "mixer": ("mixer", "linear_attn", "mamba", "self_attn", "conv", "short_conv"),
    "self_attn": ("self_attn", "attention", "attn", "mixer"),
    "mlp": ("mlp", "feed_forward", "block_sparse_moe", "mixer"),
    "shared_experts": ("shared_experts", "shared_expert", "shared_mlp"),
    "in_proj_qkvz": ("in_proj_qkvz", "in_proj_qkv"),
    "in_proj_ba": ("in_proj_ba", "in_proj_b"),
}
"""Parts of a module's path that checkpoints call by different names."""


class _Modules:
    """A set of modules by the names of a checkpoint: plain paths, globs and ``re:`` patterns."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.everything = "Linear" in names
        self.plain = {_below_model(name) for name in names if "*" not in name and not name.startswith("re:")}
        globs = [_below_model(name) for name in names if "*" in name and not name.startswith("re:")]
        self.starts = tuple(
            glob[:-1] for glob in globs if glob.startswith("layers.") and glob.index("*") == len(glob) - 1
        )
        others = [_glob(glob) for glob in globs if glob[:-1] not in self.starts]
        self.patterns = [*others, *(pattern for name in names if (pattern := _pattern(name)) is not None)]

    def name(self, path: str) -> bool:
        """Whether the module of that path, or one that it lies in, is one of them."""
        return self.everything or any(self._names(alias) for alias in _aliases(path))

    def _names(self, path: str) -> bool:
        parts = path.split(".")
        within = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
        if path.startswith(self.starts) or self.plain & (within | set(parts)):
            return True
        full = (path, f"model.{path}", f"model.language_model.{path}", f"language_model.model.{path}")
        return any(pattern.search(each) for pattern in self.patterns for each in full)


def _aliases(path: str) -> list[str]:
    """The names that checkpoints give the module of that path."""
    found = [""]
    for part in path.split("."):
        found = [f"{start}.{name}" if start else name for start in found for name in ALIASES.get(part, (part,))]
    return found


def _below_model(name: str) -> str:
    """A module's path without what stands before the layers: ``model.language_model.layers.0`` is ``layers.0``."""
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in PREFIXES:
        parts = parts[1:]
    return ".".join(parts)


def _glob(name: str) -> re.Pattern[str]:
    body = ".*".join(map(re.escape, name.split("*")))
    return re.compile(rf"(^|\.){body}($|\.)")


def _pattern(name: str) -> re.Pattern[str] | None:
    """A ``re:`` entry as a pattern. Raises SourceError for one that could take for ever: files are untrusted."""
    if not name.startswith("re:"):
        return None
    text = name[3:]
    repeated = re.search(r"[*+?}]\s*[*+{]|\([^)]*[*+][^)]*\)[*+{]", text)
    if re.fullmatch(r"[\w.,*^$|()\[\]\\/?+!:=-]*", text) is None or repeated or text.count("*") > 8:
        raise SourceError(f"the pattern {text[:60]!r} of a quantization_config is not one that kvscope follows")
    try:
        return re.compile(text)
    except re.error:
        raise SourceError(f"the pattern {text[:60]!r} of a quantization_config cannot be read") from None
