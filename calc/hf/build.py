"""A config becomes a ModelSpec: its architecture is looked up, its layers are read, and what is unread is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from calc.errors import CalcError, SourceError, UnsupportedArchitecture
from calc.hf import fallback
from calc.hf.architecture import Architecture, Outer
from calc.hf.architectures import BY_MODEL_TYPE
from calc.hf.attention import has_bias
from calc.hf.defaults import class_defaults, left_out
from calc.hf.feed_forward import EXPERT_SIZE
from calc.hf.layers import layers_of
from calc.hf.reader import (
    HIDDEN_SIZE,
    INTERMEDIATE_SIZE,
    MAX_CONTEXT,
    MAX_LAYERS,
    N_HEADS,
    N_LAYERS,
    VOCAB_SIZE,
    Reader,
    read_object,
    shown,
    text_part,
)
from calc.hf.unread import unread_sizes
from calc.model.layers import LayerSpec
from calc.model.quantization import stored_weights
from calc.model.spec import ModelSpec

ENCODERS = ("mm_vision_tower", "vision_config", "audio_config", "embd_layer", "vision_tower")
"""Keys of a multimodal model whose text model's fields stand beside them."""
QUANTIZATION = "hf_quant_config.json"
"""Where TensorRT Model Optimizer says how a checkpoint is quantized, beside a config that does not."""
LANGUAGE_MODEL = ("ForCausalLM", "LMHeadModel")
"""Endings of classes that are whole language models."""
LISTED_LAYERS = ("layers_block_type", "block_configs")
"""Lists that say how many layers there are, where no key counts them."""


def read_hf_config(path: str | Path) -> ModelSpec:
    """The model that a config.json describes. Raises SourceError, one sentence that starts with the path."""
    file = Path(path)
    folder = file.parent.resolve().name if file.name == "config.json" else ""
    config = read_object(file)
    beside = file.with_name(QUANTIZATION)
    if "quantization_config" not in text_part(config)[0] and file.name == "config.json" and beside.is_file():
        config = {**config, "quantization_config": {"quant_method": "modelopt", **read_object(beside)}}
    return spec_from_config(config, name=folder or file.stem, source=str(path))


def spec_from_config(config: Mapping[str, Any], *, name: str, source: str) -> ModelSpec:
    """The model that a parsed config.json describes; `source` (a path) starts every message.

    Raises UnsupportedArchitecture for a model that its fields do not determine, SourceError for what is wrong.
    """
    fields, part = text_part(config)
    reader, arch = _opened(fields, source, inner=part is not None)
    if part is not None:
        reader.notes.append(f"the text model alone ({part}): encoders of images or sound are not counted")
    elif any(reader.has(key) for key in ENCODERS):
        reader.notes.append("the text model alone: encoders of images or sound are not counted")
    try:
        return _spec(reader, arch, name)
    except SourceError:
        raise
    except CalcError as error:
        raise SourceError(f"{source}: {error}") from None


def _opened(fields: Mapping[str, Any], source: str, *, inner: bool) -> tuple[Reader, Architecture]:
    """The config under the usual keys, with its class's defaults, and the architecture that its model_type means."""
    model_type = _model_type(fields, source)
    arch = BY_MODEL_TYPE.get(model_type, Architecture())
    renamed = _usual_keys(fields, arch)
    of_class = class_defaults(model_type, arch)
    config = {**fields, **renamed, "model_type": model_type}
    reader = Reader(config, source, left_out(config, arch, of_class, inner=inner), of_class)
    reader.ignore(*arch.unused, *arch.rename, *renamed)
    fallback.refuse_by_name(reader)
    return reader, arch if arch.known else fallback.assumed(reader)


def _model_type(fields: Mapping[str, Any], source: str) -> str:
    found = fields.get("model_type")
    if found is None:
        found = _type_of_class(fields.get("architectures"))
    if found is None:
        raise SourceError(
            f"{source}: model_type missing: it says which biases and norms there are; add it, or {fallback.BY_HAND}"
        )
    if not isinstance(found, str):
        raise SourceError(f"{source}: model_type must be a name such as llama, not {shown(found)}")
    if found == "llava":
        # The configs of the first LLaVAs name their language model by the architecture only.
        bases = [base for base in ("Mistral", "Qwen") if base in str(fields.get("architectures"))[:200]]
        return f"llava_{bases[0].lower()}" if bases else found
    return found


def _type_of_class(architectures: object) -> str | None:
    """The model_type of a class such as LlamaForCausalLM; None where its name is not that of one type."""
    names = architectures if isinstance(architectures, list) else []
    if len(names) != 1 or not isinstance(names[0], str) or not names[0].endswith(LANGUAGE_MODEL):
        return None
    for ending in LANGUAGE_MODEL:
        stem = names[0].removesuffix(ending)
        if stem != names[0]:
            plain = stem.lower()
            return next((name for name in BY_MODEL_TYPE if name.replace("_", "").replace("-", "") == plain), None)
    return None


def _usual_keys(fields: Mapping[str, Any], arch: Architecture) -> dict[str, Any]:
    """What stands under the architecture's own keys, under the usual ones."""
    found = {}
    for own, usual in arch.rename.items():
        section, _, key = own.rpartition(".")
        values = fields.get(section) if section else fields
        if isinstance(values, Mapping) and key in values:
            found[usual] = values[key]
    return found


def _spec(reader: Reader, arch: Architecture, name: str) -> ModelSpec:
    _check_stated(reader, arch)
    if arch.adapt is not None:
        arch = arch.adapt(reader, arch)
    outer = Outer() if arch.outer is None else arch.outer(reader)
    n_layers, hidden_size = _n_layers(reader, arch), reader.count(*HIDDEN_SIZE)
    layers = layers_of(reader, arch, n_layers, hidden_size)
    context, positions = _context(reader, arch)
    sizes: dict[str, Any] = {
        "vocab_size": reader.count(*VOCAB_SIZE),
        "tied": _tied(reader, arch),
        "head_bias": has_bias(reader, arch.head_bias),
        "n_learned_positions": positions,
        "max_context": context,
        "other_params": outer.params + (2 * hidden_size if arch.embedding_norm else 0),
        "embedding_size": outer.embedding_size,
        "final_norm_params": arch.norm_params(hidden_size) if arch.final_norm else 0,
    }
    _note_predictors(reader)
    _refuse_unread(reader)
    return _with_stored(reader, _model(name, reader.source, tuple(layers), sizes))


def _model(name: str, source: str, layers: tuple[LayerSpec, ...], sizes: Mapping[str, Any]) -> ModelSpec:
    """The ModelSpec of `layers` and the sizes outside them: the one place that makes it."""
    return ModelSpec(name=name, source=source, layers=layers, **sizes)


def _with_stored(reader: Reader, spec: ModelSpec) -> ModelSpec:
    stored = stored_weights(reader.config, spec, reader.source)
    if stored is not None:
        reader.notes.append(f"weights as the config says: {stored.name}, {stored.total_bytes:,} B")
    return replace(spec, stored=stored, notes=tuple(reader.notes))


def _check_stated(reader: Reader, arch: Architecture) -> None:
    """Raise SourceError that lists the sizes that the config must state and does not."""
    reader.require(
        *(() if reader.has(*LISTED_LAYERS) else (N_LAYERS,)),
        *((N_HEADS,) if arch.needs_heads else ()),
        HIDDEN_SIZE,
        *((INTERMEDIATE_SIZE,) if arch.needs_inner and not reader.has("block_configs", *EXPERT_SIZE) else ()),
        VOCAB_SIZE,
    )
    own_names = {usual: own for own, usual in arch.rename.items()}
    for key in arch.required:
        if key not in reader.config:
            raise reader.fail(f"{own_names.get(key, key)} missing: a {reader.model_type} config states it")


def _n_layers(reader: Reader, arch: Architecture) -> int:
    """How many layers there are: stated, or as many as are listed. Raises SourceError."""
    found = None
    if not reader.has(*N_LAYERS):
        listed = next((each for key in LISTED_LAYERS if isinstance(each := reader.get(key), list) and each), None)
        found = None if listed is None else len(listed)
    if found is None:
        found = reader.count(*N_LAYERS) if arch.count_layers is None else arch.count_layers(reader)
    if found > MAX_LAYERS:
        raise reader.fail(f"{found:,} layers: a model has at most {MAX_LAYERS:,}")
    return found


def _context(reader: Reader, arch: Architecture) -> tuple[int | None, int]:
    """(longest context, rows of the learned position table)."""
    context = reader.maybe(*MAX_CONTEXT)
    if arch.positions is None:
        return context, 0
    if context is None and arch.default_positions is not None:
        context = reader.count("n_positions", default=arch.default_positions)
    if context is None:
        raise reader.fail("max_position_embeddings missing: the learned position table has a row for each position")
    return context, context + arch.positions


def _tied(reader: Reader, arch: Architecture) -> bool:
    if "tie_word_embeddings" not in reader.config:
        reader.assume("tie_word_embeddings", "true" if arch.tied else "false")
    return reader.flag("tie_word_embeddings", arch.tied)


def _note_predictors(reader: Reader) -> None:
    for key in ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers", "num_mtp_modules"):
        if extra := reader.maybe(key, minimum=0):
            reader.notes.append(f"{key} {extra}: multi-token-prediction layers are not counted")


def _refuse_unread(reader: Reader) -> None:
    """Raise UnsupportedArchitecture where a key looks like a size and nothing has read it."""
    if unread := unread_sizes(reader):
        means = "mean" if len(unread) > 1 else "means"
        raise UnsupportedArchitecture(
            f"{reader.source}: kvscope does not know what {', '.join(unread[:4])} {means} for a model of type "
            f"{shown(reader.model_type)} (it may add weights or caches): {fallback.BY_HAND}"
        )
