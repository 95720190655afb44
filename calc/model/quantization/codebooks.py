"""Weights as indexes into a codebook of vectors, and other rare layouts: AQLM, VPTQ, SpQR, HIGGS, BitNet.

Sources: aqlm 1.1.7 (inference.py), vptq 0.0.5 (layers/vqlinear.py), spqr_quant 0.2.0 (inference.py), transformers 5.23
(integrations/higgs.py, bitnet.py). Codebooks, scales and norms are 16-bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from calc.model.count import LM_HEAD
from calc.model.quantization.scheme import Quant, Scheme, Size, cdiv


def aqlm(quant: Quant) -> Scheme:
    """AQLM: per group one index into each codebook, the codebooks of the matrix, a scale per group of rows."""
    wide, high = quant.count("in_group_size", default=8), quant.count("out_group_size", default=1)
    books, bits = quant.count("num_codebooks", default=1), quant.count("nbits_per_codebook", default=16)
    number = 1 if bits <= 8 else 2 if bits <= 16 else 4

    def size(rows: int, columns: int) -> int:
        codes = cdiv(rows, high) * cdiv(columns, wide) * books * number
        return codes + books * (1 << bits) * wide * high * 2 + cdiv(rows, high) * 2

    kept = tuple(name.removesuffix(".weight") for name in quant.names("linear_weights_not_to_quantize"))
    return Scheme(f"aqlm {books}x{bits}, vectors of {wide}", size, ignored=(LM_HEAD, *kept))


def vptq(quant: Quant) -> Scheme:
    """VPTQ: every module has its own record in config_for_layers, or uses the shared one."""
    layers, shared = quant.section("config_for_layers"), quant.section("shared_layer_config")
    by_record: dict[str, tuple[list[str], Size]] = {}
    for section, path in ((layers, ""), (shared, "re:.*")):
        for name in {} if section is None else section.raw:
            own = section.section(name) if section is not None else None
            if own is not None:
                record = repr(sorted(own.raw.items()))
                modules, _ = by_record.setdefault(record, ([], _vptq_size(own)))
                modules.append(f"{path}{name}" if not path else f"{path}{name.replace('.', '[.]')}$")
    if not by_record:
        raise quant.fail("config_for_layers missing: it says how each module is stored")
    groups = tuple((tuple(modules), size) for modules, size in by_record.values())
    return Scheme("vptq", groups[0][1], ignored=(), groups=groups, others_too=False)


def _vptq_size(own: Quant) -> Size:
    def pair(key: str) -> tuple[int, int]:
        value = own.raw.get(key, [-1, -1])
        if not isinstance(value, list) or len(value) != 2 or not all(type(n) is int and n < 2**20 for n in value):
            raise own.fail(f"{key} must be two whole numbers")
        return value[0], value[1]

    (outlier_vector, vector), (outlier_book, book) = pair("vector_lens"), pair("num_centroids")
    residual_book = max(0, pair("num_res_centroids")[1])
    groups, group = own.count("group_num", default=1), own.count("group_size")
    outliers = own.count("outlier_size", default=0, lowest=0)
    packed = own.flag("is_indice_packed", True)
    if vector < 1 or book < 1:
        raise own.fail("vector_lens and num_centroids must describe the main codebook")
    bits = book.bit_length() - 1 + (residual_book.bit_length() - 1 if residual_book else 0)

    def size(rows: int, columns: int) -> int:
        numbers = groups * cdiv(rows, vector)
        total = groups * (book + residual_book) * vector * 2
        if packed:
            total += numbers * cdiv(group * bits, 32) * 4
        else:
            total += numbers * group * 2 * (2 if residual_book else 1)
        if outlier_vector > 1 and outlier_book > 0:
            total += outlier_book * outlier_vector * 2 + cdiv(rows, outlier_vector) * outliers * 2
        total += columns * (2 if packed else 8) if own.flag("enable_perm", True) else 0
        return total + (columns * 4 if own.flag("enable_norm", True) else 0)

    return size


SPQR_PARTS: Mapping[str, int] = {"dense_weights": 8, "row_offsets": 4, "col_vals": 4, "in_perm": 4}
"""The tensors of a module and the bytes per element."""


def spqr(quant: Quant) -> Scheme:
    """SpQR: the config states the number of elements of each tensor."""
    shapes = quant.section("shapes")
    if shapes is None or not shapes.raw:
        raise quant.fail("shapes missing: it states the number of elements of each tensor")
    totals: dict[str, int] = {}
    for name, value in shapes.raw.items():
        module, _, part = name.removesuffix(".shape").rpartition(".")
        if part not in SPQR_PARTS:
            raise shapes.fail(f"{name[:60]} is not a SpQR tensor")
        elements = value[0] if isinstance(value, list) and len(value) == 1 else value
        if isinstance(elements, bool) or not isinstance(elements, int) or not 0 <= elements < 2**40:
            raise shapes.fail(f"{name[:60]} must be a number of elements")
        totals[module] = totals.get(module, 0) + elements * SPQR_PARTS[part]
    groups = tuple(((module,), _constant(n)) for module, n in totals.items())
    return Scheme(f"spqr int{quant.count('bits', default=3)}", groups[0][1], groups=groups, others_too=False)


def _constant(n_bytes: int) -> Size:
    return lambda rows, columns: n_bytes


def higgs(quant: Quant) -> Scheme:
    """HIGGS: 16-bit words of packed weights, a scale per group, and the grid tables."""
    bits, group = quant.count("bits", default=4), quant.count("group_size", default=256)
    grid = 1 << bits
    tables = 2 * grid + 4 * grid * grid

    def size(rows: int, columns: int) -> int:
        return rows * bits // 16 * columns * 2 + rows * (columns // group) * 2 + tables

    ignored = (LM_HEAD, *quant.names("modules_to_not_convert"))
    return Scheme(f"higgs int{bits}, groups of {group}", size, ignored=ignored)


def bitnet(quant: Quant) -> Scheme:
    """BitNet: four ternary weights per byte and one scale per matrix. If quantized while loading, nothing is packed."""
    ignored = (LM_HEAD, *quant.names("modules_to_not_convert"))
    if str(quant.raw.get("quantization_mode", "offline")) == "online":
        return Scheme("bitnet, 16 bits in the files", _constant(0), ignored=ignored, others_too=False)
    norm = 2 if quant.flag("use_rms_norm") else 0
    return Scheme("bitnet", lambda rows, columns: cdiv(rows, 4) * columns + 2 + norm * columns, ignored=ignored)


READERS: Mapping[str, Callable[[Quant], Scheme]] = {
    "aqlm": aqlm,
    "vptq": vptq,
    "spqr": spqr,
    "higgs": higgs,
    "bitnet": bitnet,
}
