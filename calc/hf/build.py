"""Turns a config into a ModelSpec: looks up its architecture, reads its layers, and refuses unread keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from calc.errors import CalcError, SourceError, UnknownStorage, UnsupportedArchitecture
from calc.hf import fallback
from calc.hf.architecture import Architecture, Outer
from calc.hf.architectures import BY_MODEL_TYPE
from calc.hf.attention import has_bias
from calc.hf.defaults import class_defaults, left_out
from calc.hf.drafts import draft_fields, draft_kind, draft_of, refuse_draft
from calc.hf.feed_forward import EXPERT_SIZE
from calc.hf.heads import ENDINGS, class_name, head_of
from calc.hf.layers import layers_of
from calc.hf.params import FILE as PARAMS
from calc.hf.params import as_config, is_params
from calc.hf.reader import (
    HIDDEN_SIZE,
    INTERMEDIATE_SIZE,
    MAX_CONTEXT,
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
from calc.model.positions import longest_context
from calc.model.quantization import stored_weights
from calc.model.spec import MAX_LAYERS, ModelSpec

ENCODERS = ("mm_vision_tower", "vision_config", "audio_config", "embd_layer", "vision_tower")
"""Keys of a multimodal model that has the text model's fields on the same level."""
QUANTIZATION = "hf_quant_config.json"
"""The file in which TensorRT Model Optimizer describes the quantization, if the config does not."""
OTHER_STEMS: Mapping[str, str] = {
    "HunYuanDenseV1": "hunyuan_v1_dense",
    "HunYuanMoEV1": "hunyuan_v1_moe",
    "MiniMaxM3Sparse": "minimax_m3_vl_text",
    "MiniMaxM3VL": "minimax_m3_vl_text",
    "RW": "falcon",
}
"""Prefixes of class names that differ from their model_type, and that type."""
MAX_TYPE = 64
"""Maximum length of a model_type: class names are shorter."""
LISTED_LAYERS = ("layers_block_type", "block_configs")
"""Lists whose length is the number of layers, if no key states it."""


def read_hf_config(path: str | Path) -> ModelSpec:
    """The model that a config.json or params.json describes. Raises SourceError that starts with the path."""
    file = Path(path)
    folder = file.parent.resolve().name if file.name in ("config.json", PARAMS) else ""
    config = read_object(file)
    if is_params(config):
        config = as_config(config, str(path))
    beside = file.with_name(QUANTIZATION)
    if "quantization_config" not in text_part(config)[0] and file.name == "config.json" and beside.is_file():
        config = {**config, "quantization_config": {"quant_method": "modelopt", **read_object(beside)}}
    return spec_from_config(config, name=folder or file.stem, source=str(path))


def spec_from_config(config: Mapping[str, Any], *, name: str, source: str) -> ModelSpec:
    """The model that a parsed config.json describes; `source` (a path) starts every message.

    Raises UnsupportedArchitecture if the fields do not determine the model, SourceError for wrong values.
    """
    draft = draft_kind(config)
    refuse_draft(draft, config, source)
    fields, part = text_part(config) if draft is None else (draft_fields(config), None)
    model_type = _model_type(fields, config.get("model_type"), source)
    reader, arch = _opened(fields, model_type, source, inner=part is not None)
    if model_type != fields.get("model_type", model_type) and fields["model_type"] not in BY_MODEL_TYPE:
        reader.notes.append(
            f"kvscope does not know model_type {shown(fields['model_type'])}: it is read as {model_type}, the type of "
            "its class in architectures"
        )
    _note_ties(reader, config, part)
    encoders = _encoders(reader, config, part)
    try:
        if draft is not None:
            return _draft_spec(draft, reader, arch, name)
        return _spec(reader, arch, name, class_name(config), encoders)
    except SourceError:
        raise
    except CalcError as error:
        raise SourceError(f"{source}: {error}") from None


def _note_ties(reader: Reader, config: Mapping[str, Any], part: str | None) -> None:
    """Note if a multimodal config contradicts its text model about the head."""
    outer, inner = config.get("tie_word_embeddings"), reader.config.get("tie_word_embeddings")
    if part is not None and isinstance(outer, bool) and isinstance(inner, bool) and outer != inner:
        reader.notes.append(
            f"tie_word_embeddings is {shown(outer)}, but {part} says {shown(inner)}: {shown(inner)} is used"
        )


def _encoders(reader: Reader, config: Mapping[str, Any], part: str | None) -> int:
    """Parameters of encoders and projectors, which the counts leave out; 0 with a note if unknown."""
    if part is None and not any(reader.has(key) for key in ENCODERS):
        return 0
    from calc.hf.projectors import encoder_params  # imported only for a multimodal model

    alone = "only the text model is counted" + (f" ({part})" if part else "")
    hidden_size = reader.maybe(*HIDDEN_SIZE)
    params = None if hidden_size is None else encoder_params(config, hidden_size)
    if params is None:
        reader.notes.append(f"{alone}: the sizes of its image or audio encoders are not known")
        return 0
    reader.notes.append(
        f"{alone}: encoders and projectors have another {params:,} parameters ({2 * params:,} B in 16 bits), which a "
        "server also loads"
    )
    return params


def _opened(fields: Mapping[str, Any], model_type: str, source: str, *, inner: bool) -> tuple[Reader, Architecture]:
    """The config with the usual keys and its class's defaults, and the architecture of its model_type."""
    arch = BY_MODEL_TYPE.get(model_type, Architecture())
    renamed = _usual_keys(fields, arch)
    of_class = class_defaults(model_type, arch)
    config = {**fields, **renamed, "model_type": model_type}
    reader = Reader(config, source, left_out(config, arch, of_class, inner=inner), of_class)
    reader.ignore(*arch.unused, *arch.rename, *renamed)
    fallback.refuse_by_name(reader)
    return reader, arch if arch.known else fallback.assumed(reader)


def _model_type(fields: Mapping[str, Any], outer: object, source: str) -> str:
    """The model_type in `fields`, or that of their class, or the one outside them."""
    found = fields.get("model_type")
    if found is None:
        found = _type_of_class(fields.get("architectures")) or outer
    if found is None:
        raise SourceError(
            f"{source}: model_type missing: it determines biases and norms; add it, or {fallback.BY_HAND}"
        )
    if not isinstance(found, str):
        raise SourceError(f"{source}: model_type must be a name such as llama, not {shown(found)}")
    if found not in BY_MODEL_TYPE and found not in fallback.NOT_COUNTED | fallback.NOT_DECODERS:
        return _type_of_class(fields.get("architectures")) or found
    if found == "llava":
        # The configs of early LLaVA models name their language model only by the architecture.
        bases = [base for base in ("Mistral", "Qwen") if base in str(fields.get("architectures"))[:200]]
        return f"llava_{bases[0].lower()}" if bases else found
    return found


def _type_of_class(architectures: object) -> str | None:
    """The model_type of a class such as LlamaForCausalLM; None if the name does not belong to one type."""
    name = class_name({"architectures": architectures})
    stem = next((name.removesuffix(ending) for ending in ENDINGS if name.endswith(ending)), "")
    stem = OTHER_STEMS.get(stem, stem).replace("_", "").lower()
    return next((each for each in BY_MODEL_TYPE if stem and each.replace("_", "").replace("-", "") == stem), None)


def _usual_keys(fields: Mapping[str, Any], arch: Architecture) -> dict[str, Any]:
    """The config with the architecture's own keys renamed to the usual ones."""
    found = {}
    for own, usual in arch.rename.items():
        section, _, key = own.rpartition(".")
        values = fields.get(section) if section else fields
        if isinstance(values, Mapping) and key in values:
            found[usual] = values[key]
    return found


def _draft_spec(kind: str, reader: Reader, arch: Architecture, name: str) -> ModelSpec:
    """A draft head as a model: its layers, what comes before them, and its own head if it has one."""
    _check_stated(reader, arch)
    hidden_size = reader.count(*HIDDEN_SIZE)
    made = draft_of(kind, reader, arch, _n_layers(reader, arch))
    sizes: dict[str, Any] = {
        "vocab_size": reader.count(*VOCAB_SIZE),
        "max_context": reader.maybe(*MAX_CONTEXT),
        "other_params": made.other_params,
        "head_rows": made.head_rows,
        "embeds": made.embeds,
        "final_norm_params": arch.norm_params(hidden_size) if made.norm else 0,
    }
    reader.ignore("num_nextn_predict_layers")
    _refuse_unread(reader)
    return _with_stored(reader, _model(name, reader.source, tuple(made.layers), sizes))


def _spec(reader: Reader, arch: Architecture, name: str, class_of_file: str, encoders: int) -> ModelSpec:
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
        "encoder_params": encoders,
        "final_norm_params": arch.norm_params(hidden_size) if arch.final_norm else 0,
        "model_type": reader.model_type[:MAX_TYPE],
    }
    if (head := head_of(class_of_file, reader, hidden_size)) is not None:
        sizes |= {"tied": False, "head_bias": head.bias, "head_rows": head.rows}
        sizes["other_params"] += head.extra
    _note_predictors(reader)
    _refuse_unread(reader)
    return _with_stored(reader, _model(name, reader.source, tuple(layers), sizes))


def _model(name: str, source: str, layers: tuple[LayerSpec, ...], sizes: Mapping[str, Any]) -> ModelSpec:
    """Makes the ModelSpec from `layers` and the sizes outside them; the only place that does."""
    return ModelSpec(name=name, source=source, layers=layers, **sizes)


def _with_stored(reader: Reader, spec: ModelSpec) -> ModelSpec:
    try:
        stored = stored_weights(_with_expert_dtype(reader.config), spec, reader.source)
    except SourceError as error:
        raise UnknownStorage(str(error), replace(spec, notes=tuple(reader.notes))) from None
    if stored is not None:
        reader.notes.append(f"weights as the config states: {stored.name}, {stored.total_bytes:,} B")
    return replace(spec, stored=stored, notes=tuple(reader.notes))


def _with_expert_dtype(config: dict[str, Any]) -> dict[str, Any]:
    """The config with DeepSeek-V4's expert format moved to where the other formats are."""
    quantized = config.get("quantization_config")
    if not isinstance(quantized, dict) or "expert_dtype" not in config:
        return config
    return {**config, "quantization_config": {"expert_dtype": config["expert_dtype"], **quantized}}


def _check_stated(reader: Reader, arch: Architecture) -> None:
    """Raise a SourceError that lists the required sizes that the config lacks."""
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
    """The number of layers, stated or counted from a list. Raises SourceError."""
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
        return None if context is None else longest_context(reader.config, context), 0
    if context is None and arch.default_positions is not None:
        context = reader.count("n_positions", default=arch.default_positions)
    if context is None:
        raise reader.fail("max_position_embeddings missing: the learned position table has one row per position")
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
    """Raise UnsupportedArchitecture if a key looks like a size and nothing has read it."""
    if unread := unread_sizes(reader):
        means = "mean" if len(unread) > 1 else "means"
        raise UnsupportedArchitecture(
            f"{reader.source}: kvscope does not know what {', '.join(unread[:4])} {means} for a model of type "
            f"{shown(reader.model_type)} (it may add weights or caches): {fallback.BY_HAND}"
        )
