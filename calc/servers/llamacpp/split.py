"""The split between devices and host that fits: as many layers on devices as there is room for, experts last of all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from calc.model.study import Study
from calc.servers.llamacpp.builds import HOST_EXPERTS, build_of
from calc.servers.llamacpp.report import llamacpp_report
from calc.servers.records import ServerOptions, ServerReport


def largest_split(study: Study, options: ServerOptions) -> ServerReport | None:
    """The largest ``--n-gpu-layers``, or the smallest ``--n-cpu-moe`` of a model with experts, that fits.

    Experts go to the host before whole layers do: a token goes through few of them. None where no split fits.
    """
    n_layers = study.model.n_layers
    whole = replace(options, n_gpu_layers=None, n_cpu_moe=0)
    sparse = any(part.kind == "experts" for layer in study.model.groups for part in layer.feed_forwards)
    if sparse and build_of(options.version) >= HOST_EXPERTS:
        moved = _least(n_layers, lambda n: llamacpp_report(study, replace(whole, n_cpu_moe=n)))
        if moved is not None:
            return moved
        whole = replace(whole, n_cpu_moe=n_layers)
    return _least(n_layers + 1, lambda n: llamacpp_report(study, replace(whole, n_gpu_layers=n_layers + 1 - n)))


def _least(most: int, made: Callable[[int], ServerReport]) -> ServerReport | None:
    """The report of the smallest number up to `most` that fits; a larger one never takes more on devices.

    But for the copies of what is on the host: where it is not all on devices any more, a buffer grows.
    """
    if (report := made(0)).fits:
        return report
    low, high = 0, most
    if not (report := made(high)).fits:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if (tried := made(middle)).fits:
            high, report = middle, tried
        else:
            low = middle
    return report
