"""A real server's report on a study, for the policy of the state."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from calc.errors import CalcError
from calc.model.study import Study
from calc.servers.records import ModelFacts, ServerOptions, ServerReport


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAnswer:
    """A server's report; `problem` is the sentence that says why there is none."""

    report: ServerReport | None = None
    problem: str = ""


def server_answer(study: Study, options: ServerOptions) -> ServerAnswer:
    """The report of the server that `options` names, on `study`."""
    from calc.servers.report import server_report
    from calc.servers.serving import as_served

    try:
        known = known_options(study, options)
        given = study.kv_format.name != "bf16"  # the default: replaced by the checkpoint's own format
        return ServerAnswer(report=server_report(as_served(study, known, weights_given=True, cache_given=given), known))
    except CalcError as error:
        return ServerAnswer(problem=str(error))


def known_options(study: Study, options: ServerOptions) -> ServerOptions:
    """`options` with what is known about the model that the server would load."""
    return replace(options, facts=model_facts(study.model.source, study.model.name))


@lru_cache(maxsize=8)
def model_facts(source: str, name: str) -> ModelFacts:
    """What a server loads besides the text model, from the model's config; read once."""
    from calc.servers.facts import facts_of

    return facts_of(source if source.endswith(".json") else None, name)
