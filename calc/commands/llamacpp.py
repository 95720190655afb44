"""``memory --policy llamacpp``: options for the split between devices and host, and the result."""

from __future__ import annotations

import argparse
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from calc.commands.documents import Document
from calc.commands.options import count, reader, size
from calc.commands.tables import Column, Row, Table
from calc.errors import QuantityError, SpecError
from calc.units import format_count, format_decimal, parse_count

if TYPE_CHECKING:
    from calc.fit.admission import Costs
    from calc.fit.solve import Advice
    from calc.model.study import DeviceSpec, Study
    from calc.servers.records import ServerOptions, ServerReport

HELD = ("weight_bytes", "kv_bytes", "compute_bytes")
ALL = -1
"""``--n-gpu-layers all``."""
SPLIT = "split"
"""The question of ``solve`` what is on the host."""


def layer_count(text: str) -> int:
    """A number of layers (may be 0); ALL for ``all``."""
    if text.strip().lower() == "all":
        return ALL
    return 0 if text.strip() == "0" else parse_count(text, what="a number of layers")


def split_shares(text: str) -> tuple[Fraction, ...]:
    """Shares of the devices: ``3,1``."""
    try:
        shares = tuple(Fraction(part.strip()[:12]) for part in text.split(","))
    except (ValueError, ZeroDivisionError):
        raise QuantityError(f"expected one number per device, such as 3,1, not {text[:40]!r}") from None
    if any(share < 0 for share in shares) or not sum(shares):
        raise QuantityError(f"expected one number per device, none below 0, such as 3,1, not {text[:40]!r}")
    return shares


def add_llamacpp_options(parser: argparse.ArgumentParser) -> None:
    """How llama.cpp divides a model between devices and host."""
    group = parser.add_argument_group("placement, with --policy llamacpp")
    group.add_argument(
        "--n-gpu-layers", type=reader(layer_count), metavar="N|all", help="number of layers on devices, from the top"
    )
    group.add_argument(
        "--n-cpu-moe", type=count, metavar="N", help="number of layers with experts on the host, from the bottom"
    )
    group.add_argument("--kv-on-host", action="store_true", help="keep the cache in host memory (--no-kv-offload)")
    group.add_argument("--tensor-split", type=reader(split_shares), metavar="a,b", help="share of each device")
    group.add_argument("--parallel", type=count, metavar="N", help="slots, each of --context tokens (default 1)")
    group.add_argument("--swa-full", action="store_true", help="window layers cache the whole context")
    group.add_argument("--cache-ram", type=size, metavar="SIZE", help="prompt cache on the host (default 8GiB)")


def placement_options(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of ServerOptions that these options set. Raises SpecError."""
    if args.parallel is not None and args.max_num_seqs is not None and args.parallel != args.max_num_seqs:
        raise SpecError(
            "max_num_seqs", "--parallel and --max-num-seqs both set llama.cpp's slots: give only one of them"
        )
    return {
        "n_gpu_layers": None if args.n_gpu_layers in (None, ALL) else args.n_gpu_layers,
        "n_cpu_moe": args.n_cpu_moe or 0,
        "kv_on_host": args.kv_on_host,
        "tensor_split": args.tensor_split or (),
        "swa_full": args.swa_full,
        "cache_ram_bytes": args.cache_ram,
        "max_num_seqs": args.parallel or args.max_num_seqs,
        "devices": devices_from(args),
    }


def devices_from(args: argparse.Namespace) -> tuple[DeviceSpec, ...]:
    """The devices of ``--device A,B``; () if only one is named. Raises CalcError."""
    from calc.sources.catalog import find_device

    names = [name.strip() for name in (args.device or "").split(",")]
    return tuple(find_device(name) for name in names) if len(names) > 1 else ()


def device_words(study: Study, options: ServerOptions | None) -> str:
    """The device, or the different devices that share the model."""
    unlike = () if options is None else options.devices
    alike = 0 if options is None else len(options.tensor_split)
    several = f"{alike:,} {study.device.name}" if alike > 1 else study.device.name
    return " and ".join(device.name for device in unlike) or several


def placement_document(report: ServerReport) -> Document:
    """What is on each device and on the host, for the "engine" block."""
    if report.host is None:
        return {}
    devices = [
        {
            "name": share.name,
            "weight_bytes": share.weight_bytes,
            "kv_bytes": share.kv_bytes,
            "compute_bytes": share.compute_bytes,
            "free_bytes": share.free_bytes,
        }
        for share in report.devices
    ]
    host = {
        name: getattr(report.host, name) for name in ("weight_bytes", "kv_bytes", "compute_bytes", "prompt_cache_bytes")
    }
    return {"devices": devices, "host": host, "n_gpu_layers": report.n_gpu_layers, "n_cpu_moe": report.n_cpu_moe}


def placement_table(report: ServerReport) -> Table:
    """Weights, cache and compute buffers of each device and of the host, and the free memory."""
    rows = [
        (share.name, *map(format_decimal, (share.weight_bytes, share.kv_bytes, share.compute_bytes, share.total_bytes)),
         format_decimal(share.free_bytes))
        for share in report.devices
    ]  # fmt: skip
    if (host := report.host) is not None:
        held = (host.weight_bytes, host.kv_bytes, host.compute_bytes)
        rows.append(("Host", *map(format_decimal, (*held, sum(held))), ""))
        if host.prompt_cache_bytes:
            rows.append(("  kept prompts", "", format_decimal(host.prompt_cache_bytes), "", "at most", ""))
    return Table(
        title=f"llama.cpp {report.version}: devices and host",
        columns=(
            Column("Place"),
            *(Column(name, numeric=True) for name in ("Weights", "Cache", "Compute")),
            Column("Together", numeric=True, priority=1),
            Column("Free", numeric=True),
        ),
        rows=tuple(Row(row) for row in rows),
    )


def placement_notes(report: ServerReport, best: ServerReport | None) -> list[str]:
    """Whether it starts and with how many slots; if not, a split that does, with its launch command."""
    from calc.servers.launch import launch_command

    if report.fits:
        slots = report.max_num_seqs or 1
        said = f"llama.cpp starts with {_slots(slots)} of {format_count(report.context)} tokens"
        more = report.requests
        return [f"{said}; up to {more:,} would fit." if more > slots else f"{said}."]
    full = min(report.devices, key=lambda share: share.free_bytes)
    said = f"llama.cpp does not start: {full.name} is short by {format_decimal(-full.free_bytes)}"
    said += f" with {placed_words(report)}."
    if best is None:
        return [said, "No split between device and host makes it fit."]
    return [said, f"It fits with {placed_words(best)}: {launch_command(best)}"]


def placed_words(report: ServerReport) -> str:
    """``24 of 33 layers on devices``, and where the experts are."""
    layers = report.study.model.n_layers + 1
    on = f"all {layers:,}" if report.n_gpu_layers == layers else f"{report.n_gpu_layers:,} of {layers:,}"
    words = f"{on} layers on the device" + ("s" if len(report.devices) > 1 else "")
    if report.n_cpu_moe:
        words += f" and the experts of {report.n_cpu_moe:,} on the host"
    return words


def _slots(n: int) -> str:
    return "1 slot" if n == 1 else f"{n:,} slots"


def best_split(study: Study, options: ServerOptions) -> ServerReport | None:
    """The report of the split that fits with the least on the host; None if none fits."""
    from calc.servers.llamacpp.split import largest_split

    return largest_split(study, options)


# ``solve``


def split_document(study: Study, options: ServerOptions, batch: int) -> Document:
    """The split that fits `batch` slots: its options, its placement and its launch command; all None if none fits."""
    from calc.servers.launch import launch_command

    best = best_split(study, replace(options, max_num_seqs=batch))
    if best is None:
        return {"fits": False, "n_gpu_layers": None, "n_cpu_moe": None, "devices": [], "host": None, "launch": None}
    return {"fits": True, **placement_document(best), "launch": launch_command(best)}


def split_table(answer: Document, document: Document) -> Table:
    """The split as a table of places and sizes."""
    rows = [
        (str(i), *(format_decimal(place[name]) for name in HELD), format_decimal(place["free_bytes"]))
        for i, place in enumerate(answer["devices"], 1)
    ]
    if answer["host"] is not None:
        rows.append(("host", *(format_decimal(answer["host"][name]) for name in HELD), ""))
    said = f"{answer['n_gpu_layers']:,} layers on devices" if answer["fits"] else "none fits"
    if answer["n_cpu_moe"]:
        said += f", the experts of {answer['n_cpu_moe']:,} on the host"
    return Table(
        title=f"Split between devices and host: {said}",
        columns=("Device", "Weights", "Cache", "Compute", "Free"),
        rows=tuple(rows or [("none", "–", "–", "–", "–")]),
        numeric=frozenset({1, 2, 3, 4}),
    )


def every_advice(costs: Costs, batch: int) -> tuple[Advice, ...]:
    """What to change so that `batch` requests fit; for llama.cpp, first what to put on the host."""
    from calc.fit.server_costs import ServerCosts
    from calc.fit.solve import advice

    found = advice(costs, batch=batch)
    if isinstance(costs, ServerCosts) and costs.options.engine == "llamacpp" and costs.shortage(batch):
        return (*split_advice(costs.study, costs.options, batch), *found)
    return found


def split_advice(study: Study, options: ServerOptions, batch: int) -> tuple[Advice, ...]:
    """The advice to put on the host what the devices cannot hold; () if that does not help."""
    from calc.fit.solve import Advice

    best = best_split(study, replace(options, max_num_seqs=batch))
    if best is None:
        return ()
    given = [("--n-gpu-layers", best.n_gpu_layers or 0)] if (best.n_gpu_layers or 0) <= study.model.n_layers else []
    given += [("--n-cpu-moe", best.n_cpu_moe)] if best.n_cpu_moe else []
    words = tuple(word for option, n in given for word in (option, str(n)))
    return (Advice(change="split", text=f"Start it with {placed_words(best)}.", options=words),)
