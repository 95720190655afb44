"""How many requests fit into memory: by the server's own memory accounting, else with a plain reserve."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import floor

from calc.errors import SpecError
from calc.fit.memory import memory_report
from calc.model.spec import ModelSpec
from calc.model.study import Policy, Study
from calc.servers.refusals import runs_on
from calc.speed.asked import TITLES, Asked, Load
from calc.speed.estimate import Room
from calc.speed.steps import Steps

RESERVED_SHARE, RESERVED_BYTES = Fraction(9, 10), 2 * 10**9
"""Memory of an engine without a memory model here: 90 % of the device minus 2 GB."""


def room_of(study: Study, asked: Asked) -> Room:
    """Concurrent requests of the given length. At maximum load they are half done on average.

    Raises SpecError if the devices cannot share the model that way with any engine.
    """
    one = replace(_beside_draft(study, asked), context=_tokens(asked), tps=(asked.tp,))
    if not runs_on(asked.engine, study.device):
        return Room(0, 0, f"{TITLES[asked.engine]} does not run on {study.device.name}")
    fitting, refusal = _by_server(one, asked) if by_server(asked) else (_by_reserve(one, asked), None)
    return Room(fitting, _most(one, asked) if asked.load is Load.MAX else fitting, refusal)


def _beside_draft(study: Study, asked: Asked) -> Study:
    """The study on a device that holds the weights of the model that drafts."""
    draft = Steps(study=study, asked=asked).draft
    if draft is None:
        return study
    held = memory_report(replace(draft.study, tps=(1,), policy=Policy.EQUAL_SPLIT)).weight_bytes // asked.devices
    return replace(study, device=replace(study.device, memory_bytes=max(1, study.device.memory_bytes - held)))


def reserved_room(study: Study, asked: Asked) -> Room:
    """The same with a plain reserve instead of the engine's own accounting, on any device."""
    one = replace(study, context=_tokens(asked), tps=(asked.tp,))
    return Room(_by_reserve(one, asked), _most(one, asked))


def _tokens(asked: Asked) -> int:
    """Tokens of memory per request: all of its tokens, or at maximum load those of a request that is half done.

    TensorRT-LLM starts a request only when all of its tokens fit (GUARANTEED_NO_EVICT, its default).
    """
    half_done = asked.load is Load.MAX and asked.engine != "trtllm"
    return asked.prompt_tokens + asked.new_tokens // 2 if half_done else asked.context


def by_server(asked: Asked) -> bool:
    """Whether the engine's own memory accounting is known for these devices: vLLM with pipeline stages, SGLang with
    attention groups, transformers, and llama.cpp with all layers on the devices.

    Expert parallelism (whole experts per rank) takes as many bytes per rank as splitting every expert.
    """
    if asked.engine == "vllm":
        return asked.dp_attention == 1
    return asked.engine in ("sglang", "transformers", "llamacpp") and asked.pp == 1


def _most(study: Study, asked: Asked) -> int:
    """Requests that fit if nothing is reserved: the pooled memory of all devices, ignoring how it is divided."""
    memory = study.device.memory_bytes * asked.devices
    device = replace(study.device, memory_bytes=memory)
    whole = replace(study, device=device, context=asked.prompt_tokens, tps=(1,), policy=Policy.EQUAL_SPLIT)
    return memory_report(whole).tp[0].max_batch


def _by_server(study: Study, asked: Asked) -> tuple[int, str | None]:
    """Concurrent requests, and why the server does not start. It is configured for requests of full length."""
    from calc.servers.records import ModelFacts, ServerOptions
    from calc.servers.report import server_report

    check_sharing(study.model, asked)
    options = ServerOptions(
        engine=asked.engine,
        version=asked.version,
        tp=asked.tp,
        pp=asked.pp,
        dp_attention=asked.dp_attention,
        dcp=asked.dcp,
        facts=asked.facts or ModelFacts(),
    )
    report = server_report(study, options)
    whole = report if study.context == asked.context else server_report(replace(study, context=asked.context), options)
    held = floor(report.max_concurrency)
    if report.max_num_seqs is not None and asked.engine != "llamacpp":  # its number of slots is an option
        held = min(held, report.max_num_seqs)
    return held * asked.dp_attention, whole.refusal


def check_sharing(model: ModelSpec, asked: Asked) -> None:
    """Raise SpecError for experts or tokens that the devices cannot share; heads are checked by the servers' rules."""
    if asked.ep == asked.dcp == 1:
        return
    from calc.fit.degrees import ParallelSpec, parallel_problem
    from calc.step.model import mixers

    _refuse(parallel_problem(model, ParallelSpec(tp=asked.tp, ep=asked.ep, dcp=asked.dcp)))
    if asked.dcp > 1 and any(getattr(mixer.attended(), "index_heads", 0) for mixer in mixers(model)):
        raise SpecError("dcp", "--dcp is not supported if an indexer selects the tokens")


def _by_reserve(study: Study, asked: Asked) -> int:
    left = int(study.device.memory_bytes * RESERVED_SHARE) - RESERVED_BYTES
    device = replace(study.device, memory_bytes=max(1, left))
    if asked.devices == asked.tp and asked.ep == asked.dp_attention == 1:
        row = memory_report(replace(study, device=device, policy=Policy.REPLICATED)).tp[0]
        _refuse(row.problem)
        return row.max_batch
    from calc.fit.degrees import ParallelSpec
    from calc.fit.parallel import plan
    from calc.fit.stages import UNLIMITED

    spec = ParallelSpec(tp=asked.tp, pp=asked.pp, ep=asked.ep, dp_attention=asked.dp_attention)
    found = plan(replace(study, device=device), spec)
    _refuse(found.problem)
    return 0 if found.max_batch >= UNLIMITED else found.max_batch


def _refuse(problem: str | None) -> None:
    """Raise SpecError where the devices cannot share the model."""
    if problem is not None:
        raise SpecError("tp", problem)
