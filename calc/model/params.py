"""Parameters of a decoder-only transformer, component by component. Exact integers.

Every function is a plain formula: ints give the count, `explain` symbols give the formula itself.
Sources: Touvron et al. 2023 (Llama, section 2.2) for the gated form without biases; Vaswani et al. 2017
(section 3.3) for the plain one; Ainslie et al. 2023 (section 2.2) for grouped-query projections.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from calc.explain.terms import Term, derive
from calc.model.parts import attention_params as attention_params
from calc.model.parts import feed_forward_params as feed_forward_params
from calc.model.parts import layer_norm_params as layer_norm_params
from calc.model.spec import ModelSpec, Norm


def embedding_params(*, vocab_size: Any, hidden_size: Any) -> Any:
    """Token embedding, (vocab_size, hidden_size).

    >>> embedding_params(vocab_size=128_256, hidden_size=4096)
    525336576
    """
    return vocab_size * hidden_size


def position_params(*, n_learned_positions: Any, hidden_size: Any) -> Any:
    """Learned position table; 0 for rotary positions."""
    return n_learned_positions * hidden_size


def final_norm_params(*, hidden_size: Any, norm: Norm = Norm.RMS) -> Any:
    """The norm before the head."""
    return hidden_size if norm is Norm.RMS else 2 * hidden_size


def head_params(*, vocab_size: Any, hidden_size: Any, tied: bool = False, bias: bool = False) -> Any:
    """The head; only its bias when it shares the embedding's weights."""
    weights = 0 if tied else vocab_size * hidden_size
    return weights + vocab_size if bias else weights


def total_params(
    *,
    n_layers: Any,
    embedding: Any,
    attention: Any,
    feed_forward: Any,
    layer_norms: Any,
    final_norm: Any,
    positions: Any = 0,
    head: Any = 0,
) -> Any:
    """All of it: attention, feed_forward and layer_norms are of one layer."""
    return embedding + positions + n_layers * (attention + feed_forward + layer_norms) + final_norm + head


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Counts over the whole model, and the steps that led to them."""

    embedding: int
    positions: int
    attention: int
    mlp: int
    norms: int
    head: int
    total: int
    steps: tuple[Term, ...]
    experts: int = 0
    other: int = 0
    idle: int = 0

    @property
    def active(self) -> int:
        """Parameters that a token goes through, the embedding among them: all but the experts it is not routed to."""
        return self.total - self.idle

    @property
    def components(self) -> dict[str, int]:
        """Parts that sum to `total`, by the names of the JSON contract."""
        return {
            "embedding": self.embedding,
            "attention": self.attention,
            "mlp": self.mlp,
            "experts": self.experts,
            "norms": self.norms,
            "head": self.head,
            "other": self.positions + self.other,
        }


def _component_terms(model: ModelSpec) -> dict[str, Term]:
    m = model
    unit = "parameters"
    size: dict[str, Any] = {"hidden_size": m.hidden_size}
    return {
        "embedding": derive("Embedding", embedding_params, unit=unit, vocab_size=m.vocab_size, **size),
        "positions": derive(
            "Learned positions", position_params, unit=unit, n_learned_positions=m.n_learned_positions, **size
        ),
        "attention": derive(
            "Attention, a layer",
            attention_params,
            unit=unit,
            n_heads=m.n_heads,
            n_kv_heads=m.n_kv_heads,
            head_dim=m.head_dim,
            qkv_bias=m.qkv_bias,
            o_bias=m.o_bias,
            **size,
        ),
        "feed_forward": derive(
            "Feed-forward, a layer",
            feed_forward_params,
            unit=unit,
            intermediate_size=m.intermediate_size,
            mlp=m.mlp,
            bias=m.mlp_bias,
            **size,
        ),
        "layer_norms": derive(
            "Norms, a layer",
            layer_norm_params,
            unit=unit,
            head_dim=m.head_dim,
            norm=m.norm,
            qk_norm=m.qk_norm,
            **size,
        ),
        "final_norm": derive("Final norm", final_norm_params, unit=unit, norm=m.norm, **size),
        "head": derive(
            "Head (tied: the embedding serves)" if m.tied else "Head",
            head_params,
            unit=unit,
            vocab_size=m.vocab_size,
            tied=m.tied,
            bias=m.head_bias,
            **size,
        ),
    }


def parameters(model: ModelSpec) -> Parameters:
    """Parameter counts of `model`, exact, with each step's derivation."""
    if model.layers:
        from calc.model.layered import layered_parameters

        return layered_parameters(model)
    terms = _component_terms(model)
    values = {name: int(term.value) for name, term in terms.items()}
    if not model.n_learned_positions:
        del terms["positions"]
    present: dict[str, Any] = {name: value for name, value in values.items() if value}
    total = derive("Total parameters", total_params, unit="parameters", n_layers=model.n_layers, **present)
    return Parameters(
        embedding=values["embedding"],
        positions=values["positions"],
        attention=model.n_layers * values["attention"],
        mlp=model.n_layers * values["feed_forward"],
        norms=model.n_layers * values["layer_norms"] + values["final_norm"],
        head=values["head"],
        total=int(total.value),
        steps=(*terms.values(), total),
    )
