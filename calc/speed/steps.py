"""The times of prompts and steps, as an engine runs them on a device."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from math import ceil
from typing import TYPE_CHECKING, Any

from calc.explain.terms import maximum, minimum
from calc.model.storage import FORMATS
from calc.model.stored import is_as_stored
from calc.model.stored_format import stored_format
from calc.model.study import Study
from calc.servers.versions import parse_version
from calc.speed.asked import SERVERS, Asked
from calc.speed.constants import constants_of
from calc.speed.kernels import Device, device_for_times
from calc.speed.passes import PassTime, Worked, time_of, worked
from calc.step.operators import Pass, Phase
from calc.step.weights import as_stored, one_format

if TYPE_CHECKING:
    from calc.model.spec import ModelSpec

HOST_S = {"vllm": 0.4e-3, "trtllm": 0.4e-3, "sglang": 1.5e-3, "transformers": 2.7e-3, "llamacpp": 0.1e-3}
"""Scheduling, sampling and launch of a step (2025 and later; for SGLang, 1.4 to 3.5 ms were reported)."""
OLD_VLLM, OLD_VLLM_HOST_S = (0, 8), 2.7e-3
"""Before its V1 engine vLLM scheduled between steps, in Python."""
EAGER_LAYER_S = 0.5e-3
"""transformers launches every kernel from Python: about 25 ms per token for 32 layers (recalled, not measured)."""
UBATCH = 512
"""Tokens that llama.cpp computes at once (its --ubatch-size)."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The passes of a model on a device, as an engine runs them. With an array of batches, times are arrays.

    `done`: computed passes, which other devices may share.
    """

    study: Study
    asked: Asked
    done: dict[Any, Worked] = field(default_factory=dict, repr=False, compare=False)

    @property
    def model(self) -> ModelSpec:
        """The model."""
        return self.study.model

    @cached_property
    def device(self) -> Device:
        """The device with the achieved rates of operators. Raises SpecError if it has no bandwidth or peak."""
        device = self.study.device
        tiled = self.asked.engine != "llamacpp"  # llama.cpp multiplies a row without padding
        return device_for_times(device, constants_of(device), self.study.weight_format, tiled=tiled)

    @cached_property
    def base(self) -> Pass:
        """A pass of one token."""
        study, stored = self.study, is_as_stored(self.model, self.study.weight_format)
        each = study.weight_format.bytes_per_element
        return Pass(
            phase=Phase.DECODE,
            tp=1 if self.asked.engine == "llamacpp" else self.asked.tp,
            ep=self.asked.ep,
            groups=self.asked.dp_attention,
            stages=self.asked.stages,
            dcp=self.asked.dcp,
            kv_element_bytes=study.kv_format.bytes_per_element,
            weight_bytes=as_stored(self.model) if stored else one_format(each),
        )

    @property
    def host_s(self) -> float:
        """Host overhead per step in seconds."""
        engine, version = self.asked.engine, self.asked.version
        if engine == "vllm" and version is not None and parse_version(version)[:2] < OLD_VLLM:
            return OLD_VLLM_HOST_S
        return HOST_S[engine] + (self.model.n_layers * EAGER_LAYER_S if engine == "transformers" else 0.0)

    @cached_property
    def _times(self) -> dict[Any, PassTime]:
        return {}

    def _timed(self, work: Pass) -> PassTime:
        """The time of a pass, computed once."""
        key = work if isinstance(work.batch, int) else (id(work.batch), replace(work, batch=0))
        if key not in self._times:
            if key not in self.done:
                self.done[key] = worked(self.model, work)
            self._times[key] = time_of(self.done[key], self.device)
        return self._times[key]

    def prefill(self, batch: Any = 1) -> PassTime:
        """The pass over the computed tokens of a prompt, or over its middle chunk."""
        return self._prompt(batch, self.chunk)

    def _prompt(self, batch: Any, chunk: int) -> PassTime:
        context = self.asked.prompt_tokens - (self.asked.computed_tokens - chunk) // 2
        return self._timed(replace(self.base, phase=Phase.PREFILL, batch=batch, context=context, new_tokens=chunk))

    def prefill_s(self, batch: Any = 1) -> tuple[Any, Any]:
        """Expected and least seconds of a prompt. The middle chunk stands for all chunks, because later ones read more.

        Every chunk adds the host overhead. In a pipeline, a chunk follows the previous one at a distance of one stage.
        """
        n_chunks, stages = self.asked.computed_tokens / self.chunk, self.asked.stages
        in_turn = n_chunks if stages == 1 else 1 + (n_chunks - 1) / stages
        expected_s = in_turn * self.prefill(batch).expected_s + ceil(n_chunks) * self.host_s
        if self.draft is not None:  # the draft model reads the prompt too
            expected_s = expected_s + self.draft.prefill_s(batch)[0]
        least_s = self._least_prompt_s(batch)
        return maximum(expected_s, least_s), least_s

    def _least_prompt_s(self, batch: Any) -> Any:
        """The lower bound for a prompt in seconds: no chunks, which only add time; with stages, perfect pipelining."""
        whole_s = self._prompt(batch, self.asked.computed_tokens).bound_s
        return whole_s if self.asked.stages == 1 else maximum(whole_s / self.asked.stages, self._prompt(1, 1).bound_s)

    @cached_property
    def prompt_share_s(self) -> Any:
        """Seconds that one more prompt adds when all attention groups and all stages are busy with prompts."""
        at_once, n_chunks = self.asked.dp_attention, self.asked.computed_tokens / self.chunk
        expected_s = n_chunks * self.prefill(at_once).expected_s / self.asked.stages
        drafts_s = 0.0 if self.draft is None else self.draft.prompt_share_s
        return (expected_s + ceil(n_chunks) * self.host_s) / at_once + drafts_s

    @property
    def chunk(self) -> int:
        """Prompt tokens per pass. Several llama.cpp devices process a prompt in parts."""
        parts = UBATCH if self.asked.engine == "llamacpp" and self.asked.stages > 1 else None
        new = self.asked.computed_tokens
        return min(new, self.asked.chunk or parts or new)

    @cached_property
    def draft(self) -> Steps | None:
        """The passes of the draft model, on the same devices."""
        model = self.asked.draft
        if model is None:
            return None
        weights = stored_format(model) or FORMATS["bf16"]
        study = replace(self.study, model=model, weight_format=weights)
        return Steps(study=study, asked=replace(self.asked, draft=None, drafted=0))

    def drafting(self, batch: Any) -> tuple[Any, Any]:
        """Expected and least seconds of drafting the tokens of a step, one after the other."""
        if self.draft is None:
            return 0.0, 0.0
        one = self.draft.step(batch)
        return self.asked.drafted * one.expected_s, self.asked.drafted * one.bound_s

    def decode(self, batch: Any, context: int) -> PassTime:
        """A step of `batch` sequences: one new token each, plus the drafted tokens."""
        return self._timed(replace(self.base, batch=batch, context=context, new_tokens=1 + self.asked.drafted))

    def step(self, batch: Any) -> PassTime:
        """A step of half-done requests: of all of them or, in a pipeline, of one microbatch."""
        if self.asked.stages == 1 or self.asked.engine not in SERVERS:
            return self.decode(batch, self.middle)
        return self.decode(-(-batch // minimum(batch, self.asked.stages)), self.middle)

    def least_step_s(self, batch: Any) -> Any:
        """The lower bound for a step in seconds: the whole batch spread over all stages, or one sequence in turn."""
        whole_s = self.decode(batch, self.middle).bound_s
        if self.asked.stages == 1:
            return whole_s
        return maximum(whole_s / self.asked.stages, self.decode(1, self.middle).bound_s)

    @property
    def middle(self) -> int:
        """Tokens of a request that is half done."""
        return self.asked.prompt_tokens + self.asked.new_tokens // 2


def has_experts(model: ModelSpec) -> bool:
    """Whether any layer routes its tokens to experts."""
    return any(part.kind == "experts" for layer in model.groups for part in layer.feed_forwards)
