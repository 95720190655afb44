"""The form of the Generate tab: a prompt and how to continue it, as one request to the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.widgets import Button, Input

from engine.process.events import Generate, Turn
from engine.records import CacheKind, DType, ModelInfo
from tui.form.sampling import (
    CACHE_CHOICES,
    CACHE_HELP,
    DTYPE_CHOICES,
    DTYPE_HELP,
    MORE_HELP,
    TP_CHOICES,
    TP_HELP,
    MoreSampling,
    read_ids,
    read_more,
    read_new_tokens,
    read_path,
    read_seed,
    read_temperature,
    read_top_k,
    read_top_p,
)
from tui.live.choice_line import Turned
from tui.widgets.dial import ChoiceDial, Dial
from tui.widgets.option import Option
from tui.widgets.prompt import Prompt

DEFAULT_PROMPT = "To be, or not to be"
DEFAULT_NEW_TOKENS = 128
CACHE_ON_HELP = "Generate with or without the KV cache"
CHAT_HELP = (
    "text: the model continues the prompt. chat: the prompt is a turn in the chat template of the model; the cache "
    "is reused for the next turn."
)
ID_FILES = (".pt", ".pth")
"""Weight files that never come with a tokenizer: a list of numbers is then a list of ids."""

DialName = Literal["cache", "chat", "dtype", "cache-kind", "tp"]
FORMAT_DIALS: dict[str, Turned] = {"dial-dtype": "dtype", "dial-cache-kind": "cache-kind", "dial-tp": "tp"}


class GenerateForm(Vertical):
    """Options, prompt and button. `request` returns their meaning; the pane gets messages about them."""

    DEFAULT_CSS = """
    GenerateForm {
        height: auto;
        .line { height: 1; }
        #option-model, #option-system { width: 1fr; }
        #generate-system { display: none; }
        #generate-prompt { height: 3; border-top: solid $foreground 20%; }
        #prompt { width: 1fr; height: 2; }
        #send { width: 12; height: 1; margin: 0 1; }
    }
    """

    class Sent(Message):
        """Enter in a field, or the button while nothing runs."""

    class Stopped(Message):
        """The button while something runs."""

    class Edited(Message):
        """A field changed; `form.problem` says what cannot be read. `of_model`: it is the model's field."""

        def __init__(self, *, of_model: bool) -> None:
            super().__init__()
            self.of_model = of_model

    class DialTurned(Message):
        """A dial changed; `turned` names it if it is part of the format."""

        def __init__(self, turned: Turned | None) -> None:
            super().__init__()
            self.turned = turned

    def __init__(self) -> None:
        super().__init__(id="generate-form")

    def compose(self) -> ComposeResult:
        with Horizontal(classes="line"):
            yield ChoiceDial("cache", ["on", "off"], "on", help=CACHE_ON_HELP, id="dial-cache")
            yield Option("new tokens", read_new_tokens, text=str(DEFAULT_NEW_TOKENS), width=6, id="option-new")
            yield Option("temperature", read_temperature, text="0.5", width=5, id="option-temperature")
            yield ChoiceDial("mode", ["text", "chat"], "text", help=CHAT_HELP, id="dial-chat")
        with Horizontal(classes="line"):
            yield Option("top-k", read_top_k, placeholder="off", width=5, id="option-top-k")
            yield Option("top-p", read_top_p, placeholder="off", width=5, id="option-top-p")
            yield Option("seed", read_seed, text="1", placeholder="new", width=7, id="option-seed")
            yield Option("model", read_path, placeholder="bundled", width="1fr", id="option-model")
        with Horizontal(classes="line"):
            yield ChoiceDial("dtype", DTYPE_CHOICES, "auto", help=DTYPE_HELP, id="dial-dtype")
            yield ChoiceDial("cache kind", CACHE_CHOICES, "full", help=CACHE_HELP, id="dial-cache-kind")
            yield ChoiceDial("tp", TP_CHOICES, "1", help=TP_HELP, id="dial-tp")
            yield Option("more", read_more, placeholder="min-p, stop", width="1fr", help=MORE_HELP, id="option-more")
        with Horizontal(classes="line", id="generate-system"):
            yield Option("system", str.strip, placeholder="none", width="1fr", id="option-system")
        with Horizontal(id="generate-prompt"):
            yield Prompt(DEFAULT_PROMPT, soft_wrap=True, show_line_numbers=False, compact=True, id="prompt")
            yield Button("generate", id="send", compact=True)

    # --- what it holds ------------------------------------------------------------------------------------

    @property
    def prompt(self) -> Prompt:
        """The text area."""
        return self.query_one(Prompt)

    @property
    def problem(self) -> str:
        """The first option that cannot be read; "" if all can."""
        return next((option.problem for option in self.query(Option) if option.problem), "")

    @property
    def model(self) -> str | None:
        """The model as a request names it; None is the bundled one."""
        return cast("str | None", self._value("model"))

    @property
    def model_problem(self) -> str:
        """What is wrong with the model's field alone."""
        return self._option("model").problem

    @property
    def model_text(self) -> str:
        """The typed model."""
        return self._option("model").text

    @model_text.setter
    def model_text(self, text: str) -> None:
        self._option("model").text = text

    @property
    def new_tokens(self) -> int:
        """How many tokens to generate."""
        return int(self._value("new"))

    @property
    def cache_on(self) -> bool:
        """Whether the next run uses the cache."""
        return self._choice("cache") == "on"

    @property
    def chats(self) -> bool:
        """Whether prompts are turns of a chat."""
        return self._choice("chat") == "chat"

    @property
    def dtype(self) -> DType:
        """Data type of the weights; it may be auto."""
        return cast(DType, self._choice("dtype"))

    @property
    def cache_kind(self) -> CacheKind:
        """What the KV cache keeps."""
        return cast(CacheKind, self._choice("cache-kind"))

    @property
    def tp(self) -> int:
        """Tensor-parallel ranks."""
        return int(self._choice("tp"))

    def request(self, said: Sequence[Turn], held: ModelInfo | None) -> Generate | str:
        """The form's request, or what is wrong with it.

        `said` is the chat so far, `held` the model in the engine's memory.
        """
        if self.problem:
            return self.problem
        text = self.prompt.text
        if not text.strip():
            return "the prompt is empty: type some text, or token ids such as ids: 1, 2, 3"
        turns = self._turns(text, said) if self.chats else None
        ids = read_ids(text) if turns is None and self._takes_ids(text, held) else None
        more: MoreSampling = self._value("more")
        return Generate(
            prompt=text if ids is None and turns is None else None,
            prompt_ids=ids,
            turns=turns,
            reuse=turns is not None,
            cache=self.cache_kind,
            tp=self.tp,
            max_new_tokens=self.new_tokens,
            temperature=self._value("temperature"),
            top_k=self._value("top-k"),
            top_p=self._value("top-p"),
            min_p=more.min_p,
            repetition_penalty=more.repetition_penalty,
            presence_penalty=more.presence_penalty,
            model_sampling=more.model_sampling,
            stop=more.stop,
            speculate=more.speculate,
            seed=self._value("seed"),
            use_cache=self.cache_on,
            model=self.model,
            dtype=self.dtype,
        )

    def _turns(self, text: str, said: Sequence[Turn]) -> tuple[Turn, ...]:
        """The chat so far with a new question; the current system prompt comes first."""
        system = self._value("system")
        first = (Turn(role="system", content=system),) if system else ()
        return (*first, *(turn for turn in said if turn.role != "system"), Turn(role="user", content=text))

    def _takes_ids(self, text: str, held: ModelInfo | None) -> bool:
        if text.lstrip().lower().startswith("ids"):
            return True
        model = self.model
        return model is not None and (
            model.endswith(ID_FILES) or (held is not None and held.path == model and not held.has_tokenizer)
        )

    def _option(self, name: str) -> Option:
        return self.query_one(f"#option-{name}", Option)

    def _value(self, name: str) -> Any:
        return self._option(name).value

    def _dial(self, name: DialName) -> ChoiceDial:
        return self.query_one(f"#dial-{name}", ChoiceDial)

    def _choice(self, name: DialName) -> str:
        return self._dial(name).value

    # --- what happens to it -------------------------------------------------------------------------------

    def turn(self, name: DialName) -> None:
        """Turn a dial on, for the next run."""
        self._dial(name).action_turn(1)

    def show_busy(self, busy: bool) -> bool:
        """Update the button, which stops a run or generates; returns whether it changed."""
        button = self.query_one("#send", Button)
        label = "stop" if busy else "generate"
        changed = str(button.label) != label
        if changed:
            button.label = label
        return changed

    @on(Prompt.Sent)
    @on(Input.Submitted)
    def _sent(self, event: Message) -> None:
        event.stop()
        self.post_message(self.Sent())

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        event.stop()
        self.post_message(self.Stopped() if str(event.button.label) == "stop" else self.Sent())

    @on(Option.Edited)
    def _edited(self, event: Option.Edited) -> None:
        event.stop()
        self.post_message(self.Edited(of_model=event.option.id == "option-model"))

    @on(Dial.Changed)
    def _dial_turned(self, event: Dial.Changed) -> None:
        event.stop()
        if event.dial.id == "dial-chat":
            self.query_one("#generate-system").display = self.chats
        self.post_message(self.DialTurned(FORMAT_DIALS.get(event.dial.id or "")))
