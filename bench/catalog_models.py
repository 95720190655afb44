"""Records of assets/models.json from the tables beside this file.

catalog_models.csv: one model per row. `from` gives the source of its config:

    data            a file of DATA_FOLDER/configs, named in `config`, with its origin in configs_sources.csv
    aiconfigurator  a file of that repository, named in `config`; `@` and a commit if it was removed since
    written         catalog_configs.json, with its origin in `source`

catalog_changes.json: keys of a config that differ from that file (null: left out), and the reason, which is added to
the source. `total`: the parameters if transformers has no class to count them with; `counted`: who counted them.
"""

from __future__ import annotations

import csv
import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

from catalog_counts import count, counted_by

from calc.errors import SourceError
from calc.hf import spec_from_config
from calc.model.edit import edit
from calc.model.layers import layers_document
from calc.model.quantization import stored_weights
from calc.model.spec import ModelSpec, field_names, uniform

HERE = Path(__file__).parent
DATE = "2026-11-30"
AIC = "aic-core/src/aiconfigurator_core/model_configs"
AIC_COMMIT = "095f58a51c4ca8e61b66ec108d86f223f8d559ce"
AIC_BEFORE = "src/aiconfigurator/model_configs"
"""Where configs were that aiconfigurator has removed since."""
NOTES = {
    "phi-3.5-mini": "sliding_window 262,144 is longer than the context: no layer slides",
    "phi-4-mini": "sliding_window 262,144 is longer than the context: no layer slides",
    "gpt2-medium": "the published files also hold 24 mask buffers",
    "gpt2-xl": "the published files also hold 48 mask buffers",
}
SIZES = ("n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_size", "intermediate_size", "vocab_size")
NOT_FIELDS = ("name", "source", "notes", "layers", "stored", "groups", "uniform", "spread", "edited")
NOT_CONVERTED = ("modules_to_not_convert", "ignored_layers", "ignore", "exclude_modules")
"""Keys under which a quantization lists the modules that it leaves alone."""


def model_records(data: Path, aiconfigurator: Path) -> Iterator[dict[str, Any]]:
    """Records in the order of the table; each has its layers too, which go into a file of their own."""
    configs = json.loads((HERE / "catalog_configs.json").read_text())
    changes = json.loads((HERE / "catalog_changes.json").read_text())
    oracle = {row["file"]: row for row in rows(data / "oracle.csv")}
    origins = {row["file"]: row for row in rows(data / "configs_sources.csv")}
    for row in rows(HERE / "catalog_models.csv"):
        file = f"{row['config']}.json"
        counted = row["counted"]
        if row["from"] == "data":
            config, source = json.loads((data / "configs" / file).read_text()), _origin(origins[file])
            counted = counted or _oracle_counted(oracle[file])
        elif row["from"] == "aiconfigurator":
            config, source = _from_aiconfigurator(aiconfigurator, row["config"])
        else:
            config, source = configs[row["id"]], row["source"]
        changed = changes.get(row["id"], {"keys": {}})
        config = _changed(config, changed["keys"])
        source = f"{source} ({changed['why']})" if "why" in changed else source
        known = int(oracle[file]["total_params"]) if row["from"] == "data" else 0
        total = int(row["total"] or known or count(config))
        yield _record(row, config, total, counted or counted_by(config), source)


def rows(file: Path) -> list[dict[str, str]]:
    """A CSV file with a heading."""
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _changed(config: dict[str, Any], keys: dict[str, Any]) -> dict[str, Any]:
    left_out = {key for key, value in keys.items() if value is None}
    return {key: value for key, value in {**config, **keys}.items() if key not in left_out}


def _oracle_counted(row: dict[str, str]) -> str:
    published = "; equals the published file's total" if row["published_match"] == "exact: total_params" else ""
    return f"{row['hf_class']} of transformers 5.23 on the meta device{published}"


def _origin(row: dict[str, str]) -> str:
    """Repository, path and commit of a file of the data folder."""
    commit = f" @{row['commit'][:12]}" if re.fullmatch("[0-9a-f]{40}", row["commit"]) else ""
    repo = re.sub(r"^index file id \d+ \((.*)\)$", r"\1", row["repo"])
    repo = re.sub(r"^.* \(index file id .*\)$", "a copy in public code", repo)
    return f"{repo}, {row['path']}{commit}"


def _from_aiconfigurator(clone: Path, name: str) -> tuple[dict[str, Any], str]:
    """A config of aiconfigurator, with the hf_quant_config.json beside it, and where it is."""
    stem, _, commit = name.partition("@")
    path = f"{AIC_BEFORE if commit else AIC}/{stem}_config.json"
    commit = commit or AIC_COMMIT
    config = _show(clone, commit, path)
    assert config is not None, path
    source = f"ai-dynamo/aiconfigurator, {path} @{commit[:12]}"
    beside = _show(clone, commit, path.replace("_config.json", "_hf_quant_config.json"))
    if beside is not None and "quantization_config" not in {**config, **(config.get("text_config") or {})}:
        config["quantization_config"] = {"quant_method": "modelopt", **beside}
        source += " and its hf_quant_config.json"
    return config, source


def _show(clone: Path, commit: str, path: str) -> dict[str, Any] | None:
    """A JSON file of a commit; None where the commit has none of that name."""
    done = subprocess.run(["git", "-C", str(clone), "show", f"{commit}:{path}"], capture_output=True)
    return None if done.returncode else dict(json.loads(done.stdout))


def _record(row: dict[str, str], config: dict[str, Any], total: int, counted: str, source: str) -> dict[str, Any]:
    fields, notes, layers = fields_of(config)
    return {
        "id": row["id"],
        "name": row["name"],
        "hf_id": row["hf_id"],
        "aliases": row["aliases"].split(),
        "parameters": total,
        "parameters_source": counted,
        "fields": fields,
        "source": source,
        "date": DATE,
        "notes": [*(n for n in notes if _worth_noting(n)), *filter(None, [NOTES.get(row["id"])])],
        **stored_as(config),
        "layers": layers,
    }


def fields_of(config: dict[str, Any]) -> tuple[dict[str, Any], list[str], dict[str, Any] | None]:
    """ModelSpec fields that differ from its defaults (sizes always), the reader's notes, and the layers' document."""
    spec = spec_from_config(config, name="x", source="x")
    if spec.uniform and spec.window is not None and spec.window >= (spec.max_context or spec.window + 1):
        spec = replace(edit(spec, window=None, n_sliding_layers=0), edited=False)  # NOTES says that no layer slides
    values = {name: getattr(spec, name) for name in field_names(ModelSpec) if name not in NOT_FIELDS}
    fields = {k: v for k, v in values.items() if k in SIZES or v != _default(k)}
    if spec.uniform:
        return fields, list(spec.notes), None
    return {**fields, "layers": True}, list(spec.notes), layers_document(spec.layers)


def _default(name: str) -> Any:
    """What a record that leaves `name` out gets."""
    of_layers = signature(uniform).parameters
    return of_layers[name].default if name in of_layers else ModelSpec.__dataclass_fields__[name].default


def stored_as(config: dict[str, Any]) -> dict[str, Any]:
    """What the repository says of its stored weights, where they are quantized or float32: the config's own words.

    A long list of modules is cut to what counts where the bytes stay the same: one pattern for all layers, or, of
    modules that are not quantized, nothing.
    """
    merged = {**config, **(config.get("text_config") or {})}
    kept = {key: merged[key] for key in ("torch_dtype", "dtype", "quantization_config") if merged.get(key)}
    if "quantization_config" not in kept:
        return {"stored": kept} if "float32" in kept.values() else {}
    if "expert_dtype" in merged:
        kept["quantization_config"] = {"expert_dtype": merged["expert_dtype"], **kept["quantization_config"]}
    model = spec_from_config(config, name="x", source="x")
    assert stored_weights(kept, model, "x") == model.stored
    for trial in _shorter(kept):
        with suppress(SourceError):  # a list cut so far that it names nothing
            if stored_weights(trial, model, "x") == model.stored:
                return {"stored": trial}
    return {"stored": kept}


def _shorter(kept: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """`kept` with shorter lists of modules, the shortest first."""
    scheme = kept["quantization_config"]
    inner = scheme.get("quantization", scheme)
    named = inner.get("quantized_layers", {})
    patterns = {_pattern(module): value for module, value in named.items()}
    for fewer in ([], None):
        lists = {
            key: fewer if fewer is not None else sorted({_pattern(name) for name in inner[key]})
            for key in NOT_CONVERTED
            if inner.get(key)
        }
        if lists or named:
            shorter = {**inner, **lists, **({"quantized_layers": patterns} if named else {})}
            whole = {**scheme, "quantization": shorter} if "quantization" in scheme else shorter
            yield {**kept, "quantization_config": whole}


def _pattern(module: str) -> str:
    """A module's name with `*` for the numbers of its layer and its expert."""
    return re.sub(r"\.\d+(?=\.)", ".*", module)


def _worth_noting(note: str) -> bool:
    """Not what the file's own form asked the reader to assume, nor the stored weights: `stored` holds those."""
    left_out = ("use_sliding_window", "is not in the config", "weights as", "quantization")
    return not any(text in note for text in left_out)
