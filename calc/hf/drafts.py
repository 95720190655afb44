"""Draft heads for speculative decoding (EAGLE, DFlash and similar), which a server loads beside a target model.

A draft head has its own layers; its embedding and often its head are the target's. The layouts follow SpecForge
(``specforge/modeling/draft``), vLLM (``llama_eagle.py``, ``llama_eagle3.py``, ``deepseek_mtp.py``), SGLang
(``llama_eagle.py``) and speculators (``models/eagle3``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from calc.errors import UnsupportedArchitecture
from calc.hf.architecture import Architecture
from calc.hf.heads import class_name
from calc.hf.layers import layers_of
from calc.hf.reader import HIDDEN_SIZE, VOCAB_SIZE, Reader
from calc.model.layers import Attention, Latent, LayerSpec, Mixer

EAGLE3, EAGLE, DFLASH, NEXT = "EAGLE-3", "EAGLE", "DFlash", "multi-token prediction"
CLASSES = (
    ("eagle3", EAGLE3), ("peagle", EAGLE3), ("eagle", EAGLE), ("dflash2", ""), ("dflashdraft", DFLASH),
    ("dsparkdraft", DFLASH), ("dominodraft", DFLASH), ("nextn", NEXT), ("mtp", NEXT), ("medusa", ""),
    ("speculator", ""), ("draft", ""), ("assistant", ""),
)  # fmt: skip
"""Parts of class names and their kind of draft head; "" for a kind that is not counted."""
NO_DRAFTS = ("ForConditionalGeneration", "VLChatModel")
"""Endings of complete models, some of which are also called Eagle (NVIDIA's vision models)."""
KEYS = (
    ("draft_vocab_size", EAGLE3), ("eagle_config", EAGLE3), ("dflash_config", DFLASH), ("medusa_num_heads", ""),
    ("medusa_num_layers", ""), ("speculators_model_type", ""),
)  # fmt: skip
"""Keys that only draft heads have."""
OF_TYPE = {"eagle": EAGLE, "medusa": "", "mlp_speculator": ""}
"""Model_types that only draft heads have; those of Gemma 4 and Muse Glimmer end in "_assistant"."""
LAYERS_OF_CLASS = (
    ("llama", "llama"), ("peagle", "llama"), ("dflashdraft", "qwen3"), ("dsparkdraft", "qwen3"),
    ("dominodraft", "qwen3"),
)  # fmt: skip
"""Parts of class names and the model_type of their layers, whatever model_type the config copied from the target."""
LAYER_CONFIG = ("transformer_layer_config", "model")
"""Sections of a draft's config with the fields of its layers (speculators; vLLM's EAGLE)."""
N_AUXILIARY = 3
"""Number of target layers whose outputs EAGLE-3 reads, if no list names them."""
NEXT_TYPES = frozenset("deepseek_v3 deepseek_v32 kimi_k2 glm4_moe glm4_moe_lite".split())
"""Types whose prediction layers are laid out like DeepSeek-V3's: two norms, a projection, a layer, a norm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """The parts of a draft head. `norm`: whether a norm follows its layers."""

    layers: list[LayerSpec]
    other_params: int
    head_rows: int = 0
    embeds: bool = False
    norm: bool = True


def draft_kind(config: Mapping[str, Any]) -> str | None:
    """The kind of draft head that a config describes, "" for a kind that is not counted; None for a complete model."""
    if config.get("speculators_model_type") == "eagle3":
        return EAGLE3
    name = class_name(config)
    found = None
    if not name.endswith(NO_DRAFTS):
        found = next((kind for word, kind in CLASSES if word in name.lower()), None)
    model_type = str(config.get("model_type", ""))
    if found is None and (model_type in OF_TYPE or model_type.endswith("_assistant")):
        found = OF_TYPE.get(model_type, "")
    return found if found is not None else next((kind for key, kind in KEYS if config.get(key) is not None), None)


def draft_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """A draft's config with the fields of its layers at the top level, and the type of its layers by its class."""
    layer: Mapping[str, Any] = next((config[key] for key in LAYER_CONFIG if isinstance(config.get(key), dict)), {})
    own = {key: value for key, value in config.items() if key not in (*LAYER_CONFIG, "speculators_config")}
    name = class_name(config).lower()
    of_class = next((kind for word, kind in LAYERS_OF_CLASS if word in name), None)
    fields = {**own, **layer, "architectures": config.get("architectures")}
    return fields if of_class is None or layer else {**fields, "model_type": of_class}


def refuse_draft(kind: str | None, config: Mapping[str, Any], source: str) -> None:
    """Raise UnsupportedArchitecture for a kind of draft head that is not counted."""
    if kind == "":
        name = class_name(config) or str(config.get("model_type") or "judging by its keys")
        raise UnsupportedArchitecture(
            f"{source}: a draft head for speculative decoding ({name[:60]}), not a complete model, with a layout that "
            "kvscope does not support (EAGLE, EAGLE-3, DFlash, DSpark, Domino and DeepSeek's MTP are)"
        )


def draft_of(kind: str, reader: Reader, arch: Architecture, n_layers: int) -> Draft:
    """The draft head, with notes. Raises UnsupportedArchitecture for an unknown layout."""
    make = _KINDS[kind]
    reader.notes.append(
        f"a draft head for speculative decoding ({kind}), not a complete model: it runs beside its target"
    )
    made = make(reader, arch, n_layers, reader.count(*HIDDEN_SIZE))
    vocab = reader.count(*VOCAB_SIZE)
    if not made.embeds:
        reader.notes.append(
            f"the embedding is the target's and not counted (another {vocab * reader.count(*HIDDEN_SIZE):,} "
            "parameters if the checkpoint has a copy)"
        )
    if not made.head_rows:
        reader.notes.append("the language-model head is the target's and not counted")
    return made


def _eagle3(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> Draft:
    """A projection of the target's hidden states, a first layer that also reads the embedding, and its own head."""
    target = reader.maybe("target_hidden_size") or hidden_size
    own = reader.section("eagle_config")
    listed = (own and own.get("eagle_aux_hidden_state_layer_ids")) or reader.get("eagle_aux_hidden_state_layer_ids")
    n_read = len(listed) if isinstance(listed, list) and listed else N_AUXILIARY
    reader.flag("norm_before_residual")
    reader.flag("norm_output")
    uses = own is None or own.flag("use_aux_hidden_state", True)
    other = n_read * target * hidden_size if uses else 0
    other += n_read * target if reader.flag("fc_norm") else 0
    if "peagle" in class_name(reader.config).lower():
        other += n_read * target  # placeholder for the hidden state of a token that does not exist yet
    layers = layers_of(reader, arch, n_layers, hidden_size)
    layers[0] = _reads_embedding(reader, layers[0])
    vocab = reader.count(*VOCAB_SIZE)
    rows = reader.maybe("draft_vocab_size") or (0 if reader.flag("tie_word_embeddings") else vocab)
    if rows not in (0, vocab):
        reader.notes.append(f"its maps from draft tokens to target tokens take another {8 * rows + vocab:,} B")
    embeds = target != hidden_size or reader.has("speculators_model_type")
    return Draft(layers=layers, other_params=other, head_rows=rows, embeds=embeds)


def _reads_embedding(reader: Reader, layer: LayerSpec) -> LayerSpec:
    """A layer whose Q, K and V read both the embedding and the hidden state, each with its own norm."""
    return replace(
        layer,
        mixers=tuple(_wider(reader, mixer, layer.hidden_size) for mixer in layer.mixers),
        norm_params=layer.norm_params + layer.hidden_size,
    )


def _wider(reader: Reader, mixer: Mixer, more: int) -> Mixer:
    """A mixer whose first projections have `more` additional inputs."""
    if isinstance(mixer, Attention):
        rows = mixer.n_heads * mixer.head_dim + mixer.n_kv_heads * (mixer.head_dim + mixer.value_dim)
    elif isinstance(mixer, Latent):
        queries = mixer.q_lora_rank or mixer.n_heads * (mixer.nope_dim + mixer.rope_dim)
        rows = queries + mixer.cache_elements
    else:
        raise reader.fail(f"a draft head whose first layer is {mixer.label}: its inputs are not known")
    return replace(mixer, extra_params=mixer.extra_params + rows * more)


def _eagle(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> Draft:
    """A projection of embedding and hidden state; layers, the first without a norm before attention."""
    reader.ignore("num_lookahead_tokens", "truncated_vocab_size")
    original = class_name(reader.config).endswith("Eagle")
    bias = reader.flag("bias", original) or reader.flag("eagle_fc_bias")
    layers = layers_of(reader, arch, n_layers, hidden_size)
    first = layers[0]
    layers[0] = replace(first, norm_params=first.norm_params - arch.norm_params(hidden_size))
    return Draft(layers=layers, other_params=hidden_size * (2 * hidden_size + bias), norm=False)


def _dflash(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> Draft:
    """Layers that draft a whole block, from a normalized projection of the target's hidden states."""
    own = reader.section("dflash_config")
    reader.ignore("block_size", "num_target_layers", "emb_dim")
    listed = own and own.get("target_layer_ids")
    n_read = len(listed) if isinstance(listed, list) and listed else n_layers
    if own is None or not isinstance(listed, list):
        reader.assume("dflash_config.target_layer_ids", f"{n_read} layers")
    other = n_read * hidden_size * hidden_size + hidden_size
    if own is not None:
        own.ignore("attention_mode", "pure_draft_prefix_len")
        other += _projector(reader, own, hidden_size)
    return Draft(layers=layers_of(reader, arch, n_layers, hidden_size), other_params=other)


def _projector(reader: Reader, own: Reader, hidden_size: int) -> int:
    """The part that corrects the logits of a block: none in DFlash, a GRU in Domino, a Markov head in DSpark."""
    name = class_name(reader.config).lower()
    kind = own.text("projector_type") or next((word for word in ("domino", "dspark") if word in name), None)
    vocab = reader.count(*VOCAB_SIZE)
    if kind is None:
        return 0
    if kind == "domino":
        width, inner = own.count("emb_dim"), own.count("gru_hidden_dim")
        return 3 * inner * (hidden_size + inner) + (hidden_size + inner) * width + width * vocab
    if kind == "dspark":
        return _markov(own, hidden_size, vocab)
    raise own.fail(f"kvscope does not support projector_type {kind[:40]!r} (only domino and dspark)")


def _markov(own: Reader, hidden_size: int, vocab: int) -> int:
    """Two tables of width markov_rank, a gate or a cell between them, and a confidence head of one row."""
    rank = own.maybe("markov_rank", minimum=0) or 0
    params = 2 * vocab * rank
    kind = (own.text("markov_head_type") or "vanilla").lower()
    if rank and kind == "gated":
        params += rank * (hidden_size + rank + 1)
    elif rank and kind == "rnn":
        params += 3 * rank * (2 * rank + hidden_size + 1)
    elif kind != "vanilla":
        raise own.fail(f"kvscope does not support markov_head_type {kind[:40]!r} (only vanilla, gated and rnn)")
    if own.flag("enable_confidence_head", bool(own.get("confidence_head_alpha"))):
        params += hidden_size + 1 + (rank if own.flag("confidence_head_with_markov") else 0)
    return params


def _next(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> Draft:
    """DeepSeek-V3's: embedding and hidden state, each with a norm, in one projection; a layer with experts; a norm."""
    if reader.model_type not in NEXT_TYPES:
        raise UnsupportedArchitecture(
            f"{reader.source}: a draft head ({class_name(reader.config)[:60]}), not a complete model: the layout of "
            f"prediction layers in a {reader.model_type} model is not known"
        )
    n_next = reader.maybe("num_nextn_predict_layers") or 1
    reader.put("first_k_dense_replace", 0)
    layer = layers_of(reader, arch, n_layers, hidden_size)[-1]
    other = n_next * (2 * hidden_size * hidden_size + 2 * hidden_size) + (n_next - 1) * hidden_size
    return Draft(layers=[layer] * n_next, other_params=other)


_KINDS: Mapping[str, Callable[[Reader, Architecture, int, int], Draft]] = {
    EAGLE3: _eagle3,
    EAGLE: _eagle,
    DFLASH: _dflash,
    NEXT: _next,
}
