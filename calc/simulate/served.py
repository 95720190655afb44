"""What does the server have for the load? Its steps, sequences and blocks, by the model of vLLM's memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

from calc.errors import SpecError
from calc.model.study import Study
from calc.servers.cache_layers import FULL, LATENT
from calc.servers.records import ServerOptions
from calc.servers.report import server_report
from calc.servers.versions import MEASURED_VLLM, VLLM_V1, parse_version
from calc.simulate.blocks import Group
from calc.simulate.scheduler import Server

KEPT_EMPTY = 1
"""vLLM's pool has one block that requests never get (v1/core/block_pool.py: the null block)."""


@dataclass(frozen=True, slots=True)
class Served:
    """The server, or None with the reason if it does not start. `notes` come from its memory report."""

    server: Server | None
    problem: str | None
    version: str
    notes: tuple[str, ...]


def served_by(study: Study, options: ServerOptions, *, longest: int, caching: bool = True) -> Served:
    """vLLM as it serves requests of up to `longest` tokens. Raises SpecError for an engine before V1, and as vLLM does.

    Prefixes can be cache hits if all layers keep the same tokens; windows and states are counted without hits.
    """
    version = options.version or MEASURED_VLLM
    if parse_version(version)[:2] < VLLM_V1:
        raise SpecError("engine_version", f"vLLM {version} has another scheduler: simulate follows V1 (0.8 and later)")
    report = server_report(replace(study, context=longest), options)
    if report.max_num_batched_tokens is None or report.max_num_seqs is None:
        raise SpecError("policy", f"{options.engine} does not say how many tokens and sequences a step has")
    if report.max_num_batched_tokens < report.max_num_seqs:
        raise SpecError(
            "max_num_batched_tokens",
            f"vLLM refuses --max-num-batched-tokens {report.max_num_batched_tokens:,}: it is less than --max-num-seqs "
            f"{report.max_num_seqs:,}",
        )
    groups = tuple(Group(group.block_tokens, group.blocks_per_request) for group in report.groups)
    one_kind = len(report.groups) == 1 and report.groups[0].kind in (FULL, LATENT)
    server = Server(
        step_tokens=report.max_num_batched_tokens,
        sequences=report.max_num_seqs,
        blocks=report.kv_blocks - KEPT_EMPTY,
        groups=groups,
        caching=caching and one_kind,
    )
    problem = report.refusal
    if problem is None and server.blocks_of(longest) > server.blocks:
        problem = f"no request of {longest:,} tokens fits beside the weights"
    return Served(None if problem else server, problem, version, report.assumptions)
