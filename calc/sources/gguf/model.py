"""A GGUF file as a ModelSpec: what is outside of its layers, its layers, its weights as stored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from calc.errors import CacheUnknown, CalcError, SourceError
from calc.model.parts import LayerSpec
from calc.model.spec import ModelSpec
from calc.model.stored import STORED_NOTE, StoredWeights
from calc.sources.gguf.architectures import check_readable
from calc.sources.gguf.facts import Facts, Undetermined, facts_of
from calc.sources.gguf.header import SPLIT_NAME, Tensor, read_parts
from calc.sources.gguf.layers import layers_of
from calc.sources.gguf.stored import held_tensors, predictor_bytes, stored_weights, total_params
from calc.sources.gguf.windows import unused_window, windows

EMBEDDING, HEAD, HEAD_BIAS, POSITIONS = "token_embd.weight", "output.weight", "output.bias", "position_embd.weight"
EXPANDED = "expanded_latent"
ENCODERS = ("v.", "a.", "mm.")
"""Prefixes of an encoder's tensors, which Ollama keeps in the same file."""
FINAL_NORMS = ("output_norm", "token_embd_norm")
"""The norm before the head; LFM2 has it under the second name."""


def read_gguf(path: str | Path) -> ModelSpec:
    """The model in a GGUF file, its weights as the file holds them.

    Raises SourceError; CacheUnknown, with the exact weights, where its layers do not say what they keep.
    """
    file, source = Path(path), str(path)
    facts = facts_of(read_parts(file), source)
    stem = SPLIT_NAME.sub("", file.name) if SPLIT_NAME.search(file.name) else file.stem
    try:
        stored = stored_weights(facts)
    except CalcError as error:
        raise SourceError(f"{source}: {error}") from None
    try:
        check_readable(facts)
        return _model(facts, name=stem, source=source, stored=stored)
    except (Undetermined, CalcError) as why:
        total = total_params(facts)
        known = f"its weights are {total:,} parameters in {stored.total_bytes:,} B, but its cache is not known"
        raise CacheUnknown(
            f"{source}: {why}: {known}", name=stem, parameters=total, components=dict(stored.components)
        ) from None


def encoder_note(file: Path) -> str:
    """The note on an encoder of images or sound that is in a file beside the model. Raises SourceError."""
    facts = facts_of(read_parts(file), str(file))
    n_bytes = sum(tensor.n_bytes for _, _, tensor in held_tensors(facts))
    return f"{file.name} beside it, {total_params(facts):,} parameters in {n_bytes:,} B, is not counted"


def _model(facts: Facts, *, name: str, source: str, stored: StoredWeights) -> ModelSpec:
    embedding, head = _embedding(facts), facts.outer.get(HEAD)
    width, vocab_size = embedding.shape
    tied = head is None or head is embedding
    if head is not None and head.elements != embedding.elements:
        raise Undetermined(f"{HEAD} has not the rows of the embedding: a draft head")
    hidden_size = facts.maybe("embedding_length") or width
    layers, rest = layers_of(facts, hidden_size)
    positions = _positions(facts, hidden_size)
    norm = next((norm for norm in FINAL_NORMS if f"{norm}.weight" in facts.outer), "")
    own_norm = {f"{norm}.weight", f"{norm}.bias"}
    taken = {embedding.name, HEAD, HEAD_BIAS, *own_norm, *((POSITIONS,) if positions else ())}
    return ModelSpec(
        name=name,
        source=source,
        layers=layers,
        vocab_size=vocab_size,
        tied=tied,
        head_bias=HEAD_BIAS in facts.outer,
        n_learned_positions=positions,
        max_context=facts.maybe("context_length") or None,
        other_params=rest + sum(facts.params(tensor) for each, tensor in facts.outer.items() if each not in taken),
        embedding_size=None if width == hidden_size else width,
        final_norm_params=sum(tensor.elements for each, tensor in facts.outer.items() if each in own_norm),
        stored=stored,
        notes=tuple(_notes(facts, layers, stored, tied=tied)),
    )


def _embedding(facts: Facts) -> Tensor:
    """The table of the vocabulary; CodeShell has it as its head alone."""
    tensor = facts.outer.get(EMBEDDING) or facts.outer.get(HEAD)
    if tensor is None or len(tensor.shape) != 2:
        raise Undetermined(f"{EMBEDDING} missing")
    return tensor


def _positions(facts: Facts, hidden_size: int) -> int:
    """Rows of a table of learned positions."""
    tensor = facts.outer.get(POSITIONS)
    return 0 if tensor is None or tensor.shape[0] != hidden_size else tensor.elements // hidden_size


def _notes(facts: Facts, layers: tuple[LayerSpec, ...], stored: StoredWeights, *, tied: bool) -> Iterator[str]:
    named = str(facts.header.metadata.get("general.name") or facts.architecture)
    n_tensors = sum(1 for _ in held_tensors(facts))
    yield f"{STORED_NOTE}in the file: {stored.total_bytes:,} B in {n_tensors:,} tensors ({named})"
    if left_out := predictor_bytes(facts):
        whole = stored.total_bytes + left_out
        yield f"multi-token-prediction layers, {left_out:,} of {whole:,} B, are left out, as in llama.cpp"
    if encoder := sum(facts.params(tensor) for each, tensor in facts.outer.items() if each.startswith(ENCODERS)):
        yield f'the file also has an image or audio encoder: {encoder:,} parameters, under "other"'
    if tied:
        yield "the head shares the embedding: llama.cpp stores it twice if all layers are on a GPU"
    if (unused := unused_window(facts, windows(facts, len(layers)))) is not None:
        yield unused
    if any(mixer.kind == EXPANDED for layer in layers for mixer in layer.mixers):
        yield (
            "K and V of all heads are cached instead of the latent, as in llama.cpp for a file with a single attn_kv_b"
        )
