"""The settings file: theme, marker and last state. TOML, written completely or not at all.

The file lives in the platform's config folder (``KVSCOPE_CONFIG_DIR`` overrides it). An invalid setting affects only
itself: it is reported in one sentence, its default is used, and the file is kept as ``settings.toml.broken``. A file
that is not TOML is set aside as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from calc.errors import CalcError
from calc.files import write_whole
from tui.app.state_document import SettingsError, state_document, state_from, table_of
from tui.charts import MARKERS, Marker
from tui.form.state import AppState, default_state

if TYPE_CHECKING:
    pass

T = TypeVar("T")
DEFAULT_THEME = "kvscope-dark"
FILE_NAME = "settings.toml"
MAX_SETTINGS_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is remembered between runs. `state` is None before the first edit."""

    theme: str = DEFAULT_THEME
    marker: Marker = "braille"
    state: AppState | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSettings:
    """Settings and, if the file had to be ignored, the sentence that says so."""

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
    """The settings in `path`; defaults if there is no file or it is broken (then it is set aside)."""
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
    """One sentence on invalid settings; `keep` moves or copies the file to the given place."""
    broken = path.with_name(f"{path.name}.broken")
    said = f"Ignored invalid settings: {'; '.join(refused)}"
    try:
        keep(path, broken)
    except OSError:
        return f"{said}."
    return f"{said}. The file was kept as {broken}."


def save_settings(path: Path, settings: Settings) -> None:
    """Write `settings` by way of a temporary file. Raises OSError, or SourceError."""
    import tomli_w

    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, tomli_w.dumps(settings_document(settings)))


class Remembered:
    """The settings of an app: read when it starts, written after changes. `given` ones (tests) are neither."""

    def __init__(self, given: Settings | None = None) -> None:
        self._file = settings_path() if given is None else None
        loaded = LoadedSettings(settings=given or Settings()) if self._file is None else load_settings(self._file)
        self.settings, self.problem = loaded.settings, loaded.problem or ""
        self.folder = None if self._file is None else self._file.parent
        self._changed = False

    def change(self, **changes: object) -> bool:
        """Whether this is the first change since they were written."""
        self.settings = replace(self.settings, **changes)  # type: ignore[arg-type]
        first, self._changed = not self._changed, True
        return first

    def write(self) -> str:
        """Write what has changed. Why that failed, after which nothing is written any more; else ""."""
        changed, self._changed = self._changed, False
        if not changed or self._file is None:
            return ""
        try:
            save_settings(self._file, self.settings)
        except (OSError, CalcError) as error:
            self._file = None
            return str(error)
        return ""


# --- settings as a TOML table ------------------------------------------------------------------------------


def settings_document(settings: Settings) -> dict[str, Any]:
    """The file's content. What is None is left out: TOML has no null."""
    document: dict[str, Any] = {"theme": settings.theme, "marker": settings.marker}
    if settings.state is not None:
        document["state"] = state_document(settings.state)
    return document


def settings_from(document: Mapping[str, Any]) -> tuple[Settings, list[str]]:
    """The settings that a document describes, and its invalid values. Unknown keys are ignored."""
    refused: list[str] = []
    theme = _read(lambda: _theme(document.get("theme", DEFAULT_THEME)), refused) or DEFAULT_THEME
    marker = _read(lambda: _marker(document.get("marker", MARKERS[0])), refused) or MARKERS[0]
    state = None
    if "state" in document and (table := _read(lambda: table_of(document["state"], "state"), refused)) is not None:
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
"""Parts that the other parts of a state depend on."""


OPTIONS = ("server", "serving", "load")
"""Tables whose keys are independent."""


def salvaged(document: Mapping[str, Any]) -> tuple[AppState, list[str]]:
    """The default state with everything valid in `document`, and the invalid parts with the reasons.

    Parts are tried one by one; if a group of options is refused, each option is tried alone.
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
    """Why no state can be read from `document`, "" if one can."""
    try:
        state_from(document)
    except ValueError as error:
        return _reason(error)
    return ""
