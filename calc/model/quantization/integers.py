"""Packed integers: AWQ, GPTQ, AutoRound, HQQ, EETQ, bitsandbytes, MLX and ExLlama.

Sources: AutoAWQ and AutoGPTQ (int32 words, 16-bit scales; GPTQ's g_idx), auto_round 0.16.1 (GPTQ's layout without an
index), hqq 0.2.8 (state_dict of HQQLinear), EETQ and bitsandbytes as in transformers 5.23, mlx.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from math import ceil

from calc.model.count import LM_HEAD
from calc.model.quantization.scheme import MAX_PATTERNS, Quant, Scheme, Size, cdiv, grouped, integer_bytes


def awq(quant: Quant) -> Scheme:
    bits, group = quant.count("bits", "w_bit"), quant.count("group_size", "q_group_size", lowest=-1)
    zeros = quant.flag("zero_point", True)

    def size(rows: int, columns: int) -> int:
        return integer_bytes(rows, columns, bits=bits, group=group, zeros=zeros, order=False, scale=2)

    return Scheme(grouped(f"awq int{bits}", group), size, ignored=(LM_HEAD, *quant.names("modules_to_not_convert")))


def gptq(quant: Quant) -> Scheme:
    bits, group = quant.count("bits"), quant.count("group_size", lowest=-1)
    ignored = () if quant.flag("lm_head") else (LM_HEAD,)
    skipped, groups = _dynamic(quant, bits, group)
    kept = (*ignored, *quant.names("modules_to_not_convert"), *skipped)
    name, size = grouped(f"gptq int{bits}", group), gptq_size(bits, group)
    if chosen := _inside(quant):
        head = () if ignored else (LM_HEAD,)
        inside = (*groups, ((*chosen, *head), size))
        return Scheme(name, size, ignored=kept, groups=inside, others_too=False, every=chosen)
    return Scheme(name, size, ignored=kept, groups=groups)


def _inside(quant: Quant) -> tuple[str, ...]:
    """The quantized modules of a layer, if not all are: lists of modules that are quantized together.

    Every expert is listed; the first one stands for all.
    """
    listed = quant.raw.get("modules_in_block_to_quantize") or quant.raw.get("inside_layer_modules") or []
    if not isinstance(listed, list) or len(listed) > MAX_PATTERNS:
        raise quant.fail("modules_in_block_to_quantize must be a list of names")
    flat = [name for each in listed for name in (each if isinstance(each, list) else [each])]
    named = Quant({"names": flat}, quant.where).names("names")
    return tuple(dict.fromkeys(re.sub(r"experts\.\d+\.", "experts.0.", name) for name in named))


def marlin(quant: Quant) -> Scheme:
    """Marlin: 4 bits and a 16-bit scale per group, without zero points or an index; or 2:4 sparsity."""
    bits, group = quant.count("bits", default=4), quant.count("group_size", lowest=-1)
    ignored = () if quant.flag("lm_head") else (LM_HEAD,)
    if "24" in str(quant.raw.get("quant_method")):
        from calc.model.quantization.compressed import marlin_24_bytes

        half = f"marlin int{bits}, 2 of 4"
        return Scheme(
            half, lambda rows, columns: marlin_24_bytes(rows, columns, bits=bits, group=group), ignored=ignored
        )

    def size(rows: int, columns: int) -> int:
        return integer_bytes(rows, columns, bits=bits, group=group, zeros=False, order=False, scale=2)

    return Scheme(grouped(f"marlin int{bits}", group), size, ignored=ignored)


def gptq_size(bits: int, group: int) -> Size:
    def size(rows: int, columns: int) -> int:
        return integer_bytes(rows, columns, bits=bits, group=group, zeros=True, order=True, scale=2)

    return size


def _dynamic(quant: Quant, bits: int, group: int) -> tuple[list[str], tuple[tuple[tuple[str, ...], Size], ...]]:
    """(excluded names, own groups) of GPTQModel's `dynamic`: "-:pattern" excludes, others override."""
    rules = quant.raw.get("dynamic") or {}
    if not isinstance(rules, dict) or len(rules) > MAX_PATTERNS:
        raise quant.fail("dynamic must be an object of patterns")
    skipped = [f"re:{rule[2:]}" for rule in map(str, rules) if rule.startswith("-:")]
    groups = []
    for rule, values in rules.items():
        if rule.startswith("-:") or not isinstance(values, dict) or not values:
            continue
        own = Quant(values, f"{quant.where}: dynamic")
        size = gptq_size(own.count("bits", default=bits), own.count("group_size", default=group, lowest=-1))
        groups.append(((f"re:{rule.removeprefix('+:')}",), size))
    return skipped, tuple(groups)


def bitsandbytes(quant: Quant) -> Scheme:
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


def auto_round(quant: Quant) -> Scheme:
    """AutoRound: GPTQ's layout without an index, or AWQ's; `extra_config` lists layers with other bit widths."""
    usual = _auto_round_format(quant, quant)
    kept: list[str] = []
    groups: list[tuple[tuple[str, ...], Size]] = []
    extra = quant.section("extra_config")
    for name in {} if extra is None else extra.raw:
        own = extra.section(name) if extra is not None else None
        if own is None or own.count("bits", default=16) >= 16:
            kept.append(_as_pattern(name))
        else:
            groups.append(((_as_pattern(name),), _auto_round_format(own, quant)[1]))
    named = {name for names, _ in groups for name in names}
    ignored = () if LM_HEAD in named or quant.flag("quant_lm_head") else (LM_HEAD,)
    return Scheme(*usual, ignored=(*ignored, *kept, *quant.names("modules_to_not_convert")), groups=tuple(groups))


def _auto_round_format(own: Quant, whole: Quant) -> tuple[str, Size]:
    """Name and size of the format in `own`; `whole` has the fields that it leaves out."""
    bits = own.count("bits", default=whole.count("bits"))
    group = own.count("group_size", default=whole.count("group_size", default=128, lowest=-1), lowest=-1)
    kind = str(own.raw.get("data_type") or whole.raw.get("data_type") or "int")
    if kind.startswith(("mx_fp", "nv_fp")):
        from calc.model.quantization.floats import mxfp4_bytes, mxfp8_bytes, nvfp4_bytes

        known = {
            ("mx", 4): ("mxfp4", mxfp4_bytes),
            ("mx", 8): ("mxfp8", mxfp8_bytes),
            ("nv", 4): ("nvfp4", nvfp4_bytes),
        }
        if (kind[:2], bits) in known:
            return known[kind[:2], bits]
    if not kind.startswith("int"):
        raise own.fail(f"kvscope does not support data_type {kind[:20]!r} with {bits} bits: give --weight-format")

    def size(rows: int, columns: int) -> int:
        return integer_bytes(rows, columns, bits=bits, group=group, zeros=True, order=False, scale=2)

    return grouped(f"auto-round int{bits}", group), size


def _as_pattern(name: str) -> str:
    """A module's name, or a pattern if it is written as one."""
    return f"re:{name}" if any(sign in name for sign in "*^$[(\\+") else name


HQQ_RECORDS = 68
"""Bytes that HQQLinear writes besides weights, scales and zeros: shape, packing, types and flags, as tensors."""


def hqq(quant: Quant) -> Scheme:
    """HQQ: packed weights, a 16-bit scale and zero point per group; formats by the last part of a layer's name, or
    one."""
    ignored = quant.names("skip_modules") if "skip_modules" in quant.raw else (LM_HEAD,)
    chosen = quant.section("quant_config") or quant
    if chosen.raw.get("weight_quant_params") is not None:
        return Scheme(*_hqq_format(chosen), ignored=(LM_HEAD, *ignored))
    if "nbits" in quant.raw:
        return Scheme(*_hqq_size(quant), ignored=(LM_HEAD, *ignored))
    named = (name for name, value in chosen.raw.items() if isinstance(value, dict))
    layers = {name: section for name in named if (section := chosen.section(name)) is not None}
    if not layers:
        raise quant.fail("quant_config must contain weight_quant_params")
    made = {name: _hqq_format(section) for name, section in layers.items()}
    formats = " and ".join(dict.fromkeys(name for name, _ in made.values()))
    groups = tuple(((name.rpartition(".")[2],), size) for name, (_, size) in made.items())
    return Scheme(formats, groups[0][1], ignored=ignored, groups=groups, others_too=False)


def _hqq_format(section: Quant) -> tuple[str, Size]:
    if section.raw.get("scale_quant_params") or section.raw.get("zero_quant_params"):
        raise section.fail("kvscope does not support quantized scales")
    weights = section.section("weight_quant_params")
    return _hqq_size(section if weights is None else weights)


def _hqq_size(weights: Quant) -> tuple[str, Size]:
    bits, group = weights.count("nbits"), weights.count("group_size")
    each = HQQ_RECORDS + (weights.dtype == "bfloat16")  # the name of the compute type is one letter longer

    def size(rows: int, columns: int) -> int:
        elements = rows * columns
        groups = cdiv(elements, group)
        packed = cdiv(groups, 10) * group * 4 if bits == 3 else cdiv(elements * bits, 8)
        return packed + 4 * groups + each

    return grouped(f"hqq int{bits}", group), size


def eetq(quant: Quant) -> Scheme:
    """EETQ: 8 bits with a 16-bit scale per row."""
    ignored = (LM_HEAD, *quant.names("modules_to_not_convert"))
    return Scheme("eetq int8", lambda rows, columns: rows * columns + 2 * rows, ignored=ignored)


def mlx(quant: Quant) -> Scheme:
    """MLX: every matrix whose rows are whole groups, including embedding, head and routers; layers may differ."""
    name, size = _mlx_format(quant)
    kept: list[str] = []
    groups: list[tuple[tuple[str, ...], Size]] = []
    for module, value in quant.raw.items():
        if value is False:
            kept.append(module)
        elif isinstance(value, dict) and "bits" in value:
            own = Quant({"group_size": quant.raw.get("group_size"), **value}, f"{quant.where}: {module[:60]}")
            groups.append(((module,), _mlx_format(own)[1]))
    return Scheme(name, size, ignored=tuple(kept), groups=tuple(groups), embedding_too=True, routers_too=True)


def _mlx_format(quant: Quant) -> tuple[str, Size]:
    mode, bits = str(quant.raw.get("mode") or "affine"), quant.count("bits")
    group = quant.count("group_size")
    beside = {"affine": 4, "mxfp4": 1, "nvfp4": 1, "mxfp8": 1}.get(mode)
    if beside is None:
        raise quant.fail(f"kvscope does not support mode {mode[:20]!r}: give --weight-format")

    def size(rows: int, columns: int) -> int:
        if columns % group:
            return 2 * rows * columns
        return rows * (columns * bits // 8 + columns // group * beside)

    return grouped(f"mlx int{bits}" if mode == "affine" else f"mlx {mode}", group), size


def metal(quant: Quant) -> Scheme:
    """The Metal kernels of transformers: 32-bit words, a float32 scale and bias per group."""
    bits, group = quant.count("bits", default=4), quant.count("group_size", default=64)

    def size(rows: int, columns: int) -> int:
        return rows * (columns // (32 // bits) * 4 + columns // group * 8)

    ignored = (LM_HEAD, *quant.names("modules_to_not_convert"))
    return Scheme(grouped(f"metal int{bits}", group), size, ignored=ignored)


def exllama(quant: Quant) -> Scheme:
    """EXL2 and EXL3: the average bits of the linear layers, and those of the head."""
    bits, head_bits = _fraction(quant, "bits"), _fraction(quant, "head_bits", default=6)
    method = str(quant.raw.get("quant_method"))[:8].lower()

    def size_of(each: Fraction) -> Size:
        return lambda rows, columns: ceil(rows * columns * each / 8)

    groups = (((LM_HEAD,), size_of(head_bits)),)
    return Scheme(f"{method}, {float(bits):g} bits on average", size_of(bits), ignored=(), groups=groups)


def _fraction(quant: Quant, key: str, default: int | None = None) -> Fraction:
    value = quant.raw.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 16:
        raise quant.fail(f"{key} must be the bits of a weight, not {str(value)[:20]!r}")
    return Fraction(str(value))


READERS: Mapping[str, Callable[[Quant], Scheme]] = {
    "awq": awq,
    "gptq": gptq,
    "marlin": marlin,
    "gptq-marlin-24": marlin,
    "auto-round": auto_round,
    "hqq": hqq,
    "eetq": eetq,
    "bitsandbytes": bitsandbytes,
    "mlx": mlx,
    "metal": metal,
    "exl2": exllama,
    "exl3": exllama,
}
