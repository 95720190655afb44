"""The app's state: one frozen value, edited by pure transitions, analysed by one pure function."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from calc.explain.terms import Number
from calc.fit.memory import MemoryReport, memory_report
from calc.model.checks import check_count
from calc.model.stored import is_as_stored
from calc.model.study import Policy, Study
from calc.units import GB
from tui.form.load import LoadAsked
from tui.form.serving import Serving

if TYPE_CHECKING:
    from calc.intensity.attention import Attention
    from calc.intensity.study import IntensityQuery, IntensityReport
    from calc.servers.records import ServerOptions
    from tui.form.estimate import EstimateAnswer
    from tui.form.server import ServerAnswer

SERVING, LOAD = Serving(), LoadAsked()


@dataclass(frozen=True, slots=True, kw_only=True)
class AppState:
    """What the panes show. `attention_context` is N of the intensity pane, `attention_head_dim` its d.

    `attention` is None for the default of the model's layers. `step_batch` and `step_context` belong to the roofline
    pane.
    """

    study: Study
    attention: Attention | None = None
    attention_context: int = 1024
    attention_head_dim: int = 128
    softmax_flops: Number = 5
    causal: bool = False
    server: ServerOptions | None = None
    serving: Serving = SERVING
    step_batch: int = 32
    step_context: int = 2048
    load: LoadAsked = LOAD

    @property
    def policy(self) -> str:
        """The server's name if there is one, else the rule of the study."""
        return str(self.study.policy) if self.server is None else self.server.engine


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What is computed from a state after each edit. `server` is None under the rules of the assignment."""

    state: AppState
    memory: MemoryReport
    server: ServerAnswer | None = None

    @cached_property
    def intensity(self) -> IntensityReport:
        """Computed on first use: it takes several times as long as `memory`, and only one tab shows it."""
        from calc.intensity.study import intensity_report

        return intensity_report(intensity_query(self.state))

    @cached_property
    def estimate(self) -> EstimateAnswer:
        """The times of the load. Takes some ten milliseconds, so it is computed only after the first paint."""
        from tui.form.estimate import estimate_answer

        return estimate_answer(self.state)


def default_state() -> AppState:
    """The assignment's case: Llama-3-8B, 80 GB, 8,192 tokens, 16 bits."""
    from calc.sources import DEFAULT_MODEL
    from calc.sources.catalog import find_model, manual_device

    return AppState(study=Study(model=find_model(DEFAULT_MODEL), device=manual_device(80 * GB)))


def initial_state(study: Study, policy: str = "") -> AppState:
    """The state that shows `study`, with its model's d in the intensity pane.

    If it has a single tensor-parallel degree, times and loads also use that degree. `policy` may name a server.
    """
    state = AppState(study=study, attention_head_dim=study.model.head_dim)
    tp = study.tps[0] if len(study.tps) == 1 else 1
    if policy and policy not in set(map(str, Policy)):
        state = with_policy(state, policy)
        assert state.server is not None
        state = with_server(state, replace(state.server, tp=tp))
    return replace(state, serving=replace(state.serving, tp=tp), load=replace(state.load, tp=tp))


def with_study(state: AppState, study: Study) -> AppState:
    """`state` with another study; d of the intensity pane follows a changed head_dim."""
    head_dim = state.attention_head_dim
    if study.model.head_dim != state.study.model.head_dim:
        head_dim = study.model.head_dim
    return replace(state, study=study, attention_head_dim=head_dim)


def intensity_query(state: AppState) -> IntensityQuery:
    """The question of the intensity pane."""
    from calc.intensity.study import IntensityQuery, default_attention

    study = state.study
    return IntensityQuery(
        model=study.model,
        device=study.device,
        attention=state.attention or default_attention(study.model),
        context=state.attention_context,
        head_dim=state.attention_head_dim,
        element_bytes=study.kv_format.bytes_per_element,
        weight_element_bytes=study.weight_format.bytes_per_element,
        stored=is_as_stored(study.model, study.weight_format),
        softmax_flops=state.softmax_flops,
        causal=state.causal,
    )


def analyse(state: AppState) -> Analysis:
    """The reports of `state`. Raises CalcError if it is impossible."""
    check_count("context", state.attention_context)  # the rest comes from a valid study
    check_count("head_dim", state.attention_head_dim)
    memory = memory_report(state.study)
    if state.server is None:
        return Analysis(state=state, memory=memory)
    from tui.form.server import server_answer

    return Analysis(state=state, memory=memory, server=server_answer(state.study, state.server))


def with_policy(state: AppState, name: str) -> AppState:
    """`state` under another rule or server; a server keeps whole heads."""
    if name == state.policy:
        return state
    if name in {str(policy) for policy in (Policy.EQUAL_SPLIT, Policy.REPLICATED)}:
        return replace(state, study=replace(state.study, policy=Policy(name)), server=None)
    from tui.form.server_fields import with_engine

    study = replace(state.study, policy=Policy.REPLICATED)
    return with_server(replace(state, study=study), with_engine(state.server, name))


def with_server(state: AppState, options: ServerOptions) -> AppState:
    """`state` with a server and its options; the estimate uses the same engine."""
    serving = replace(state.serving, engine=options.engine, version=options.version, tp=options.tp)
    return replace(state, server=options, serving=serving)
