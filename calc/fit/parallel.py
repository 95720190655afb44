"""A model on the devices that share it: what every stage holds, and which one decides."""

from __future__ import annotations

from dataclasses import dataclass

from calc.explain.terms import Term
from calc.fit.degrees import ParallelSpec, parallel_problem
from calc.fit.stages import Stage, stages_of
from calc.model.layers import Attention, Latent, mixers_of
from calc.model.shares import VOCAB_MULTIPLE, padded_vocab, padded_vocab_term
from calc.model.spec import ModelSpec
from calc.model.study import Study


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelPlan:
    """What every stage holds, and which one limits. `problem`: why no server could run it (then there are no
    stages)."""

    spec: ParallelSpec
    problem: str | None
    stages: tuple[Stage, ...]
    binding: int
    max_batch: int
    fits: bool
    missing_bytes: int
    steps: tuple[Term, ...]
    notes: tuple[str, ...]

    @property
    def devices(self) -> int:
        """Devices of a replica."""
        return self.spec.devices


def plan(study: Study, spec: ParallelSpec) -> ParallelPlan:
    """What each device holds if `study`'s model is divided by `spec`, in whole heads whatever the policy."""
    problem = parallel_problem(study.model, spec)
    if problem is not None:
        return _impossible(spec, problem)
    stages = stages_of(study, spec)
    binding = min(stages, key=lambda s: (s.max_batch, -s.missing_bytes, -s.weight_bytes))
    steps = (padded_vocab_term(study.model.vocab_size, spec.tp), *(term for stage in stages for term in stage.steps))
    return ParallelPlan(
        spec=spec,
        problem=None,
        stages=stages,
        binding=binding.index,
        max_batch=binding.max_batch * spec.dp_attention,
        fits=binding.fits,
        missing_bytes=binding.missing_bytes,
        steps=steps,
        notes=_notes(study.model, spec, stages, binding),
    )


def _impossible(spec: ParallelSpec, problem: str) -> ParallelPlan:
    return ParallelPlan(
        spec=spec,
        problem=problem,
        stages=(),
        binding=0,
        max_batch=0,
        fits=False,
        missing_bytes=0,
        steps=(),
        notes=(),
    )


def _notes(model: ModelSpec, spec: ParallelSpec, stages: tuple[Stage, ...], binding: Stage) -> tuple[str, ...]:
    notes = []
    padded = padded_vocab(model.vocab_size, spec.tp)
    if padded != model.vocab_size:
        notes.append(
            f"The vocabulary of {model.vocab_size:,} is padded to {padded:,}, a multiple of {VOCAB_MULTIPLE} and of "
            f"TP {spec.tp:,}, so that embedding and head can be divided."
        )
    if len(stages) > 1:
        layers = ", ".join(str(stage.n_layers) for stage in stages)
        copy = ", with a copy of the tied embedding" if model.tied else ""
        notes.append(
            f"Layers by stage: {layers}; the embedding is on the first, the head on the last{copy}. Stage "
            f"{binding.index + 1} limits."
        )
        if model.spread:
            notes.append(
                "The spec does not say which layers slide: they are assumed to be spread evenly over the stages."
            )
    return (*notes, *_attention_notes(model, spec))


def _attention_notes(model: ModelSpec, spec: ParallelSpec) -> list[str]:
    notes, mixers = [], mixers_of(model.layers)
    heads = [m.n_kv_heads for m in mixers if isinstance(m, Attention) and m.cache_elements]
    if heads and spec.attention_tp > min(heads):
        notes.append(
            f"{spec.attention_tp:,} devices hold {min(heads):,} KV heads, each "
            f"{spec.attention_tp // min(heads):,} times, their K and V projections too."
        )
    if spec.attention_tp > 1 and any(isinstance(m, Latent) for m in mixers):
        notes.append("The latent cache serves all heads, so attention groups divide it, but TP does not.")
    if spec.dp_attention > 1:
        notes.append(
            f"{spec.dp_attention:,} attention groups of {spec.attention_tp:,} serve their own requests: the batch is "
            "that of all groups, and each group holds all attention weights and the embedding."
        )
    if spec.ep > 1:
        notes.append(f"Whole experts are divided among {spec.ep:,} devices; the fullest device is counted.")
    return notes
