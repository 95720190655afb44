"""One entry for all servers: the report of the server that the options name."""

from __future__ import annotations

from calc.model.spec import Study
from calc.servers.records import ServerOptions, ServerReport


def server_report(study: Study, options: ServerOptions) -> ServerReport:
    """The report of `options.engine` on `study`; a pool below zero is an answer.

    Raises SpecError where the server would refuse.
    """
    if options.engine == "vllm":
        from calc.servers.vllm import vllm_report

        return vllm_report(study, options)
    if options.engine == "sglang":
        from calc.servers.sglang import sglang_report

        return sglang_report(study, options)
    from calc.servers.local import llamacpp_report, transformers_report

    return transformers_report(study, options) if options.engine == "transformers" else llamacpp_report(study, options)
