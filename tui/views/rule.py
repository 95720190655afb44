"""The rule by which a state counts: the study's own policy, or the server that was chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from calc.fit.admission import Costs
from calc.fit.rules import costs_of
from calc.fit.solve import GridRow, batch_grid
from calc.model.study import Policy, Study

if TYPE_CHECKING:
    from collections.abc import Sequence

    from calc.servers.records import ServerOptions
    from tui.form.state import AppState


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A study, and the server that counts it; None for the study's own policy."""

    study: Study
    server: ServerOptions | None = None

    @property
    def name(self) -> str:
        """Its name in titles: ``equal split``, ``whole heads``, ``vLLM``."""
        if self.server is None:
            return "equal split" if self.study.policy is Policy.EQUAL_SPLIT else "whole heads"
        from tui.views.server import NAMES

        return NAMES[self.server.engine]

    @property
    def tp(self) -> int:
        """The TP of the server, else the first that the study asks for."""
        return self.study.tps[0] if self.server is None else self.server.tp

    @property
    def tps(self) -> tuple[int, ...]:
        """The study's degrees, or the server's own, because each costs a report."""
        return self.study.tps if self.server is None else (self.server.tp,)

    def costs(self, tp: int) -> Costs:
        """What the devices of `tp` hold and admit. Raises SpecError."""
        return costs_of(self.study, tp, self.server)

    def grid(self, tps: Sequence[int], contexts: Sequence[int]) -> tuple[GridRow, ...]:
        """The largest batch by TP and context."""
        return batch_grid(self.study, tps, contexts, self.server)


def rule_of(state: AppState) -> Rule:
    """The rule of `state`, with what is known about the model that its server would load."""
    if state.server is None:
        return Rule(study=state.study)
    from tui.form.server import known_options

    return Rule(study=state.study, server=known_options(state.study, state.server))
