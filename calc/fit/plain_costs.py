"""What devices admit where weights and cache alone are counted, as `calc.fit.memory` and `calc.fit.parallel` do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from calc.fit.admission import Admission, offered
from calc.fit.costs import RankCosts, rank_costs
from calc.fit.memory import batch_term
from calc.model.storage import StorageFormat
from calc.model.study import DeviceSpec, Policy, Study
from calc.units import format_bytes, format_decimal, requests, rounded_up, whole

if TYPE_CHECKING:
    from calc.explain.terms import Term
    from calc.fit.parallel import ParallelPlan

WEIGHT_FORMATS = ("fp32", "bf16", "fp8", "q8_0", "q6_k", "q5_k", "q4_1", "q4_k", "nvfp4", "mxfp4", "int4")
CACHE_FORMATS = ("fp32", "bf16", "q8_0", "fp8", "q5_0", "nvfp4", "q4_0", "int4")
"""Formats in which servers store weights and caches, without those of equal size (fp16, int8)."""
LEAST_OVERHEAD_BYTES = 2**29
"""A CUDA context with its kernels: what every server needs besides weights and cache."""
DIVISORS = 64
"""Degrees above the mean load that are tried for the equal split; rounding a state up adds at most one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainCosts:
    """Weights and cache only, under the study's policy. `rank` is what one of the devices holds.

    `ranks` caches the costs of other formats: each is computed once.
    """

    study: Study
    rank: RankCosts
    ranks: dict[tuple[StorageFormat, StorageFormat], RankCosts] = field(default_factory=dict, compare=False, repr=False)

    @property
    def fewer_never_fit(self) -> bool:
        """True for a model whose layers are all alike: a stage with fewer layers never holds more."""
        return len(self.study.model.groups) == 1

    @property
    def rule(self) -> str:
        """True for every plain policy."""
        return "weights and cache alone"

    @property
    def any_degree(self) -> bool:
        """Devices share heads, not layers."""
        return False

    def runs_on(self, device: DeviceSpec) -> bool:
        """True: no particular server is meant."""
        return True

    def admission(self, context: int | None = None, batch: int | None = None) -> Admission:
        """By the formulas of `calc.fit.memory`, as functions of the context."""
        rank, memory = self.rank, self.study.device.memory_bytes
        context = self.study.context if context is None else context
        most = rank.max_batch(memory, context)
        asked = most if batch is None else batch
        return Admission(
            batch=most,
            missing_bytes=rank.missing_bytes(memory, context, asked or 1),
            weight_bytes=rank.weight_bytes,
            kv_bytes=rounded_up(rank.kv_bytes(context)),
            state_bytes=rank.state_bytes,
            free_bytes=rank.free_bytes(memory, context, asked if asked <= most else 0),
            problem=rank.problem,
            runnable=rank.runnable,
        )

    def steps(self, at: Admission, context: int) -> tuple[Term, ...]:
        """The step of `calc.fit.memory`'s table."""
        weights = whole(Fraction(self.rank.weight_num, self.rank.weight_den))
        return (batch_term(self.study, weights, whole(self.rank.kv_bytes(context)), at.state_bytes),)

    def admits(self, context: int, batch: int) -> bool:
        """Whether they fit, and the rule divides the model so."""
        return self.rank.runnable and not self.rank.missing_bytes(self.study.device.memory_bytes, context, batch)

    def on(self, device: DeviceSpec) -> PlainCosts:
        """A rank holds the same on every device."""
        return replace(self, study=replace(self.study, device=device))

    def stored(self, weights: StorageFormat, cache: StorageFormat) -> PlainCosts:
        """Weights of one format beside caches of another: neither depends on the other."""
        held = self._rank_of(replace(self.study, weight_format=weights))
        kept = self._rank_of(replace(self.study, kv_format=cache))
        rank = replace(kept, weight_num=held.weight_num, weight_den=held.weight_den)
        return replace(self, study=replace(self.study, weight_format=weights, kv_format=cache), rank=rank)

    def _rank_of(self, study: Study) -> RankCosts:
        key = study.weight_format, study.kv_format
        if key not in self.ranks:
            self.ranks[key] = _rank(study, self.rank.tp)
        return self.ranks[key]

    def offered_formats(self) -> tuple[Sequence[StorageFormat], Sequence[StorageFormat]]:
        """The formats that at least one server supports."""
        return offered(WEIGHT_FORMATS, self.study.weight_format), offered(CACHE_FORMATS, self.study.kv_format)

    def shared(self, tp: int, pp: int, batch: int) -> Admission:
        """As planned by `calc.fit.parallel`, in whole heads and layers."""
        loads, found = self._loads(tp, pp, batch)
        binding, memory = found.stages[found.binding], self.study.device.memory_bytes
        return Admission(
            batch=found.max_batch,
            missing_bytes=max(0, rounded_up(max(loads) - memory)),
            weight_bytes=binding.weight_bytes,
            stage=found.binding + 1,
        )

    def least_stages(self, tp: int, batch: int) -> int:
        """All stages together hold the whole model, so start at the mean load."""
        loads, _ = self._loads(tp, 1, batch)
        return max(1, rounded_up(sum(loads, Fraction(0)) / self.study.device.memory_bytes))

    def _loads(self, tp: int, pp: int, batch: int) -> tuple[list[Fraction], ParallelPlan]:
        """Bytes on the devices of each stage with `batch` requests."""
        from calc.fit.degrees import ParallelSpec
        from calc.fit.parallel import plan

        found = plan(self.study, ParallelSpec(tp=tp, pp=pp))
        loads = [
            Fraction(stage.steps[0].value) + batch * (Fraction(stage.kv_bytes_per_request) + stage.state_bytes)
            for stage in found.stages
        ]
        return loads, found

    def equal_split_devices(self, batch: int, most: int) -> int | None:
        """The fewest devices if weights, caches and states divide evenly."""
        equal = replace(self.study, policy=Policy.EQUAL_SPLIT)
        whole = plain_costs(equal, 1).admission()
        held = whole.weight_bytes + batch * (whole.kv_bytes + whole.state_bytes)
        start = max(1, -(-held // equal.device.memory_bytes))
        tries = range(start, min(start + DIVISORS, most) + 1)
        return next((tp for tp in tries if plain_costs(equal, tp).admission(batch=batch).missing_bytes == 0), None)

    def reason(self, at: Admission, batch: int) -> str:
        """For a device: why it cannot be used, what is left free, or what is missing."""
        if not at.runnable:
            return str(at.problem)
        if at.batch >= batch:
            scarce = ": less than any server needs for itself" if at.free_bytes < LEAST_OVERHEAD_BYTES else ""
            return f"{format_decimal(at.free_bytes)} free{scarce}"
        if at.free_bytes < 0:
            return f"the weights alone exceed it by {format_decimal(-at.free_bytes)}"
        return f"{requests(batch)} would need {format_decimal(at.missing_bytes)} more"

    def shortage(self, batch: int) -> str:
        """What is missing, and what takes the most memory."""
        at = self.admission(batch=batch)
        if not at.missing_bytes:
            return ""
        parts = {
            "the weights": at.weight_bytes,
            "the cache": rounded_up(batch * self.rank.kv_bytes(self.study.context)),
            "the recurrent state": batch * at.state_bytes,
        }
        largest = max(parts, key=lambda name: parts[name])
        return (
            f"{format_bytes(at.missing_bytes)} are missing for {requests(batch)}; the largest part of the memory is "
            f"{largest} ({format_decimal(parts[largest])})."
        )


def plain_costs(study: Study, tp: int = 1) -> PlainCosts:
    """The costs of `study` on `tp` devices, under its own policy."""
    return PlainCosts(study=study, rank=_rank(study, tp))


def _rank(study: Study, tp: int) -> RankCosts:
    (costs,) = rank_costs(study, (tp,))
    return costs
