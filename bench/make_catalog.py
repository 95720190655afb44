"""Write assets/models.json, model_layers.json and devices.json from the collected facts.

    python bench/make_catalog.py DATA_FOLDER AICONFIGURATOR

DATA_FOLDER has configs/, oracle.csv and devices.csv. AICONFIGURATOR is a clone (with or without a work tree) of
github.com/ai-dynamo/aiconfigurator with its history. For the tables, see catalog_models.py and catalog_devices.py.

The parameter counts do not come from calc: they are those of oracle.csv (the transformers class built on the meta
device), or are counted in the same way (catalog_counts.py). Models for which calc counts differently are printed.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from catalog_devices import device_records  # noqa: E402
from catalog_models import model_records  # noqa: E402

from calc.model.count import parameters  # noqa: E402
from calc.model.layers import layers_from_document  # noqa: E402
from calc.model.parts import Mlp, Norm  # noqa: E402
from calc.model.spec import ModelSpec, model_of  # noqa: E402

FAMILY_ORDER = (
    "llama", "codellama", "tinyllama", "mistral", "mixtral", "devstral", "qwen", "smollm", "phi", "gemma", "yi",
    "deepseek", "kimi", "glm", "minimax", "step", "internlm", "exaone", "mimo", "nemotron", "jamba", "olmo", "command",
    "stablelm",
    "starcoder", "santacoder", "falcon", "mpt", "bloom", "gpt", "opt", "pythia", "redpajama",
)  # fmt: skip


def write(name: str, about: str, records: list[dict[str, Any]]) -> None:
    """One record per line, so that a change shows as one line."""
    lines = ",\n".join("  " + json.dumps(record, ensure_ascii=False) for record in records)
    text = f'{{"about": {json.dumps(about)},\n "records": [\n{lines}\n]}}\n'
    json.loads(text)
    (ROOT / "assets" / name).write_text(text, encoding="utf-8")
    print(f"assets/{name}: {len(records)} records, {len(text):,} characters")


def write_layers(layers: dict[str, dict[str, Any]]) -> None:
    """The layers of models whose layers are not all alike: a file of its own, read when one of them is asked for."""
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(document)}" for key, document in layers.items())
    about = "Layers of the models in models.json that are not all alike; made by bench/make_catalog.py"
    text = f'{{"about": {json.dumps(about)},\n "layers": {{\n{lines}\n}}}}\n'
    json.loads(text)
    (ROOT / "assets" / "model_layers.json").write_text(text, encoding="utf-8")
    print(f"assets/model_layers.json: {len(layers)} models, {len(text):,} characters")


def main(data: Path, aiconfigurator: Path) -> int:
    """Write both files; 1 if calc's count differs from the independent one anywhere."""
    order = {key: i for i, key in enumerate(FAMILY_ORDER)}
    records = sorted(
        model_records(data, aiconfigurator), key=lambda r: (order[re.split(r"[-\d]", r["id"])[0]], _natural(r["id"]))
    )
    wrong = 0
    layers = {r["id"]: document for r in records if (document := r.pop("layers")) is not None}
    for record in records:
        ours = parameters(_spec(record["fields"], layers.get(record["id"]))).total
        if ours != record["parameters"]:
            wrong += 1
            print(f"{record['id']}: calc {ours:,}, counted {record['parameters']:,}, {ours - record['parameters']:+,}")
    write("models.json", "Sizes of well-known models; made by bench/make_catalog.py", records)
    write_layers(layers)
    about = "Devices: memory, bandwidth, dense peaks; made by bench/make_catalog.py"
    write("devices.json", about, list(device_records(data)))
    return 1 if wrong else 0


def _spec(fields: dict[str, Any], layers: dict[str, Any] | None) -> ModelSpec:
    kinds = {"mlp": Mlp(fields.get("mlp", "gated")), "norm": Norm(fields.get("norm", "rms"))}
    parts = {} if layers is None else {"layers": layers_from_document(layers)}
    return model_of(name="x", source="x", **{**fields, **kinds, **parts})


def _natural(key: str) -> list[float | str]:
    parts = re.split(r"(\d+(?:\.\d+)?)", key)
    return [float(p) / (1000 if parts[i + 1 : i + 2] == ["m"] else 1) if i % 2 else p for i, p in enumerate(parts)]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python bench/make_catalog.py DATA_FOLDER AICONFIGURATOR")
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
