"""The models on this machine as a pick list, to choose what the engine runs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence

from textual.app import App

from calc.sources import is_path
from calc.units import format_decimal
from engine.machine import available_bytes
from engine.weights.local_models import FoundModel, find_models
from tui.form.pick_list import Choice, PickList
from tui.widgets.path_bar import PathBar, PathRequest
from tui.widgets.picker import Picker
from tui.widgets.work import work

BUNDLED = "(bundled)"
BY_PATH = "(a path)"
GET_ONE = (
    "No model of that name is on this machine. Type org/name of a Hugging Face model (with kvscope[hub] installed, "
    "it is downloaded when it runs), or put a .gguf or a model folder here or in a folder of KVSCOPE_MODELS."
)
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
PATH_HINT = "a folder with config.json, a .gguf, .safetensors or .pt file · Tab to complete · empty: the bundled model"


def pick_model_file(app: App[None], current: str, take: Callable[[str], None]) -> None:
    """Offer the models found on this machine, the bundled model and a path; `take` gets the request's model value."""

    async def picked(key: str | None) -> None:
        if key == BY_PATH:
            await ask_for_path(app, current, take)
        elif key is not None:
            take("" if key == BUNDLED else key)

    picker = Picker(model_files(()), current=current or BUNDLED)
    app.push_screen(picker, picked)
    picker.run_worker(work(_fill, picker))


async def _fill(picker: Picker) -> None:
    """Offer what is found; the search runs in a thread, because a disk may not answer."""
    picker.offer(model_files(await asyncio.to_thread(find_models)))


async def ask_for_path(app: App[None], current: str, take: Callable[[str], None]) -> None:
    """Ask for a path, with completion."""

    async def accept(path: str) -> None:
        take(path.strip())

    request = PathRequest(label="Model", value=current, accept=accept, hint=PATH_HINT)
    await app.screen.query_one(PathBar).ask(request)


def model_files(found: Sequence[FoundModel]) -> PickList:
    """The list itself; typing filters by name and place, and a typed path is used unchanged."""
    fixed = [
        _fixed(BUNDLED, "the two-layer model that comes with kvscope"),
        _fixed(BY_PATH, "type a path, with completion"),
    ]

    def search(text: str) -> Sequence[Choice]:
        words = text.lower().split()
        matching = [model for model in found if all(word in f"{model.name} {model.where}".lower() for word in words)]
        return [*fixed, *map(_choice, matching)] if not words else [_choice(model) for model in matching]

    return PickList(
        title="Model to run",
        prompt="search by name, or type org/name or the path of a .gguf or folder",
        search=search,
        right=frozenset({1}),
        custom=lambda text: text if is_path(text) or _HUB_NAME.fullmatch(text) else None,
        empty=GET_ONE,
    )


def _fixed(key: str, says: str) -> Choice:
    return Choice(key=key, cells=(key, "", ""), preview=lambda: says)


def _choice(model: FoundModel) -> Choice:
    cells = (model.name, format_decimal(model.size_bytes), model.where)
    return Choice(key=model.reference, cells=cells, preview=lambda: _preview(model))


def _preview(model: FoundModel) -> str:
    """Where it is, and its size on disk compared with the free memory."""
    free = available_bytes()
    beside = f" · {format_decimal(free)} of memory free" if free is not None else ""
    return f"{model.reference}\n{format_decimal(model.size_bytes)} on disk{beside}"
