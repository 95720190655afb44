"""Questions turned round: the largest context, the largest batch, the fewest devices, which device, which formats.

Every answer comes from the formulas of `calc.fit.memory` (through `calc.fit.costs`) or `calc.fit.parallel`; nothing
is estimated a second way. "It does not fit" is an answer, with the bytes that are missing. Exact integers throughout:
a largest context is found by halving, since what a request takes never falls as its context grows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from calc.fit.costs import RankCosts, rank_costs
from calc.model.spec import MAX_COUNT, ModelSpec, Policy, Study, check_count
from calc.model.storage import FORMATS, StorageFormat
from calc.units import format_bytes, format_count, format_decimal

if TYPE_CHECKING:
    from calc.fit.memory import MemoryReport
    from calc.fit.parallel import ParallelPlan

WEIGHT_FORMATS = ("fp32", "bf16", "fp8", "q8_0", "q6_k", "q5_k", "q4_1", "q4_k", "nvfp4", "mxfp4", "int4")
CACHE_FORMATS = ("fp32", "bf16", "q8_0", "fp8", "q5_0", "nvfp4", "q4_0", "int4")
"""What servers store weights and caches in, without those that take the same bytes (fp16, int8)."""
MOST_DEVICES = 1024


# Context and batch


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextAnswer:
    """The longest context of a batch. `context` is None where not even one token fits: then bytes are missing.

    `unbounded`: no context fills the device (every layer keeps a window or a state); `context` is then what the model
    was made for, or the largest number there is. `beyond_model`: longer than the model was made for. Bytes are of one
    device, the cache's of one request.
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
    """The largest batch of a context. Bytes are of one device; cache and state of one request."""

    batch: int
    fits: bool
    missing_bytes: int
    weight_bytes: int
    kv_bytes_per_request: int
    state_bytes: int
    free_bytes: int
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GridCell:
    """`missing_bytes` is what one request lacks, 0 where it fits."""

    context: int
    max_batch: int
    fits: bool
    missing_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GridRow:
    """One degree of tensor parallelism."""

    tp: int
    problem: str | None
    cells: tuple[GridCell, ...]


def _one(study: Study, tp: int) -> RankCosts:
    (costs,) = rank_costs(study, (tp,))
    return costs


def largest_context(study: Study, *, batch: int = 1, tp: int = 1) -> ContextAnswer:
    """The longest context at which `batch` requests fit on `tp` devices. Raises SpecError for a number below 1."""
    check_count("batch", batch)
    costs, memory = _one(study, tp), study.device.memory_bytes
    found = costs.largest_context(memory, batch, MAX_COUNT) if costs.runnable else 0
    unbounded, made_for = found == MAX_COUNT, study.model.max_context
    context = made_for if unbounded and made_for else found
    kv = _up(costs.kv_bytes(context)) if context else 0
    return ContextAnswer(
        context=context or None,
        unbounded=unbounded,
        beyond_model=bool(made_for) and context > (made_for or 0),
        missing_bytes=0 if context else costs.missing_bytes(memory, 1, batch),
        weight_bytes=costs.weight_bytes,
        kv_bytes=kv,
        free_bytes=_free(costs, memory, context, batch),
        problem=costs.problem,
    )


def largest_batch(study: Study, *, tp: int = 1) -> BatchAnswer:
    """The largest batch of the study's context on `tp` devices."""
    costs, memory = _one(study, tp), study.device.memory_bytes
    batch = costs.max_batch(memory, study.context)
    return BatchAnswer(
        batch=batch,
        fits=batch > 0,
        missing_bytes=costs.missing_bytes(memory, study.context),
        weight_bytes=costs.weight_bytes,
        kv_bytes_per_request=_up(costs.kv_bytes(study.context)),
        state_bytes=costs.state_bytes,
        free_bytes=_free(costs, memory, study.context, batch),
        problem=costs.problem,
    )


def _up(value: Fraction) -> int:
    return -(-value.numerator // value.denominator)


def _free(costs: RankCosts, memory: int, context: int, batch: int) -> int:
    """Bytes that stay free beside the weights and `batch` requests; negative where even the weights do not fit."""
    if not context or not batch:
        return memory - costs.weight_bytes
    return costs.free_bytes(memory, context, batch)


def batch_grid(study: Study, tps: Sequence[int], contexts: Sequence[int]) -> tuple[GridRow, ...]:
    """The largest batch by tensor parallelism and context, under the study's policy."""
    memory = study.device.memory_bytes
    rows = []
    for costs in rank_costs(study, tps):
        cells = (
            GridCell(
                context=context,
                max_batch=batch,
                fits=batch > 0,
                missing_bytes=costs.missing_bytes(memory, context),
            )
            for context in contexts
            for batch in (costs.max_batch(memory, context),)
        )
        rows.append(GridRow(tp=costs.tp, problem=costs.problem, cells=tuple(cells)))
    return tuple(rows)


# Devices


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A way to share the model: TP within a stage, PP stages. `weight_bytes` of the stage that decides."""

    tp: int
    pp: int
    devices: int
    max_batch: int
    weight_bytes: int
    binding_stage: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicesAnswer:
    """The fewest devices, and for every TP the fewest stages that do: fewest devices first, then the largest batch.

    `devices` is None where up to the most allowed do not do; `missing_bytes` is then what the fullest device of the
    best way lacks. `equal_split`: as many as the assignment's rule asks for, where everything divides.
    """

    devices: int | None
    plans: tuple[Plan, ...]
    equal_split: int | None
    missing_bytes: int


def fewest_devices(study: Study, *, batch: int = 1, most: int = MOST_DEVICES) -> DevicesAnswer:
    """The fewest devices that hold the model and `batch` requests of the study's context, in whole heads and layers.

    Pipeline stages hold whole layers, as vLLM divides them; tensor parallelism keeps whole KV heads. Raises SpecError
    for a number below 1.
    """
    check_count("batch", batch)
    check_count("most", most)
    plans, missing = list[Plan](), list[int]()
    for tp in _legal_tps(study.model, most):
        plan = _fitting_plan(study, tp, batch, most // tp, missing)
        plans += [] if plan is None else [plan]
    plans.sort(key=lambda plan: (plan.devices, -plan.max_batch, plan.pp))
    return DevicesAnswer(
        devices=plans[0].devices if plans else None,
        plans=tuple(plans),
        equal_split=_equal_split_devices(study, batch, most),
        missing_bytes=0 if plans else min(missing, default=0),
    )


def _legal_tps(model: ModelSpec, most: int) -> Iterator[int]:
    from calc.fit.memory import tp_problem

    for tp in range(1, min(most, MOST_DEVICES, model.n_heads) + 1):
        if model.n_heads % tp == 0 and tp_problem(model, tp) is None:
            yield tp


def _fitting_plan(study: Study, tp: int, batch: int, most: int, missing: list[int]) -> Plan | None:
    """The plan of `tp` with the fewest stages, up to `most`, that holds `batch` requests; else what it lacks.

    Stages hold the whole model together, so that the mean load says where to begin. Where all layers are alike more
    stages never load a device more, so that what the most of them cannot hold no fewer can.
    """
    from calc.fit.parallel import layers_of
    from calc.model.layers import grouped

    memory, last = study.device.memory_bytes, min(study.model.n_layers, most)
    least = max(_loads(study, tp, last, batch)[0])
    if least > memory:
        missing.append(_up(least - memory))
        if len(grouped(layers_of(study.model))) == 1:
            return None
    mean = sum(_loads(study, tp, 1, batch)[0], Fraction(0)) / memory
    for pp in range(max(1, _up(mean)), last + 1):
        loads, plan = _loads(study, tp, pp, batch)
        if max(loads) <= memory:
            return _shown(plan, tp, pp)
    return None


def _loads(study: Study, tp: int, pp: int, batch: int) -> tuple[list[Fraction], ParallelPlan]:
    """Bytes on the devices of each stage with `batch` requests."""
    from calc.fit.parallel import ParallelSpec, plan

    found = plan(study, ParallelSpec(tp=tp, pp=pp))
    loads = [
        Fraction(stage.steps[0].value) + batch * (Fraction(stage.kv_bytes_per_request) + stage.state_bytes)
        for stage in found.stages
    ]
    return loads, found


def _shown(found: ParallelPlan, tp: int, pp: int) -> Plan:
    binding = found.stages[found.binding]
    return Plan(
        tp=tp,
        pp=pp,
        devices=tp * pp,
        max_batch=found.max_batch,
        weight_bytes=binding.weight_bytes,
        binding_stage=found.binding + 1,
    )


def _equal_split_devices(study: Study, batch: int, most: int) -> int | None:
    """The fewest devices where weights, caches and states divide evenly."""
    equal, memory = replace(study, policy=Policy.EQUAL_SPLIT), study.device.memory_bytes
    one = _one(equal, 1)
    whole = one.weight_bytes + batch * (_up(one.kv_bytes(study.context)) + one.state_bytes)
    start = max(1, -(-whole // memory))
    for tp in range(start, min(start + 64, most) + 1):  # a state's part of a byte may take a device more
        if _one(equal, tp).missing_bytes(memory, study.context, batch) == 0:
            return tp
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceAnswer:
    """A device of the catalog. `reason`, in words: what stays free, or what is missing and for what."""

    id: str
    name: str
    memory_bytes: int
    fits: bool
    max_batch: int
    missing_bytes: int
    reason: str


def devices_that_fit(study: Study, *, batch: int = 1, tp: int = 1) -> tuple[DeviceAnswer, ...]:
    """The whole catalog: the smallest devices that hold `batch` requests first, then the rest, nearest first."""
    from calc.sources.catalog import devices

    check_count("batch", batch)
    costs = _one(study, tp)
    answers = [
        _device_answer(costs, entry.id, entry.name, entry.memory_bytes, study.context, batch)
        for entry in devices().values()
    ]
    return tuple(sorted(answers, key=lambda a: (not a.fits, a.memory_bytes if a.fits else -a.memory_bytes, a.id)))


def _device_answer(costs: RankCosts, id_: str, name: str, memory: int, context: int, batch: int) -> DeviceAnswer:
    most, missing = costs.max_batch(memory, context), costs.missing_bytes(memory, context, batch)
    fits = most >= batch
    return DeviceAnswer(
        id=id_,
        name=name,
        memory_bytes=memory,
        fits=fits,
        max_batch=most,
        missing_bytes=missing,
        reason=_device_reason(costs, memory, context, batch, fits=fits, missing=missing),
    )


def _device_reason(costs: RankCosts, memory: int, context: int, batch: int, *, fits: bool, missing: int) -> str:
    if not costs.runnable:
        return str(costs.problem)
    if fits:
        return f"{format_decimal(_free(costs, memory, context, batch))} stay free"
    over = costs.weight_bytes - memory
    if over > 0:
        return f"the weights alone exceed it by {format_decimal(over)}"
    return f"{format_decimal(missing)} are missing for {_requests(batch)}"


def _requests(n: int) -> str:
    return "one request" if n == 1 else f"{n:,} requests"


# Formats


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatAnswer:
    """A way to store weights and cache; `largest_context` of the batch that was asked for."""

    weight_format: str
    kv_format: str
    fits: bool
    max_batch: int
    missing_bytes: int
    largest_context: int | None


def formats_that_fit(study: Study, *, batch: int = 1, tp: int = 1) -> tuple[FormatAnswer, ...]:
    """Every way to store weights and cache: what fits first, then the least changed, then the most bytes."""
    check_count("batch", batch)
    weights = {f: _one(replace(study, weight_format=f), tp) for f in _offered(WEIGHT_FORMATS, study.weight_format)}
    caches = {f: _one(replace(study, kv_format=f), tp) for f in _offered(CACHE_FORMATS, study.kv_format)}
    found = []
    for weight, held in weights.items():
        for cache, kept in caches.items():
            costs = replace(kept, weight_num=held.weight_num, weight_den=held.weight_den)
            changed = (weight != study.weight_format) + (cache != study.kv_format)
            size = weight.bytes_per_element + cache.bytes_per_element
            found.append((changed, -size, _format_answer(study, costs, weight, cache, batch)))
    found.sort(key=lambda item: (not item[2].fits, *item[:2]))
    return tuple(answer for _, _, answer in found)


def _offered(names: Sequence[str], own: StorageFormat) -> list[StorageFormat]:
    """Formats by name, the study's own among them."""
    known = [FORMATS[name] for name in names]
    return known if own in known else [own, *known]


def _format_answer(
    study: Study, costs: RankCosts, weight: StorageFormat, cache: StorageFormat, batch: int
) -> FormatAnswer:
    memory = study.device.memory_bytes
    most = costs.max_batch(memory, study.context)
    longest = costs.largest_context(memory, batch, study.model.max_context or MAX_COUNT) if costs.runnable else 0
    return FormatAnswer(
        weight_format=weight.name,
        kv_format=cache.name,
        fits=most >= batch,
        max_batch=most,
        missing_bytes=costs.missing_bytes(memory, study.context, batch),
        largest_context=longest or None,
    )


# Advice


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One change that makes it fit by itself: a sentence, and the words that say it on the command line."""

    change: str
    text: str
    options: tuple[str, ...]


def _asked(study: Study, tp: int) -> Study:
    """`study` itself; on one device the policies agree, and the equal split is the one that rounds as reports do."""
    return replace(study, policy=Policy.EQUAL_SPLIT) if tp == 1 else study


def missing_bytes(report: MemoryReport, *, batch: int = 1, tp: int = 1) -> int:
    """Bytes that a device lacks for its part of the weights and of `batch` requests; 0 where they fit."""
    study = _asked(report.study, tp)
    return _one(study, tp).missing_bytes(study.device.memory_bytes, study.context, batch)


def shortage(report: MemoryReport, *, batch: int = 1, tp: int = 1) -> str:
    """What a device lacks for `batch` requests and what takes the most of it, in a sentence; "" if they fit."""
    study = _asked(report.study, tp)
    costs = _one(study, tp)
    lacking = costs.missing_bytes(study.device.memory_bytes, study.context, batch)
    if not lacking:
        return ""
    parts = {
        "the weights": costs.weight_bytes,
        "the cache": _up(batch * costs.kv_bytes(study.context)),
        "the recurrent state": batch * costs.state_bytes,
    }
    largest = max(parts, key=lambda name: parts[name])
    return (
        f"{format_bytes(lacking)} are missing for {_requests(batch)}; most of the memory goes to {largest}, "
        f"{format_decimal(parts[largest])}."
    )


def advice(report: MemoryReport, *, batch: int = 1, tp: int = 1) -> tuple[Advice, ...]:
    """What to change so that `batch` requests fit on `tp` devices, each by itself; () if they fit.

    The part that weighs most comes first: smaller weights before a smaller cache, or the other way about.
    """
    if not missing_bytes(report, batch=batch, tp=tp):
        return ()
    study = _asked(report.study, tp)
    most = largest_batch(study, tp=tp)
    return advised(
        study,
        batch,
        formats=formats_that_fit(study, batch=batch, tp=tp),
        context=largest_context(study, batch=batch, tp=tp),
        most=most.batch,
        devices=fewest_devices(study, batch=batch, most=64),
        device=devices_that_fit(study, batch=batch, tp=tp),
        heavy=most.weight_bytes >= batch * (most.kv_bytes_per_request + most.state_bytes),
    )


def advised(
    study: Study,
    batch: int,
    *,
    formats: Sequence[FormatAnswer],
    context: ContextAnswer,
    most: int,
    devices: DevicesAnswer,
    device: Sequence[DeviceAnswer],
    heavy: bool,
) -> tuple[Advice, ...]:
    """The changes that these answers offer; those of the weights first where they are what is `heavy`."""
    cache = [*_format_advice(study, formats, "kv"), *_context_advice(context), *_batch_advice(most, batch)]
    weights = _format_advice(study, formats, "weight")
    more = [*_devices_advice(devices), *_device_advice(device)]
    return tuple([*weights, *cache, *more] if heavy else [*cache, *weights, *more])


def _format_advice(study: Study, formats: Sequence[FormatAnswer], kind: str) -> list[Advice]:
    """The storage with the most bytes that makes it fit by itself."""
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


def _device_advice(answers: Sequence[DeviceAnswer]) -> list[Advice]:
    best = answers[0]
    if not best.fits:
        return []
    text = f"Use {best.name} ({format_decimal(best.memory_bytes)}): {_fitting(best.max_batch)}."
    return [Advice(change="device", text=text, options=("--device", best.id))]
