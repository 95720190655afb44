"""Inverse questions: the largest context, the largest batch, the fewest devices, which device, which formats.

`Costs` (`calc.fit.admission`) answers each: for weights and cache only, or for what a server admits. "It does not fit"
is an answer, with the missing bytes. All numbers are exact integers. The largest context is found by bisection, because
a longer context never needs less memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from calc.errors import SpecError
from calc.fit.admission import Admission, Costs
from calc.fit.rules import costs_of
from calc.model.checks import check_count
from calc.model.storage import StorageFormat
from calc.model.study import Study
from calc.units import MAX_COUNT, format_count, format_decimal, largest

if TYPE_CHECKING:
    from calc.servers.records import ServerOptions

MOST_DEVICES = 1024
MOST_PLANS = 8
"""Number of plans shown if any number of devices can share the layers."""


# Context and batch


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextAnswer:
    """The longest context of a batch. `context` is None if not even one token fits; then bytes are missing.

    `unbounded`: no context fills the device (every layer keeps a window or a state); `context` is then the model's
    limit, or the largest number. `beyond_model`: longer than the model's limit. Bytes are per device, those of the
    cache per request.
    """

    context: int | None
    unbounded: bool
    beyond_model: bool
    missing_bytes: int
    weight_bytes: int
    kv_bytes: int
    free_bytes: int
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchAnswer:
    """The largest batch of a context. Bytes are per device; cache and state are per request."""

    batch: int
    fits: bool
    missing_bytes: int
    weight_bytes: int
    kv_bytes_per_request: int
    state_bytes: int
    free_bytes: int
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GridRow:
    """One tensor-parallel degree and what it admits for each context. `costs`: None if the rule refuses it."""

    tp: int
    costs: Costs | None
    cells: tuple[Admission, ...]


def largest_context(costs: Costs, *, batch: int = 1) -> ContextAnswer:
    """The longest context at which `batch` requests fit. Raises SpecError for a number below 1."""
    check_count("batch", batch)
    found, made_for = _longest(costs, batch, MAX_COUNT), costs.study.model.max_context
    unbounded = found == MAX_COUNT
    context = made_for if unbounded and made_for else found
    at = costs.admission(context or 1, batch)
    return ContextAnswer(
        context=context or None,
        unbounded=unbounded,
        beyond_model=bool(made_for) and context > (made_for or 0),
        missing_bytes=0 if context else at.missing_bytes,
        weight_bytes=at.weight_bytes,
        kv_bytes=at.kv_bytes if context else 0,
        free_bytes=max(0, at.free_bytes) if context else at.free_bytes,
        problem=at.problem,
    )


def _longest(costs: Costs, batch: int, most: int) -> int:
    """The longest context, up to `most`, at which `batch` requests fit; 0 if not even one token fits."""
    return largest(lambda context: costs.admits(context, batch), most)


def largest_batch(costs: Costs) -> BatchAnswer:
    """The largest batch of the study's context."""
    at = costs.admission()
    return BatchAnswer(
        batch=at.batch,
        fits=at.batch > 0,
        missing_bytes=at.missing_bytes,
        weight_bytes=at.weight_bytes,
        kv_bytes_per_request=at.kv_bytes,
        state_bytes=at.state_bytes,
        free_bytes=at.free_bytes,
        problem=at.problem,
    )


def batch_grid(
    study: Study, tps: Sequence[int], contexts: Sequence[int], server: ServerOptions | None = None
) -> tuple[GridRow, ...]:
    """The largest batch by tensor parallelism and context, under the study's policy or as `server` counts."""
    return tuple(_grid_row(study, tp, contexts, server) for tp in tps)


def _grid_row(study: Study, tp: int, contexts: Sequence[int], server: ServerOptions | None) -> GridRow:
    try:
        costs = costs_of(study, tp, server)
    except SpecError as error:  # the server's other options do not allow this TP
        refused = Admission(batch=0, missing_bytes=0, problem=str(error), runnable=False)
        return GridRow(tp=tp, costs=None, cells=(refused,) * len(contexts))
    return GridRow(tp=tp, costs=costs, cells=tuple(costs.admission(context) for context in contexts))


# Devices


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A way to share the model: TP within a stage, PP stages. `weight_bytes` are those of the limiting stage.

    `usual`: a common plan, with a power of two within one machine, or whole machines.
    """

    tp: int
    pp: int
    devices: int
    max_batch: int
    weight_bytes: int
    binding_stage: int
    usual: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicesAnswer:
    """The fewest devices of a usual plan, and for every TP the fewest stages that fit.

    Sorted by usual plans first, then the fewest devices, then the largest batch. `devices` is None if even the maximum
    number is not enough; `missing_bytes` is then what the fullest device of the best plan lacks. `equal_split`: the
    number by the assignment's rule, if everything divides.
    """

    devices: int | None
    plans: tuple[Plan, ...]
    equal_split: int | None
    missing_bytes: int


def fewest_devices(costs: Costs, *, batch: int = 1, most: int = MOST_DEVICES) -> DevicesAnswer:
    """The fewest devices that hold the model and `batch` requests of the study's context, in whole heads and layers.

    For each TP, the fewest pipeline stages that fit; usual plans first. Raises SpecError for a number below 1.
    """
    check_count("batch", batch)
    check_count("most", most)
    plans, missing, tps = list[Plan](), list[int](), _tps(costs, most)
    machine = max((tp for tp in tps if tp in MACHINES), default=1)
    for tp in tps:
        plans += _fitting_plan(costs, tp, batch, most // tp, missing)
        if costs.any_degree and len(plans) == MOST_PLANS:
            break
    plans = [replace(plan, usual=costs.any_degree or _is_usual(plan, machine)) for plan in plans]
    plans.sort(key=lambda plan: (not plan.usual, plan.devices, -plan.max_batch, plan.pp))
    return DevicesAnswer(
        devices=plans[0].devices if plans else None,
        plans=tuple(plans),
        equal_split=costs.equal_split_devices(batch, most),
        missing_bytes=0 if plans else min(missing, default=0),
    )


MACHINES = (1, 2, 4, 8)
"""GPUs per machine."""


def _is_usual(plan: Plan, machine: int) -> bool:
    """Within one machine, a power of two; beyond it, whole machines of `machine` GPUs, as stages or one TP group."""
    if plan.pp > 1:
        return plan.tp == machine
    return plan.tp in MACHINES or (plan.tp % MACHINES[-1] == 0 and not plan.tp & (plan.tp - 1))


def _tps(costs: Costs, most: int) -> tuple[int, ...]:
    """Degrees that divide the model."""
    from calc.model.shares import tp_problem

    model = costs.study.model
    if costs.any_degree:
        return tuple(range(1, min(most, MOST_DEVICES, model.n_layers) + 1))
    degrees = range(1, min(most, MOST_DEVICES, model.n_heads) + 1)
    return tuple(tp for tp in degrees if model.n_heads % tp == 0 and tp_problem(model, tp) is None)


def _fitting_plan(costs: Costs, tp: int, batch: int, most: int, missing: list[int]) -> Iterator[Plan]:
    """The plan of `tp` with the fewest stages, up to `most`, that holds `batch` requests, or what it lacks."""
    last = 1 if costs.any_degree else min(costs.study.model.n_layers, most)
    if lacking := costs.shared(tp, last, batch).missing_bytes:
        missing.append(lacking)
        if costs.fewer_never_fit:
            return
    for pp in range(costs.least_stages(tp, batch), last + 1):
        at = costs.shared(tp, pp, batch)
        if at.problem is not None:
            return
        if not at.missing_bytes:
            yield Plan(
                tp=tp,
                pp=pp,
                devices=tp * pp,
                max_batch=at.batch,
                weight_bytes=at.weight_bytes,
                binding_stage=at.stage,
            )
            return


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceAnswer:
    """A catalog device. `reason`, in words: what is left free, or what is missing and for what."""

    id: str
    name: str
    memory_bytes: int
    fits: bool
    max_batch: int
    missing_bytes: int
    reason: str


def devices_that_fit(costs: Costs, *, batch: int = 1) -> tuple[DeviceAnswer, ...]:
    """The catalog devices that the rule's server supports: first those that hold `batch` requests, smallest first, then
    the rest, nearest first.
    """
    from calc.sources.catalog import devices

    check_count("batch", batch)
    answers = []
    for entry in devices().values():
        if not costs.runs_on(entry.spec):
            continue
        own = costs.on(entry.spec)
        at = own.admission(batch=batch)
        answers.append(
            DeviceAnswer(
                id=entry.id,
                name=entry.name,
                memory_bytes=entry.memory_bytes,
                fits=at.batch >= batch,
                max_batch=at.batch,
                missing_bytes=at.missing_bytes,
                reason=own.reason(at, batch),
            )
        )
    return tuple(sorted(answers, key=lambda a: (not a.fits, a.memory_bytes if a.fits else -a.memory_bytes, a.id)))


# Formats


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatAnswer:
    """A way to store weights and cache; `largest_context` is for the requested batch."""

    weight_format: str
    kv_format: str
    fits: bool
    max_batch: int
    missing_bytes: int
    largest_context: int | None


def formats_that_fit(costs: Costs, *, batch: int = 1) -> tuple[FormatAnswer, ...]:
    """Every way to store weights and cache: those that fit first, then the fewest changes, then the most bytes."""
    check_count("batch", batch)
    study = costs.study
    weights, caches = costs.offered_formats()
    found = []
    for weight in weights:
        for cache in caches:
            changed = (weight != study.weight_format) + (cache != study.kv_format)
            size = weight.bytes_per_element + cache.bytes_per_element
            found.append((changed, -size, _format_answer(costs.stored(weight, cache), weight, cache, batch)))
    found.sort(key=lambda item: (not item[2].fits, *item[:2]))
    return tuple(answer for _, _, answer in found)


def _format_answer(costs: Costs, weight: StorageFormat, cache: StorageFormat, batch: int) -> FormatAnswer:
    at = costs.admission(batch=batch)
    return FormatAnswer(
        weight_format=weight.name,
        kv_format=cache.name,
        fits=at.batch >= batch,
        max_batch=at.batch,
        missing_bytes=at.missing_bytes,
        largest_context=_longest(costs, batch, costs.study.model.max_context or MAX_COUNT) or None,
    )


# Advice


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One change that is enough on its own: a sentence, and its command-line options."""

    change: str
    text: str
    options: tuple[str, ...]


def advice(costs: Costs, *, batch: int = 1) -> tuple[Advice, ...]:
    """Changes that are each enough to make `batch` requests fit; () if they fit.

    The largest part comes first: smaller weights before a smaller cache, or vice versa.
    """
    if not costs.shortage(batch):
        return ()
    at, study, formats = costs.admission(batch=batch), costs.study, formats_that_fit(costs, batch=batch)
    cache = [
        *_format_advice(study, formats, "kv"),
        *_context_advice(largest_context(costs, batch=batch)),
        *_batch_advice(at.batch, batch),
    ]
    weights = _format_advice(study, formats, "weight")
    more = [
        *_devices_advice(fewest_devices(costs, batch=batch, most=64)),
        *_device_advice(devices_that_fit(costs, batch=batch), costs.rule),
    ]
    heavy = at.weight_bytes >= batch * (at.kv_bytes + at.state_bytes)
    return tuple([*weights, *cache, *more] if heavy else [*cache, *weights, *more])


def _format_advice(study: Study, formats: Sequence[FormatAnswer], kind: str) -> list[Advice]:
    """The storage with the most bytes that is enough on its own."""
    other, name = ("weight_format", "kv_format") if kind == "kv" else ("kv_format", "weight_format")
    what = "cache" if kind == "kv" else "weights"
    for answer in formats:
        if answer.fits and getattr(answer, other) == getattr(study, other).name:
            chosen = getattr(answer, name)
            text = f"Store the {what} as {chosen}: {_fitting(answer.max_batch)}."
            return [Advice(change=f"{kind}-format", text=text, options=(f"--{kind}-format", chosen))]
    return []


def _fitting(n: int) -> str:
    return "one request fits" if n == 1 else f"{n:,} requests fit"


def _context_advice(answer: ContextAnswer) -> list[Advice]:
    if answer.context is None:
        return []
    tokens = "1 token" if answer.context == 1 else f"{answer.context:,} tokens"
    text = f"Shorten the context to {tokens}."
    return [Advice(change="context", text=text, options=("--context", str(answer.context)))]


def _batch_advice(most: int, batch: int) -> list[Advice]:
    if not 0 < most < batch:
        return []
    text = f"Serve {format_count(most)} at a time: {_fitting(most)}."
    return [Advice(change="batch", text=text, options=("--batch", str(most)))]


def _devices_advice(answer: DevicesAnswer) -> list[Advice]:
    if not answer.plans:
        return []
    best = answer.plans[0]
    ways = [("tensor parallelism", "--tp", best.tp), ("pipeline parallelism", "--pp", best.pp)]
    used = [way for way in ways if way[2] > 1] or ways[:1]
    shared = " and ".join(f"{name} {n}" for name, _, n in used)
    such = "one such device" if best.devices == 1 else f"{best.devices} such devices"
    text = f"Use {such} ({shared}): {_fitting(best.max_batch)}."
    options = tuple(word for _, option, n in used for word in (option, str(n)))
    return [Advice(change="tp", text=text, options=options)]


def _device_advice(answers: Sequence[DeviceAnswer], rule: str) -> list[Advice]:
    best = answers[0]
    if not best.fits:
        return []
    text = f"Use {best.name} ({format_decimal(best.memory_bytes)}): {_fitting(best.max_batch)}, {rule}."
    return [Advice(change="device", text=text, options=("--device", best.id))]
