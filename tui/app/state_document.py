"""The state of the app as tables of the settings file, and read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from fractions import Fraction
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from calc.errors import CalcError
from calc.model.cache_pair import cache_as, pair_format
from calc.model.checks import check_count
from calc.model.named import known_name, weights_as
from calc.model.spec import ModelSpec
from calc.model.storage import StorageFormat
from calc.model.stored import is_as_stored
from calc.model.stored_format import stored_format
from calc.model.study import DeviceSpec, Policy, Study
from calc.sources.toml import plain_value, spec_document, spec_from
from tui.app.load_document import load_document, load_from
from tui.app.serving_document import serving_document, serving_from
from tui.form.state import AppState

if TYPE_CHECKING:
    from calc.intensity.attention import Attention
    from calc.servers.records import ServerOptions


class SettingsError(ValueError):
    """An error in a settings file; ``str`` is one sentence."""


def state_document(state: AppState) -> dict[str, Any]:
    """An app state as TOML tables."""
    study = state.study
    document = {
        **({"attention": str(state.attention)} if state.attention else {}),
        **({"causal": True} if state.causal else {}),
        "attention_context": state.attention_context,
        "attention_head_dim": state.attention_head_dim,
        "softmax_flops": int(state.softmax_flops),
        "step_batch": state.step_batch,
        "step_context": state.step_context,
        "context": study.context,
        "weight_format": _format_document(study.weight_format),
        "kv_format": _format_document(study.kv_format),
        "tps": list(study.tps),
        "policy": str(study.policy),
        "model": {**spec_document(study.model), "notes": list(study.model.notes)},
        "device": _device_document(study.device),
    }
    if state.server is not None:
        document["server"] = _server_document(state.server)
    if serving := serving_document(state.serving):
        document["serving"] = serving
    if load := load_document(state.load):
        document["load"] = load
    return document


def _server_document(options: ServerOptions) -> dict[str, Any]:
    """The options that are not the default; facts about the model are read again with it."""
    default = type(options)()
    names = (f.name for f in fields(options) if f.name != "facts")
    values = {name: getattr(options, name) for name in names if getattr(options, name) != getattr(default, name)}
    return {"engine": options.engine, **{n: str(v) if isinstance(v, Fraction) else v for n, v in values.items()}}


def _server_from(table: Mapping[str, Any]) -> ServerOptions:
    from calc.servers.records import ServerOptions

    values = {f.name: table[f.name] for f in fields(ServerOptions) if f.name in table and f.name != "facts"}
    if "gpu_memory_utilization" in values:
        values["gpu_memory_utilization"] = Fraction(values["gpu_memory_utilization"])
    if not isinstance(values.get("version", ""), str):
        raise SettingsError("the server's version must be text")
    return ServerOptions(**values)


def state_from(document: Mapping[str, Any]) -> AppState:
    """The app state a document describes. Raises ValueError (a CalcError where a value is impossible)."""
    try:
        model = _model_from(table_of(document["model"], "state.model"))
        study = Study(
            model=model,
            device=_device_from(table_of(document["device"], "state.device")),
            context=document["context"],
            weight_format=_weights_from(document["weight_format"], model),
            kv_format=_cache_from(document["kv_format"], model),
            tps=tuple(document["tps"]),
            policy=Policy(document["policy"]),
        )
        return AppState(
            study=study,
            attention=_attention(document.get("attention")),
            causal=bool(document.get("causal")),
            attention_context=_positive(document, "attention_context"),
            attention_head_dim=_positive(document, "attention_head_dim"),
            softmax_flops=5 if document.get("softmax_flops", 5) else 0,
            server=_server_from(table_of(document["server"], "state.server")) if "server" in document else None,
            serving=serving_from(table_of(document.get("serving", {}), "state.serving")),
            load=load_from(table_of(document.get("load", {}), "state.load")),
            step_batch=_positive({"step_batch": 32, **document}, "step_batch"),
            step_context=_positive({"step_context": 2048, **document}, "step_context"),
        )
    except KeyError as error:
        raise SettingsError(f"the saved state lacks {error.args[0]}") from None
    except CalcError:
        raise
    except (TypeError, AttributeError, ZeroDivisionError) as error:
        raise SettingsError(f"the saved state is damaged ({error})") from None


def _attention(value: Any) -> Attention | None:
    if value is None:
        return None
    from calc.intensity.attention import Attention

    return Attention(value)


def table_of(value: object, name: str) -> Mapping[str, Any]:
    """`value`, which is a table. Raises SettingsError."""
    if not isinstance(value, dict):
        raise SettingsError(f"{name} must be a table")
    return value


def _positive(document: Mapping[str, Any], name: str) -> int:
    check_count(name, value := document[name])
    return int(value)


def _device_document(device: DeviceSpec) -> dict[str, Any]:
    values = {f.name: getattr(device, f.name) for f in fields(device)}
    return {name: plain_value(value) for name, value in values.items() if value is not None}


def _model_from(table: Mapping[str, Any]) -> ModelSpec:
    from tui.form.draft import EDITED

    values = dict(table)
    notes = tuple(values.pop("notes", ()))
    if str(values.get("name")).endswith(EDITED):  # as in states of versions before 0.2
        name, source = values["name"].removesuffix(EDITED), str(values["source"]).removesuffix(", edited")
        values |= {"name": name, "source": source, "edited": True}
    return replace(spec_from(values, where="state.model"), notes=notes)


def _device_from(table: Mapping[str, Any]) -> DeviceSpec:
    peaks = {str(k): float(v) for k, v in table_of(table.get("peak_flops_per_s", {}), "peaks").items()}
    return DeviceSpec(**{**table, "peak_flops_per_s": MappingProxyType(peaks)})


def _format_document(fmt: StorageFormat) -> dict[str, Any]:
    return {"name": fmt.name, "block_elems": fmt.block_elems, "block_bytes": fmt.block_bytes}


def _format_from(value: object) -> StorageFormat:
    table = table_of(value, "a storage format")
    fmt = StorageFormat(str(table["name"]), table["block_elems"], table["block_bytes"])
    if not 0 < Fraction(fmt.block_bytes, fmt.block_elems) <= 64:
        raise SettingsError(f"storage format {fmt.name} has {fmt.block_bytes} bytes for {fmt.block_elems} elements")
    return fmt


def _weights_from(value: object, model: ModelSpec) -> StorageFormat:
    """The weight format; one that is computed over the model's tensors is computed again."""
    fmt = _format_from(value)
    if is_as_stored(model, fmt):
        return stored_format(model) or fmt
    return weights_as(named, model) if (named := known_name(fmt.name)) is not None else fmt


def _cache_from(value: object, model: ModelSpec) -> StorageFormat:
    """The cache format; different formats for K and V are averaged again by the model's sizes."""
    fmt = _format_from(value)
    return cache_as(pair_format(fmt.name), model) if "/" in fmt.name and " " not in fmt.name else fmt
