"""Times a loaded model's own operators within a budget: layers of a step and of a prompt, head, linear layers.

Measured in rounds, so that they can take turns with what is predicted. Of a large model some layers are timed, as many
as no cache holds, and stand for all (`engine.measure.own_plan` says what is run); what is not reached within the budget
is left out, the least wanted first.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch

from engine.machine import load_average
from engine.measure.own import BUDGET_S, Needs, OwnTimes, PromptTime, RowsTime, StepTime, TextTime
from engine.measure.own_plan import Plan, Runs, Timed, layer_run
from engine.measure.turns import Turns
from engine.model.decoder import Decoder

FIRST_SHARE = 0.5
"""Of the budget for the first look at everything, by the timer's own clock."""
WALL_TIMES = 3
"""So many times as long at most on the wall, where other processes have the cores."""
ROUNDS = 5
EACH_S = 0.02
"""Of a round for what takes less."""
FLOPS_PER_S = 5e10
"""Of a processor that was not measured, to guess how long a prompt takes."""


@dataclass(slots=True, kw_only=True)
class OwnTimer:
    """One model's measurement. `round` may be called as often as one likes; the first call chooses what is timed."""

    decoder: Decoder
    needs: Needs
    chunk: int | None = None
    flops_per_s: float = FLOPS_PER_S
    clock: Callable[[], float] | None = None
    """Seconds; None: those that this thread has a core, where it alone computes, else those on the wall."""
    wall_times: float = WALL_TIMES
    budget_s: float = BUDGET_S
    took_s: float = 0.0
    plan: Plan = field(init=False)
    turns: Turns[Timed] = field(init=False)
    load: float | None = field(init=False)

    def __post_init__(self) -> None:
        self.plan = Plan(
            decoder=self.decoder, needs=self.needs, chunk=self.chunk, flops_per_s=self.flops_per_s or FLOPS_PER_S
        )
        self.turns, self.load = Turns({}), load_average()

    def round(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Time everything once more; the first time choose what there is time for. Raises Stopped."""
        began = time.perf_counter()
        try:
            with torch.inference_mode():
                if not self.turns.runs:
                    self.turns = Turns(self._chosen(should_stop), clock=self._clock(), warm=True, each_s=EACH_S)
                self.turns.round(should_stop)
        finally:
            self.took_s += time.perf_counter() - began

    def rounds(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        """As many rounds as the budget allows, at least one. Raises Stopped."""
        for _ in range(ROUNDS):
            self.round(should_stop)
            if self.took_s > self.budget_s:
                return

    def times(self) -> OwnTimes | None:
        """What is known so far; None before the first round has ended."""
        if not self.turns.n_rounds:
            return None
        return own_times(self.plan, self.turns, load=self.load, took_s=self.took_s)

    def _chosen(self, should_stop: Callable[[], bool]) -> Runs:
        """Everything that is wanted, in that order, as far as a first run of it leaves time. Raises Stopped."""
        chosen: Runs = {}
        clock = self._clock()
        self.plan = replace(self.plan, layer_s=self._layer_s())
        began, on_the_wall, first_s = clock(), time.perf_counter(), FIRST_SHARE * self.budget_s
        for group in self.plan.groups():
            late = time.perf_counter() - on_the_wall > self.wall_times * first_s or clock() - began > first_s
            if late and chosen and (_prompt_in(chosen) or not self.needs.prompt):
                break
            if late and chosen and not _prompt_in(group):
                continue  # a generation is predicted from a step and a prompt, whatever the budget
            Turns(group).round(should_stop)
            chosen |= group
        return chosen

    def _layer_s(self) -> float:
        """About what a layer of a step takes, run as a layer; 0 where steps are those of the compiled code."""
        if self.decoder.decode_step is not None:
            return 0.0
        one = Turns({"layer": layer_run(self.decoder)}, clock=self._clock())
        for _ in range(3):
            one.round()
        return one.quiet_s("layer")

    def _clock(self) -> Callable[[], float]:
        if self.clock is not None:
            return self.clock
        alone = self.decoder.device.type == "cpu" and torch.get_num_threads() == 1
        return time.thread_time if alone else time.perf_counter


def _prompt_in(runs: Runs) -> bool:
    return any(key.kind == "prompt" for key in runs)


def own_times(plan: Plan, turns: Turns[Timed], *, load: float | None = None, took_s: float = 0.0) -> OwnTimes:
    """The times of the whole model from those of its parts."""
    config, step = plan.decoder.config, plan.decoder.decode_step
    known = list(turns.seconds)
    return OwnTimes(
        compiled=step is not None,
        max_rows=None if step is None else step.max_rows,
        threads=torch.get_num_threads(),
        n_layers=config.n_layers,
        layers_timed=plan.n_timed,
        chunk=plan.chunk,
        steps=tuple(_steps(known, turns, config.n_layers)),
        prompts=tuple(_prompts(known, turns, config.n_layers)),
        linears=tuple(
            RowsTime(rows=key.rows, seconds=turns.quiet_s(key) * config.n_layers / key.n_layers)
            for key in known
            if key.kind == "linears"
        ),
        texts=tuple(
            TextTime(tokens=key.rows, context=key.past, seconds=turns.quiet_s(key))
            for key in known
            if key.kind == "text"
        ),
        heads=tuple(RowsTime(rows=key.rows, seconds=turns.quiet_s(key)) for key in known if key.kind == "fixed"),
        rounds=turns.n_rounds,
        slowdown=turns.slowdown,
        load_average=load,
        took_s=took_s,
    )


def _steps(known: Iterable[Timed], turns: Turns[Timed], n_layers: int) -> Iterable[StepTime]:
    """Whole steps: layers for all layers, and what is no layer."""
    known = list(known)
    for key in known:
        if key.kind == "whole":
            yield StepTime(batch=key.rows, context=key.past, seconds=turns.quiet_s(key))
        if key.kind != "layers":
            continue
        seconds = turns.quiet_s(key) * n_layers / key.n_layers
        fixed = next((k for k in known if (k.kind, k.rows) == ("fixed", key.rows)), None)
        headed = next((k for k in known if (k.kind, k.rows) == ("headed", key.rows)), None)
        if fixed is not None:
            seconds += turns.quiet_s(fixed)
        elif headed is not None:  # the same layers with the head and without
            bare = next(k for k in known if (k.kind, k.rows, k.past) == ("layers", headed.rows, headed.past))
            seconds += max(0.0, turns.quiet_s(headed) - turns.quiet_s(bare))
        yield StepTime(batch=key.rows, context=key.past, seconds=seconds)


def _prompts(known: Iterable[Timed], turns: Turns[Timed], n_layers: int) -> Iterable[PromptTime]:
    known = list(known)
    for key in known:
        if key.kind == "prompt":
            fixed = next(k for k in known if (k.kind, k.rows) == ("prompt-fixed", key.rows))
            seconds = turns.quiet_s(key) * n_layers / key.n_layers + turns.quiet_s(fixed)
            yield PromptTime(tokens=key.rows, past=key.past, seconds=seconds)


TimerOf = Callable[[Decoder, Needs], OwnTimer | None]
"""Gives what times a model's operators; None for one whose operators are not timed."""


def unmeasured(decoder: Decoder) -> str:
    """Why the operators of a model are not timed; empty where they are."""
    return "" if decoder.communication_ns is None else "times of several ranks are not predicted"
