"""How many requests a load has room for: by the server's own account, else by a plain reserve."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import floor

from calc.fit.memory import memory_report
from calc.model.spec import Policy, Study
from calc.servers.refusals import runs_on
from calc.speed.estimate import Asked, Load, Room

RESERVED_SHARE, RESERVED_BYTES = Fraction(9, 10), 2 * 10**9
"""What an engine without an account of its memory here is left with: 90 % of the device less 2 GB."""
COUNTED = ("vllm", "sglang")


def room_of(study: Study, asked: Asked) -> Room:
    """Requests of the asked length at once. At maximum load they are half done in the mean.

    Raises SpecError for a TP that the server refuses.
    """
    tokens = asked.context if asked.load is not Load.MAX else asked.prompt_tokens + asked.new_tokens // 2
    one = replace(study, context=tokens, tps=(asked.tp,))
    most = memory_report(replace(one, context=asked.prompt_tokens, policy=Policy.EQUAL_SPLIT)).tp[0].max_batch
    if not runs_on(asked.engine, study.device):
        return Room(0, most, f"{asked.engine} does not run on {study.device.name}")
    fitting, refusal = _by_server(one, asked) if asked.engine in COUNTED else _by_reserve(one, asked)
    return Room(fitting, most, refusal)


def _by_server(study: Study, asked: Asked) -> tuple[int, str | None]:
    """Requests beside one another, and why the server does not start. It is started for requests of full length."""
    from calc.servers.records import ModelFacts, ServerOptions
    from calc.servers.report import server_report

    options = ServerOptions(engine=asked.engine, version=asked.version, tp=asked.tp, facts=asked.facts or ModelFacts())
    report = server_report(study, options)
    whole = report if study.context == asked.context else server_report(replace(study, context=asked.context), options)
    held = floor(report.max_concurrency)
    return min(held, report.max_num_seqs or held), whole.refusal


def _by_reserve(study: Study, asked: Asked) -> tuple[int, str | None]:
    left = int(study.device.memory_bytes * RESERVED_SHARE) - RESERVED_BYTES
    if left <= 0:
        return 0, None
    device = replace(study.device, memory_bytes=left)
    if asked.engine == "llamacpp":  # divides layers, not heads: any number of devices can share them
        return memory_report(replace(study, device=device, policy=Policy.EQUAL_SPLIT)).tp[0].max_batch, None
    row = memory_report(replace(study, device=device, policy=Policy.REPLICATED)).tp[0]
    return row.max_batch, row.problem
