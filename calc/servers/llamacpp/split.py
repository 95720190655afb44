"""The split between devices and host that fits: as many layers on devices as possible, with experts last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from calc.model.study import Study
from calc.servers.llamacpp.builds import HOST_EXPERTS, build_of
from calc.servers.llamacpp.report import llamacpp_report
from calc.servers.records import ServerOptions, ServerReport


def largest_split(study: Study, options: ServerOptions) -> ServerReport | None:
    """The largest ``--n-gpu-layers`` that fits, or for a model with experts the smallest ``--n-cpu-moe``.

    Experts go to the host before whole layers: a token uses few of them. None if no split fits.
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
    """The report for the smallest number up to `most` that fits; a larger number never needs more on devices.

    The exception is copies of what is on the host: a buffer grows as soon as not everything is on devices.
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
