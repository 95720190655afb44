"""Which rule counts what devices admit: weights and cache alone, or what a server reserves."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from calc.fit.plain_costs import plain_costs

if TYPE_CHECKING:
    from calc.fit.admission import Costs
    from calc.model.study import Study
    from calc.servers.records import ServerOptions


def costs_of(study: Study, tp: int = 1, server: ServerOptions | None = None) -> Costs:
    """The costs of `study` on `tp` devices, under its own policy or as `server` counts.

    Raises SpecError if the server's other options do not allow this `tp`.
    """
    if server is None:
        return plain_costs(study, tp)
    from calc.fit.server_costs import ServerCosts

    return ServerCosts(study=study, options=replace(server, tp=tp))
