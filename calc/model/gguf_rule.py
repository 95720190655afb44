"""Which type each tensor of a GGUF file gets: the rule of llama.cpp's quantizer for its mixes (Q4_K_M and others).

Source: llama.cpp 0c1e57098bba, src/llama-quant.cpp (llama_tensor_get_type_impl, tensor_type_fallback,
tensor_allows_quantization) and conversion/base.py for what stays in F32. Its own snapshots of twelve models
(tests/snapshots) are this module's test.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from calc.model.ggml import BLOCKS

MIXES: Mapping[str, str] = {
    "Q2_K": "Q2_K", "Q2_K_S": "Q2_K", "Q3_K_S": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_L": "Q3_K", "Q4_0": "Q4_0",
    "Q4_1": "Q4_1", "Q4_K_S": "Q4_K", "Q4_K_M": "Q4_K", "Q5_0": "Q5_0", "Q5_1": "Q5_1", "Q5_K_S": "Q5_K",
    "Q5_K_M": "Q5_K", "Q6_K": "Q6_K", "Q8_0": "Q8_0", "IQ1_S": "IQ1_S", "IQ1_M": "IQ1_M", "IQ2_XXS": "IQ2_XXS",
    "IQ2_XS": "IQ2_XS", "IQ2_S": "IQ2_XS", "IQ2_M": "IQ2_S", "IQ3_XXS": "IQ3_XXS", "IQ3_XS": "IQ3_S",
    "IQ3_S": "IQ3_S", "IQ3_M": "IQ3_S", "IQ4_XS": "IQ4_XS", "IQ4_NL": "IQ4_NL", "TQ1_0": "TQ1_0", "TQ2_0": "TQ2_0",
    "MXFP4_MOE": "MXFP4", "F16": "F16", "BF16": "BF16",
}  # fmt: skip
"""The mixes that `llama-quantize` makes, and the type of most of their tensors."""
PLAIN = ("F16", "BF16")
"""Formats that are converted, not quantized: all matrices have the same type."""
TINY = frozenset(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M"))
FALLBACK: Mapping[str, str] = {
    **dict.fromkeys(
        ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"
    ),
    **dict.fromkeys(("Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
}  # fmt: skip
"""The fallback for a tensor whose columns are not whole blocks; F16 if they are not whole blocks of the fallback
either."""


class GgufTensor(NamedTuple):
    """`copies` tensors stored as one under one name: those of a layer's experts. A `fixed` one is F32 in every mix.

    `share` says how ranks divide it, `component` which of `Parameters.components` it belongs to.
    """

    name: str
    layer: int
    rows: int
    columns: int
    copies: int = 1
    fixed: bool = False
    share: str = "split"
    component: str = "attention"

    @property
    def elements(self) -> int:
        """Elements of all copies."""
        return self.rows * self.columns * self.copies


def type_bytes(type_name: str, tensor: GgufTensor) -> int:
    """Bytes of `tensor` in a type."""
    block, block_bytes = BLOCKS[type_name]
    return tensor.rows * tensor.copies * (tensor.columns // block * block_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """What the rule needs to know about a model. `group`: query heads per KV head in the first layer, 0 if it has none.

    `large`: llama.cpp treats it as a 70B model. `importance`: quantized with an importance matrix.
    """

    n_layers: int
    n_experts: int
    group: int
    falcon: bool = False
    large: bool = False
    importance: bool = False


def tensor_types(mix: str, tensors: Iterable[GgufTensor], facts: FileFacts) -> list[tuple[GgufTensor, str]]:
    """Every tensor of a file of `mix` with its type, in llama.cpp's own order: by layer, then by name."""
    ordered = sorted(tensors, key=lambda tensor: (tensor.layer, tensor.name))
    rule = _Rule(mix, ordered, facts)
    return [(tensor, _held(tensor, rule)) for tensor in ordered]


def _held(tensor: GgufTensor, rule: _Rule) -> str:
    if tensor.fixed:
        return "F32"
    return rule.default if rule.mix in PLAIN else _fitting(rule.choose(tensor), tensor.columns)


def _fitting(type_name: str, columns: int) -> str:
    """The type, or llama.cpp's fallback if the columns are not whole blocks."""
    for name in (type_name, FALLBACK.get(type_name, "F16")):
        if columns % BLOCKS[name][0] == 0:
            return name
    return "F16"


def category(name: str) -> str:
    """The category that llama.cpp derives from a tensor's name.

    >>> category("blk.0.ffn_down_exps.weight"), category("blk.3.attn_v.weight"), category("blk.0.ssm_out.weight")
    ('ffn_down', 'attn_v', 'other')
    """
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return "embedding"
    if name == "output.weight":
        return "output"
    for part in ("attn_qkv.weight", "attn_kv_b.weight", "attn_v.weight"):
        if part in name:
            return "attn_v"
    for part in ("attn_k", "attn_q", "attn_output"):
        if f"{part}.weight" in name:
            return part
    return next((part for part in ("ffn_up", "ffn_gate", "ffn_down") if part in name), "other")


def more_bits(i: int, n: int) -> bool:
    """Whether the _M mixes give more bits to the tensor of layer `i` of `n`."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


class _Rule:
    """The state while going through a file's tensors: some decisions depend on how many of a kind came before."""

    def __init__(self, mix: str, tensors: list[GgufTensor], facts: FileFacts) -> None:
        self.mix = mix
        self.facts = facts
        self.default = MIXES[mix]
        kinds = [category(tensor.name) for tensor in tensors if not tensor.fixed]
        self.n_values = kinds.count("attn_v")
        self.tied = "output" not in kinds
        self.values = self.downs = self.gates = self.ups = 0

    def choose(self, tensor: GgufTensor) -> str:
        """The type before the shape is checked."""
        kind = category(tensor.name)
        if kind == "output" or (kind == "embedding" and self.tied):
            return self._output(tensor)
        if self.mix == "MXFP4_MOE":
            return "MXFP4" if tensor.copies > 1 else "Q8_0"
        if kind == "embedding":
            return self._embedding()
        if self.mix in TINY:
            return self._tiny(kind)
        choose = {
            "attn_v": self._value, "attn_k": self._key, "attn_q": self._query, "attn_output": self._attention_output,
            "ffn_down": self._down, "ffn_gate": self._gate, "ffn_up": self._up,
        }.get(kind)  # fmt: skip
        return self.default if choose is None else choose(tensor)

    def _output(self, tensor: GgufTensor) -> str:
        whole = tensor.columns % BLOCKS[self.default][0] == 0
        if self.mix == "MXFP4_MOE" or self.facts.falcon or not whole or self.default == "Q8_0":
            return "Q8_0"
        return "Q5_K" if self.mix in TINY or self.mix == "IQ3_XXS" else "Q6_K"

    def _embedding(self) -> str:
        special = {
            **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"), "Q2_K"),
            **dict.fromkeys(("IQ2_S", "IQ2_M", "IQ3_XXS"), "IQ3_S"),
            **dict.fromkeys(("TQ1_0", "TQ2_0"), "Q4_K"),
        }
        return special.get(self.mix, self.default)

    def _tiny(self, kind: str) -> str:
        wide = self.mix in ("IQ2_S", "IQ2_M")
        if kind == "attn_v":
            self.values += 1
            many = self.facts.group >= 4 or self.facts.n_experts >= 4
            return "Q4_K" if many else "IQ3_S" if wide else "Q2_K"
        if kind == "attn_k" and self.facts.n_experts == 8:
            return "Q4_K"
        if kind == "ffn_down":
            self.downs += 1
            early = self.downs - 1 < self.facts.n_layers // 8
            return ("IQ3_S" if wide else "Q2_K") if early else self.default
        if kind == "attn_output":
            if self.facts.n_experts == 8:
                return "Q5_K"
            return "IQ3_S" if wide else "IQ2_XXS" if self.mix in ("IQ1_S", "IQ1_M") else self.default
        return self.default

    def _value(self, tensor: GgufTensor) -> str:
        at, self.values = self.values, self.values + 1
        if self.facts.n_experts == 8:
            return "Q8_0"
        chosen = self._plain_value(at)
        return "Q5_K" if self.facts.large and chosen in ("Q3_K", "Q4_K") else chosen

    def _plain_value(self, at: int) -> str:
        mix, many = self.mix, self.facts.group >= 4
        unlike = {
            "Q2_K": "Q4_K" if many else "Q3_K",
            "IQ3_XXS": "Q4_K" if many else "IQ3_XXS" if self.facts.importance else "IQ3_S",
            "IQ3_M": "Q4_K",
            "Q3_K_M": "Q5_K" if at < 2 else "Q4_K",
            "Q3_K_L": "Q5_K",
        }
        if many:
            unlike |= {"Q2_K_S": "Q4_K", "IQ3_XS": "Q4_K", "IQ3_S": "Q4_K", "IQ4_NL": "Q5_K", "IQ4_XS": "Q5_K"}
        if more_bits(at, self.n_values):
            unlike |= {"Q4_K_M": "Q6_K", "Q5_K_M": "Q6_K"}
        if at < 4:
            unlike["Q4_K_S"] = "Q5_K"
        return unlike.get(mix, self.default)

    def _key(self, tensor: GgufTensor) -> str:
        return "Q8_0" if self.facts.n_experts == 8 else self._query(tensor)

    def _query(self, tensor: GgufTensor) -> str:
        return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(self.mix, self.default)

    def _attention_output(self, tensor: GgufTensor) -> str:
        if self.facts.falcon:
            return "Q4_K" if self.mix == "Q3_K_L" else self.default
        if self.facts.n_experts == 8:
            raised = ("Q2_K", "IQ3_XS", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ3_S", "IQ3_M")
            return "Q5_K" if self.mix in (*raised, "IQ4_XS") else self.default
        unlike = {"Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K"}
        return unlike.get(self.mix, self.default)

    def _at(self, tensor: GgufTensor, counted: int) -> int:
        """The layer number used by the rule: from the name if there are experts, else by how many came before."""
        return tensor.layer if self.facts.n_experts > 1 else counted

    def _down(self, tensor: GgufTensor) -> str:
        at, self.downs = self._at(tensor, self.downs), self.downs + 1
        n, mix = self.facts.n_layers, self.mix
        early, more = at < n // 8, more_bits(at, n)
        if self.facts.falcon and mix in ("Q3_K_M", "Q3_K_L", "Q4_K_M", "Q4_K_S"):
            return self._falcon_down(at, n, more=more)
        unlike = {"Q2_K": "Q3_K", "Q3_K_M": "Q5_K" if at < n // 16 else "Q4_K", "Q3_K_L": "Q5_K"}
        if not self.facts.importance:
            unlike["IQ3_XXS"] = "Q4_K" if early else "Q3_K"
        if more:
            unlike |= {"Q4_K_M": "Q6_K", "Q5_K_M": "Q6_K"}
        if early:
            unlike |= {"Q2_K_S": "Q4_K", "Q4_K_S": "Q5_K"}
            # Q4_0 and Q5_0 need it in the first layers even with an importance matrix; the IQ4 types only without one.
            unlike |= (
                {"Q4_0": "Q4_1", "Q5_0": "Q5_1"} if self.facts.importance else {"IQ4_NL": "Q5_K", "IQ4_XS": "Q5_K"}
            )
        if early or (more and self.facts.n_experts == 8):
            unlike["IQ3_M"] = "Q4_K"
        return unlike.get(mix, self.default)

    def _falcon_down(self, at: int, n: int, *, more: bool) -> str:
        first = at < n // 16
        return {
            "Q3_K_M": "Q5_K" if first else "Q4_K" if more else "Q3_K",
            "Q3_K_L": "Q4_K",
            "Q4_K_M": "Q6_K" if first else "Q5_K" if more else "Q4_K",
            "Q4_K_S": "Q4_K",
        }[self.mix]

    def _gate(self, tensor: GgufTensor) -> str:
        at, self.gates = self._at(tensor, self.gates), self.gates + 1
        return self._middle(at)

    def _up(self, tensor: GgufTensor) -> str:
        at, self.ups = self._at(tensor, self.ups), self.ups + 1
        return self._middle(at)

    def _middle(self, at: int) -> str:
        n = self.facts.n_layers
        return "IQ3_XXS" if self.mix == "IQ3_XS" and n // 8 <= at < 7 * n // 8 else self.default
