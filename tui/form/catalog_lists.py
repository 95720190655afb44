"""The catalogs as pick lists: their lines, a preview of what fits, and paths to a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from calc.commands.headline import Headline, of_study
from calc.errors import CalcError
from calc.fit.memory import memory_report
from calc.model.spec import ModelSpec
from calc.model.study import DeviceSpec, Study
from calc.sources import is_path
from calc.sources.catalog import DeviceEntry, ModelEntry, all_devices, manual_device, search_devices, search_models
from calc.sources.machine import NEVER
from calc.units import format_bytes_exact, format_decimal, format_gib, format_rate
from tui.form.draft import EDITED, format_beside
from tui.form.pick_list import Choice, PickList

MANUAL = "(by hand)"
THIS = "this"
"""The line of this machine, which comes first."""


def model_list(study: Study) -> PickList:
    """Catalog models; the preview says what each needs and whether it fits the device of the study."""

    def search(text: str) -> Sequence[Choice]:
        return [_model_choice(entry, study) for entry in search_models(text)]

    return PickList(
        title="Model",
        prompt="search by name, or type the path of a config.json, .gguf or folder",
        search=search,
        right=frozenset({1}),
        custom=lambda text: text if is_path(text) else None,
    )


def _model_choice(entry: ModelEntry, study: Study) -> Choice:
    m = entry.sizes
    shape = f"{m.n_layers}L {m.n_heads}q {m.n_kv_heads}kv d{m.head_dim}"
    cells = (entry.id, f"{entry.parameters / 1e9:,.2f} B", shape, entry.hf_id)
    return Choice(key=entry.id, cells=cells, preview=lambda: model_preview(entry.spec, study))


def model_preview(model: ModelSpec, study: Study) -> str:
    """What the model needs on the study's device, and the source of its sizes."""
    try:
        report = memory_report(replace(study, model=model, weight_format=format_beside(study, model)))
    except CalcError as error:
        return str(error)
    answer = of_study(report)
    fits = f"max batch {answer.max_batch:,}" if answer.fits else "does not fit"
    where = "this device" if answer.devices == 1 else f"{answer.devices:,} such devices"
    return (
        f"weights {format_decimal(report.weight_bytes)} · KV {format_bytes_exact(report.kv_bytes_per_token)}/token · "
        f"{fits} on {where} at {study.context:,} tokens\nsource: {model.source}"
    )


def device_list(study: Study) -> PickList:
    """This machine, a line for a device with only its memory known, and the catalog's devices."""

    def search(text: str) -> Sequence[Choice]:
        entries = search_devices(text)
        found = [_device_choice(entry, study) for entry in entries if entry.id != THIS]
        mine = [_device_choice(entry, study) for entry in entries if entry.id == THIS]
        if not mine and THIS not in all_devices() and text.lower() in "this machine":
            mine = [
                Choice(
                    key=THIS, cells=(f"{THIS} (not measured)", "", "", "", ""), preview=lambda: f"{NEVER}.".capitalize()
                )
            ]
        if text and text.lower() not in MANUAL:
            return [*mine, *found]
        by_hand = Choice(
            key=MANUAL,
            cells=(MANUAL, "", "", "", ""),
            preview=lambda: "Type the memory yourself; bandwidth and peak stay unknown.",
        )
        return [*mine, by_hand, *found]

    return PickList(
        title="Device",
        prompt="search by name or vendor",
        search=search,
        right=frozenset({1, 2, 3, 4}),
    )


def _device_choice(entry: DeviceEntry, study: Study) -> Choice:
    d = entry.spec
    peak, ridge = d.peak_flops_per_s.get("bf16"), d.ridge()
    cells = (
        entry.id,
        format_gib(d.memory_bytes),
        format_rate(d.bandwidth_bytes_per_s) if d.bandwidth_bytes_per_s else "",
        format_rate(peak, "FLOP/s") if peak else "",
        f"ridge {ridge:.0f}" if ridge else "",
    )
    return Choice(key=entry.id, cells=cells, preview=lambda: device_preview(d, study))


def device_preview(device: DeviceSpec, study: Study) -> str:
    """What fits on the device with the study's model, how its memory is read, and where that comes from."""
    answer = of_study(memory_report(replace(study, device=device)))
    fits = (
        f"max batch {answer.max_batch:,}{_where(answer)}" if answer.fits else f"this model does not fit{_where(answer)}"
    )
    return f"{device.name}: {device.reading} · {fits} at {study.context:,} tokens\nsource: {device.source}"


def _where(answer: Headline) -> str:
    """On how many devices, if not on one."""
    return f" on {answer.devices:,} devices" if answer.devices > 1 else ""


def current_device(device: DeviceSpec) -> str:
    """The line of the device list that `device` came from."""
    name = device.name.removesuffix(EDITED)
    return next((entry.id for entry in all_devices().values() if entry.name == name), MANUAL)


def device_called(key: str, present: DeviceSpec) -> DeviceSpec:
    """The device of a chosen line; "by hand" keeps the current memory and drops everything else.

    Choosing this machine before it is measured keeps the current device.
    """
    if key == MANUAL:
        return manual_device(present.memory_bytes)
    entry = all_devices().get(key)
    return present if entry is None else entry.spec
