"""The policy and, for a server, its options: two lines above the Memory pane."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from textual import on
from textual.app import ComposeResult
from textual.containers import HorizontalGroup, VerticalGroup
from textual.message import Message
from textual.widgets import Input, Static

from calc.errors import CalcError
from calc.servers.records import ServerOptions
from tui.form.fields import FIELDS, POLICIES
from tui.form.server_fields import EAGER_ENGINES, OPTION_FIELDS, option_text
from tui.widgets.dial import ChoiceDial, Dial
from tui.widgets.form import FormChecked, Toggle
from tui.widgets.option import Option

FIRST_LINE = 2
"""Options beside the policy: version and TP."""


class PolicyDial(ChoiceDial):
    """← → turn the policy."""

    def __init__(self) -> None:
        super().__init__("policy", POLICIES, POLICIES[0], help=FIELDS["policy"].meaning, id="dial-policy")


class ServerForm(VerticalGroup):
    """Posts `Edited` with the policy and options that the user has set; `show` is silent."""

    DEFAULT_CSS = """
    ServerForm {
        height: auto;
        .line { height: 1; }
        .server { display: none; }
        #server-problem { display: none; color: $text-error; height: auto; padding: 0 1; }
        &.-server .server { display: block; }
        &.-server .server.-other { display: none; }
        &.-problem #server-problem { display: block; }
        Option Input { background: $foreground 8%; }
    }
    """

    class Edited(Message):
        """The policy, and the options if it is a server."""

        def __init__(self, policy: str, options: ServerOptions | None) -> None:
            super().__init__()
            self.policy, self.options = policy, options

    def __init__(self) -> None:
        super().__init__(id="server-form")
        self._options: ServerOptions | None = None
        self._refused = ""
        self._answer_problem = ""

    def compose(self) -> ComposeResult:
        options = [
            Option(f.label, f.read, width=f.width, placeholder="auto", help=f.meaning, id=f"server-{f.name}")
            for f in OPTION_FIELDS
        ]
        for option in options:
            option.add_class("server")
        eager = Toggle(FIELDS["enforce_eager"])
        eager.add_class("server")
        with HorizontalGroup(classes="line"):
            yield PolicyDial()
            yield from options[:FIRST_LINE]
            yield eager
        with HorizontalGroup(classes="line server"):
            yield from options[FIRST_LINE:]
        yield Static(id="server-problem", markup=False)

    def show(self, policy: str, options: ServerOptions | None, *, problem: str = "") -> None:
        """Show what is set; a field that holds the same value keeps its text."""
        self.query_one(PolicyDial).value = policy
        self.set_class(options is not None, "-server")
        if options is not None:
            self._show_own(options.engine)
        if options is not None and options != self._options:
            self.query_one("#field-enforce_eager", Toggle).value = options.enforce_eager
            with self.prevent(Input.Changed):
                for field in OPTION_FIELDS:
                    option = self.query_one(f"#server-{field.name}", Option)
                    if option.problem or option.value != getattr(options, field.name):
                        option.text = option_text(options, field.name)
                        option.accept()
        self._options = options
        self._answer_problem = problem if options is not None else ""
        if options is None:
            self._refuse("")
        self._say()

    def _show_own(self, engine: str) -> None:
        """Only the options that this server has."""
        for field in OPTION_FIELDS:
            self.query_one(f"#server-{field.name}", Option).set_class(engine not in field.engines, "-other")
        self.query_one("#field-enforce_eager", Toggle).set_class(engine not in EAGER_ENGINES, "-other")

    def show_defaults(self, known: Mapping[str, str]) -> None:
        """The meaning of a blank field, if the server's report gives it."""
        for field in OPTION_FIELDS:
            self.query_one(f"#server-{field.name}", Option).placeholder = known.get(field.name, "auto")

    def _refuse(self, refused: str) -> None:
        if refused != self._refused:
            self._refused = refused
            self.post_message(FormChecked(refused, self))

    def _say(self) -> None:
        words = self._refused or self._answer_problem
        self.query_one("#server-problem", Static).update(f"✗ {words}" if words else "")
        self.set_class(bool(words), "-problem")

    @on(Dial.Changed)
    def _turned(self, event: Dial.Changed) -> None:
        event.stop()
        self.post_message(self.Edited(self.query_one(PolicyDial).value, None))

    @on(Toggle.Changed)
    @on(Option.Edited)
    def _edited(self, event: Message) -> None:
        event.stop()
        if self._options is None:
            return
        options = {field.name: self.query_one(f"#server-{field.name}", Option) for field in OPTION_FIELDS}
        refused = next((option.problem for option in options.values() if option.problem), "")
        values = {name: option.value for name, option in options.items()}
        eager = self.query_one("#field-enforce_eager", Toggle).value
        try:
            edited = replace(self._options, **values, enforce_eager=eager)
        except CalcError as error:
            refused, edited = str(error), self._options
        self._refuse(refused)
        self._say()
        if edited != self._options:
            self._options = edited
            self.post_message(self.Edited(edited.engine, edited))
