"""The calculator's commands: one module each, with its options, JSON document, tables and sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

Run = Callable[..., int]
"""Takes the arguments after the command, and the program's name; returns the exit code."""

COMMANDS = {
    "memory": (
        "calc.commands.memory:run_memory",
        "parameters, weights, KV cache, largest batch, tensor parallelism",
    ),
    "intensity": (
        "calc.commands.intensity:run_intensity",
        "FLOPs, bytes and intensity of attention and of a decode step",
    ),
    "estimate": (
        "calc.commands.estimate:run_estimate",
        "TTFT, TPOT and tokens per second, with bounds and uncertainty",
    ),
    "simulate": (
        "calc.commands.simulate:run_simulate",
        "a load over time: queue, percentiles, highest rate within limits",
    ),
    "solve": (
        "calc.commands.solve:run_solve",
        "inverse questions: largest context or batch, fewest devices, …",
    ),
    "sweep": (
        "calc.commands.sweep:run_sweep",
        "memory over lists of contexts, batches, TP, formats and devices",
    ),
    "models": ("calc.commands.catalog:run_models", "the catalog of models"),
    "devices": ("calc.commands.catalog:run_devices", "the catalog of devices"),
}
"""Every command: where its function is (imported only when it is used), and what it does."""


def command_named(name: str, commands: Mapping[str, tuple[str, str]]) -> Run:
    """The function of a command. If `commands` does not have it, raises CalcError with the nearest name."""
    if name not in commands:
        import difflib

        from calc.errors import CalcError

        near = difflib.get_close_matches(name, commands, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(commands)}"
        raise CalcError(f"unknown command {name[:40]!r}; {hint}")
    module, _, function = commands[name][0].partition(":")
    run: Run = getattr(import_module(module), function)
    return run


def listed(commands: Mapping[str, tuple[str, str]]) -> str:
    """The commands for a help text, one per line."""
    return "\n".join(f"  {name:<13} {what}" for name, (_, what) in commands.items())
