"""How many devices share what of a model, and whether they can: in whole heads, experts and layers.

`tp` devices form a pipeline stage, `pp` stages a replica. Of the `tp` devices, `ep` divide the routed experts among
them as whole experts (each split over tp / ep), `dp_attention` groups each handle their own requests, and `dcp` devices
share a request's tokens for KV heads that would otherwise be repeated. vLLM's ``-tp t -dp d --enable-expert-parallel``
is tp = t x d, dp_attention = d, ep = t x d here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from calc.model.checks import check_count
from calc.model.layers import Attention, Dense, Experts, Latent, Mixer
from calc.model.pipeline import partition_problem
from calc.model.shares import unshared_tokens
from calc.model.spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelSpec:
    """How many devices share what; `pp_layers`: the layers per stage. Raises SpecError for a number below 1."""

    tp: int = 1
    pp: int = 1
    ep: int = 1
    dp_attention: int = 1
    dcp: int = 1
    pp_layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("tp", "pp", "ep", "dp_attention", "dcp"):
            check_count(name, getattr(self, name))

    @property
    def devices(self) -> int:
        """Devices of a replica."""
        return self.tp * self.pp

    @property
    def attention_tp(self) -> int:
        """Devices that share the attention of one request."""
        return self.tp // self.dp_attention


def parallel_problem(model: ModelSpec, spec: ParallelSpec) -> str | None:
    """Why these devices cannot share this model in whole heads, experts and layers, or None if they can."""
    if spec.tp % spec.dp_attention:
        return f"{spec.tp:,} devices do not form {spec.dp_attention:,} equal attention groups"
    if spec.pp > model.n_layers:
        return f"{spec.pp:,} stages for {model.n_layers:,} layers: each stage needs at least one layer"
    if problem := partition_problem(model.n_layers, spec.pp, spec.pp_layers):
        return problem
    different = model.groups
    for mixer in dict.fromkeys(m for layer in different for m in layer.mixers):
        if problem := mixer.problem(spec.attention_tp) or _shared_tokens_problem(mixer, spec):
            return problem
    parts = dict.fromkeys(part for layer in different for part in layer.feed_forwards)
    experts = [part for part in parts if isinstance(part, Experts)]
    for part in parts:
        if isinstance(part, Dense) and (problem := part.problem(spec.tp)) is not None:
            return problem
    return _expert_problem(experts, spec)


def _expert_problem(experts: Sequence[Experts], spec: ParallelSpec) -> str | None:
    if spec.ep > 1 and not experts:
        return "the model has no routed experts to divide among devices"
    if spec.tp % spec.ep:
        return f"{spec.tp:,} devices do not form equal groups of {spec.ep:,} for the experts"
    for part in experts:
        if spec.ep > part.n_experts:
            return f"{spec.ep:,} devices for {part.n_experts:,} experts: some would hold none"
        if (problem := part.problem(spec.tp // spec.ep)) is not None:
            return problem
    return None


def _shared_tokens_problem(mixer: Mixer, spec: ParallelSpec) -> str | None:
    """Why a request's tokens cannot be shared: only devices with repeated heads can share tokens."""
    if spec.dcp == 1 or not (mixer.cache_elements or mixer.state_elements):
        return None
    if problem := unshared_tokens(mixer):
        return problem
    copies = spec.attention_tp // mixer.n_kv_heads if isinstance(mixer, Attention) else spec.attention_tp
    if max(1, copies) % spec.dcp:
        held = "the latent" if isinstance(mixer, Latent) else f"each of the {_kv_heads(mixer)} KV heads"
        times = "once" if copies <= 1 else f"{copies:,} times"
        return f"{held} is held {times} by {spec.attention_tp:,} devices and cannot be shared by {spec.dcp:,}"
    return None


def _kv_heads(mixer: Mixer) -> int:
    return mixer.n_kv_heads if isinstance(mixer, Attention) else 1
