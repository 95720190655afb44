"""TTFT, TPOT and throughput of a load: one static batch, clients in a closed loop, or all requests at once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from fractions import Fraction
from functools import cached_property
from math import ceil, floor
from typing import TYPE_CHECKING, Any

from calc.errors import SpecError
from calc.explain.terms import maximum, minimum
from calc.model.storage import FORMATS
from calc.model.stored import is_as_stored
from calc.model.stored_format import stored_format
from calc.model.study import Study
from calc.servers.versions import parse_version
from calc.speed.bands import band_for
from calc.speed.constants import constants_of
from calc.speed.drafts import step_tokens
from calc.speed.kernels import Device, device_for_times
from calc.speed.passes import PassTime, Worked, time_of, worked
from calc.speed.spans import Band, Span
from calc.step.operators import Pass, Phase
from calc.step.weights import as_stored, one_format

if TYPE_CHECKING:
    from calc.model.spec import ModelSpec
    from calc.servers.records import ModelFacts

SERVERS = ("vllm", "sglang", "trtllm")
"""Those that spread experts, attend in groups, and have several batches under way in a pipeline."""
ENGINES = ("vllm", "sglang", "trtllm", "transformers", "llamacpp")
TITLES = {
    "vllm": "vLLM",
    "sglang": "SGLang",
    "trtllm": "TensorRT-LLM",
    "transformers": "transformers",
    "llamacpp": "llama.cpp",
}
HOST_S = {"vllm": 0.4e-3, "trtllm": 0.4e-3, "sglang": 1.5e-3, "transformers": 2.7e-3, "llamacpp": 0.1e-3}
"""Scheduling, sampling and launch of a step (2025 and later; of SGLang 1.4 to 3.5 ms were seen)."""
OLD_VLLM, OLD_VLLM_HOST_S = (0, 8), 2.7e-3
"""Before its V1 engine vLLM scheduled between steps, in Python."""
EAGER_LAYER_S = 0.5e-3
"""transformers launches every kernel from Python: about 25 ms per token for 32 layers (recalled, not measured)."""
QUEUE_FACTOR = 0.74
"""Of sqrt(clients - 1): how prompts wait for one another, fitted on public closed-loop runs."""
UBATCH = 512
"""Tokens that llama.cpp computes at once (its --ubatch-size)."""
MOST_BATCH = 2048
"""Requests that any engine has under way at once (TensorRT-LLM's default; vLLM and SGLang count fewer)."""
FEW = 8
"""Below so many requests a GB more or less decides the batch."""


class Load(StrEnum):
    """How requests come."""

    STATIC = "static"
    CLOSED = "closed"
    MAX = "max"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is served: `count` is the batch or the number of clients (None: maximum load), `chunk` a prefill chunk.

    `draft`: the model that drafts (None: what drafts is not counted). `facts`: what a server reads from the model's own
    files.
    """

    engine: str = "vllm"
    prompt_tokens: int = 1024
    new_tokens: int = 256
    load: Load = Load.STATIC
    count: int | None = 1
    tp: int = 1
    pp: int = 1
    ep: int = 1
    dp_attention: int = 1
    dcp: int = 1
    version: str | None = None
    chunk: int | None = None
    prefix_hit: Fraction = Fraction(0)
    drafted: int = 0
    acceptance: Fraction = Fraction(0)
    draft: ModelSpec | None = None
    facts: ModelFacts | None = None

    def __post_init__(self) -> None:
        """Raises SpecError for ways to share a model that the engine does not have."""
        if self.pp > 1 and self.engine == "llamacpp":
            raise SpecError("pp", "llama.cpp divides layers among the devices of --tp: leave --pp out")
        for name, word in (("ep", "ep"), ("dp_attention", "dp-attention"), ("dcp", "dcp")):
            if name != "dcp" and getattr(self, name) > 1 and self.engine not in SERVERS:
                raise SpecError(name, f"{TITLES[self.engine]} has no --{word}: use --policy {', '.join(SERVERS)}")
            if self.tp % getattr(self, name):
                parts = getattr(self, name)
                raise SpecError(name, f"--{word} {parts:,} does not divide --tp {self.tp:,}")
        if self.dcp > 1 and self.engine != "vllm":
            raise SpecError("dcp", f"--dcp is not known of {TITLES[self.engine]}: use --policy vllm")
        if self.dcp > 1 and self.dp_attention > 1:
            raise SpecError("dcp", "--dcp is not counted beside --dp-attention: give only one of them")

    @property
    def devices(self) -> int:
        """Devices of a replica."""
        return self.tp * self.pp

    @property
    def stages(self) -> int:
        """Groups of devices that have a part of the layers each. llama.cpp's cards work one after the other."""
        return self.tp if self.engine == "llamacpp" else self.pp

    @property
    def context(self) -> int:
        """Tokens of a finished request."""
        return self.prompt_tokens + self.new_tokens

    @property
    def computed_tokens(self) -> int:
        """Tokens of a prompt that are not found in the cache."""
        return max(1, self.prompt_tokens - floor(self.prompt_tokens * self.prefix_hit))

    @property
    def step_tokens(self) -> float:
        """Tokens that a step is expected to give."""
        return step_tokens(self.drafted, self.acceptance)


@dataclass(frozen=True, slots=True)
class Room:
    """Requests that are in memory at once: as the engine reserves memory, and with nothing reserved at all.

    `refusal`: why the engine would not start at all.
    """

    fitting: int
    most: int
    refusal: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The answer. Times are None where the plan does not fit; then `problem` says why.

    `limit`: what limits a step, where its operators are not at hand.
    """

    asked: Asked
    batch: float
    fits: bool
    problem: str | None = None
    ttft: Span | None = None
    tpot: Span | None = None
    e2e: Span | None = None
    output_rate: Span | None = None
    prefill: PassTime | None = None
    decode: PassTime | None = None
    limit: str = "capacity"

    @property
    def user_rate(self) -> Span | None:
        """Tokens per second that one user sees."""
        return None if self.tpot is None else self.tpot.rate(1)

    @property
    def limited_by(self) -> str:
        """What decides the speed of a token."""
        return self.limit if self.decode is None else self.decode.limited_by


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The passes of a model on a device, as an engine runs them. Batches may be an array; so are the times then.

    `done`: passes that are worked out, which other devices may share.
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
        """The device with what operators reach on it. Raises SpecError where it has no bandwidth or peak."""
        device = self.study.device
        tiled = self.asked.engine != "llamacpp"  # which multiplies a row as it is
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
        """Seconds of a step that are not the device's."""
        engine, version = self.asked.engine, self.asked.version
        if engine == "vllm" and version is not None and parse_version(version)[:2] < OLD_VLLM:
            return OLD_VLLM_HOST_S
        return HOST_S[engine] + (self.model.n_layers * EAGER_LAYER_S if engine == "transformers" else 0.0)

    @cached_property
    def _times(self) -> dict[Any, PassTime]:
        return {}

    def _timed(self, work: Pass) -> PassTime:
        """The time of a pass, worked out once."""
        key = work if isinstance(work.batch, int) else (id(work.batch), replace(work, batch=0))
        if key not in self._times:
            if key not in self.done:
                self.done[key] = worked(self.model, work)
            self._times[key] = time_of(self.done[key], self.device)
        return self._times[key]

    def prefill(self, batch: Any = 1) -> PassTime:
        """The whole of what is computed of a prompt, or the chunk in the middle of it."""
        return self._prompt(batch, self.chunk)

    def _prompt(self, batch: Any, chunk: int) -> PassTime:
        context = self.asked.prompt_tokens - (self.asked.computed_tokens - chunk) // 2
        return self._timed(replace(self.base, phase=Phase.PREFILL, batch=batch, context=context, new_tokens=chunk))

    def prefill_s(self, batch: Any = 1) -> tuple[Any, Any]:
        """Expected and least seconds of a prompt. Every chunk counts as the one in the middle: later ones read more.

        The host's part is taken for every chunk. In a pipeline a chunk follows the one before it, a stage behind.
        """
        n_chunks, stages = self.asked.computed_tokens / self.chunk, self.asked.stages
        in_turn = n_chunks if stages == 1 else 1 + (n_chunks - 1) / stages
        expected_s = in_turn * self.prefill(batch).expected_s + ceil(n_chunks) * self.host_s
        if self.draft is not None:  # which reads the prompt too
            expected_s = expected_s + self.draft.prefill_s(batch)[0]
        least_s = self._least_prompt_s(batch)
        return maximum(expected_s, least_s), least_s

    def _least_prompt_s(self, batch: Any) -> Any:
        """Seconds of a prompt that nothing beats: no chunks, which only add to it; or through the stages bit by bit."""
        whole_s = self._prompt(batch, self.asked.computed_tokens).bound_s
        return whole_s if self.asked.stages == 1 else maximum(whole_s / self.asked.stages, self._prompt(1, 1).bound_s)

    @cached_property
    def prompt_share_s(self) -> Any:
        """What one more prompt takes where all attention groups and all stages have one to compute."""
        at_once, n_chunks = self.asked.dp_attention, self.asked.computed_tokens / self.chunk
        expected_s = n_chunks * self.prefill(at_once).expected_s / self.asked.stages
        drafts_s = 0.0 if self.draft is None else self.draft.prompt_share_s
        return (expected_s + ceil(n_chunks) * self.host_s) / at_once + drafts_s

    @property
    def chunk(self) -> int:
        """Tokens of a prompt in one pass. llama.cpp's cards pass a prompt on in parts."""
        parts = UBATCH if self.asked.engine == "llamacpp" and self.asked.stages > 1 else None
        new = self.asked.computed_tokens
        return min(new, self.asked.chunk or parts or new)

    @cached_property
    def draft(self) -> Steps | None:
        """The passes of the model that drafts, on the same devices."""
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
        """A step of `batch` sequences: one token each, and those that were drafted."""
        return self._timed(replace(self.base, batch=batch, context=context, new_tokens=1 + self.asked.drafted))

    def step(self, batch: Any) -> PassTime:
        """A step of requests that are half done: of all of them, or in a pipeline of as many as pass it at once."""
        if self.asked.stages == 1 or self.asked.engine not in SERVERS:
            return self.decode(batch, self.middle)
        return self.decode(-(-batch // minimum(batch, self.asked.stages)), self.middle)

    def least_step_s(self, batch: Any) -> Any:
        """Seconds of a step that nothing beats: every stage computes and reads for all, and for one after another."""
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


def estimate(study: Study, asked: Asked, room: Room) -> Estimate:
    """Times of `asked` with `room` for so many requests at once.

    Raises SpecError for a device without bandwidth or peak, also where nothing fits.
    """
    steps = Steps(study=study, asked=asked)
    batch = 0 if steps.device and room.refusal else _batch(asked, room.fitting)
    if not batch:
        return Estimate(asked=asked, batch=0, fits=False, problem=room.refusal or shortage(asked, room.fitting))
    if asked.load is Load.STATIC:
        return _static(steps, batch)
    return _closed(steps, batch) if asked.load is Load.CLOSED else _max_load(steps, batch, room.most)


def at_once(steps: Steps, batches: Any) -> Estimate:
    """Static batches, or clients of a closed loop (two and more), all of which fit: an array of them at once."""
    return _static(steps, batches) if steps.asked.load is Load.STATIC else _closed(steps, batches)


def _batch(asked: Asked, fitting: int) -> int:
    """Requests in a step; 0 where the plan does not fit."""
    if asked.load is Load.STATIC:
        return 0 if (asked.count or 1) > fitting else asked.count or 1
    most = min(max(0, fitting), MOST_BATCH)
    return most if asked.count is None else min(asked.count, most)


def shortage(asked: Asked, fitting: int) -> str:
    """Why requests do not fit, of which `fitting` would."""
    whole = f"{asked.context:,} tokens ({asked.prompt_tokens:,} in, {asked.new_tokens:,} out)"
    if fitting < 1:
        return f"not one request of {whole} fits beside the weights"
    return f"{fitting:,} requests of {whole} fit, not {asked.count:,}"


def _static(steps: Steps, batch: Any) -> Estimate:
    prefill_s, least_s = steps.prefill_s(batch)
    ttft = _band(steps, "ttft").around(prefill_s, least_s)
    return _answer(steps, batch, ttft, _per_token(steps, batch))


def _closed(steps: Steps, batch: Any) -> Estimate:
    """While one request makes its tokens, each other client sends one prompt, which is computed between its steps."""
    prefill_s, least_s = steps.prefill_s()
    between_s = (batch - 1) * steps.prompt_share_s / steps.asked.new_tokens
    tpot = _per_token(steps, batch, between_s=between_s)
    waiting = 1 + QUEUE_FACTOR * maximum(batch / steps.asked.dp_attention - 1, 0.0) ** 0.5
    step_s = (steps.step(batch).expected_s + steps.host_s) * (batch > 1)
    return _answer(steps, batch, _band(steps, "ttft").around(prefill_s * waiting + step_s, least_s), tpot)


def _max_load(steps: Steps, batch: int, most: int) -> Estimate:
    """Every request's prompt and tokens pass through the device; its memory is full of requests half done."""
    _, least_s = steps.prefill_s()
    tpot = _per_token(steps, batch, between_s=batch * steps.prompt_share_s / steps.asked.new_tokens)
    alone = steps.decode(1, steps.asked.prompt_tokens).bound_s / steps.asked.step_tokens
    waited_s = (batch + 1) / 2 * steps.prompt_share_s + steps.step(batch).expected_s
    ttft = _band(steps, "ttft").around(waited_s, least_s)
    answer = _answer(steps, batch, ttft, replace(tpot, bound=min(tpot.bound, alone)))
    assert answer.output_rate is not None
    return replace(answer, output_rate=answer.output_rate.capped(_most_tokens(steps, max(batch, most))))


def _most_tokens(steps: Steps, most: int) -> Any:
    """Tokens per second that nothing beats: the whole memory full, steps and prompts overlapping with each other."""
    decode, prefill = steps.decode(most, steps.asked.prompt_tokens), steps.prefill(steps.asked.dp_attention)
    new_tokens, each = steps.asked.new_tokens, steps.asked.step_tokens
    prompts_s = most / steps.asked.dp_attention * prefill.least_compute_s
    compute_s = new_tokens * decode.least_compute_s / each + prompts_s
    return steps.asked.stages * most * new_tokens / max(compute_s, new_tokens * decode.least_memory_s / each)


def _per_token(steps: Steps, batch: Any, *, between_s: Any = 0.0) -> Span:
    """The time per token: a step with the host's part, over its tokens, and the prompts of others in between."""
    each, (drafting_s, least_drafting_s) = steps.asked.step_tokens, steps.drafting(batch)
    expected_s = (steps.step(batch).expected_s + steps.host_s + drafting_s) / each + between_s
    return _band(steps, "tpot").around(expected_s, (steps.least_step_s(batch) + least_drafting_s) / each)


def _answer(steps: Steps, batch: Any, ttft: Span, tpot: Span) -> Estimate:
    asked = steps.asked
    e2e = ttft + tpot.times(asked.new_tokens - 1)
    # In a closed loop and at maximum load the prompts of the others are in the time per token already.
    whole = e2e if asked.load is Load.STATIC else tpot.times(asked.new_tokens)
    return Estimate(
        asked=asked,
        batch=batch,
        fits=True,
        ttft=ttft,
        tpot=tpot,
        e2e=e2e,
        output_rate=whole.rate(batch * asked.new_tokens),
        prefill=steps.prefill(batch if asked.load is Load.STATIC else 1),
        decode=steps.step(batch),
    )


def _band(steps: Steps, what: str) -> Band:
    return band_for(steps, what, experts=has_experts(steps.model))
