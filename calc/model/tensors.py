"""Every tensor of a model by the name that checkpoints give it: what a quantization applies to, or leaves alone."""

from __future__ import annotations

from collections.abc import Iterator

from calc.model.parts import BIAS, EMBEDDING, NORM, OTHER, POSITIONS, WHOLE, Norm, Tensor
from calc.model.spec import ModelSpec

EMBED_TOKENS, LM_HEAD = "embed_tokens", "lm_head"


def outer_tensors(model: ModelSpec) -> Iterator[Tensor]:
    """What is not in a layer: embedding, positions, other parts, final norm, head."""
    width = model.hidden_size if model.embedding_size is None else model.embedding_size
    yield Tensor(EMBED_TOKENS, model.vocab_size, width, role=EMBEDDING)
    if model.n_learned_positions:
        yield Tensor("embed_positions", model.n_learned_positions, model.hidden_size, WHOLE, POSITIONS)
    if model.other_params:
        yield Tensor("other", model.other_params, role=OTHER)
    if final := final_norm_size(model):
        yield Tensor("norm", final, share=WHOLE, role=NORM)
    if not model.tied:
        yield Tensor(LM_HEAD, model.vocab_size, width)
    if model.head_bias:
        yield Tensor(f"{LM_HEAD}.bias", model.vocab_size, role=BIAS)


def final_norm_size(model: ModelSpec) -> int:
    """Parameters of the norm before the head."""
    if model.final_norm_params is not None:
        return model.final_norm_params
    return model.hidden_size * (1 if model.norm is Norm.RMS else 2)


def model_tensors(model: ModelSpec) -> Iterator[Tensor]:
    """All of them, layer after layer: ``layers.0.self_attn.q_proj``."""
    yield from outer_tensors(model)
    known: dict[int, tuple[Tensor, ...]] = {}  # equal layers are one object
    for i, layer in enumerate(model.layers):
        if id(layer) not in known:
            known[id(layer)] = tuple(layer.tensors())
        for tensor in known[id(layer)]:
            yield tensor._replace(name=f"layers.{i}.{tensor.name}")
