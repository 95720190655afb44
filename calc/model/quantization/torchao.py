"""torchao: a configuration object in `quant_type`, by name or as a nested record, for all or some modules.

Source: torchao 0.18.0 (the tensors that `quantize_` makes of a linear layer). Version 1 of the integer layouts stored a
16-bit scale and a 64-bit zero point per row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from calc.model.count import LM_HEAD
from calc.model.quantization.scheme import MAX_PATTERNS, Quant, Scheme, Size, cdiv, grouped

SHORT: Mapping[str, str] = {
    "int4-weight-only": "Int4WeightOnlyConfig",
    "int4wo": "Int4WeightOnlyConfig",
    "int8-weight-only": "Int8WeightOnlyConfig",
    "int8wo": "Int8WeightOnlyConfig",
    "int8-dynamic-activation-int8-weight": "Int8DynamicActivationInt8WeightConfig",
    "int8dq": "Int8DynamicActivationInt8WeightConfig",
    "float8-weight-only": "Float8WeightOnlyConfig",
    "float8wo": "Float8WeightOnlyConfig",
    "float8-dynamic-activation-float8-weight": "Float8DynamicActivationFloat8WeightConfig",
    "float8dq": "Float8DynamicActivationFloat8WeightConfig",
}
"""Names of configurations as text; the number after the last dash of a short name is its group size (int4wo-128)."""
BY_MODULE = ("FqnToConfig", "ModuleFqnToConfig", "AOPerModuleConfig")


def torchao(quant: Quant) -> Scheme:
    """The scheme of `quant_type`."""
    if quant.flag("include_input_output_embeddings"):
        raise quant.fail("include_input_output_embeddings: kvscope does not support a quantized embedding")
    ignored = (LM_HEAD, *quant.names("modules_to_not_convert"))
    chosen = quant.raw.get("quant_type")
    if isinstance(chosen, str):
        kind, data = _by_text(quant, chosen)
        return Scheme(*_format(quant, kind, data, version=1), ignored=ignored)
    record = chosen.get("default", chosen) if isinstance(chosen, dict) else None
    if not isinstance(record, dict) or "_type" not in record:
        raise quant.fail("quant_type must be a name such as int4wo-128, or a record with _type")
    if record["_type"] in BY_MODULE:
        return _by_module(quant, _data(record), ignored)
    return Scheme(*_of_record(quant, record), ignored=ignored)


def _by_text(quant: Quant, text: str) -> tuple[str, Mapping[str, Any]]:
    name, _, group = text.lower().replace("_", "-").rpartition("-")
    if not group.isdigit():
        name, group = text.lower().replace("_", "-"), ""
    if name not in SHORT:
        raise quant.fail(f"kvscope does not support quant_type {text[:40]!r} (only {', '.join(SHORT)})")
    more = quant.raw.get("quant_type_kwargs")
    data = dict(more) if isinstance(more, dict) else {}
    return SHORT[name], {**data, **({"group_size": int(group)} if group else {})}


def _data(record: Mapping[str, Any]) -> Mapping[str, Any]:
    found = record.get("_data")
    return found if isinstance(found, dict) else {}


def _of_record(quant: Quant, record: Mapping[str, Any]) -> tuple[str, Size]:
    version = record.get("_version", 1)
    return _format(quant, str(record.get("_type")), _data(record), version=version if type(version) is int else 1)


def _by_module(quant: Quant, data: Mapping[str, Any], ignored: tuple[str, ...]) -> Scheme:
    """Modules by name, and ``_default`` for the others; null leaves a module unquantized."""
    listed = next((data[key] for key in ("fqn_to_config", "module_fqn_to_config") if key in data), None)
    if not isinstance(listed, dict) or not listed or len(listed) > MAX_PATTERNS:
        raise quant.fail("module_fqn_to_config missing: it says how each module is stored")
    kept = [name for name, record in listed.items() if record is None]
    made = {name: _of_record(quant, record) for name, record in listed.items() if isinstance(record, dict)}
    usual = made.pop("_default", None)
    groups = tuple(((name.removesuffix(".weight"),), size) for name, (_, size) in made.items())
    names = dict.fromkeys(name for name, _ in (*([usual] if usual else []), *made.values()))
    head = () if any(LM_HEAD in name for name in made) else ignored[:1]
    first = usual or next(iter(made.values()), None)
    if first is None:
        raise quant.fail("module_fqn_to_config names no format")
    return Scheme(
        " and ".join(names), first[1], ignored=(*head, *ignored[1:], *kept), groups=groups, others_too=usual is not None
    )


def _format(quant: Quant, kind: str, data: Mapping[str, Any], *, version: int) -> tuple[str, Size]:
    """Name and size of a matrix under one configuration."""
    own = Quant(data, f"{quant.where}: {kind[:60]}", quant.dtype)
    if kind == "Int4WeightOnlyConfig" and "PRESHUFFLED" not in str(data.get("int4_packing_format")).upper():
        group = own.count("group_size", default=128)
        return grouped(
            "torchao int4", group
        ), lambda rows, columns: cdiv(rows * columns, 2) + 4 * rows * cdiv(columns, group)
    if kind in ("Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig") and data.get("group_size") is None:
        each = 5 if version >= 2 else 10
        return "torchao int8 by row", lambda rows, columns: rows * columns + each * rows
    if kind == "Float8WeightOnlyConfig":
        return "torchao float8 by row", lambda rows, columns: rows * columns + 4 * rows
    if kind == "Float8DynamicActivationFloat8WeightConfig":
        if "PerRow" in str(data.get("granularity")):
            return "torchao float8 by row", lambda rows, columns: rows * columns + 4 * rows
        return "torchao float8 by tensor", lambda rows, columns: rows * columns + 4
    raise quant.fail(f"kvscope does not support quant_type {kind[:60]!r}: give --weight-format")


READERS: Mapping[str, Callable[[Quant], Scheme]] = {"torchao": torchao}
