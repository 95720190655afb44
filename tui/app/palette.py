"""What the command palette offers, beside Textual's own."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from textual.app import SystemCommand

from tui.app.settings import MARKERS

if TYPE_CHECKING:
    from tui.app.app import KvscopeApp
    from tui.live.measurement import Kind


def app_commands(app: KvscopeApp) -> Iterator[SystemCommand]:
    """All commands, in the order of use."""
    from tui.app.app import PANES

    for index, title in enumerate(PANES):
        yield SystemCommand(f"Go to {title}", f"Show the {title} pane (F{index + 2})", partial(app.action_go, index))
    for kind, (title, words) in _MEASUREMENTS.items():
        yield SystemCommand(title, words, partial(app.action_measure, kind))
    yield SystemCommand("Choose a model", "Search the catalog of models", app.action_pick_model)
    yield SystemCommand("Choose a device", "Search the catalog of devices", app.action_pick_device)
    yield SystemCommand("Open a config.json or .gguf", "Read a model from a file or folder", app.action_open)
    yield SystemCommand("Questions", "Largest context, fewest devices, which format", app.action_questions)
    yield SystemCommand("Copy the launch command", "What starts the server of the policy", app.action_copy_launch)
    yield SystemCommand("Save the spec as TOML", "A file that --model and Open read back", app.action_save_spec)
    yield SystemCommand("Copy as command line", "The kvscope command that prints this", app.action_copy_command)
    yield SystemCommand("Copy table as Markdown", "The table with the cursor", partial(app.action_copy_table, "md"))
    yield SystemCommand("Copy table as TSV", "For a spreadsheet", partial(app.action_copy_table, "tsv"))
    yield SystemCommand("Export this pane", "Write it as Markdown to a file", app.action_export)
    yield SystemCommand("Write the report", "The whole answer as LaTeX or Markdown", app.action_report)
    yield SystemCommand("Undo the last edit", "Back to the state before it", app.action_undo)
    yield SystemCommand("Start over", "Llama-3-8B on 80 GB, the assignment's case", app.action_start_over)
    for marker in MARKERS:
        if marker != app.settings.marker:
            yield SystemCommand(f"Plot marker: {marker}", _MARKERS[marker], partial(app.action_marker, marker))
    yield SystemCommand("Theme", "Choose the colours; remembered", app.action_change_theme)
    yield SystemCommand("Help", "What the focused thing means, and the keys", app.action_help)
    yield SystemCommand("Quit", "Leave kvscope", app.action_quit)


_MEASUREMENTS: dict[Kind, tuple[str, str]] = {
    "evaluate": ("Evaluate", "The engine's logits against expected ones"),
    "kv-evaluate": ("Evaluate with the cache", "The same, and cached against uncached"),
    "benchmark": ("Measure the latency sweep", "With and without the cache, by prompt length"),
    "batch": ("Measure batch decode", "Tokens a second against batch, beside predicted"),
    "formats": ("Measure formats", "What each weight and cache format costs and gains"),
}

_MARKERS = {
    "braille": "Thin lines of braille dots",
    "hd": "Quarter blocks: solid in every font",
    "dot": "Plain dots: for fonts without braille",
}
