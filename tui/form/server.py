"""What a real server makes of a study, as the policy of the state names it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from calc.errors import CalcError
from calc.model.study import Study
from calc.servers.records import ModelFacts, ServerOptions, ServerReport


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAnswer:
    """What a server says; `problem` is why there is no report, as a sentence."""

    report: ServerReport | None = None
    problem: str = ""


def server_answer(study: Study, options: ServerOptions) -> ServerAnswer:
    """The report of the server that `options` names, on `study`."""
    from calc.servers.report import server_report
    from calc.servers.serving import as_served

    try:
        known = known_options(study, options)
        given = study.kv_format.name != "bf16"  # the default: the checkpoint's own format takes its place
        return ServerAnswer(report=server_report(as_served(study, known, weights_given=True, cache_given=given), known))
    except CalcError as error:
        return ServerAnswer(problem=str(error))


def known_options(study: Study, options: ServerOptions) -> ServerOptions:
    """`options` with what is known of the model that the server would load."""
    return replace(options, facts=model_facts(study.model.source, study.model.name))


@lru_cache(maxsize=8)
def model_facts(source: str, name: str) -> ModelFacts:
    """What a server loads beside the text model, of the config that the model was read from; read once."""
    from calc.servers.facts import facts_of

    return facts_of(source if source.endswith(".json") else None, name)
