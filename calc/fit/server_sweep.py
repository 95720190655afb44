"""A sweep as a server counts: one report per setting and context. Settings that it cannot divide are left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from calc.errors import SpecError
from calc.fit.axes import Axes, as_stored
from calc.model.cache_pair import cache_as
from calc.model.study import Policy, Study
from calc.servers.facts import facts_of
from calc.servers.records import ServerOptions, ServerReport
from calc.servers.report import server_report
from calc.servers.serving import as_served

MOST_REPORTS = 100_000
"""Maximum number of reports in a sweep: a few minutes."""


def server_reports(axes: Axes) -> Iterator[ServerReport]:
    """The report for every setting and context. Raises SpecError if there are too many, or if none can be made."""
    settings = axes.settings * len(axes.contexts)
    if settings > MOST_REPORTS:
        raise SpecError(
            "contexts",
            f"{settings:,} server reports are more than the maximum of {MOST_REPORTS:,}: shorten a list",
        )
    made, refused = False, ""
    for study, options in _studies(axes):
        try:
            report = server_report(study, options)
        except SpecError as error:
            refused = str(error)
            continue
        made = True
        yield report
    if not made:
        raise SpecError("tp", refused)


def _studies(axes: Axes) -> Iterator[tuple[Study, ServerOptions]]:
    """Studies and options in the order of a sweep: models, devices, degrees, formats, contexts."""
    asked = axes.server or ServerOptions()
    paths = {model: model.source if model.source.endswith(".json") else None for model in axes.models}
    facts = {model: facts_of(path, model.name) for model, path in paths.items()}
    ways = product(axes.models, axes.devices, axes.tps, axes.weight_formats, axes.kv_formats, axes.contexts)
    for model, device, tp, weights, cache, context in ways:
        study = Study(model=model, device=device, context=context, policy=Policy.REPLICATED)
        study = as_stored(study if cache is None else replace(study, kv_format=cache_as(cache, model)), weights)
        options = replace(asked, tp=tp, facts=facts[model])
        yield as_served(study, options, weights_given=weights is not None, cache_given=cache is not None), options
