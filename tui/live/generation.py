"""One generation as the app follows it: events in, text and numbers out. No widgets here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.generation_events import GenerationFinished, GenerationStarted, TokenGenerated
from engine.measure.own import OwnTimes
from engine.measure.timing import Timing, latencies_s, percentile, tokens_per_s, tpot_s, ttft_s
from engine.process.events import EngineExited, Failed, Generate, Loaded
from engine.records import ALL, NS_PER_S, TO_THE_END, Cancelled, Event, ModelInfo
from engine.speculation import Drafted
from engine.text import plural

REASONS = {
    "eos": "the model ended the text",
    "length": "limit of new tokens reached",
    "positions": "the model has no more positions",
    "cache": "the cache is full",
    "cancelled": "stopped by you",
    "stop": "a stop text was reached",
}
"""Why a run ended, in words."""


@dataclass(slots=True)
class Generation:
    """What is known about a run so far. `feed` takes its events; the properties are for display."""

    request: Generate
    model: ModelInfo | None = None
    prompt_text: str | None = None
    prompt_ids: tuple[int, ...] = ()
    start_ns: int | None = None
    times_ns: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    cache_bytes: int = 0
    cache_used_bytes: int = 0
    cache_tokens: int = 0
    cache_capacity: int = 0
    kv_token_bytes: int = 0
    reused_tokens: int = 0
    reason: str | None = None
    problem: str | None = None
    own: OwnTimes | None = None
    """The times of the model's own operators, once they are measured."""
    drafted: Drafted | None = None
    """The result of drafting, when the run has ended."""
    _sorted_s: list[float] = field(default_factory=list)
    _counted: int = 0
    _taken: int = 0

    def feed(self, events: Sequence[Event]) -> None:
        """Take a batch of events, oldest first."""
        for event in events:
            if isinstance(event, TokenGenerated):
                self._token(event)
            elif isinstance(event, Loaded):
                self.model = event.model
            elif isinstance(event, GenerationStarted):
                self.start_ns, self.prompt_ids = event.start_ns, event.prompt_ids
                self.prompt_text, self.cache_bytes = event.prompt_text, event.kv_cache_bytes
                self.cache_capacity, self.reused_tokens = event.kv_capacity, event.reused_tokens
                self.kv_token_bytes = event.kv_bytes_per_token
            elif isinstance(event, GenerationFinished):
                self.reason, self.drafted = event.reason, event.drafted
            elif isinstance(event, Cancelled):  # stopped before its turn
                self.reason = "cancelled"
            elif isinstance(event, Failed | EngineExited):
                self.problem = event.message

    def _token(self, event: TokenGenerated) -> None:
        self.times_ns.append(event.time_ns)
        self.ids.append(event.token_id)
        self.cache_tokens, self.cache_used_bytes = event.kv_tokens, event.kv_used_bytes
        if self.model is not None and not self.model.has_tokenizer:
            self.said.append(f" {event.token_id}")
        elif event.text:
            self.said.append(event.text)

    @property
    def text(self) -> str:
        """The whole answer so far."""
        return "".join(self.said)

    def take_text(self) -> str:
        """The new text since the last call."""
        text, self._taken = "".join(self.said[self._taken :]), len(self.said)
        return text

    @property
    def over(self) -> bool:
        """Whether the run has ended, for any reason."""
        return self.reason is not None or self.problem is not None

    @property
    def timing(self) -> Timing | None:
        """Rates so far, `engine.measure.timing.timing` of all tokens; None before the clock started.

        Only new tokens since the last call are processed: the sorted latencies of a long run are kept, and merging a
        few new ones is linear, while sorting all again would block the screen.
        """
        if self.start_ns is None:
            return None
        self._sorted_s += latencies_s(self.times_ns[max(0, self._counted - 1) :])
        self._sorted_s.sort()
        self._counted = len(self.times_ns)
        return Timing(
            n_tokens=self._counted,
            ttft_s=ttft_s(self.start_ns, self.times_ns),
            tpot_s=tpot_s(self.times_ns),
            tpot_p50_s=percentile(self._sorted_s, 50),
            tpot_p95_s=percentile(self._sorted_s, 95),
            tokens_per_s=tokens_per_s(self.times_ns),
            total_s=(self.times_ns[-1] - self.start_ns) / NS_PER_S if self.times_ns else None,
        )

    @property
    def capacity(self) -> int:
        """Tokens for which the cache was allocated, as the engine reports, else from the model's bytes per token."""
        if self.model is None or not self.cache_bytes:
            return 0
        if self.cache_capacity:
            return self.cache_capacity
        return self.cache_bytes // self.model.kv_bytes_per_token

    @property
    def shown_prompt(self) -> str:
        """The prompt as text, or as ids if there is no text."""
        if self.prompt_text is not None:
            return self.prompt_text
        return " ".join(map(str, self.prompt_ids))

    @property
    def outcome(self) -> str:
        """The state of the run, in words."""
        if self.problem is not None:
            return self.problem
        if self.reason == "length":
            return f"limit of {plural(self.request.max_new_tokens, 'new token')} reached"
        if self.reason == "positions" and self.model is not None:
            return f"the model has no more positions ({self.model.max_positions:,})"
        return REASONS.get(self.reason or "", "")


def generate_options(request: Generate) -> list[str]:
    """The command line's options for a request; defaults are left out."""
    options = []
    for flag, value, default in (
        ("--model", request.model, None),
        ("--prompt", request.prompt, None),
        ("--prompt-ids", ",".join(map(str, request.prompt_ids)) if request.prompt_ids else None, None),
        ("--max-new-tokens", ALL if request.max_new_tokens == TO_THE_END else request.max_new_tokens, None),
        ("--temperature", request.temperature, 0.0),
        ("--top-k", request.top_k, None),
        ("--top-p", request.top_p, None),
        ("--min-p", request.min_p, None),
        ("--repetition-penalty", request.repetition_penalty, None),
        ("--presence-penalty", request.presence_penalty, None),
        *(("--stop", text, None) for text in request.stop),
        ("--speculate", request.speculate.text if request.speculate else None, None),
        ("--seed", request.seed, None),
        ("--dtype", request.dtype, "auto"),
        ("--cache", request.cache, "full"),
        ("--tp", request.tp, 1),
        *_chat_options(request),
    ):
        if value != default:
            options += [flag, f"{value:g}" if isinstance(value, float) else str(value)]
    if request.model_sampling:
        options.append("--model-sampling")
    if request.turns is not None:
        options.append("--chat")
    return options if request.use_cache else [*options, "--no-cache"]


def _chat_options(request: Generate) -> list[tuple[str, str | None, None]]:
    """The system prompt and the last question: the command line asks a single question, without earlier turns."""
    turns = request.turns or ()
    system = next((turn.content for turn in turns if turn.role == "system"), None)
    return [("--system", system, None), ("--prompt", turns[-1].content if turns else None, None)]
