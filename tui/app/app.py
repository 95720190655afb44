"""The app: one state, analysed after every edit and shown by the strip and the visible pane."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import events, on
from textual.app import App, ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.css.query import NoMatches
from textual.filter import LineFilter
from textual.screen import Screen
from textual.theme import Theme
from textual.timer import Timer
from textual.widget import MountError
from textual.widgets import Input

from calc.errors import CalcError
from tui.app.actions import Actions
from tui.app.leaving import leave, on_signals
from tui.app.panes import PANE_KEYS, PANES, later_panes
from tui.app.plain import PlainText
from tui.app.screen import PanesScreen
from tui.app.settings import Remembered, Settings
from tui.app.themes import THEMES
from tui.app.type_ahead import TypeAhead
from tui.charts import Marker
from tui.form.state import Analysis, AppState, analyse, default_state
from tui.panes.base import Pane, StateEdited
from tui.panes.spec import SpecPane
from tui.widgets.form import FormChecked
from tui.widgets.keybar import KeyBar
from tui.widgets.path_bar import PathBar
from tui.widgets.status import StatusStrip
from tui.widgets.tabs import Tabs
from tui.widgets.work import work

if TYPE_CHECKING:
    from tui.live.engine_link import EngineChanged, EngineLink

FOLDER = Path(__file__).parent
PANES_FOLDER = FOLDER.parent / "panes"
SAVE_AFTER_S = 0.5
SETTLE_S = 0.05
"""How long an edit waits for the next one before its estimate is computed."""
LEAVING_GRACE_S = 0.1
"""Time for the engine to end by itself when the app closes."""
MAX_UNDO = 100


class KvscopeApp(Actions):
    """The workbench. Panes post `StateEdited`; the app analyses, shows and remembers."""

    TITLE = "kvscope"
    owns_process = False
    """Whether the process ends with the app."""
    CSS_PATH: ClassVar[list[Path]] = [  # type: ignore[assignment]
        FOLDER / "app.tcss",
        PANES_FOLDER / "spec.tcss",
    ]
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide"), (160, "-ultra")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-tiny"), (20, "-short"), (32, "-tall"), (50, "-high")]  # noqa: RUF012
    AUTO_FOCUS = ""
    ENABLE_COMMAND_PALETTE = True
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1", "help", "help", priority=True, tooltip="Explain the focused field, and list the keys"),
        *(
            Binding(key, f"go({i})", title, priority=True, tooltip=f"Show the {title} pane")
            for i, (key, title) in enumerate(zip(PANE_KEYS, PANES, strict=True))
        ),
        Binding("ctrl+f", "questions", "questions", priority=True, tooltip="Inverse questions: what fits where"),
        *(Binding(str(i + 1), f"go({i})", title, show=False) for i, title in enumerate(PANES)),
        Binding("ctrl+o", "open", "open", priority=True, tooltip="Open a config.json, .gguf, folder or spec .toml"),
        Binding("ctrl+y", "copy_command", "copy command", priority=True, tooltip="Copy the equivalent command"),
        Binding("ctrl+t", "copy_table('md')", "copy table", priority=True, tooltip="Copy the table as Markdown"),
        Binding(
            "ctrl+l", "copy_launch", "launch command", show=False, tooltip="Copy the command that starts the server"
        ),
        Binding("ctrl+e", "export", "export", priority=True, tooltip="Write this pane to a Markdown file"),
        Binding("ctrl+q", "quit", "quit", priority=True, tooltip="Close kvscope"),
        Binding(
            "ctrl+z",
            "suspend_process",
            "suspend",
            show=False,
            priority=True,
            tooltip="Suspend the app and return to the shell",
        ),
        Binding("ctrl+underscore,ctrl+slash", "undo", "undo", show=False, tooltip="Undo the last edit"),
    ]

    def __init__(
        self,
        state: AppState | None = None,
        settings: Settings | None = None,
        engine_command: Sequence[str] | None = None,
        *,
        start_engine: bool = True,
    ) -> None:
        """`state` overrides the remembered one. Given `settings` (tests) are neither read nor written."""
        super().__init__()
        self._remembered = Remembered(settings)
        self._problem = self._remembered.problem
        self.own_folder = self._remembered.folder
        self.state = state or self.settings.state or default_state()
        self.analysis: Analysis = analyse(self.state)
        self.engine: EngineLink | None = None
        self._engine_command, self._start_engine = engine_command, start_engine
        self._take_theme()
        self._plain = PlainText()
        self._type_ahead = TypeAhead(self, super().on_event)
        self._undo: list[AppState] = []
        self._typed_in: Input | None = None
        self._form_problems: dict[str, str] = {}
        self.form_problem = ""
        self._stale: set[str] = set()
        self.is_whole = False
        """Whether all panes are mounted."""
        self._estimate_timer: Timer | None = None

    async def on_event(self, event: events.Event) -> None:
        """Keys and pastes one at a time; everything else as it comes."""
        if isinstance(event, events.Key | events.Paste) and not event.is_forwarded:
            await self._type_ahead.take(event)
        else:
            await super().on_event(event)

    def get_line_filters(self) -> Sequence[LineFilter]:
        return [*super().get_line_filters(), self._plain]

    def _take_theme(self) -> None:
        """Set before anything is styled: a theme set later would style everything again."""
        for theme in THEMES:
            self.register_theme(theme)
        name = self.settings.theme
        if name not in self.available_themes:
            self._problem = f"The settings name the theme {name!r}, which does not exist. Using the default theme."
            name = THEMES[0].name
        if name not in (theme.name for theme in THEMES):
            self.theme = name
            return
        # Like `self.theme = name`, which would parse all styles twice; our themes use none of the terminal's own
        # colours.
        self.set_reactive(App.theme, name)
        self.set_class(self.current_theme.dark, "-dark-mode", update=False)
        self.set_class(not self.current_theme.dark, "-light-mode", update=False)
        self.stylesheet.set_variables(self.get_css_variables())

    # --- composition --------------------------------------------------------------------------------------

    def get_default_screen(self) -> Screen[object]:
        """The screen, with its size classes from the start: otherwise Textual would style and lay it out twice."""
        size = self.size
        classes = (
            next(name for least, name in reversed(breakpoints) if length >= least)
            for length, breakpoints in (
                (size.width, self.HORIZONTAL_BREAKPOINTS),
                (size.height, self.VERTICAL_BREAKPOINTS),
            )
        )
        return PanesScreen(id="_default", classes=" ".join(classes))

    def compose(self) -> ComposeResult:
        yield StatusStrip(id="strip")
        yield Tabs(PANES, SpecPane(id="pane-spec"), id="tabs")
        yield PathBar()
        yield KeyBar()

    def on_mount(self) -> None:
        """The first paint's content."""
        if self.owns_process:
            on_signals(self.end)
        self.theme_changed_signal.subscribe(self, self._theme_changed)
        # The shell has drawn over the screen; Textual paints it again only if its size has changed.
        self.app_resume_signal.subscribe(self, lambda _: self.screen.refresh(layout=True))
        self._show_everywhere()
        self._focus_first("spec")

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        """Cursors do not blink: blinking costs an idle app more than everything else together."""
        if hasattr(event.widget, "cursor_blink"):
            event.widget.cursor_blink = False

    def on_ready(self) -> None:
        """After the first paint: the other panes, and the engine."""
        self.run_worker(work(self._mount_rest), group="panes")
        if self._problem:
            self.notify(self._problem, title="Settings", severity="warning", timeout=12)

    async def _mount_rest(self) -> None:
        """Runs beside the app's messages, so that keys are handled meanwhile."""
        from tui.live.engine_link import EngineLink

        self.engine = EngineLink(self._engine_command)
        try:
            with self.batch_update():
                await self.query_one(SpecPane).mount_more()
            for pane in later_panes():
                await self._add_pane(pane)
        except (NoMatches, MountError):  # the user has already closed the app
            return
        self.is_whole = True
        self._estimate_soon()
        self.engine.attach(self, start=self._start_engine)
        await self.offer_weights(self.state.study.model)

    async def _add_pane(self, pane: Pane) -> None:
        name = pane.TITLE.lower()
        self.stylesheet.read(PANES_FOLDER / f"{name}.tcss")
        self.stylesheet.parse()
        tabs = self.query_one(Tabs)
        with self.batch_update():  # laid out once, not per widget
            await tabs.add(pane)
        self._stale.add(name)
        if name == tabs.active:  # requested before it was mounted
            self._refresh_active()
            self.refresh_bindings()
            self.call_after_refresh(self._focus_first, name)

    def on_unmount(self) -> None:
        """End the engine with the app, and save what is not yet saved."""
        self._keep()

    def _keep(self) -> None:
        self._save()
        if self.engine is not None:
            self.engine.close(grace_s=LEAVING_GRACE_S)

    async def action_quit(self) -> None:
        """Close kvscope."""
        self.end()

    def end(self, code: int = 0) -> None:
        """Save what must be saved and end, at once if the app owns the process."""
        if not self.owns_process:
            self.exit(return_code=code)
            return
        self._keep()
        leave(self._driver, code)

    # --- state --------------------------------------------------------------------------------------------

    @on(StateEdited)
    def _edited(self, event: StateEdited) -> None:
        event.stop()
        self.take_state(event.state, origin=event.origin)

    def take_state(self, state: AppState, *, origin: Pane | None = None, undoable: bool = True) -> None:
        """Analyse `state` and show it; `origin` proposed it. An impossible state is refused with a sentence."""
        try:
            analysis = analyse(state)
        except CalcError as error:
            self.notify(str(error), severity="error")
            return
        if undoable and state != self.state:
            self._remember_undo(typed=origin is not None)
        self.state, self.analysis = state, analysis
        self._show_everywhere(origin)
        self._remember(state=state)

    def _remember_undo(self, *, typed: bool) -> None:
        """Text typed in one field without leaving it is one edit."""
        typing_in = self.focused if typed and isinstance(self.focused, Input) else None
        if typing_in is None or typing_in is not self._typed_in:
            self._undo = [*self._undo[-MAX_UNDO:], self.state]
        self._typed_in = typing_in

    @on(FormChecked)
    def _form_checked(self, event: FormChecked) -> None:
        """An invalid form is marked on every tab."""
        event.stop()
        pane = next(node for node in event.origin.ancestors_with_self if isinstance(node, Pane))
        self._form_problems[pane.TITLE] = event.problem
        title, problem = next(((title, said) for title, said in self._form_problems.items() if said), ("", ""))
        self.form_problem = f"{title}: {problem}" if problem else ""
        self.query_one("#strip", StatusStrip).show_problem(title, problem)

    def _show_everywhere(self, origin: Pane | None = None) -> None:
        """Update the status strip and the visible pane now; the others when they are shown."""
        self.query_one("#strip", StatusStrip).show(self.state, self.analysis.memory, self.analysis.server)
        self._stale = {title.lower() for title in PANES}
        self._refresh_active(origin)
        self._estimate_soon()

    def _estimate_soon(self) -> None:
        """Compute the strip's estimate, but not before the first paint and not at every keystroke."""
        if self._estimate_timer is not None:
            self._estimate_timer.stop()
        if self.is_whole:
            self._estimate_timer = self.set_timer(SETTLE_S, self._show_estimate)

    def _show_estimate(self) -> None:
        from tui.views.estimate import strip_words

        for strip in self.query(StatusStrip):  # there is none if the app is closing
            strip.show_estimate(strip_words(self.analysis.estimate))

    def _refresh_active(self, origin: Pane | None = None) -> None:
        name = self.query_one(Tabs).active
        pane = self.pane(name)
        if pane is not None and name in self._stale and pane.is_mounted:
            self._stale.discard(name)
            (pane.answer if pane is origin else pane.show)(self.state, self.analysis)

    def pane(self, name: str) -> Pane | None:
        """The pane called `name` ("spec"), once it is mounted."""
        found = self.query(f"#pane-{name}")
        return found.first(Pane) if found else None

    @property
    def active_pane(self) -> Pane | None:
        """The visible pane."""
        return self.pane(self.query_one(Tabs).active)

    @on(Tabs.Activated)
    def _activated(self, event: Tabs.Activated) -> None:
        event.stop()
        self._refresh_active()
        self.refresh_bindings()

    @on(Tabs.Entered)
    def _entered(self, event: Tabs.Entered) -> None:
        event.stop()
        self.call_after_refresh(self._focus_first, self.query_one(Tabs).active)

    def on_engine_changed(self, event: EngineChanged) -> None:
        """Show the engine's state in the strip, on every pane."""
        self.query_one("#strip", StatusStrip).show_engine(event.status.line)

    # --- what is remembered -------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """Theme, marker and the last state."""
        return self._remembered.settings

    def _remember(self, **changes: object) -> None:
        if self._remembered.change(**changes):
            self.set_timer(SAVE_AFTER_S, self._save)

    def _theme_changed(self, theme: Theme) -> None:
        if theme.name != self.settings.theme:
            self._remember(theme=theme.name)
            self._show_everywhere()

    def _save(self) -> None:
        """Save the settings; a failure is reported once and stops nothing."""
        if (reason := self._remembered.write()) and self.is_running:
            self.notify(f"Cannot save the settings: {reason}.", severity="warning")

    # --- actions ------------------------------------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The app's keys work only if no list or help covers the panes."""
        if len(self.screen_stack) > 1 and action in OVER_PANES:
            return False
        return super().check_action(action, parameters)

    def get_system_commands(self, screen: Screen[object]) -> list[SystemCommand]:
        """Adds our commands to the palette."""
        from tui.app.palette import app_commands

        return list(app_commands(self))

    def action_go(self, index: int) -> None:
        """Show a pane and focus it; if it is not mounted yet, this happens afterwards."""
        tabs = self.query_one(Tabs)
        name = PANES[index].lower()
        if tabs.active != name:
            self.screen.set_focus(None)
            tabs.active = name
        self.call_after_refresh(self._focus_first, name)

    def action_measure(self, name: str) -> None:
        """Show the Benchmark pane and start one of its measurements."""
        from tui.panes.benchmark import BenchmarkPane

        self.action_go(PANES.index("Benchmark"))
        if isinstance(pane := self.pane("benchmark"), BenchmarkPane):
            pane.start(name)

    def _focus_first(self, name: str) -> None:
        pane = self.pane(name)
        if pane is None or (self.focused is not None and pane in self.focused.ancestors):
            return
        wanted = getattr(pane, "first_focus", None)
        if wanted is not None:
            wanted().focus()
            return
        self.screen.focus_next(f"#pane-{name} *")

    def action_undo(self) -> None:
        """Back to the state before the last edit."""
        if not self._undo:
            self.notify("Nothing to undo.")
            return
        *self._undo, state = self._undo
        self._typed_in = None
        self.take_state(state, undoable=False)

    def action_start_over(self) -> None:
        """Return to the assignment's case; undo brings the current state back."""
        self.take_state(default_state())

    def action_marker(self, marker: Marker) -> None:
        """Draw plots with `marker` from now on."""
        self._remember(marker=marker)
        self._show_everywhere()


OVER_PANES = frozenset(
    {
        "questions",
        "help",
        "go",
        "open",
        "copy_command",
        "copy_table",
        "export",
        "pick_model",
        "pick_device",
        "command_palette",
    }
)
"""Actions that are disabled while a list or the help covers the panes."""


def run_app(state: AppState | None = None) -> int:
    """Open the app on `state`, or as it was last closed; returns the exit code."""
    app = KvscopeApp(state)
    app.owns_process = True
    app.run()
    return app.return_code or 0
