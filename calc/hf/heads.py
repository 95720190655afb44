"""What a class of `architectures` has in place of a language-model head: nothing, or a row for each label.

The endings are those of transformers' classes (``modeling_layers.py``: GenericForSequenceClassification and its
like) and of published reward models (Qwen2.5-Math-RM, InternLM2-Reward).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from calc.hf.reader import Reader, shown

LANGUAGE_MODEL = (
    "ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForImageTextToText", "ForVision2Seq", "VLChatModel",
)  # fmt: skip
"""Endings of classes that are whole language models."""
WHOLE_MODELS = frozenset(
    "AquilaModel ChatGLMModel GritLM LlavaLlamaModel LlavaQwenModel MiniCPMO MiniCPMV NVLM_D_Model".split()
)
"""Whole language models whose names do not say so."""
NO_HEAD = ("Model", "ForEmbedding", "ForTextEncoding", "ForRetrieval", "ForMaskedLM", "ForEmbeddings")
"""Endings of classes without a head: the bare model, and those whose output is a vector."""
ENDINGS = (
    *LANGUAGE_MODEL, "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForRewardModel",
    "ForProcessRewardModel", *NO_HEAD,
)  # fmt: skip
"""What follows the name of a type in the names of its classes."""
DEFAULT_LABELS = 2
"""What transformers takes where a config names no labels."""


@dataclass(frozen=True, slots=True)
class Head:
    """A head of `rows` x hidden_size (0: none), `bias` where each row has one, `extra` parameters beside it."""

    rows: int = 0
    bias: bool = False
    extra: int = 0


def class_name(config: Mapping[str, Any]) -> str:
    """The class that a config names first; empty where it names none."""
    names = config.get("architectures")
    first = names[0] if isinstance(names, list) and names else None
    return first if isinstance(first, str) else ""


def head_of(name: str, reader: Reader, hidden_size: int) -> Head | None:
    """The head of a class that is no language model, with a note; None for a language model."""
    if not name or name in WHOLE_MODELS or name.endswith(LANGUAGE_MODEL):
        return None
    said = f"architectures says {shown(name)}"
    if name.endswith(("ForSequenceClassification", "ForTokenClassification")):
        labels = _labels(reader)
        reader.notes.append(f"{said}: a classifier, a head of {_rows(labels)} and none for tokens")
        return Head(labels, bias=name.endswith("ForTokenClassification"))
    if name.endswith("ForQuestionAnswering"):
        reader.notes.append(f"{said}: a head of 2 rows (start and end) and none for tokens")
        return Head(2, bias=True)
    if name.endswith("RewardModel"):
        return _reward_head(name, said, reader, hidden_size)
    if name.endswith(NO_HEAD):
        reader.notes.append(f"{said}: a model without a head, so none is counted")
        return Head()
    reader.notes.append(f"{said}, which kvscope does not know: it is counted as a language model with its head")
    return None


def _reward_head(name: str, said: str, reader: Reader, hidden_size: int) -> Head:
    """Qwen2's is a small MLP, InternLM2's one row; of others only that there is none for tokens."""
    if name in ("Qwen2ForRewardModel", "Qwen2ForProcessRewardModel"):
        labels = _labels(reader) if reader.has("num_labels") else 1 + ("Process" in name)
        reader.notes.append(f"{said}: a reward model, an MLP that ends in {_rows(labels)} and no head for tokens")
        return Head(labels, bias=True, extra=hidden_size * (hidden_size + 1))
    if name == "InternLM2ForRewardModel":
        reader.notes.append(f"{said}: a reward model, a head of 1 row and none for tokens")
        return Head(1)
    reader.notes.append(f"{said}: a reward model; its score head is not known and not counted")
    return Head()


def _labels(reader: Reader) -> int:
    """num_labels, or as many as id2label names, or transformers' default."""
    if (stated := reader.maybe("num_labels")) is not None:
        return stated
    named = reader.get("id2label")
    if isinstance(named, dict) and named:
        return len(named)
    reader.notes.append(f"num_labels is not in the config: {DEFAULT_LABELS}, as transformers assumes")
    return DEFAULT_LABELS


def _rows(labels: int) -> str:
    return f"{labels:,} row" + ("s" if labels > 1 else "")
