"""8-bit and 4-bit floats: FP8 by block, row or matrix, MXFP8, MXFP4, NVFP4; ModelOpt, Quark and FP-Quant.

Sources: transformers' integrations of each method, OCP's microscaling formats, TensorRT Model Optimizer's export,
fp_quant 0.3.2 (module/linear.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from calc.model.count import LM_HEAD
from calc.model.quantization.scheme import MAX_PATTERN, Quant, Scheme, Size, cdiv

MAX_MODULES = 200_000


def fp8(quant: Quant) -> Scheme:
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
    if quant.raw.get("quantized_layers"):  # NVIDIA's DeepSeek-V4: experts in NVFP4; ignored modules stay in fp8
        mixed = mixed_precision(quant, ())
        kept = (LM_HEAD, *quant.names("modules_to_not_convert", "ignored_layers"))
        return Scheme(f"{name}, experts in {mixed.name}", size, ignored=kept, groups=mixed.groups)
    if fp4_experts:  # DeepSeek-V4
        return Scheme(f"{name}, experts in mxfp4", size, ignored=ignored, groups=((("experts",), mxfp4_bytes),))
    return Scheme(name, size, ignored=ignored)


def int8_blocks(quant: Quant) -> Scheme:
    """8-bit integers in blocks, like FP8 (SGLang's blockwise_int8)."""
    found = fp8(Quant({"weight_block_size": [128, 128], **quant.raw}, quant.where))
    return replace(found, name=found.name.replace("fp8", "int8"))


def by_row(quant: Quant) -> Scheme:
    """One byte per element and a float32 scale per row (SGLang's w8a8_int8 and w8a8_fp8)."""
    kind = str(quant.raw.get("quant_method"))[-4:].strip("_-")
    ignored = (LM_HEAD, *quant.names("modules_to_not_convert", "ignored_layers", "ignore"))
    return Scheme(f"{kind} by row", lambda rows, columns: rows * columns + 4 * rows, ignored=ignored)


def mxfp8(quant: Quant) -> Scheme:
    """FP8 of transformers, with a power-of-two scale per 32 elements."""
    return Scheme("mxfp8", mxfp8_bytes, ignored=(LM_HEAD, *quant.names("modules_to_not_convert")))


def fbgemm(quant: Quant) -> Scheme:
    ignored = (LM_HEAD, *quant.names("modules_to_not_convert"))
    return Scheme("fp8 by row", lambda rows, columns: rows * columns + 4 * rows, ignored=ignored)


def mxfp4(quant: Quant) -> Scheme:
    ignored = (LM_HEAD, *quant.names("modules_to_not_convert"))
    return Scheme("mxfp4", mxfp4_bytes, experts_alone=True, ignored=ignored)


def mxfp4_bytes(rows: int, columns: int) -> int:
    """Half a byte per element and a one-byte scale per 32 elements."""
    return rows * cdiv(columns, 32) * 17


def mxfp8_bytes(rows: int, columns: int) -> int:
    """One byte per element and a one-byte scale per 32 elements."""
    return rows * columns + rows * cdiv(columns, 32)


def nvfp4_bytes(rows: int, columns: int) -> int:
    """Half a byte per element, an fp8 scale per 16 elements, one scale per matrix and one for its inputs."""
    return rows * (cdiv(columns, 2) + cdiv(columns, 16)) + 8


def fp8_bytes(rows: int, columns: int) -> int:
    """One byte per element, one scale per matrix and one for its inputs."""
    return rows * columns + 8


MODELOPT: Mapping[str, tuple[str, Size]] = {
    "NVFP4": ("nvfp4", nvfp4_bytes),
    "NVFP4_AWQ": ("nvfp4", nvfp4_bytes),
    "W4A16_NVFP4": ("nvfp4", nvfp4_bytes),
    "FP8": ("fp8", fp8_bytes),
    "W4A16_AWQ": ("int4, groups of 128", lambda rows, columns: cdiv(rows * columns, 2) + 2 * rows * cdiv(columns, 128)),
    "MXFP4": ("mxfp4", mxfp4_bytes),
    "MXFP8": ("mxfp8", mxfp8_bytes),
    "FP8_PB_WO": (
        "fp8, blocks of 128 x 128",
        lambda rows, columns: rows * columns + 4 * cdiv(rows, 128) * cdiv(columns, 128),
    ),
    "FP8_PER_CHANNEL_PER_TOKEN": ("fp8 by row", lambda rows, columns: rows * columns + 4 * rows),
}


def modelopt(quant: Quant) -> Scheme:
    inner = quant.raw.get("quantization")
    if isinstance(inner, dict):
        quant = Quant({**quant.raw, **inner}, quant.where)
    ignored = (LM_HEAD, *quant.names("ignore", "exclude_modules"))
    algorithm = str(quant.raw.get("quant_algo", "")).upper()
    if algorithm == "MIXED_PRECISION":
        return mixed_precision(quant, ignored)
    name, size = modelopt_format(quant, algorithm)
    return Scheme(name, size, ignored=ignored)


def modelopt_format(quant: Quant, algorithm: str) -> tuple[str, Size]:
    if algorithm not in MODELOPT:
        known = ", ".join((*MODELOPT, "MIXED_PRECISION"))
        raise quant.fail(f"kvscope does not know quant_algo {algorithm[:40]!r} (only {known}): give --weight-format")
    return MODELOPT[algorithm]


def mixed_precision(quant: Quant, ignored: tuple[str, ...]) -> Scheme:
    """Every quantized module is listed with its format; the others are not quantized."""
    listed = quant.raw.get("quantized_layers")
    if not isinstance(listed, dict) or not listed or len(listed) > MAX_MODULES:
        raise quant.fail("quantized_layers missing: it names the format of each module")
    modules: dict[str, list[str]] = {}
    for module, values in listed.items():
        algorithm = values.get("quant_algo") if isinstance(values, dict) else None
        modules.setdefault(str(algorithm or "").upper(), []).append(str(module)[:MAX_PATTERN])
    formats = {algorithm: modelopt_format(quant, algorithm) for algorithm in modules}
    groups = tuple((tuple(names), formats[algorithm][1]) for algorithm, names in modules.items())
    named = " and ".join(dict.fromkeys(name for name, _ in formats.values()))
    kept = tuple(name for name in ignored if name != LM_HEAD)
    return Scheme(named, fp8_bytes, ignored=kept, groups=groups, others_too=False)


def quark(quant: Quant) -> Scheme:
    """Quark: one format for the linear layers, and other formats for name patterns."""
    whole, layers = quant.section("global_quant_config"), quant.section("layer_quant_config")
    if whole is None or whole.section("weight") is None:
        raise quant.fail("global_quant_config must contain weight")
    name, size = _quark_format(whole)
    kept: list[str] = []
    groups: list[tuple[tuple[str, ...], Size]] = []
    names = [name]
    for pattern in {} if layers is None else layers.raw:
        own = layers.section(pattern) if layers is not None else None
        if own is None or own.section("weight") is None:
            kept.append(pattern)
            continue
        named, its_size = _quark_format(own)
        names.append(named)
        groups.append(((pattern,), its_size))
    ignored = (*quant.names("exclude"), *kept)
    return Scheme(" and ".join(dict.fromkeys(names)), size, ignored=ignored, groups=tuple(groups))


def _quark_format(own: Quant) -> tuple[str, Size]:
    weight = own.raw["weight"]
    dtype, scheme, group = str(weight.get("dtype")), str(weight.get("qscheme")), weight.get("group_size")
    if group == 32 and dtype == "fp4":
        return "mxfp4", mxfp4_bytes
    if group == 32 and dtype in ("fp6_e2m3", "fp6_e3m2"):
        return "mxfp6", lambda rows, columns: rows * (columns * 3 // 4 + cdiv(columns, 32))
    if dtype in ("fp8_e4m3", "int8") and scheme == "per_tensor":
        return dtype.partition("_")[0], fp8_bytes
    if dtype in ("fp8_e4m3", "int8") and scheme == "per_channel":
        return f"{dtype.partition('_')[0]} by row", lambda rows, columns: rows * columns + 4 * rows
    raise own.fail(f"kvscope does not support weights of {dtype[:20]!r} {scheme[:20]!r}: give --weight-format")


def fp_quant(quant: Quant) -> Scheme:
    """FP-Quant: packed 4-bit floats, their scales, two global scales, and two Hadamard matrices per linear layer."""
    kind = str(quant.raw.get("forward_dtype", "nvfp4"))
    if kind not in ("mxfp4", "nvfp4"):
        raise quant.fail(f"forward_dtype {kind[:20]!r} is not mxfp4 or nvfp4")
    if quant.flag("pseudoquantization") or quant.flag("store_master_weights"):
        raise quant.fail("kvscope does not support quantized weights with 16-bit copies")
    group = 32 if kind == "mxfp4" else 16
    width = quant.count("hadamard_group_size", default=group)

    def size(rows: int, columns: int) -> int:
        return rows * (columns // 2 + cdiv(columns, group)) + 2 * 2 + 2 * width * width * 2

    return Scheme(f"fp_quant {kind}", size, ignored=(LM_HEAD, *quant.names("modules_to_not_convert")))


READERS: Mapping[str, Callable[[Quant], Scheme]] = {
    "fp8": fp8,
    "fbgemm-fp8": fbgemm,
    "mxfp8": mxfp8,
    "mxfp4": mxfp4,
    "modelopt": modelopt,
    "quark": quark,
    "fp-quant": fp_quant,
    "blockwise-int8": int8_blocks,
    "w8a8-int8": by_row,
    "w8a8-fp8": by_row,
}
