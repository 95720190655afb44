"""The estimate for a state's load, as from ``kvscope estimate``, through the command's own parser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from calc.commands.estimate_options import as_run, asked_from, estimate_parser
from calc.commands.frontier import Row, judged
from calc.errors import CalcError
from calc.model.study import Policy, Study
from calc.speed.asked import Asked
from calc.speed.estimate import Estimate, estimate
from calc.speed.room import room_of
from tui.form.command_line import study_options
from tui.form.server import model_facts
from tui.form.serving import Serving, serving_words

if TYPE_CHECKING:
    from tui.form.state import AppState


@dataclass(frozen=True, kw_only=True)
class EstimateAnswer:
    """The study as the engine runs it, the question, and the answer; `problem` says why there is none."""

    study: Study
    serving: Serving
    asked: Asked | None = None
    row: Row | None = None
    problem: str = ""

    @property
    def limits(self) -> Mapping[str, float] | None:
        """Limits in seconds by name; None if there are none."""
        return dict(self.serving.limits) or None

    @property
    def estimate(self) -> Estimate | None:
        """The estimate itself."""
        return None if self.row is None else self.row.answer


def estimate_answer(state: AppState) -> EstimateAnswer:
    """The answer for the state's load, as from ``kvscope estimate``. Never raises CalcError."""
    serving = state.serving
    empty = EstimateAnswer(study=state.study, serving=serving)
    try:
        study, asked = served(state)
        answer = estimate(study, asked, room_of(study, asked))
    except CalcError as error:
        return replace(empty, problem=f"{error}.")
    found = replace(empty, study=study, asked=asked)
    return replace(found, row=judged(answer, found.limits, serving.price))


def served(state: AppState) -> tuple[Study, Asked]:
    """The study of `state` as the engine runs it, and the question. Raises CalcError."""
    asked = asked_of(state.serving)
    model = state.study.model
    asked = replace(asked, facts=model_facts(model.source, model.name))
    study = replace(state.study, context=asked.context, tps=(asked.tp,), policy=Policy.REPLICATED)
    words = study_options(state.study)
    given = {
        "weights_given": any(word.startswith("--weight-") for word in words),
        "cache_given": any(word.startswith("--kv-") for word in words),
    }
    return as_run(study, asked, **given), asked


@lru_cache(maxsize=16)
def asked_of(serving: Serving) -> Asked:
    """The question of `serving`, read by the command's own parser. Raises SpecError."""
    return asked_from(estimate_parser("kvscope estimate").parse_args(serving_words(serving)))
