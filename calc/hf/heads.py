"""What a class of `architectures` has instead of a language-model head: nothing, or one row per label.

The endings are those of transformers' classes (``modeling_layers.py``: GenericForSequenceClassification and similar)
and of published reward models (Qwen2.5-Math-RM, InternLM2-Reward).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from calc.hf.reader import Reader, shown

LANGUAGE_MODEL = (
    "ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForImageTextToText", "ForVision2Seq", "VLChatModel",
)  # fmt: skip
"""Endings of classes that are complete language models."""
WHOLE_MODELS = frozenset(
    "AquilaModel ChatGLMModel GritLM LlavaLlamaModel LlavaQwenModel MiniCPMO MiniCPMV NVLM_D_Model".split()
)
"""Complete language models whose names do not say so."""
NO_HEAD = ("Model", "ForEmbedding", "ForTextEncoding", "ForRetrieval", "ForMaskedLM", "ForEmbeddings")
"""Endings of classes without a head: base models and embedding models."""
ENDINGS = (
    *LANGUAGE_MODEL, "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForRewardModel",
    "ForProcessRewardModel", *NO_HEAD,
)  # fmt: skip
"""Suffixes after the type in class names."""
DEFAULT_LABELS = 2
"""The number of labels that transformers assumes if a config names none."""


@dataclass(frozen=True, slots=True)
class Head:
    """A head of `rows` x hidden_size (0: none), with `bias` if each row has one, and `extra` parameters."""

    rows: int = 0
    bias: bool = False
    extra: int = 0


def class_name(config: Mapping[str, Any]) -> str:
    """The first class that a config names, or ""."""
    names = config.get("architectures")
    first = names[0] if isinstance(names, list) and names else None
    return first if isinstance(first, str) else ""


def head_of(name: str, reader: Reader, hidden_size: int) -> Head | None:
    """The head of a class that is not a language model, with a note; None for a language model."""
    if not name or name in WHOLE_MODELS or name.endswith(LANGUAGE_MODEL):
        return None
    said = f"architectures says {shown(name)}"
    if name.endswith(("ForSequenceClassification", "ForTokenClassification")):
        labels = _labels(reader)
        reader.notes.append(f"{said}: a classifier with a head of {_rows(labels)} and no language-model head")
        return Head(labels, bias=name.endswith("ForTokenClassification"))
    if name.endswith("ForQuestionAnswering"):
        reader.notes.append(f"{said}: a head of 2 rows (start and end) and no language-model head")
        return Head(2, bias=True)
    if name.endswith("RewardModel"):
        return _reward_head(name, said, reader, hidden_size)
    if name.endswith(NO_HEAD):
        reader.notes.append(f"{said}: a model without a head")
        return Head()
    reader.notes.append(f"{said}, which kvscope does not know: it is counted as a language model with a head")
    return None


def _reward_head(name: str, said: str, reader: Reader, hidden_size: int) -> Head:
    """Qwen2's head is a small MLP, InternLM2's one row; others are only known to have no language-model head."""
    if name in ("Qwen2ForRewardModel", "Qwen2ForProcessRewardModel"):
        labels = _labels(reader) if reader.has("num_labels") else 1 + ("Process" in name)
        reader.notes.append(
            f"{said}: a reward model with an MLP that ends in {_rows(labels)} and no language-model head"
        )
        return Head(labels, bias=True, extra=hidden_size * (hidden_size + 1))
    if name == "InternLM2ForRewardModel":
        reader.notes.append(f"{said}: a reward model with a head of 1 row and no language-model head")
        return Head(1)
    reader.notes.append(f"{said}: a reward model; its score head is unknown and not counted")
    return Head()


def _labels(reader: Reader) -> int:
    """num_labels, or the number of names in id2label, or transformers' default."""
    if (stated := reader.maybe("num_labels")) is not None:
        return stated
    named = reader.get("id2label")
    if isinstance(named, dict) and named:
        return len(named)
    reader.notes.append(f"num_labels is not in the config: {DEFAULT_LABELS}, as transformers assumes")
    return DEFAULT_LABELS


def _rows(labels: int) -> str:
    return f"{labels:,} row" + ("s" if labels > 1 else "")
