"""Where llama.cpp puts what, for the Memory pane: rows, sources of the parts, the split that fits. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator

from calc.commands.llamacpp import best_split, placement_notes
from calc.commands.tables import Row
from calc.servers.launch import launch_command
from calc.servers.records import ServerReport
from calc.units import format_count

SOURCES = {
    "weight_bytes_per_gpu": "The layers and the head that are on this device; the input embedding is on the host.",
    "activation_bytes": "Compute buffers for one batch, including copies of what is on the host.",
    "non_torch_bytes": "CUDA context and kernels, outside llama.cpp's own buffers.",
    "kv_pool_bytes": "The cache of the layers on this device, for all slots, allocated at once.",
}
"""The sources of a device's parts, by field of the report."""


def split_of(report: ServerReport) -> ServerReport | None:
    """The split between devices and host that fits if `report` does not; None for other servers."""
    return None if report.fits or not report.devices else best_split(report.study, report.options)


def notes(report: ServerReport) -> list[str]:
    """Whether it starts, or the split that does."""
    return placement_notes(report, split_of(report))


def launch_words(report: ServerReport) -> str:
    """The command that starts it; if llama.cpp does not start, that of the split that does."""
    command = launch_command(report)
    if command is None and (split := split_of(report)) is not None:
        command = launch_command(split)
    return command or ""


def slot_rows(report: ServerReport) -> Iterator[Row]:
    """The number of started slots, and how many would fit."""
    if not report.fits:
        yield Row(("  Does not start", "", "", "", ""), title="Does not start", note=notes(report)[0], struck=True)
        return
    started = "The number it starts with; each slot has a full-length cache."
    for name, n, note in (
        ("Slots", report.max_num_seqs or 1, started),
        (
            "Slots that would fit",
            report.requests,
            "The number that fits into the remaining memory of the fullest device.",
        ),
    ):
        yield Row((f"  {name}", format_count(n), "", "", ""), title=name, note=note)
