"""What a server admits of a study: the pool, blocks and overheads of vLLM, SGLang, transformers or llama.cpp."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor

from calc.errors import SpecError
from calc.explain.terms import Term
from calc.fit.admission import Admission, offered
from calc.model.storage import StorageFormat
from calc.model.study import DeviceSpec, Study
from calc.servers.records import ServerOptions
from calc.servers.refusals import pool_refusal, runs_on
from calc.servers.report import server_report
from calc.servers.serving import fp8_refusal
from calc.units import format_bytes, format_decimal, requests

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
"""Formats that each server loads and caches without a change of its code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCosts:
    """How the server of `options` runs `study`: the number of full-length requests, or why it refuses.

    Bytes are those of the limiting GPU: missing and free bytes are counted in its cache pool, without partial blocks.
    Only memory is checked, not whether the context is within the model's limit.
    """

    study: Study
    options: ServerOptions

    @property
    def fewer_never_fit(self) -> bool:
        """False: a server's overheads change with the number of stages."""
        return False

    @property
    def rule(self) -> str:
        """The server's name."""
        return f"as {self.options.engine} counts"

    @property
    def any_degree(self) -> bool:
        """llama.cpp's devices share layers."""
        return self.options.engine == "llamacpp"

    def runs_on(self, device: DeviceSpec) -> bool:
        """By the device's maker and generation."""
        return runs_on(self.options.engine, device)

    def admission(self, context: int | None = None, batch: int | None = None) -> Admission:
        """By the server's own report."""
        study = self.study if context is None else replace(self.study, context=context)
        return _admission(study, self.options, batch)

    def steps(self, at: Admission, context: int) -> tuple[Term, ...]:
        """The steps of the server's report."""
        return at.steps

    def admits(self, context: int, batch: int) -> bool:
        """Whether the server admits them at once."""
        return self.admission(context, batch).batch >= batch

    def on(self, device: DeviceSpec) -> ServerCosts:
        """The same server on another device, or on as many of it as share the model."""
        return replace(self, study=replace(self.study, device=device), options=_alike(self.options))

    def stored(self, weights: StorageFormat, cache: StorageFormat) -> ServerCosts:
        """The same server with other storage formats."""
        return replace(self, study=replace(self.study, weight_format=weights, kv_format=cache))

    def offered_formats(self) -> tuple[Sequence[StorageFormat], Sequence[StorageFormat]]:
        """The formats that the server loads."""
        engine, study = self.options.engine, self.study
        return offered(WEIGHT_FORMATS[engine], study.weight_format), offered(CACHE_FORMATS[engine], study.kv_format)

    def shared(self, tp: int, pp: int, batch: int) -> Admission:
        """The same server with other degrees of parallelism."""
        return _admission(self.study, replace(_alike(self.options), tp=tp, pp=pp), batch)

    def least_stages(self, tp: int, batch: int) -> int:
        """Stages below which the weights alone exceed the devices."""
        whole = self.shared(tp, 1, batch)
        return max(1, -(-whole.weight_bytes // self.study.device.memory_bytes))

    def equal_split_devices(self, batch: int, most: int) -> int | None:
        """None: servers divide in whole heads and layers."""
        return None

    def reason(self, at: Admission, batch: int) -> str:
        """For a device: why it cannot be used, what is left free in the pool, or what is missing."""
        if at.problem is not None:
            return at.problem
        if at.batch >= batch:
            return f"{format_decimal(at.free_bytes)} free in the pool"
        if at.free_bytes <= 0:
            return f"does not start: {format_decimal(-at.free_bytes)} are missing before any cache"
        return f"{requests(batch)} would need {format_decimal(at.missing_bytes)} more in the pool"

    def shortage(self, batch: int) -> str:
        """What is missing in the pool."""
        at = self.admission(batch=batch)
        if at.problem is not None:
            return f"{at.problem[0].upper()}{at.problem[1:]}."
        if at.batch >= batch:
            return ""
        start = "; it does not even start" if at.free_bytes <= 0 else ""
        return f"{format_bytes(at.missing_bytes)} per GPU are missing in the cache pool for {requests(batch)}{start}."


def _alike(options: ServerOptions) -> ServerOptions:
    """`options` for equal devices: without named different devices and their shares."""
    return replace(options, devices=(), tensor_split=())


def _admission(study: Study, options: ServerOptions, batch: int | None) -> Admission:
    try:
        report = server_report(study, options)
    except SpecError as error:
        return Admission(batch=0, missing_bytes=0, problem=str(error), runnable=False)
    if problem := pool_refusal(report) or fp8_refusal(report.study, options):
        return Admission(batch=0, missing_bytes=0, problem=problem, runnable=False)
    most, each, pool = floor(report.max_concurrency + 1e-9), report.kv_request_bytes, report.cache_room_bytes
    asked = most or 1 if batch is None else batch
    return Admission(
        batch=most,
        missing_bytes=0 if most >= asked else max(1, asked * each - pool),
        weight_bytes=report.weight_bytes_per_gpu,
        kv_bytes=each,
        free_bytes=pool - asked * each if most >= asked else pool,
        steps=report.steps[::-1],
    )
