"""The commands of the command palette."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from textual.app import SystemCommand

from tui.app.panes import PANE_KEYS, PANES
from tui.charts import MARKERS

if TYPE_CHECKING:
    from tui.app.app import KvscopeApp


def app_commands(app: KvscopeApp) -> Iterator[SystemCommand]:
    """All commands, the most used first."""
    from tui.live.measured import PRESENTATIONS

    for index, (title, key) in enumerate(zip(PANES, PANE_KEYS, strict=True)):
        yield SystemCommand(f"Go to {title}", f"Show the {title} pane ({key.upper()})", partial(app.action_go, index))
    for name, presentation in PRESENTATIONS.items():
        yield SystemCommand(presentation.title, presentation.hint, partial(app.action_measure, name))
    yield SystemCommand("Choose a model", "Search the catalog of models", app.action_pick_model)
    yield SystemCommand("Choose a device", "Search the catalog of devices", app.action_pick_device)
    yield SystemCommand("Open a config.json or .gguf", "Read a model from a file or folder", app.action_open)
    yield SystemCommand(
        "Inverse questions", "What fits where: largest context, fewest devices, which format", app.action_questions
    )
    yield SystemCommand("Copy the launch command", "The command that starts the chosen server", app.action_copy_launch)
    yield SystemCommand("Save the spec as TOML", "A file that Open and --model can read", app.action_save_spec)
    yield SystemCommand(
        "Copy the equivalent command", "The kvscope command that prints these results", app.action_copy_command
    )
    yield SystemCommand(
        "Copy table as Markdown", "The table that holds the cursor", partial(app.action_copy_table, "md")
    )
    yield SystemCommand("Copy table as TSV", "Tab-separated, for a spreadsheet", partial(app.action_copy_table, "tsv"))
    yield SystemCommand("Export this pane", "Write it to a Markdown file", app.action_export)
    yield SystemCommand("Write the report", "All results as LaTeX or Markdown", app.action_report)
    yield SystemCommand(
        "Measure and write the report",
        "The same after both evaluations and a latency sweep",
        app.action_measured_report,
    )
    yield SystemCommand("Undo the last edit", "Return to the previous state (ctrl+/)", app.action_undo)
    yield SystemCommand("Start over", "Return to Llama-3-8B on 80 GB", app.action_start_over)
    for marker in MARKERS:
        if marker != app.settings.marker:
            yield SystemCommand(f"Plot marker: {marker}", _MARKERS[marker], partial(app.action_marker, marker))
    yield SystemCommand("Theme", "Choose the colours; saved for the next start", app.action_change_theme)
    yield SystemCommand("Help", "Explain the focused field, and list the keys", app.action_help)
    yield SystemCommand("Quit", "Close kvscope", app.action_quit)


_MARKERS = {
    "braille": "Thin lines made of braille dots",
    "hd": "Quarter blocks; solid in every font",
    "dot": "Plain dots, for fonts without braille",
}
