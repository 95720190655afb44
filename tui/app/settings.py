"""What the app remembers: theme, marker, the last state. One TOML file, written whole or not at all.

The file lives in the platform's config folder (``KVSCOPE_CONFIG_DIR`` overrides it). A setting that cannot be
understood costs that setting alone: it is reported in one sentence, its default is used, and the file is kept as
``settings.toml.broken``. A file that is no TOML is set aside as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from calc.errors import CalcError
from calc.files import write_whole
from calc.model.cache_pair import cache_as, pair_format
from calc.model.checks import check_count
from calc.model.named import known_name, weights_as
from calc.model.spec import ModelSpec
from calc.model.storage import StorageFormat
from calc.model.stored import is_as_stored
from calc.model.stored_format import stored_format
from calc.model.study import DeviceSpec, Policy, Study
from calc.sources.toml import spec_document, spec_from
from tui.app.load_document import load_document, load_from
from tui.app.serving_document import serving_document, serving_from
from tui.form.state import AppState, default_state

if TYPE_CHECKING:
    from calc.intensity.attention import Attention
    from calc.servers.records import ServerOptions

T = TypeVar("T")
Marker = Literal["braille", "hd", "dot"]
MARKERS: tuple[Marker, ...] = get_args(Marker)
DEFAULT_THEME = "kvscope-dark"
FILE_NAME = "settings.toml"
MAX_SETTINGS_BYTES = 2**20


class SettingsError(ValueError):
    """A settings file that does not say what it should; ``str`` is one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is remembered between runs. `state` is None before the first edit."""

    theme: str = DEFAULT_THEME
    marker: Marker = "braille"
    state: AppState | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSettings:
    """Settings and, where the file had to be ignored, the sentence that says so."""

    settings: Settings
    problem: str | None = None


def settings_path() -> Path:
    """Where the settings are kept; the folder need not exist yet."""
    override = os.environ.get("KVSCOPE_CONFIG_DIR")
    if override:
        return Path(override) / FILE_NAME
    from platformdirs import user_config_dir

    return Path(user_config_dir("kvscope", appauthor=False)) / FILE_NAME


def load_settings(path: Path) -> LoadedSettings:
    """The settings in `path`; defaults where there is no file, or where it is broken (then it is set aside)."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_SETTINGS_BYTES + 1)
    except FileNotFoundError:
        return LoadedSettings(settings=Settings())
    except OSError as error:
        problem = f"Cannot read the settings in {path} ({error.strerror or error}). Using the defaults."
        return LoadedSettings(settings=Settings(), problem=problem)
    import tomllib

    try:
        if len(data) > MAX_SETTINGS_BYTES:
            raise SettingsError("the file is larger than 1 MiB")
        settings, refused = settings_from(tomllib.loads(data.decode("utf-8")))
    except (ValueError, RecursionError) as error:
        return LoadedSettings(settings=Settings(), problem=_set_aside(path, [_reason(error)], os.replace))
    return LoadedSettings(settings=settings, problem=_set_aside(path, refused, _copy) if refused else None)


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__


def _copy(path: Path, broken: Path) -> None:
    broken.write_bytes(path.read_bytes())


def _set_aside(path: Path, refused: Sequence[str], keep: Callable[[Path, Path], object]) -> str:
    """What is not valid, in one sentence; `keep` moves or copies the file to where it says."""
    broken = path.with_name(f"{path.name}.broken")
    said = f"Not valid in the settings, and ignored: {'; '.join(refused)}"
    try:
        keep(path, broken)
    except OSError:
        return f"{said}."
    return f"{said}. The file is kept as {broken}."


def save_settings(path: Path, settings: Settings) -> None:
    """Write `settings` by way of a temporary file. Raises OSError, or SourceError."""
    import tomli_w

    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, tomli_w.dumps(settings_document(settings)))


# --- settings and state as TOML tables --------------------------------------------------------------------


def settings_document(settings: Settings) -> dict[str, Any]:
    """The file's content. What is None is left out: TOML has no null."""
    document: dict[str, Any] = {"theme": settings.theme, "marker": settings.marker}
    if settings.state is not None:
        document["state"] = state_document(settings.state)
    return document


def settings_from(document: Mapping[str, Any]) -> tuple[Settings, list[str]]:
    """The settings a document describes, and what it says that cannot be. Keys it does not know are ignored."""
    refused: list[str] = []
    theme = _read(lambda: _theme(document.get("theme", DEFAULT_THEME)), refused) or DEFAULT_THEME
    marker = _read(lambda: _marker(document.get("marker", MARKERS[0])), refused) or MARKERS[0]
    state = None
    if "state" in document and (table := _read(lambda: _table(document["state"], "state"), refused)) is not None:
        try:
            state = state_from(table)
        except ValueError:
            state, parts = salvaged(table)
            refused += parts
    return Settings(theme=theme, marker=marker, state=state), refused


def _read(read: Callable[[], T], refused: list[str]) -> T | None:
    try:
        return read()
    except ValueError as error:
        refused.append(_reason(error))
        return None


def _theme(value: object) -> str:
    if not isinstance(value, str):
        raise SettingsError(f"theme must be a name, not {value!r}")
    return value


def _marker(value: object) -> Marker:
    if value not in MARKERS:
        raise SettingsError(f"marker must be {', '.join(MARKERS)}, not {value!r}")
    return value


FIRST = ("model", "device")
"""What the other parts of a state are read with."""


OPTIONS = ("server", "serving", "load")
"""Tables whose keys can stand alone."""


def salvaged(document: Mapping[str, Any]) -> tuple[AppState, list[str]]:
    """The usual state with all that can be taken over from `document`, and what cannot, with the reason.

    Parts are tried one after the other, and of options that are refused each of them.
    """
    kept: dict[str, Any] = state_document(default_state())
    refused: list[str] = []
    for name in sorted(document, key=lambda name: (*FIRST, name).index(name)):
        value = document[name]
        if not (problem := _fits({**kept, name: value})):
            kept[name] = value
        elif isinstance(value, dict) and name in OPTIONS:
            for key in value:
                part = {**kept.get(name, {}), key: value[key]}
                if problem := _fits({**kept, name: part}):
                    refused.append(f"{name}.{key} ({problem})")
                else:
                    kept[name] = part
        else:
            refused.append(f"{name} ({problem})")
    return state_from(kept), refused


def _fits(document: Mapping[str, Any]) -> str:
    """Why no state can be read from `document`, "" where one can."""
    try:
        state_from(document)
    except ValueError as error:
        return _reason(error)
    return ""


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
    """The options that are not the default; facts of the model are read again with it."""
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
        model = _model_from(_table(document["model"], "state.model"))
        study = Study(
            model=model,
            device=_device_from(_table(document["device"], "state.device")),
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
            server=_server_from(_table(document["server"], "state.server")) if "server" in document else None,
            serving=serving_from(_table(document.get("serving", {}), "state.serving")),
            load=load_from(_table(document.get("load", {}), "state.load")),
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


def _table(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise SettingsError(f"{name} must be a table")
    return value


def _positive(document: Mapping[str, Any], name: str) -> int:
    check_count(name, value := document[name])
    return int(value)


def _device_document(device: DeviceSpec) -> dict[str, Any]:
    values = {f.name: getattr(device, f.name) for f in fields(device)}
    return {name: _plain(value) for name, value in values.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, str) else value


def _model_from(table: Mapping[str, Any]) -> ModelSpec:
    from tui.form.draft import EDITED

    values = dict(table)
    notes = tuple(values.pop("notes", ()))
    if str(values.get("name")).endswith(EDITED):  # as states of versions before 0.2 say it
        name, source = values["name"].removesuffix(EDITED), str(values["source"]).removesuffix(", edited")
        values |= {"name": name, "source": source, "edited": True}
    return replace(spec_from(values, where="state.model"), notes=notes)


def _device_from(table: Mapping[str, Any]) -> DeviceSpec:
    peaks = {str(k): float(v) for k, v in _table(table.get("peak_flops_per_s", {}), "peaks").items()}
    return DeviceSpec(**{**table, "peak_flops_per_s": MappingProxyType(peaks)})


def _format_document(fmt: StorageFormat) -> dict[str, Any]:
    return {"name": fmt.name, "block_elems": fmt.block_elems, "block_bytes": fmt.block_bytes}


def _format_from(value: object) -> StorageFormat:
    table = _table(value, "a storage format")
    fmt = StorageFormat(str(table["name"]), table["block_elems"], table["block_bytes"])
    if not 0 < Fraction(fmt.block_bytes, fmt.block_elems) <= 64:
        raise SettingsError(f"storage format {fmt.name} has {fmt.block_bytes} bytes for {fmt.block_elems} elements")
    return fmt


def _weights_from(value: object, model: ModelSpec) -> StorageFormat:
    """The weight format; one that is worked out over the model's tensors is worked out again."""
    fmt = _format_from(value)
    if is_as_stored(model, fmt):
        return stored_format(model) or fmt
    return weights_as(named, model) if (named := known_name(fmt.name)) is not None else fmt


def _cache_from(value: object, model: ModelSpec) -> StorageFormat:
    """The cache format; K and V apart are weighed by the model's own again."""
    fmt = _format_from(value)
    return cache_as(pair_format(fmt.name), model) if "/" in fmt.name and " " not in fmt.name else fmt
