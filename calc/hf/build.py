"""A config becomes a ModelSpec: layers one by one, and the plain form where all of them are alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from calc.errors import CalcError, SourceError, UnsupportedArchitecture
from calc.hf import irregular, kinds, unknown, unlike
from calc.hf.attention import attention_mixer, has_bias, qk_norm_params
from calc.hf.defaults import ASKED_FOR, class_defaults
from calc.hf.experts import feed_forwards
from calc.hf.families import Family, family_of
from calc.hf.kinds import Kind
from calc.hf.latent import is_latent, latent_mixer
from calc.hf.reader import (
    HIDDEN_SIZE,
    INTERMEDIATE_SIZE,
    MAX_CONTEXT,
    MAX_LAYERS,
    N_LAYERS,
    VOCAB_SIZE,
    Reader,
    read_object,
    shown,
    text_part,
)
from calc.hf.recurrent import recurrent_mixer
from calc.model.layers import Attention, Dense, Experts, LayerSpec, Mixer, summary
from calc.model.params import final_norm_params, layer_norm_params
from calc.model.quantization import stored_weights
from calc.model.spec import Mlp, ModelSpec, Norm

BY_HAND = (
    "give the numbers by hand with --n-layers, --n-heads, --n-kv-heads, --head-dim, --hidden-size, "
    "--intermediate-size and --vocab-size"
)
NOT_DECODERS = frozenset(
    "albert bert bart blip clip convbert deberta deberta-v2 distilbert electra ernie longformer marian mbart "
    "mpnet m2m_100 nllb-moe pegasus roberta siglip switch_transformers t5 mt5 umt5 t5gemma vit whisper "
    "wav2vec2 xlm-roberta xlnet".split()
)


def read_hf_config(path: str | Path) -> ModelSpec:
    """The model that a config.json describes. Raises SourceError, one sentence that starts with the path."""
    file = Path(path)
    folder = file.parent.resolve().name if file.name == "config.json" else ""
    return spec_from_config(read_object(file), name=folder or file.stem, source=str(path))


def spec_from_config(config: Mapping[str, Any], *, name: str, source: str) -> ModelSpec:
    """The model that a parsed config.json describes; `source` (a path) starts every message.

    Raises UnsupportedArchitecture for a model that its fields do not determine, SourceError for what is wrong.
    """
    fields, part = text_part(config)
    fields = unlike.usual_names(fields)
    reader = Reader(fields, source, class_defaults(fields, inner=part is not None))
    family = _family(reader)
    if part is not None:
        reader.notes.append(f"the text model alone ({part}): encoders of images or sound are not counted")
    try:
        return _spec(reader, family, name)
    except SourceError:
        raise
    except CalcError as error:
        raise SourceError(f"{source}: {error}") from None


def _family(reader: Reader) -> Family:
    model_type = reader.config.get("model_type")
    if model_type is not None and not isinstance(model_type, str):
        raise reader.fail(f"model_type must be a name such as llama, not {shown(model_type)}")
    if reader.get("is_encoder_decoder") is True or model_type in NOT_DECODERS:
        raise UnsupportedArchitecture(
            f"{reader.source}: model_type {shown(model_type)} is no decoder-only language model, the only kind "
            "kvscope counts"
        )
    if model_type in irregular.REFUSED:
        raise UnsupportedArchitecture(
            f"{reader.source}: model_type {shown(model_type)} has layers that kvscope does not count: {BY_HAND}"
        )
    if model_type is None:
        raise reader.fail(f"model_type missing: it says which biases and norms there are; add it, or {BY_HAND}")
    family = family_of(model_type)
    return family if family is not None else unknown.assumed_family(reader, BY_HAND)


def _spec(reader: Reader, family: Family, name: str) -> ModelSpec:
    listed = () if reader.has("layers_block_type", "block_configs") else (N_LAYERS,)
    inner = (INTERMEDIATE_SIZE,) if irregular.states_inner_size(reader, family) else ()
    reader.require(*listed, *irregular.heads_key(reader), HIDDEN_SIZE, *inner, VOCAB_SIZE)
    for key in ASKED_FOR.get(reader.model_type, ()):
        if key not in reader.config:
            raise reader.fail(f"{key} missing: a {reader.model_type} config states it")
    family, more = irregular.adapt(reader, family)
    n_layers = irregular.n_layers(reader)
    if n_layers > MAX_LAYERS:
        raise reader.fail(f"{n_layers:,} layers: a model has at most {MAX_LAYERS:,}")
    hidden_size, vocab_size = reader.count(*HIDDEN_SIZE), reader.count(*VOCAB_SIZE)
    layers = irregular.layers(reader, family, n_layers, hidden_size) or _layers(reader, family, n_layers, hidden_size)
    context = reader.maybe(*MAX_CONTEXT)
    positions = 0
    if family.positions is not None:
        if context is None and family.default_positions is not None:
            context = reader.count("n_positions", default=family.default_positions)
        if context is None:
            raise reader.fail("max_position_embeddings missing: the learned position table has a row for each")
        positions = context + family.positions
    outer: dict[str, Any] = {
        "vocab_size": vocab_size,
        "tied": _tied(reader, family),
        "head_bias": has_bias(reader, family.head_bias),
        "n_learned_positions": positions,
        "max_context": context,
        "source": reader.source,
    }
    final = _norm_size(family, hidden_size) if family.final_norm else 0
    other = more.other_params + (2 * hidden_size if family.embedding_norm else 0)
    _note_unread(reader)
    layered: dict[str, Any] = {"other_params": other, "embedding_size": more.embedding_size, "final_norm_params": final}
    spec = ModelSpec(name=name, layers=tuple(layers), **summary(tuple(layers)), **outer, **layered)
    spec = _plain(spec, layers) or spec
    stored = stored_weights(reader.config, spec, reader.source)
    if stored is not None:
        reader.notes.append(f"weights as the config says: {stored.name}, {stored.total_bytes:,} B")
    return replace(spec, stored=stored, notes=tuple(reader.notes))


def _layers(reader: Reader, family: Family, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    kinds_ = kinds.layer_kinds(reader, family, n_layers)
    mlp_bias = has_bias(reader, family.mlp_bias)
    mlp = Mlp.GATED if family.gated else Mlp.PLAIN

    def dense_of(size: int) -> Dense:
        return Dense(intermediate_size=size, mlp=mlp, bias=mlp_bias)

    blocks = feed_forwards(
        reader,
        family,
        hidden_size=hidden_size,
        n_layers=n_layers,
        dense_of=dense_of,
        dense_size=lambda: inner_size(reader, family, hidden_size),
    )
    cache: dict[Any, LayerSpec] = {}
    layers = []
    for kind, block in zip(kinds_, blocks, strict=True):
        if (kind, block) not in cache:
            cache[kind, block] = _layer(reader, family, kind, block, hidden_size)
        layers.append(cache[kind, block])
    return layers


def inner_size(reader: Reader, family: Family, hidden_size: int) -> int:
    """The feed-forward's inner dimension; four times the width where the class says so."""
    found = irregular.inner_size(reader, hidden_size) or reader.maybe(*INTERMEDIATE_SIZE)
    if found is None and family.wide_inner:
        reader.notes.append(f"intermediate_size is not in the config: {4 * hidden_size:,}, four times hidden_size")
        return 4 * hidden_size
    return found or reader.count(*INTERMEDIATE_SIZE)


def _layer(reader: Reader, family: Family, kind: Kind, block: Any, hidden_size: int) -> LayerSpec:
    mixers = _mixers(reader, family, kind, hidden_size)
    norm_params = family.norms * _norm_size(family, hidden_size)
    norm_params += sum(qk_norm_params(reader, family, mixer) for mixer in mixers if isinstance(mixer, Attention))
    norm_params += family.extra_params
    if any(isinstance(part, Experts) for part in block):
        norm_params += family.sparse_norms * hidden_size
    norm = Norm.LAYER if family.norm == "layer" else Norm.RMS
    return LayerSpec(hidden_size=hidden_size, mixers=mixers, feed_forwards=block, norm_params=norm_params, norm=norm)


def _mixers(reader: Reader, family: Family, kind: Kind, hidden_size: int) -> tuple[Mixer, ...]:
    if kind.name in (kinds.FULL, kinds.SLIDING, kinds.CHUNKED):
        if is_latent(reader) and kind.name == kinds.FULL:
            return (latent_mixer(reader, family),)
        return (attention_mixer(reader, family, kind),)
    if kind.name == kinds.NONE:
        return ()
    if kind.name == kinds.PARALLEL:
        attention = attention_mixer(reader, family, Kind(kinds.FULL))
        return (attention, recurrent_mixer(reader, kinds.MAMBA2, hidden_size))
    return (recurrent_mixer(reader, kind.name, hidden_size),)


def _norm_size(family: Family, hidden_size: int) -> int:
    return {"rms": 1, "layer_weight": 1, "layer": 2, "none": 0}[family.norm] * hidden_size


def _tied(reader: Reader, family: Family) -> bool:
    if "tie_word_embeddings" not in reader.config:
        reader.assume("tie_word_embeddings", "true" if family.tied else "false")
    return reader.flag("tie_word_embeddings", family.tied)


def _note_unread(reader: Reader) -> None:
    for key in ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers"):
        if extra := reader.maybe(key, minimum=0):
            reader.notes.append(f"{key} {extra}: layers that predict further tokens are not counted")


def _plain(spec: ModelSpec, layers: list[LayerSpec]) -> ModelSpec | None:
    """The same model by its flat fields alone, or None where they cannot say it."""
    flat = [_flat_fields(spec, layer) for layer in dict.fromkeys(layers)]
    first = flat[0]
    if first is None or any(fields != first for fields in flat):
        return None
    windows = {layer.mixers[0].window for layer in layers} - {None}
    if len(windows) > 1 or spec.other_params or spec.embedding_size not in (None, spec.hidden_size):
        return None
    if spec.final_norm_params != final_norm_params(hidden_size=spec.hidden_size, norm=spec.norm):
        return None
    return replace(
        spec,
        layers=(),
        other_params=0,
        embedding_size=None,
        final_norm_params=None,
        n_sliding_layers=sum(layer.mixers[0].window is not None for layer in layers),
        window=next(iter(windows), None),
        **first,
    )


def _flat_fields(spec: ModelSpec, layer: LayerSpec) -> dict[str, Any] | None:
    if len(layer.mixers) != 1 or len(layer.feed_forwards) != 1:
        return None
    mixer, dense = layer.mixers[0], layer.feed_forwards[0]
    if not isinstance(mixer, Attention) or not isinstance(dense, Dense):
        return None
    odd = mixer.value_dim != mixer.head_dim or mixer.chunked or mixer.gated or mixer.extra_params or dense.extra_params
    if odd or not (mixer.keys and mixer.values):
        return None
    norms = {
        qk_norm: layer_norm_params(
            hidden_size=layer.hidden_size, head_dim=mixer.head_dim, norm=layer.norm, qk_norm=qk_norm
        )
        for qk_norm in (False, True)
    }
    if layer.norm_params not in norms.values():
        return None
    return {
        "n_heads": mixer.n_heads,
        "n_kv_heads": mixer.n_kv_heads,
        "head_dim": mixer.head_dim,
        "intermediate_size": dense.intermediate_size,
        "mlp": dense.mlp,
        "mlp_bias": dense.bias,
        "qkv_bias": mixer.qkv_bias,
        "o_bias": mixer.o_bias,
        "qk_norm": layer.norm_params == norms[True],
        "norm": layer.norm,
    }
