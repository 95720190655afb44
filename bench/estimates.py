"""Estimates against public measurements: errors, bands and bounds, by kind of load.

    python bench/estimates.py ../shared/data/throughput_more.csv [--pairs] [--write]

Nothing is fitted here. A row is left out if its source calls it impossible or unusable, if its model, device or
format is not in the catalog, or if it ran over pipeline stages or attention groups, which `estimate`
does not have. ``--pairs`` lists the pairs of model and device with their bias; ``--write`` writes
assets/estimate_accuracy.json, which `kvscope estimate` quotes.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, log
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.estimate_bands import Bands, Pair  # noqa: E402
from calc.errors import CalcError  # noqa: E402
from calc.model.named import weights_as  # noqa: E402
from calc.model.spec import ModelSpec  # noqa: E402
from calc.model.storage import StorageFormat  # noqa: E402
from calc.model.stored_format import stored_format  # noqa: E402
from calc.model.study import Policy, Study  # noqa: E402
from calc.model.typed_formats import parse_cache, parse_weights  # noqa: E402
from calc.sources.catalog import devices, find_model  # noqa: E402
from calc.speed.asked import Asked, Load  # noqa: E402
from calc.speed.bands import STUDIED, class_of, kind_of  # noqa: E402
from calc.speed.constants import constants_of  # noqa: E402
from calc.speed.estimate import Estimate, Room, estimate  # noqa: E402
from calc.speed.room import reserved_room  # noqa: E402
from calc.speed.spans import Span  # noqa: E402
from calc.speed.steps import has_experts  # noqa: E402

TARGET = ROOT / "assets" / "estimate_accuracy.json"
ENGINES = {"vLLM": "vllm", "SGLang": "sglang", "TensorRT-LLM": "trtllm", "TRT-LLM": "trtllm", "llama.cpp": "llamacpp"}
FORMATS = {"BF16": "bf16", "FP16": "bf16", "F16": "bf16", "FP8": "fp8", "FP4": "nvfp4", "NVFP4": "nvfp4"}
LOADS = {"static": Load.STATIC, "batch1": Load.STATIC, "closed_loop": Load.CLOSED, "max_load": Load.MAX}
DRAWN = 0.9
"""InferenceX draws lengths from 80 to 100 % of the stated ones."""
OLD = "2024"
QUEUED = 0.3
MOST_DEVICES = 8
"""Of one node; links between nodes are others."""
DRAFTING = ("release:1.2.0rc6.post3", "release:1.1.0rc2.post2", "sglang:v0.5.9-cu130")
"""Images with which InferenceX ran DeepSeek-R1 with its draft layers too (its configurations on the days of the runs);
the table does not say which runs did."""
FP8_ON_HOPPER = {
    ("qwen3.5-397b-a17b", "H200 SXM", "sglang"),
    ("minimax-m2.5", "H200 SXM", "vllm"),
    ("deepseek-r1", "H200 SXM", "trtllm"),
}
"""InferenceX's scripts (SemiAnalysisAI/InferenceX, benchmarks/single_node/fixed_seq_len, August 2026) start servers on
B200 and B300 with an fp8 cache for every model here, on Hopper for these."""


@dataclass(frozen=True)
class Compared:
    """A measured number beside its estimate; times as seconds, rates as tokens per second."""

    group: tuple[str, str, str]
    kind: tuple[str, str]
    wide: bool
    pair: tuple[str, str, str, str]
    measured: float
    span: Span
    is_rate: bool

    @property
    def error(self) -> float:
        """log(measured / expected) of the time, also for a rate."""
        ratio = log(self.measured / self.span.mid)
        return -ratio if self.is_rate else ratio

    @property
    def beats_bound(self) -> bool:
        """Whether the number is better than possible."""
        bound = self.span.bound
        return self.measured > 1.001 * bound if self.is_rate else self.measured < 0.999 * bound


class LeftOut(Exception):
    """Why a row is not compared."""


def compared(row: dict[str, str]) -> Compared:
    """The row beside its estimate. Raises LeftOut and CalcError."""
    if "IMPOSSIBLE" in row["note"] or "do not use" in row["note"]:
        raise LeftOut("marked by its source")
    if row["engine"] not in ENGINES:
        raise LeftOut(f"engine {row['engine']}")
    asked = asked_of(row)
    if asked.engine == "llamacpp" and (asked.count or 1) > 1:
        raise LeftOut("llama.cpp batches that share a prompt")
    if row["catalog_model"] == "deepseek-r1" and any(image in row["note"] for image in DRAFTING):
        raise LeftOut("runs that may have drafted tokens")
    if asked.devices > MOST_DEVICES:
        raise LeftOut("more than one node")
    study = study_of(row, asked)
    answer = estimate(study, asked, _room(study, asked))
    if not answer.fits:
        raise LeftOut("does not fit here")
    span, is_rate, scale = _span(row["metric"], answer)
    pair = (row["catalog_model"], row["gpu"], row["engine"], row["precision"])
    return Compared(
        group=_group(row, asked, study.model),
        kind=_kind(row, study, asked),
        wide=not constants_of(study.device).known,
        pair=pair,
        measured=float(row["value"]) * scale,
        span=span,
        is_rate=is_rate,
    )


def _kind(row: dict[str, str], study: Study, asked: Asked) -> tuple[str, str]:
    """Whose band the number has a part in: a kind and a class."""
    what = "ttft" if row["metric"] in ("ttft_ms", "prefill_tokens_per_s") else "tpot"
    return kind_of(asked, what), class_of(study.device.name, experts=has_experts(study.model))


def asked_of(row: dict[str, str]) -> Asked:
    """What the run was asked."""
    engine = ENGINES[row["engine"]]
    drawn = DRAWN if "nference" in row["note"] else 1.0
    stated = row["batch_or_concurrency"].replace(".", "")
    load = LOADS[row["kind"]]
    return Asked(
        engine=engine,
        version="0.5.0" if row["engine_version"] == OLD else None,
        prompt_tokens=max(1, int(float(row["isl"] or 1) * drawn)),
        new_tokens=max(1, int(float(row["osl"] or 1) * drawn)),
        load=load,
        count=None if load is Load.MAX else int(float(row["batch_or_concurrency"])) if stated.isdigit() else 1,
        **shared_by(row, engine),
    )


def shared_by(row: dict[str, str], engine: str) -> dict[str, int]:
    """How the devices of a run share the model.

    InferenceX starts a node as --tp T with --ep or attention groups among the same T devices. aiconfigurator's table
    multiplies them (64 B200 for T = 8 with 8 groups of experts), which is undone here.
    """
    tp, pp, dp, ep = (int(row[name] or 1) for name in ("tp", "pp", "dp", "ep"))
    if engine == "llamacpp":
        return {"tp": pp}
    devices = tp * dp
    if "nference" in row["note"]:
        if tp > 1 and dp > 1:
            devices = dp
        elif ep > 1 and "moe_tp 1;" not in row["note"]:
            devices //= ep
    return {"tp": devices, "pp": pp, "dp_attention": min(dp, devices), "ep": min(ep, devices)}


def study_of(row: dict[str, str], asked: Asked) -> Study:
    """The model on the device of the run, in its formats. Raises LeftOut and CalcError."""
    if not row["catalog_model"]:
        raise LeftOut("model not in the catalog")
    names = {device.name.removeprefix("NVIDIA ").removeprefix("AMD "): device.spec for device in devices().values()}
    if row["gpu"] not in names:
        raise LeftOut(f"device {row['gpu']}")
    model = find_model(row["catalog_model"])
    return Study(
        model=model,
        device=names[row["gpu"]],
        context=asked.context,
        tps=(asked.tp,),
        policy=Policy.REPLICATED,
        weight_format=_weights(row["precision"], model),
        kv_format=parse_cache(_cache(row, asked.engine)),
    )


def _cache(row: dict[str, str], engine: str) -> str:
    """The format of the cache: stated, as InferenceX starts its servers, or fp8 in TensorRT-LLM with narrow weights."""
    model, device = row["catalog_model"], row["gpu"]
    if row["kv_precision"]:
        return "fp8" if row["kv_precision"] == "FP8" else "bf16"
    if "nference" in row["note"] and row["precision"] != "BF16":
        return "fp8" if device.startswith(("B200", "B300")) or (model, device, engine) in FP8_ON_HOPPER else "bf16"
    return "fp8" if engine == "trtllm" and row["precision"] != "BF16" else "bf16"


def _weights(precision: str, model: ModelSpec) -> StorageFormat:
    """As the checkpoint stores them where it is of that precision; of mxfp4 (gpt-oss) no other is run."""
    if model.stored is not None:
        own = stored_format(model)
        if own.name == "mxfp4" or (precision == "FP8" and own.name.startswith("fp8")):
            return own
    try:
        chosen = parse_weights(FORMATS.get(precision, precision))
    except CalcError:
        raise LeftOut(f"format {precision}") from None
    return chosen if isinstance(chosen, StorageFormat) else weights_as(chosen, model)


def _room(study: Study, asked: Asked) -> Room:
    """What fits here, but never less than what is known to have run."""
    room = reserved_room(study, asked)  # the sources say little of their settings
    ran = asked.count or 1 if asked.load is Load.STATIC else 0
    return Room(max(room.fitting, ran), room.most)


def _span(metric: str, answer: Estimate) -> tuple[Span, bool, float]:
    """The estimate of a metric, whether it is a rate, and what the metric's unit is in ours."""
    ttft, tpot, e2e, rate = answer.ttft, answer.tpot, answer.e2e, answer.output_rate
    assert ttft is not None
    assert tpot is not None
    assert e2e is not None
    assert rate is not None
    known = {
        "latency_s": (e2e, False, 1.0),
        "ttft_ms": (ttft, False, 1e-3),
        "tpot_ms": (tpot, False, 1e-3),
        "prefill_tokens_per_s": (ttft.rate(answer.batch * answer.asked.prompt_tokens), True, 1.0),
        "decode_tokens_per_s": (tpot.rate(answer.batch), True, 1.0),
        "output_tokens_per_s_per_gpu": (rate, True, float(answer.asked.devices)),
        "output_tokens_per_s_total": (rate, True, 1.0),
    }
    if metric not in known:
        raise LeftOut(f"metric {metric}")
    return known[metric]


def _group(row: dict[str, str], asked: Asked, model: ModelSpec) -> tuple[str, str, str]:
    vendor = "NVIDIA"
    if row["gpu"].startswith(("MI", "Ryzen", "RX")):
        vendor = "AMD"
    if row["gpu"].startswith(("Apple", "M1", "M2", "M3", "M4")):
        vendor = "Apple"
    if asked.engine == "llamacpp":
        return ("llama.cpp, batch 1", row["metric"], vendor)
    if row["metric"] == "ttft_ms" and asked.load is Load.CLOSED and asked.count != 1:
        return (row["kind"], "ttft_ms loaded", vendor)
    return (row["kind"], row["metric"], f"{vendor}, {'experts' if has_experts(model) else 'dense'}")


def bands_of(rows: list[Compared]) -> Bands:
    """The residuals by kind and class. llama.cpp's runs of 2024 are another program: they make no band."""
    bands = Bands()
    for one in rows:
        if one.group[:2] != ("llama.cpp, batch 1", "latency_s"):
            bands.add(*one.kind, (one.pair[:2], one.error, one.wide))
    return bands


def report(all_rows: list[Compared], bands: Bands, *, pairs: bool) -> dict[str, dict[str, float]]:
    """Print a line per group; what the estimates quote."""
    held = bands.covered({name: (band.low, band.high) for name, band in STUDIED.items()})
    groups: dict[tuple[str, str, str], list[Compared]] = defaultdict(list)
    for one in all_rows:
        groups[one.group].append(one)
    print(f"{'load':20} {'metric':28} {'devices, model':18}  rows pairs   error   bias  in band")
    quoted = {}
    for group, rows in sorted(groups.items()):
        error = statistics.median(abs(exp(one.error) - 1) for one in rows)
        bias, covers = statistics.median(one.error for one in rows), coverage(rows, held)
        n_pairs = len({one.pair[:2] for one in rows})
        counts = f"{len(rows):5} {n_pairs:5}"
        print(f"{group[0]:20} {group[1]:28} {group[2]:18} {counts} {error:7.1%} {bias:+6.2f} {covers:8.0%}")
        quoted[" · ".join(group)] = {
            "rows": len(rows),
            "pairs": n_pairs,
            "median_error": round(error, 3),
            "band_covers": round(covers, 3),
        }
        if pairs:
            _print_pairs(rows)
    return quoted


def coverage(rows: list[Compared], held: dict[tuple[str, str, Pair], list[bool]]) -> float:
    """The share of numbers in the band that was made without their pair, every pair weighing alike."""
    pairs = {(*one.kind, one.pair[:2]) for one in rows}
    shares = [statistics.mean(held[pair]) for pair in pairs if held.get(pair)]
    return statistics.mean(shares) if shares else 0.0


def _print_pairs(rows: list[Compared]) -> None:
    by_pair: dict[tuple[str, str, str, str], list[float]] = defaultdict(list)
    for one in rows:
        by_pair[one.pair].append(one.error)
    for pair, errors in sorted(by_pair.items(), key=lambda item: -abs(statistics.median(item[1]))):
        print(f"    {', '.join(pair):70} {len(errors):5} {statistics.median(errors):+6.2f}")


def _compare_all(path: Path, left_out: Counter[str]) -> Iterator[Compared]:
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    waited = queued(rows)
    for row in rows:
        try:
            if row["source"] in waited:
                raise LeftOut("queued: the concurrency is not the batch")
            yield compared(row)
        except (LeftOut, CalcError) as reason:
            left_out[str(reason)[:70]] += 1


def queued(rows: list[dict[str, str]]) -> set[str]:
    """Runs whose requests wait for a place: the first token takes longer than QUEUED of all the others."""
    times: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows:
        if row["kind"] == "closed_loop" and row["metric"] in ("ttft_ms", "tpot_ms") and row["osl"]:
            times[row["source"]] |= {row["metric"]: float(row["value"]), "osl": float(row["osl"])}
    whole = {source: t for source, t in times.items() if len(t) == 3}
    return {source for source, t in whole.items() if t["ttft_ms"] > QUEUED * t["osl"] * t["tpot_ms"]}


def main() -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", type=Path)
    parser.add_argument("--pairs", action="store_true")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    left_out: Counter[str] = Counter()
    rows = list(_compare_all(args.rows, left_out))
    bands = bands_of(rows)
    quoted = report(rows, bands, pairs=args.pairs)
    found = bands.found()
    print("\nbands:", ", ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in found.items()))
    beaten = [one for one in rows if one.beats_bound]
    print(f"\n{len(rows):,} numbers compared; the bound is beaten by {len(beaten)}")
    for one in beaten[:20]:
        print("  ", one.group, one.pair, f"{one.measured:.4g}", f"bound {one.span.bound:.4g}")
    print("left out:", ", ".join(f"{n} {reason}" for reason, n in left_out.most_common()))
    if args.write:
        document = {"about": "made by bench/estimates.py", "bands": found, "groups": quoted}
        TARGET.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
