"""From the text of the spec form to a study: pure functions, so that the effect of a keystroke can be tested.

The three parts (model, device, workload) are read separately: if one has an impossible number, edits of the others
still count, and the impossible part keeps its last good value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from calc.errors import CalcError, SpecError
from calc.model.cache_pair import cache_as
from calc.model.edit import edit, edit_unnamed, follows_hidden_size, scaled_windows
from calc.model.named import NamedFormat, weights_as
from calc.model.parts import Mlp, Norm
from calc.model.spec import ModelSpec
from calc.model.storage import FORMATS, StorageFormat
from calc.model.stored import is_as_stored
from calc.model.stored_format import stored_format
from calc.model.study import DeviceSpec, Policy, Study
from calc.model.typed_formats import parse_cache
from calc.model.typed_formats import parse_weights as parse_weight_format
from calc.sources import DEFAULT_MODEL
from calc.sources.catalog import manual_device, memory_reading
from calc.units import GB, GIB, format_decimal
from tui.form.fields import count_parser, parse_memory, parse_tps, without_unit

T = TypeVar("T")

MODEL_COUNTS = (
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "head_dim",
    "hidden_size",
    "intermediate_size",
    "vocab_size",
    "n_learned_positions",
    "n_sliding_layers",
    "window",
)
MODEL_FLAGS = ("tied", "qk_norm", "qkv_bias", "o_bias", "mlp_bias", "head_bias")
MODEL_CHOICES: Mapping[str, type[Mlp] | type[Norm]] = {"mlp": Mlp, "norm": Norm}
EDITED = " (edited)"
"""Suffix of an edited device, as on the command line."""
STORED = "stored"
"""The form's name for the checkpoint's own format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """The form's current content: texts of the typed fields, values of the others.

    `model_origin` and `device_origin` were last chosen or opened; names, sources and facts without a form field come
    from them.
    """

    texts: Mapping[str, str]
    flags: Mapping[str, bool]
    mlp: Mlp
    norm: Norm
    policy: Policy
    model_origin: ModelSpec
    device_origin: DeviceSpec
    windows_follow: bool = False
    """Whether the number of window layers follows the number of layers (it was not typed)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The result of a draft: a study (impossible parts as before) and, by field, what is wrong."""

    study: Study
    errors: Mapping[str, str] = field(default_factory=dict)


def read_draft(draft: Draft, last_good: Study) -> Reading:
    """The study of `draft`. Never raises; errors are sentences by field name."""
    errors: dict[str, str] = {}
    model = _guard(lambda: _read_model(draft, errors), errors) or last_good.model
    device = _guard(lambda: _read_device(draft, errors), errors) or last_good.device
    workload = _read_workload(draft, model, errors)
    study = replace(last_good, model=model, device=device, policy=draft.policy, **workload)
    return Reading(study=study, errors=errors)


def _guard(read: Callable[[], T | None], errors: dict[str, str]) -> T | None:
    """`read()`, with its SpecError stored under the field that it names."""
    try:
        return read()
    except SpecError as error:
        errors[error.field] = str(error)
        return None


def _parsed(name: str, parse: Callable[[str], T], draft: Draft, errors: dict[str, str]) -> T | None:
    try:
        return parse(draft.texts[name])
    except CalcError as error:
        errors[name] = str(error)
        return None


def _read_model(draft: Draft, errors: dict[str, str]) -> ModelSpec | None:
    before = len(errors)
    values: dict[str, Any] = {}
    for name in MODEL_COUNTS:
        if name == "head_dim" and not draft.texts[name].strip():
            continue
        values[name] = _parsed(name, count_parser(name), draft, errors)
    if len(errors) > before:
        return None
    if "head_dim" not in values:
        # If it cannot follow, the other fields are still checked, with any head dimension.
        values["head_dim"] = _guard(lambda: head_dim_of(values["hidden_size"], values["n_heads"]), errors) or 1
    if draft.windows_follow:
        values["n_sliding_layers"] = scaled_windows(draft.model_origin, values["n_layers"])
    values.update(draft.flags, mlp=draft.mlp, norm=draft.norm)
    model = edited_model(draft.model_origin, values)
    return None if len(errors) > before else model


def windows_follow(model: ModelSpec, origin: ModelSpec) -> bool:
    """Whether `model` has the same share of window layers as `origin`."""
    return model.n_sliding_layers == scaled_windows(origin, model.n_layers)


LAYERED_FIELDS = frozenset(
    {*MODEL_COUNTS, *MODEL_CHOICES, *MODEL_FLAGS} - {"vocab_size", "n_learned_positions", "tied", "head_bias"}
)
"""Fields without a single value in a model with different layers: read-only in the form."""


def head_dim_of(hidden_size: int, n_heads: int) -> int:
    """hidden_size / n_heads, the default head dimension. Raises SpecError."""
    if hidden_size % n_heads:
        raise SpecError("head_dim", f"{hidden_size:,} is not divisible by {n_heads:,} query heads: type the head dim")
    return hidden_size // n_heads


def auto_head_dim(texts: Mapping[str, str]) -> str:
    """The placeholder of an empty head dimension."""
    try:
        hidden_size, n_heads = (count_parser(name)(texts[name]) or 1 for name in ("hidden_size", "n_heads"))
        value = head_dim_of(hidden_size, n_heads)
    except CalcError:
        return "auto"
    return f"{value} auto"


def edited_model(origin: ModelSpec, values: Mapping[str, Any]) -> ModelSpec:
    """`origin` with `values`, named "(edited)" if that changes anything. Raises SpecError.

    The default model was not chosen: with other sizes it loses its context limit, as on the command line.
    """
    return edit_unnamed(origin, **values) if origin.name == DEFAULT_MODEL else edit(origin, **values)


def _read_device(draft: Draft, errors: dict[str, str]) -> DeviceSpec | None:
    memory = _parsed("memory_bytes", parse_memory, draft, errors)
    if memory is None:
        return None
    return device_with_memory(draft.device_origin, memory)


def device_with_memory(origin: DeviceSpec, memory_bytes: int) -> DeviceSpec:
    """`origin` with another memory: a manual device if nothing else is known, else "(edited)"."""
    if memory_bytes == origin.memory_bytes:
        return origin
    if origin.bandwidth_bytes_per_s is None and not origin.peak_flops_per_s:
        return manual_device(memory_bytes)
    name = origin.name.removesuffix(EDITED) + EDITED
    return replace(origin, name=name, memory_bytes=memory_bytes, reading=memory_reading(memory_bytes))


def format_beside(study: Study, model: ModelSpec) -> StorageFormat:
    """The weight format for another model: as its checkpoint stores it, else the format chosen by hand, else bf16."""
    found = stored_format(model)
    if found is not None:
        return found
    chosen = study.weight_format
    if is_as_stored(study.model, chosen):
        return FORMATS["bf16"]
    return chosen if chosen.stored is None else parse_weights(chosen.name, model)


def parse_weights(text: str, model: ModelSpec) -> StorageFormat:
    """The weight format; ``stored`` and ``auto`` mean as in the model's checkpoint. Raises CalcError.

    An edited model no longer has a checkpoint: its weights are then counted at 2 bytes.
    """
    chosen = None if text.strip().lower() == STORED else parse_weight_format(without_unit(text))
    if chosen is not None:
        return weights_as(chosen, model)
    if text.strip().lower() == STORED and model.stored is None and not model.edited:
        raise SpecError(
            "weight_format", "the stored format of this model is not known: use a format such as bf16 or fp8"
        )
    return stored_format(model) or FORMATS["bf16"]


def parse_kv(text: str, model: ModelSpec) -> StorageFormat:
    """The cache format: one, or two for K and V (``q8_0/q4_0``). Raises CalcError."""
    return cache_as(parse_cache(without_unit(text)) or FORMATS["bf16"], model)


def _read_workload(draft: Draft, model: ModelSpec, errors: dict[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {
        "context": _parsed("context", count_parser("context"), draft, errors),
        "weight_format": _parsed("weight_format", lambda text: parse_weights(text, model), draft, errors),
        "kv_format": _parsed("kv_format", lambda text: parse_kv(text, model), draft, errors),
        "tps": _parsed("tp", parse_tps, draft, errors),
    }
    return {name: value for name, value in values.items() if value is not None}


# --- from a study to the form -----------------------------------------------------------------------------


def field_texts(study: Study) -> dict[str, str]:
    """The text of the typed fields for `study`; an empty head dimension follows hidden size and heads."""
    texts = {name: _count_text(getattr(study.model, name)) for name in MODEL_COUNTS}
    if follows_hidden_size(study.model):
        texts["head_dim"] = ""
    return {
        **texts,
        "memory_bytes": memory_text(study.device.memory_bytes),
        "context": str(study.context),
        "weight_format": STORED if is_as_stored(study.model, study.weight_format) else study.weight_format.name,
        "kv_format": study.kv_format.name,
        "tp": ",".join(map(str, study.tps)),
    }


def _count_text(value: int | None) -> str:
    return "" if value is None else str(value)


def memory_text(memory_bytes: int) -> str:
    """A size that reads back exactly: ``80 GB``, ``79.19 GiB`` if two decimals are exact, else all bytes."""
    for scale, unit in ((GB, "GB"), (GIB, "GiB")):
        if memory_bytes % scale == 0:
            return f"{memory_bytes // scale} {unit}"
    for scale, unit in ((GIB, "GiB"), (GB, "GB")):
        text = f"{memory_bytes / scale:.2f} {unit}"
        if memory_bytes >= scale and parse_memory(text) == memory_bytes:
            return text
    return f"{memory_bytes} B"


def hint(name: str, text: str) -> str:
    """How `text` was read, if that says more than the text itself; empty if it cannot be read."""
    try:
        return _hint(name, text.strip())
    except CalcError:
        return ""


def _hint(name: str, text: str) -> str:
    if name == "memory_bytes":
        n_bytes = parse_memory(text)
        other = f"{n_bytes / GB:,.2f} GB" if "i" in text.lower() else f"{n_bytes / GIB:,.2f} GiB"
        return f"= {other}"
    if text.lower() == STORED:
        return "as in the checkpoint"
    if name in ("weight_format", "kv_format"):
        read = parse_weight_format if name == "weight_format" else parse_cache
        return _format_hint(read(without_unit(text)))
    if name == "tp":
        degrees = parse_tps(text)
        return f"= {', '.join(map(str, degrees))}" if ".." in text else ""
    value = count_parser(name)(text)
    if value is None or (text.isdigit() and name != "context"):
        return ""
    return f"= {value:,}" + (" tokens" if name == "context" else "")


def _format_hint(fmt: StorageFormat | NamedFormat | None) -> str:
    if fmt is None:
        return "as in the checkpoint, else 2 B each"
    if isinstance(fmt, NamedFormat):
        return "by tensor: some stay wider, see the notes"
    if fmt.pair is not None:
        of_keys, of_values = (float(each.bytes_per_element) for each in fmt.pair)
        return f"K {of_keys:g} B and V {of_values:g} B each"
    value = fmt.bytes_per_element
    blocks = f" ({fmt.block_bytes} B for {fmt.block_elems})" if fmt.block_elems > 2 else ""
    return f"{float(value):g} B each{blocks}"


def origin_of_model(model: ModelSpec) -> ModelSpec:
    """The catalog model that an edited one came from, if the catalog has it; else `model` itself."""
    if not model.edited:
        return model
    from calc.sources.catalog import find_model

    try:
        return find_model(model.name)
    except CalcError:
        return model


def device_short_name(device: DeviceSpec) -> str:
    """A name for the strip: ``80 GB`` for a device of which only the memory is known."""
    known = device.bandwidth_bytes_per_s is not None or device.peak_flops_per_s
    return device.name if known else _size_name(device)


def _size_name(device: DeviceSpec) -> str:
    text = memory_text(device.memory_bytes)
    return format_decimal(device.memory_bytes) if text.endswith(" B") else text
