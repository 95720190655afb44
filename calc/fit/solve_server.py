"""`calc.fit.solve`'s questions put to a server: what vLLM, SGLang, transformers or llama.cpp would really admit.

The same answers, from the server's own pool, blocks and overheads (`calc.servers`) instead of weights and cache alone.
Contexts are found by halving: a longer one never admits more requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import floor

from calc.errors import SpecError
from calc.fit.memory import tp_problem
from calc.fit.solve import (
    Advice,
    BatchAnswer,
    ContextAnswer,
    DeviceAnswer,
    DevicesAnswer,
    FormatAnswer,
    Plan,
    advised,
)
from calc.model.spec import MAX_COUNT, Study, check_count
from calc.model.storage import FORMATS
from calc.servers.records import ServerOptions, ServerReport
from calc.servers.report import server_report
from calc.units import format_bytes, format_decimal

WEIGHT_FORMATS: Mapping[str, tuple[str, ...]] = {
    "vllm": ("bf16", "fp8", "mxfp4", "nvfp4", "int4"),
    "sglang": ("bf16", "fp8", "mxfp4", "nvfp4", "int4"),
    "transformers": ("fp32", "bf16", "int8", "int4"),
    "llamacpp": ("bf16", "q8_0", "q6_k", "q5_k", "q4_k", "q4_0"),
}
CACHE_FORMATS: Mapping[str, tuple[str, ...]] = {
    "vllm": ("bf16", "fp8"),
    "sglang": ("bf16", "fp8"),
    "transformers": ("bf16",),
    "llamacpp": ("bf16", "q8_0", "q5_0", "q4_0"),
}
"""What each loads and keeps without a change of its code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What a server admits of a study: whole requests of full length, or why it refuses the study.

    `missing_bytes`: what the pool of the GPU that binds lacks for the batch that was asked for.
    """

    batch: int
    missing_bytes: int
    report: ServerReport | None
    problem: str | None

    @property
    def weight_bytes(self) -> int:
        """Weights of a GPU; 0 where the server refuses."""
        return 0 if self.report is None else self.report.weight_bytes_per_gpu


def admission(study: Study, options: ServerOptions, *, batch: int = 1) -> Admission:
    """What the server of `options` makes of `study`."""
    try:
        report = server_report(study, options)
    except SpecError as error:
        return Admission(batch=0, missing_bytes=0, report=None, problem=str(error))
    most = floor(report.max_concurrency + 1e-9)
    missing = 0 if most >= batch else max(1, batch * report.kv_request_bytes - report.kv_pool_bytes)
    return Admission(batch=most, missing_bytes=missing, report=report, problem=None)


def largest_context(study: Study, options: ServerOptions, *, batch: int = 1) -> ContextAnswer:
    """The longest context at which the server admits `batch` requests at once."""
    check_count("batch", batch)
    made_for = study.model.max_context
    low, high = 0, MAX_COUNT + 1
    while high - low > 1:
        middle = (low + high) // 2
        fits = admission(replace(study, context=middle), options, batch=batch).batch >= batch
        low, high = (middle, high) if fits else (low, middle)
    unbounded = low == MAX_COUNT
    context = made_for if unbounded and made_for else low
    at = admission(replace(study, context=context or 1), options, batch=batch)
    return ContextAnswer(
        context=context or None,
        unbounded=unbounded,
        beyond_model=bool(made_for) and context > (made_for or 0),
        missing_bytes=0 if context else at.missing_bytes,
        weight_bytes=at.weight_bytes,
        kv_bytes=at.report.kv_request_bytes if at.report and context else 0,
        free_bytes=max(0, _free(at, batch)) if context else _pool(at),
        problem=at.problem,
    )


def largest_batch(study: Study, options: ServerOptions) -> BatchAnswer:
    """Requests of the study's context that the server admits at once."""
    at = admission(study, options)
    return BatchAnswer(
        batch=at.batch,
        fits=at.batch > 0,
        missing_bytes=at.missing_bytes,
        weight_bytes=at.weight_bytes,
        kv_bytes_per_request=at.report.kv_request_bytes if at.report else 0,
        state_bytes=0,
        free_bytes=_free(at, at.batch),
        problem=at.problem,
    )


def _pool(at: Admission) -> int:
    return at.report.kv_pool_bytes if at.report else 0


def _free(at: Admission, batch: int) -> int:
    """Bytes of the pool that `batch` requests leave, parts of blocks aside."""
    return _pool(at) - batch * at.report.kv_request_bytes if at.report else 0


def fewest_devices(study: Study, options: ServerOptions, *, batch: int = 1, most: int = 1024) -> DevicesAnswer:
    """For each TP the fewest pipeline stages with which the server admits `batch` requests; fewest devices first."""
    check_count("batch", batch)
    plans, missing = list[Plan](), list[int]()
    for tp in range(1, min(most, study.model.n_heads) + 1):
        if study.model.n_heads % tp == 0 and tp_problem(study.model, tp) is None:
            plans.extend(_fitting_plan(study, options, tp, batch, most // tp, missing))
    plans.sort(key=lambda plan: (plan.devices, -plan.max_batch, plan.pp))
    return DevicesAnswer(
        devices=plans[0].devices if plans else None,
        plans=tuple(plans),
        equal_split=None,
        missing_bytes=0 if plans else min(missing, default=0),
    )


def _fitting_plan(
    study: Study, options: ServerOptions, tp: int, batch: int, most: int, missing: list[int]
) -> Iterator[Plan]:
    """The plan of `tp` with the fewest stages, at most `most`, if there is one; else what the most stages lack."""
    last = min(study.model.n_layers, most)
    best = admission(study, replace(options, tp=tp, pp=last), batch=batch)
    if best.problem is None and best.batch < batch:
        missing.append(best.missing_bytes)
    for pp in range(_least_stages(study, options, tp), last + 1):
        at = admission(study, replace(options, tp=tp, pp=pp), batch=batch)
        if at.problem is not None:
            return
        if at.batch >= batch:
            yield Plan(tp=tp, pp=pp, devices=tp * pp, max_batch=at.batch, weight_bytes=at.weight_bytes, binding_stage=0)
            return


def _least_stages(study: Study, options: ServerOptions, tp: int) -> int:
    """Stages below which the weights alone exceed the devices."""
    whole = admission(study, replace(options, tp=tp, pp=1))
    return max(1, -(-whole.weight_bytes // study.device.memory_bytes))


def devices_that_fit(study: Study, options: ServerOptions, *, batch: int = 1) -> tuple[DeviceAnswer, ...]:
    """The whole catalog: the smallest devices with which the server admits `batch` requests first."""
    from calc.sources.catalog import devices

    check_count("batch", batch)
    answers = []
    for entry in devices().values():
        at = admission(replace(study, device=entry.spec), options, batch=batch)
        answers.append(
            DeviceAnswer(
                id=entry.id,
                name=entry.name,
                memory_bytes=entry.memory_bytes,
                fits=at.batch >= batch,
                max_batch=at.batch,
                missing_bytes=at.missing_bytes,
                reason=_reason(at, batch),
            )
        )
    return tuple(sorted(answers, key=lambda a: (not a.fits, a.memory_bytes if a.fits else -a.memory_bytes, a.id)))


def _reason(at: Admission, batch: int) -> str:
    if at.problem is not None:
        return at.problem
    if at.batch >= batch:
        return f"{format_decimal(_free(at, batch))} of the pool stay free"
    if _pool(at) <= 0:
        return f"does not start: {format_decimal(-_pool(at))} are missing before any cache"
    requests = "one request" if batch == 1 else f"{batch:,} requests"
    return f"{format_decimal(at.missing_bytes)} of the pool are missing for {requests}"


def formats_that_fit(study: Study, options: ServerOptions, *, batch: int = 1) -> tuple[FormatAnswer, ...]:
    """The ways to store weights and cache that the server knows: what fits first, the least changed, the most bytes."""
    check_count("batch", batch)
    found = []
    for weight in dict.fromkeys([study.weight_format, *(FORMATS[n] for n in WEIGHT_FORMATS[options.engine])]):
        for cache in dict.fromkeys([study.kv_format, *(FORMATS[n] for n in CACHE_FORMATS[options.engine])]):
            stored = replace(study, weight_format=weight, kv_format=cache)
            at = admission(stored, options, batch=batch)
            longest = largest_context(stored, options, batch=batch).context
            changed = (weight != study.weight_format) + (cache != study.kv_format)
            size = weight.bytes_per_element + cache.bytes_per_element
            answer = FormatAnswer(
                weight_format=weight.name,
                kv_format=cache.name,
                fits=at.batch >= batch,
                max_batch=at.batch,
                missing_bytes=at.missing_bytes,
                largest_context=longest and min(longest, study.model.max_context or longest),
            )
            found.append((not answer.fits, changed, -size, answer))
    found.sort(key=lambda item: item[:3])
    return tuple(answer for *_, answer in found)


def shortage(study: Study, options: ServerOptions, *, batch: int = 1) -> str:
    """What a GPU lacks for `batch` requests, in a sentence; "" if the server admits them."""
    at = admission(study, options, batch=batch)
    if at.problem is not None:
        return f"{at.problem[0].upper()}{at.problem[1:]}."
    if at.batch >= batch:
        return ""
    requests = "one request" if batch == 1 else f"{batch:,} requests"
    start = "; it does not even start" if _pool(at) <= 0 else ""
    return f"{format_bytes(at.missing_bytes)} a GPU are missing in the cache pool for {requests}{start}."


def advice(study: Study, options: ServerOptions, *, batch: int = 1) -> tuple[Advice, ...]:
    """What to change so that the server admits `batch` requests, each by itself; () if it does."""
    at = admission(study, options, batch=batch)
    if at.batch >= batch:
        return ()
    request = at.report.kv_request_bytes if at.report else 0
    return advised(
        study,
        batch,
        formats=formats_that_fit(study, options, batch=batch),
        context=largest_context(study, options, batch=batch),
        most=at.batch,
        devices=fewest_devices(study, options, batch=batch, most=64),
        device=devices_that_fit(study, options, batch=batch),
        heavy=at.weight_bytes >= batch * request,
    )
