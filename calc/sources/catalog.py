"""The bundled catalogs: well-known models and devices, each record with its source.

`assets/models.json` and `assets/devices.json` (made by bench/make_catalog.py) are read on first use. Names are
case-insensitive; spaces and ``_`` count as ``-``. A model is found by its id, its Hugging Face id (with or without the
organisation) or an alias; a device by its id, its name or an alias. An unambiguous prefix is enough ("h200" for
h200-sxm); an ambiguous one is refused with a list.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from assets import path as asset_path
from calc.errors import UnknownName
from calc.model.parts import Mlp, Norm
from calc.model.spec import ModelSpec, model_of
from calc.model.study import DeviceSpec
from calc.units import GB, GIB, format_decimal, format_gb, format_gib

if TYPE_CHECKING:
    from calc.model.layers import LayerSpec


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelEntry:
    """A catalog model. `parameters` was counted independently of calc (see `parameters_source`).

    `stored` holds the keys of the repository's config.json that say how its weights are stored (its
    quantization_config and dtype); None where they are plain. There is one entry per record, so entries compare by
    identity.
    """

    id: str
    name: str
    hf_id: str
    aliases: tuple[str, ...]
    parameters: int
    parameters_source: str
    fields: Mapping[str, Any]
    source: str
    date: str
    notes: tuple[str, ...]
    stored: Mapping[str, Any] | None = None

    @property
    def spec(self) -> ModelSpec:
        """The model as in its repository, named by the id; its own layers, if any, are read only here."""
        return _spec(self)

    @property
    def sizes(self) -> ModelSpec:
        """The same model without its repository's stored bytes, which take long to count; for long lists."""
        return _sizes(self)

    @property
    def keys(self) -> tuple[str, ...]:
        """All names it answers to, as matched."""
        full = (self.id, self.name, self.hf_id, *self.aliases)
        return tuple(dict.fromkeys(key for name in full for key in (_key(name), _key(name.rpartition("/")[2]))))

    @property
    def searched(self) -> str:
        """Text that a search looks through."""
        return " ".join(self.keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceEntry:
    """A catalog device: `label_bytes` is the nominal size, `memory_bytes` what calculations use.

    `reported_memory_bytes`: what PyTorch reports and servers budget with, from `reported_source`; None if no log is
    known.
    """

    id: str
    name: str
    vendor: str
    aliases: tuple[str, ...]
    label_bytes: int
    memory_bytes: int
    reading: str
    bandwidth_bytes_per_s: float | None
    peak_flops_per_s: Mapping[str, float]
    interconnect: str | None
    interconnect_bytes_per_s: float | None
    power_w: int | None
    source: str
    confidence: str
    notes: str
    reported_memory_bytes: int | None = None
    reported_source: str = ""

    @property
    def spec(self) -> DeviceSpec:
        """The facts as a DeviceSpec. The interconnect is one direction's bytes per second."""
        return DeviceSpec(
            name=self.name,
            memory_bytes=self.memory_bytes,
            reading=self.reading,
            bandwidth_bytes_per_s=self.bandwidth_bytes_per_s,
            peak_flops_per_s=MappingProxyType(dict(self.peak_flops_per_s)),
            interconnect=self.interconnect,
            interconnect_bytes_per_s=self.interconnect_bytes_per_s,
            source=self.source,
            reported_memory_bytes=self.reported_memory_bytes,
            reported_source=self.reported_source,
        )

    @property
    def keys(self) -> tuple[str, ...]:
        """All names it answers to, as matched."""
        return tuple(dict.fromkeys(_key(name) for name in (self.id, self.name, *self.aliases)))

    @property
    def searched(self) -> str:
        """Text that a search looks through."""
        return " ".join((_key(self.vendor), *self.keys))


Entry = TypeVar("Entry", ModelEntry, DeviceEntry)


@cache
def models() -> Mapping[str, ModelEntry]:
    """All catalog models by id, in the catalog's order."""
    entries = (_model_entry(record) for record in _records("models.json"))
    return MappingProxyType({entry.id: entry for entry in entries})


@cache
def devices() -> Mapping[str, DeviceEntry]:
    """All catalog devices by id, in the catalog's order."""
    entries = (DeviceEntry(**{**record, "aliases": tuple(record["aliases"])}) for record in _records("devices.json"))
    return MappingProxyType({entry.id: entry for entry in entries})


def find_model(name: str) -> ModelSpec:
    """The catalog model called `name`. Raises UnknownName with near or matching names."""
    return _find(name, models(), what="model").spec


def find_device(name: str) -> DeviceSpec:
    """The catalog device called `name`, or this machine ("this") as it was measured.

    Raises UnknownName with near or matching names, or if this machine was never measured.
    """
    if _key(name).startswith("this"):
        from calc.sources.machine import NAMES, measured_machine

        if _key(name) in NAMES:
            return measured_machine().device(gpu=_key(name) != "this-cpu")
    return _find(name, devices(), what="device").spec


def this_machine() -> DeviceEntry | None:
    """This machine as an entry beside the catalog's; None where it was never measured."""
    from calc.sources.machine import machine_or_none

    measured = machine_or_none()
    if measured is None or (measured.memory_bytes is None and not measured.gpus):
        return None
    device = measured.device()
    return DeviceEntry(
        id="this",
        name=device.name,
        vendor="this machine",
        aliases=("this machine",),
        label_bytes=device.memory_bytes,
        memory_bytes=device.memory_bytes,
        reading=device.reading,
        bandwidth_bytes_per_s=device.bandwidth_bytes_per_s,
        peak_flops_per_s=device.peak_flops_per_s,
        interconnect=None,
        interconnect_bytes_per_s=None,
        power_w=None,
        source=device.source,
        confidence="measured",
        notes="rates achieved by the engine's products, not data sheet values",
    )


def all_devices() -> Mapping[str, DeviceEntry]:
    """This machine, where it was measured, and then the catalog's devices, by id."""
    measured = this_machine()
    return devices() if measured is None else MappingProxyType({measured.id: measured, **devices()})


def search_models(text: str) -> list[ModelEntry]:
    """Models in which every word of `text` occurs, best first; all of them for an empty text."""
    return _search(text, models().values())


def search_devices(text: str) -> list[DeviceEntry]:
    """Devices in which every word of `text` occurs, best first; all of them for an empty text, this machine first."""
    return _search(text, all_devices().values())


def manual_device(memory_bytes: int, reading: str | None = None) -> DeviceSpec:
    """A device of which only the memory is known; `reading` says how that number was read.

    >>> manual_device(80 * 10**9).reading, manual_device(80 * 2**30).reading
    ('80 GB read as 80 x 10^9 B = 74.51 GiB', '80 GiB read as 80 x 2^30 B = 85.90 GB')
    """
    return DeviceSpec(
        name=f"a device with {_memory_name(memory_bytes)}",
        memory_bytes=memory_bytes,
        reading=reading or memory_reading(memory_bytes),
    )


def memory_reading(memory_bytes: int) -> str:
    """How many bytes a size is, in words: whole GB or whole GiB, whichever it is, and the other unit."""
    written = power_text(memory_bytes)
    if memory_bytes % GB == 0:
        return f"{memory_bytes // GB:,} GB read as {written} = {format_gib(memory_bytes)}"
    if memory_bytes % GIB == 0:
        return f"{memory_bytes // GIB:,} GiB read as {written} = {format_gb(memory_bytes)}"
    return f"{written} = {format_gb(memory_bytes)} = {format_gib(memory_bytes)}"


def power_text(memory_bytes: int) -> str:
    """A size as whole GB or GiB written out, else in bytes: ``80 x 10^9 B``, ``80 x 2^30 B``, ``7,900,000,001 B``."""
    for unit, power in ((GB, "10^9"), (GIB, "2^30")):
        if memory_bytes % unit == 0:
            return f"{memory_bytes // unit:,} x {power} B"
    return f"{memory_bytes:,} B"


def other_reading(memory_bytes: int) -> int | None:
    """The other size that "80 GB" can mean: 80 x 2^30 for 80 x 10^9 and back; None for what is whole in neither.

    >>> other_reading(80 * 10**9) == 80 * 2**30, other_reading(80 * 2**30) == 80 * 10**9, other_reading(79 * 10**8)
    (True, True, None)
    """
    for unit, other in ((GB, GIB), (GIB, GB)):
        whole, rest = divmod(memory_bytes, unit)
        if not rest:
            return whole * other
    return None


def _memory_name(memory_bytes: int) -> str:
    if memory_bytes % GB and memory_bytes % GIB == 0:
        return f"{memory_bytes // GIB:,} GiB"
    return f"{memory_bytes // GB:,} GB" if memory_bytes % GB == 0 else format_decimal(memory_bytes)


def _records(name: str) -> list[dict[str, Any]]:
    with asset_path(name).open("rb") as stream:
        records: list[dict[str, Any]] = json.load(stream)["records"]
    return records


@cache
def _layer_documents() -> Mapping[str, Any]:
    with asset_path("model_layers.json").open("rb") as stream:
        documents: dict[str, Any] = json.load(stream)["layers"]
    return documents


def _layers(key: str) -> tuple[LayerSpec, ...]:
    from calc.model.layers import layers_from_document

    return layers_from_document(_layer_documents()[key])


@cache
def _spec(entry: ModelEntry) -> ModelSpec:
    sizes = _sizes(entry)
    return sizes if entry.stored is None else _as_stored(sizes, entry.stored, entry.hf_id)


@cache
def _sizes(entry: ModelEntry) -> ModelSpec:
    fields = dict(entry.fields)
    fields["mlp"], fields["norm"] = Mlp(fields.get("mlp", "gated")), Norm(fields.get("norm", "rms"))
    if fields.pop("layers", False):
        fields["layers"] = _layers(entry.id)
    return model_of(name=entry.id, source=entry.source, notes=entry.notes, **fields)


def _as_stored(model: ModelSpec, config: Mapping[str, Any], repository: str) -> ModelSpec:
    """`model` with its weights as `repository` stores them, and a note that says so."""
    from calc.model.quantization import stored_weights

    stored = stored_weights(config, model, repository)
    if stored is None:
        return model
    note = f"weights as in {repository}: {stored.name}, {stored.total_bytes:,} B; --weight-format overrides"
    return replace(model, stored=stored, notes=(*model.notes, note))


def _model_entry(record: dict[str, Any]) -> ModelEntry:
    return ModelEntry(**{**record, "aliases": tuple(record["aliases"]), "notes": tuple(record["notes"])})


def _key(name: str) -> str:
    return "-".join(name.lower().replace("_", " ").replace("-", " ").split())


def _find(name: str, entries: Mapping[str, Entry], *, what: str) -> Entry:
    key = _key(name)
    if key in entries:
        return entries[key]
    exact = [entry for entry in entries.values() if key in entry.keys]
    if exact:
        return exact[0]
    starts = [e for e in entries.values() if key and any(known.startswith(f"{key}-") for known in e.keys)]
    if len(starts) == 1:
        return starts[0]
    if starts:
        named = [entry.id for entry in sorted(starts, key=lambda entry: _rank(key, entry.keys))]
        raise UnknownName(f"{what} {_shown(name)} could be {_listed(named)}")
    raise UnknownName(f"unknown {what} {_shown(name)}: {_hint(name, entries, what)}")


def nothing_matches(text: str, entries: Mapping[str, Entry], *, what: str) -> str:
    """That no entry holds `text`, with near names, in a sentence."""
    return f"No {what} in the catalog matches {_shown(text)}: {_hint(text, entries, what)}"


def _shown(name: str) -> str:
    return repr(name if len(name) <= 60 else f"{name[:57]}...")


def _hint(name: str, entries: Mapping[str, Entry], what: str) -> str:
    """Names that contain every word of `name`, else near ones; how many there are where none is near."""
    near = [entry.id for entry in _search(name, entries.values())] if _key(name) else []
    if not near:
        from difflib import get_close_matches  # only on failure: a start that finds its name does not pay for it

        owners = {key: entry.id for entry in entries.values() for key in entry.keys}
        close = get_close_matches(_key(name)[:60], owners, n=4, cutoff=0.6)
        near = list(dict.fromkeys(owners[key] for key in close))
    return f"did you mean {_listed(near)}?" if near else f"the catalog lists {len(entries)} {what}s"


def _listed(names: list[str], most: int = 6) -> str:
    if len(names) > most:
        return f"{', '.join(names[:most])} or {len(names) - most} more"
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _search(text: str, entries: Iterable[Entry]) -> list[Entry]:
    words = [_key(word) for word in text.split()]
    found = [entry for entry in entries if all(word in entry.searched for word in words)]
    return sorted(found, key=lambda entry: _rank("-".join(words), entry.keys))


def _rank(key: str, known: tuple[str, ...]) -> int:
    """0 the name itself, 1 a start of the id, 2 a start of another name, 3 anywhere (the sort is stable)."""
    if key in known:
        return 0
    if known[0].startswith(key):
        return 1
    return 2 if any(name.startswith(key) for name in known) else 3
