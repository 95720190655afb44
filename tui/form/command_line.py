"""The command line that prints what the app shows, with only the options that differ from the defaults."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING

from calc.errors import CalcError
from calc.model.edit import follows_hidden_size
from calc.model.spec import DIMENSIONS, ModelSpec, field_names
from calc.model.storage import FORMATS, StorageFormat
from calc.model.stored import is_as_stored
from calc.model.study import DeviceSpec, Policy, Study
from calc.sources import DEFAULT_MODEL
from calc.sources.catalog import all_devices, find_model
from tui.form.draft import EDITED, memory_text
from tui.form.serving import ENGINE, Serving, serving_words

if TYPE_CHECKING:
    from calc.servers.records import ServerOptions
    from tui.form.state import AppState

DEFAULT_MEMORY = 80 * 10**9
NOT_SIZES = ("name", "source", "notes", "edited", "spread", "groups", "uniform", "model_type")


def memory_command(study: Study, server: ServerOptions | None = None) -> str:
    """``kvscope memory …`` for `study`, with the policy of `server` if there is one.

    The model is given by its catalog id or path; edited fields follow as options. A server has a single tensor-parallel
    degree.
    """
    if server is None:
        return " ".join(["kvscope", "memory", *study_options(study), *workload_options(study)])
    from tui.form.server_fields import option_words

    own = workload_options(replace(study, tps=(server.tp,), policy=Policy.EQUAL_SPLIT))
    return " ".join(["kvscope", "memory", *study_options(study), *own, *option_words(server)])


def estimate_command(study: Study, serving: Serving) -> str:
    """``kvscope estimate …`` for `study` and this load."""
    return " ".join(["kvscope", "estimate", *study_options(study), *map(shlex.quote, serving_words(serving))])


def step_command(state: AppState) -> str:
    """``kvscope estimate …`` that prints the operators of the state's step: a static batch, one new token each."""
    serving = replace(
        Serving(),
        load="batch",
        count=state.step_batch,
        prompt_tokens=state.step_context,
        new_tokens=1,
        batches=(),
        **{name: getattr(state.serving, name) for name in ENGINE},
    )
    return estimate_command(state.study, serving)


def workload_options(study: Study) -> list[str]:
    """Options of ``memory`` other than model, device and formats."""
    words: list[str] = []
    if study.context != 8192:
        words += ["--context", str(study.context)]
    if study.tps != (1, 2, 4, 8):
        words += ["--tp", ",".join(map(str, study.tps))]
    if study.policy is not Policy.EQUAL_SPLIT:
        words += ["--policy", str(study.policy)]
    return words


def study_options(study: Study) -> list[str]:
    """Options for model, device and storage formats, shared by ``memory`` and ``intensity``."""
    return [
        *model_options(study.model),
        *device_options(study.device),
        *_weight_options(study),
        *_format_options("kv", study.kv_format),
    ]


def model_options(model: ModelSpec) -> list[str]:
    """``--model`` and the edited fields. Llama-3-8B is the default."""
    name, base = _base_of(model)
    words = [] if name == DEFAULT_MODEL else ["--model", shlex.quote(name)]
    changed = {n: getattr(model, n) for n in changed_fields(model, base) if n in DIMENSIONS}
    if follows_hidden_size(base):
        # On the command line, the head dimension follows hidden size and heads unless it is given.
        changed.pop("head_dim", None)
        if not follows_hidden_size(model):
            changed["head_dim"] = model.head_dim
    for dimension in DIMENSIONS:
        if dimension in changed:
            words += [f"--{dimension.replace('_', '-')}", str(changed[dimension])]
    if model.mlp != base.mlp:
        words += ["--mlp", str(model.mlp)]
    if model.tied != base.tied:
        words.append("--tied" if model.tied else "--untied")
    return words


def changed_fields(model: ModelSpec, base: ModelSpec) -> list[str]:
    """Fields in which `model` differs from `base`, names and sources apart."""
    alike = model.uniform and base.uniform  # then the flat sizes describe the layers
    names = (name for name in field_names(ModelSpec) if name not in NOT_SIZES and not (alike and name == "layers"))
    return [name for name in names if getattr(model, name) != getattr(base, name)]


def unsaid(study: Study) -> tuple[str, ...]:
    """Fields that the command cannot express, because they have no option (biases, windows, positions)."""
    from calc.commands.options import study_from, study_parser

    words = [*study_options(study), *workload_options(study)]
    said = study_from(study_parser("kvscope").parse_args(shlex.split(" ".join(words))))
    return (*changed_fields(study.model, said.model), *(() if said.device == study.device else ("device",)))


def _base_of(model: ModelSpec) -> tuple[str, ModelSpec]:
    """The value of --model and the resulting model: from the catalog, from a file, or the default."""
    from calc.sources import load_model

    for name in (model.name, model.source):
        try:
            base = load_model(name)
        except CalcError:
            continue
        if base.source == model.source:
            return name, base
    return DEFAULT_MODEL, find_model(DEFAULT_MODEL)


def device_options(device: DeviceSpec) -> list[str]:
    """``--device`` or ``--gpu-memory``; 80 GB is the default."""
    name = device.name.removesuffix(EDITED)
    entry = next((entry for entry in all_devices().values() if entry.name == name), None)
    if entry is None:
        memory = memory_text(device.memory_bytes).replace(" ", "")
        return [] if device.memory_bytes == DEFAULT_MEMORY else ["--gpu-memory", memory]
    words = ["--device", entry.id]
    if device.memory_bytes != entry.memory_bytes:
        words += ["--gpu-memory", memory_text(device.memory_bytes).replace(" ", "")]
    return words


def _weight_options(study: Study) -> list[str]:
    """The weight format, if it is not the command's default (as in the checkpoint)."""
    if study.model.stored is None:
        return _format_options("weight", study.weight_format)
    if is_as_stored(study.model, study.weight_format):
        return []
    return _format_options("weight", study.weight_format) or ["--weight-format", study.weight_format.name]


def _format_options(kind: str, fmt: StorageFormat) -> list[str]:
    if fmt.name == "bf16":
        return []
    if fmt.name in FORMATS or fmt.stored is not None or fmt.pair is not None:
        return [f"--{kind}-format", fmt.name]
    return [f"--{kind}-bytes", fmt.name.removesuffix(" B")]
