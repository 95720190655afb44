"""One entry for all servers: what the one named in the options reserves and reports."""

from __future__ import annotations

from calc.model.spec import Study
from calc.servers.records import ServerOptions, ServerReport


def server_report(study: Study, options: ServerOptions) -> ServerReport:
    """The report of `options.engine` on `study`. A pool below zero is an answer; SpecError where it would refuse."""
    if options.engine == "vllm":
        from calc.servers.vllm import vllm_report

        return vllm_report(study, options)
    if options.engine == "sglang":
        from calc.servers.sglang import sglang_report

        return sglang_report(study, options)
    from calc.servers.local import llamacpp_report, transformers_report

    return transformers_report(study, options) if options.engine == "transformers" else llamacpp_report(study, options)
