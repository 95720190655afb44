"""How many requests a load has room for: by the server's own account, else by a plain reserve."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import floor

from calc.fit.memory import memory_report
from calc.model.spec import Policy, Study
from calc.speed.estimate import Asked, Load, Room

RESERVED_SHARE, RESERVED_BYTES = Fraction(9, 10), 2 * 10**9
"""What an engine without an account of its memory here is left with: 90 % of the device less 2 GB."""
COUNTED = ("vllm", "sglang")


def room_of(study: Study, asked: Asked) -> Room:
    """Requests of the asked length at once. At maximum load they are half done in the mean. Raises SpecError."""
    tokens = asked.context if asked.load is not Load.MAX else asked.prompt_tokens + asked.new_tokens // 2
    one = replace(study, context=tokens, tps=(asked.tp,))
    fitting = _by_server(one, asked) if asked.engine in COUNTED else _by_reserve(one)
    most = memory_report(replace(one, context=asked.prompt_tokens, policy=Policy.EQUAL_SPLIT)).tp[0].max_batch
    return Room(fitting, most)


def _by_server(study: Study, asked: Asked) -> int:
    from calc.servers.records import ServerOptions
    from calc.servers.report import server_report

    report = server_report(study, ServerOptions(engine=asked.engine, version=asked.version, tp=asked.tp))
    held = floor(report.max_concurrency)
    return min(held, report.max_num_seqs or held)


def _by_reserve(study: Study) -> int:
    left = int(study.device.memory_bytes * RESERVED_SHARE) - RESERVED_BYTES
    if left <= 0:
        return 0
    device = replace(study.device, memory_bytes=left)
    return memory_report(replace(study, device=device, policy=Policy.REPLICATED)).tp[0].max_batch
