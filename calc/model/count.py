"""Parameters of a model: totals and components. Exact.

Every formula is a plain function: ints give the count, `explain` symbols give the formula itself. Sums without a
derivation are folds over the tensors of the layers (`calc.model.parts`). Sources: Touvron et al. 2023 (Llama, section
2.2) for the gated form without biases; Vaswani et al. 2017 (section 3.3) for the plain one; Ainslie et al. 2023
(section 2.2) for grouped-query projections.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from calc.explain.terms import Expr, Term, derive
from calc.model.parts import PARAMS, LayerSpec, Norm, layer_norm_params
from calc.model.spec import ModelSpec
from calc.model.tensors import BIAS, EMBEDDING, NORM, OTHER, POSITIONS, WHOLE, Tensor

if TYPE_CHECKING:
    pass

EMBED_TOKENS, LM_HEAD = "embed_tokens", "lm_head"


# Formulas


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
    """The head; only its bias if it shares the embedding's weights."""
    weights = 0 if tied else vocab_size * hidden_size
    return weights + vocab_size if bias else weights


def total_params(
    *,
    n_layers: Any,
    attention: Any,
    feed_forward: Any,
    layer_norms: Any,
    final_norm: Any,
    embedding: Any = 0,
    positions: Any = 0,
    head: Any = 0,
) -> Any:
    """All parameters; attention, feed_forward and layer_norms are per layer."""
    return embedding + positions + n_layers * (attention + feed_forward + layer_norms) + final_norm + head


def group_params(
    *,
    group_layers: Any,
    mixer: Any = 0,
    feed_forward: Any = 0,
    routed: Any = 0,
    router: Any = 0,
    layer_norms: Any = 0,
) -> Any:
    """Parameters of all layers of one kind."""
    return group_layers * (mixer + feed_forward + routed + router + layer_norms)


def layered_total(
    *, stack: Any, embedding: Any = 0, final_norm: Any = 0, positions: Any = 0, head: Any = 0, other: Any = 0
) -> Any:
    """All parameters; `stack` is the sum over the kinds of layers."""
    return embedding + positions + stack + other + final_norm + head


def active_params(*, parameters: Any, idle: Any) -> Any:
    """Parameters that a token uses."""
    return parameters - idle


# Tensors


def outer_tensors(model: ModelSpec) -> Iterator[Tensor]:
    """Tensors outside the layers: embedding, positions, other parts, final norm, head."""
    width = model.embedding_width
    if model.embeds:
        yield Tensor(EMBED_TOKENS, model.vocab_size, width, role=EMBEDDING)
    if model.n_learned_positions:
        yield Tensor("embed_positions", model.n_learned_positions, model.hidden_size, WHOLE, POSITIONS)
    if model.other_params:
        yield Tensor("other", model.other_params, role=OTHER)
    if model.final_norm_size:
        yield Tensor("norm", model.final_norm_size, share=WHOLE, role=NORM)
    if not model.tied and model.head_size:
        yield Tensor(LM_HEAD, model.head_size, width)
    if model.head_bias and model.head_size:
        yield Tensor(f"{LM_HEAD}.bias", model.head_size, role=BIAS)


def model_tensors(model: ModelSpec) -> Iterator[Tensor]:
    """All of them, layer after layer: ``layers.0.self_attn.q_proj``."""
    yield from outer_tensors(model)
    known: dict[int, tuple[Tensor, ...]] = {}  # equal layers are one object
    for i, layer in enumerate(model.layers):
        if id(layer) not in known:
            known[id(layer)] = tuple(layer.tensors())
        for tensor in known[id(layer)]:
            yield tensor._replace(name=f"layers.{i}.{tensor.name}")


# Counts


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
        """Parameters that a token uses, including the embedding: all except the experts it is not routed to."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCounts:
    """Parameters of one layer by component. `idle`: those of experts that a token does not use."""

    mixer: int
    feed_forward: int
    routed: int
    router: int
    layer_norms: int
    idle: int


def layer_counts(layer: LayerSpec) -> LayerCounts:
    """The parameters of `layer`."""
    counts = dict.fromkeys(("feed_forward", "routed", "router", "idle"), 0)
    for part in layer.feed_forwards:
        for tensor in part.tensors(layer.hidden_size):
            kind = "feed_forward" if part.kind == "dense" else "routed" if tensor.expert else "router"
            counts[kind] += tensor.params
            counts["idle"] += tensor.params - tensor.active_params
    mixer = sum(tensor.params for mixer in layer.mixers for tensor in mixer.tensors(layer.hidden_size))
    return LayerCounts(mixer=mixer, layer_norms=layer.norm_params, **counts)


def parameters(model: ModelSpec) -> Parameters:
    """Parameter counts of `model`, exact, with each step's derivation."""
    counts = {layer: layer_counts(layer) for layer in model.groups}

    def over_layers(name: str) -> int:
        return sum(n * int(getattr(counts[layer], name)) for layer, n in model.groups.items())

    outer = _outer_terms(model)
    values = {name: int(term.value) for name, term in outer.items()}
    idle = over_layers("idle")
    steps = _uniform_steps(model, outer) if model.uniform else _mixed_steps(model, outer, counts, idle)
    total = next(int(term.value) for term in reversed(steps) if term.gives == "parameters")
    return Parameters(
        embedding=values.get("embedding", 0),
        positions=values.get("positions", 0),
        attention=over_layers("mixer"),
        mlp=over_layers("feed_forward"),
        norms=over_layers("layer_norms") + model.final_norm_size,
        head=values.get("head", 0),
        total=total,
        steps=steps,
        experts=over_layers("routed"),
        other=over_layers("router") + model.other_params,
        idle=idle,
    )


# Derivations

TOTAL = "Total parameters"


def _outer_terms(model: ModelSpec) -> dict[str, Term]:
    """Terms outside the layers: embedding, positions, final norm, head."""
    size: dict[str, Any] = {"hidden_size": model.embedding_width}
    terms = {}
    if model.embeds:
        terms["embedding"] = derive(
            "Embedding", embedding_params, gives="embedding", unit=PARAMS, vocab_size=model.vocab_size, **size
        )
    if model.n_learned_positions:
        terms["positions"] = derive(
            "Learned positions",
            position_params,
            gives="positions",
            unit=PARAMS,
            n_learned_positions=model.n_learned_positions,
            hidden_size=model.hidden_size,
        )
    if model.final_norm_params is None:
        norm: dict[str, Any] = {"hidden_size": model.hidden_size, "norm": model.norm}
        terms["final_norm"] = derive("Final norm", final_norm_params, gives="final_norm", unit=PARAMS, **norm)
    if model.head_size:
        name = "Head (tied to the embedding)" if model.tied else "Head"
        head: dict[str, Any] = {"vocab_size": model.head_size, "tied": model.tied, "bias": model.head_bias}
        terms["head"] = derive(name, head_params, gives="head", unit=PARAMS, **head, **size)
    return terms


def _uniform_steps(model: ModelSpec, outer: Mapping[str, Term]) -> tuple[Term, ...]:
    """The derivation for equal layers: one layer's parts, then the total with the number of layers."""
    layer = model.layers[0]
    (mixer,), (feed,) = layer.mixers, layer.feed_forwards
    sizes: dict[str, Any] = {name: getattr(model, name) for name in ("hidden_size", "head_dim", "norm", "qk_norm")}
    inside = {
        "attention": replace(mixer.term(layer.hidden_size), name="Attention (per layer)", gives="attention"),
        "feed_forward": replace(feed.term(layer.hidden_size), name="Feed-forward (per layer)"),
        "layer_norms": derive("Norms (per layer)", layer_norm_params, gives="layer_norms", unit=PARAMS, **sizes),
    }
    order = ("embedding", "positions", "attention", "feed_forward", "layer_norms", "final_norm", "head")
    terms = {name: term for name in order if (term := outer.get(name) or inside.get(name)) is not None}
    present: dict[str, Any] = {name: int(term.value) for name, term in terms.items() if term.value}
    total = derive(TOTAL, total_params, gives="parameters", unit=PARAMS, n_layers=model.n_layers, **present)
    return (*terms.values(), total)


def _mixed_steps(
    model: ModelSpec, outer: Mapping[str, Term], counts: Mapping[LayerSpec, LayerCounts], idle: int
) -> tuple[Term, ...]:
    """The derivation for several kinds of layers: each part once, the kinds of layers, their sum, the total."""
    groups = [_group_term(layer, n, counts[layer]) for layer, n in model.groups.items()]
    stack = groups[0] if len(groups) == 1 else _sum_term("All layers", [int(term.value) for term in groups], PARAMS)
    values = {name: int(term.value) for name, term in outer.items()}
    values |= {"final_norm": model.final_norm_size, "other": model.other_params}
    present: dict[str, Any] = {name: value for name, value in values.items() if value}
    total = derive(TOTAL, layered_total, gives="parameters", unit=PARAMS, stack=int(stack.value), **present)
    summed = () if len(groups) == 1 else (stack,)
    steps = (*outer.values(), *_part_terms(model.groups), *groups, *summed, total)
    if not idle:
        return steps
    active: dict[str, Any] = {"parameters": int(total.value), "idle": idle}
    return (*steps, derive("Active parameters per token", active_params, unit=PARAMS, **active))


def _part_terms(layers: Mapping[LayerSpec, int]) -> list[Term]:
    """One term per distinct part, in order of appearance; for experts, one for a single expert and one for all of a
    layer."""
    terms: dict[Any, list[Term]] = {}
    for layer in layers:
        parts: tuple[Any, ...] = (*layer.mixers, *layer.feed_forwards)
        for part in parts:
            if part in terms:
                continue
            own = part.term(layer.hidden_size)
            terms[part] = [own]
            if part.kind == "experts":
                terms[part].append(part.routed_term(layer.hidden_size))
    return [term for some in terms.values() for term in some]


def _group_term(layer: LayerSpec, n: int, counts: LayerCounts) -> Term:
    names = ("mixer", "feed_forward", "routed", "router", "layer_norms")
    present: dict[str, Any] = {name: value for name in names if (value := getattr(counts, name))}
    name = f"{n:,} {'layer' if n == 1 else 'layers'}: {layer.label}"
    return derive(name, group_params, unit=PARAMS, group_layers=n, **present)


def _sum_term(name: str, parts: list[int], unit: str) -> Term:
    """A written-out sum: its formula is the numbers themselves."""
    expression = Expr("num", (parts[0],))
    for part in parts[1:]:
        expression = Expr("+", (expression, Expr("num", (part,))))
    return Term(name=name, expression=expression, values={}, value=sum(parts), unit=unit)
