"""What a loaded model's own operators took on this machine, as records: what predictions of it start from. No torch.

`engine.measure.own_timer` measures them, lazily and within a budget; the front end predicts from them.
"""

import msgspec

from engine.records import LastEvent, OnModel

BUDGET_S = 3.0
"""What a measurement takes about, where nothing says less."""
ROWS, CONTEXT, PROMPT = 32, 2048, 2048
"""What is asked for where nothing says otherwise: rows of a step, tokens in sight, tokens of a prompt."""


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """How far measurements have to reach: rows of a step, tokens that it sees, tokens of a prompt (0: no prompts).

    `text`: tokens of one text in a step, where more than one is decided on (speculation).
    """

    rows: int = ROWS
    context: int = CONTEXT
    prompt: int = PROMPT
    text: int = 1

    def within(self, other: "Needs") -> bool:
        """Whether `other` reaches at least as far."""
        return all(getattr(self, name) <= getattr(other, name) for name in self.__struct_fields__)


class StepTime(msgspec.Struct, frozen=True, kw_only=True):
    """A decode step of `batch` rows that each see `context` tokens: the whole model, embedding to token."""

    batch: int
    context: int
    seconds: float


class TextTime(msgspec.Struct, frozen=True, kw_only=True):
    """A step of one row over `tokens` that follow each other after `context`: the whole model."""

    tokens: int
    context: int
    seconds: float


class PromptTime(msgspec.Struct, frozen=True, kw_only=True):
    """A pass of `tokens` of a prompt after `past` that the cache has: the whole model."""

    tokens: int
    past: int
    seconds: float


class RowsTime(msgspec.Struct, frozen=True, kw_only=True):
    """Something that takes `rows` rows: all linear layers once, or the head."""

    rows: int
    seconds: float


class OwnTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Times on a quiet machine, from rounds that may take turns with what is predicted.

    Large models are measured on some of their layers, as many as no cache holds.
    """

    compiled: bool
    """Whether steps ran as the compiled step."""
    max_rows: int | None
    """Rows that the compiled step takes at most; None without one."""
    threads: int
    n_layers: int
    layers_timed: int
    chunk: int | None
    """Tokens of a prompt in one pass; None for no limit."""
    steps: tuple[StepTime, ...]
    prompts: tuple[PromptTime, ...]
    texts: tuple[TextTime, ...] = ()
    """Steps that decide on several tokens of one text; empty where none were asked for."""
    linears: tuple[RowsTime, ...] = ()
    """All linear layers but the head; empty where they cannot be timed apart (compiled, experts)."""
    heads: tuple[RowsTime, ...] = ()
    """What is no layer: embedding, last norm and head."""
    rounds: int = 1
    slowdown: float = 1.0
    """How many times as long all runs took together as on a quiet machine: other processes had the cores."""
    load_average: float | None = None
    took_s: float = 0.0


class MeasureOwnTimes(OnModel, frozen=True, kw_only=True):
    """Measure what `needs` asks of a model, once: later requests that need no more are answered at once.

    The model is loaded if it is not held. Can be stopped at any time.
    """

    needs: Needs = Needs()
    budget_s: float = BUDGET_S
    """About how long it may take; a first look at everything that fits into half of it is taken in any case."""


class OwnTimesMeasured(LastEvent, frozen=True, kw_only=True):
    """Ends a `MeasureOwnTimes`. `times` is None for models that are not measured (several ranks): `note` says why."""

    times: OwnTimes | None
    note: str = ""
