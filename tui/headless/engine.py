"""Commands that need the engine, without a screen: the engine runs as a process, and its answers are printed here."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from calc.commands.intensity import intensity_answer, intensity_document
from calc.commands.memory import memory_answer, memory_document
from calc.commands.options import add_output_options, counts, reader, study_from, study_parser
from calc.commands.output import emit, on_screen, rendered, say, screen
from calc.commands.render import as_csv, as_markdown
from calc.commands.tables import Table
from calc.units import format_duration_s, parse_count
from engine.commands import cli as engine_cli
from engine.commands import run as commands
from engine.commands.documents import generation_document, to_json
from engine.errors import EngineError
from engine.files import check_writable, write_whole
from engine.generation_events import GenerationFinished
from engine.measure.kinds.benchmark import Benchmark
from engine.measure.kinds.evaluate import Evaluate
from engine.measure.measurement import Document, plain_document
from engine.measure.options import parse_counts, parse_new_tokens
from engine.measure.own import BUDGET_S, OwnTimes, OwnTimesMeasured
from engine.measure.registry import MEASUREMENTS
from engine.measure.timing import timing
from engine.process.client import EngineClient
from engine.process.events import Generate
from engine.records import ALL, TO_THE_END, Request
from tui.charts.chart_file import check_plot_path, render
from tui.form.state import Analysis, AppState, analyse, initial_state
from tui.live.measurement import Job
from tui.live.predict import predicted_cache_bytes, predicted_times
from tui.live.result_text import machine_text
from tui.live.run_times import RunTimes, own_request, run_times

SHORT_LENGTHS, SHORT_NEW_TOKENS, SHORT_REPEATS = (10, 50, 100), 10, 3
"""The short benchmark of the whole study: seconds, not minutes."""

PREDICTION_SHARE = 0.25
"""Time for the prediction after a generation, as a share of the generation's time."""
PLOT_WIDTH, PLOT_HEIGHT = 100, 20
"""Maximum size of a plot on the terminal."""

new_tokens = reader(lambda text: TO_THE_END if text == ALL else parse_count(text, minimum=0, maximum=2**63))
whole_number = reader(partial(parse_count, minimum=0, maximum=2**63))
"""A count that may be 0 (--warmup 0), or a seed."""

ClientFactory = Callable[[], EngineClient]


def run_engine_command(name: str, argv: Sequence[str], prog: str, client: ClientFactory = EngineClient) -> int:
    """``generate`` or one of the engine's measurements; the exit code."""
    args = _parse(name, argv, prog)
    return engine_guarded(lambda: _run(args, client), prog)


def _run(args: argparse.Namespace, client: ClientFactory) -> int:
    todo = engine_cli.requests(args)
    if args.plot is not None:
        check_plot_path(args.plot)
        check_writable(args.plot, "plot")
    with client() as engine:
        outcome = commands.follow(args, todo, engine.stream)
        own = _own_times(outcome, engine) if args.format != "text" or not args.quiet else None
    _write_plot(args, outcome)
    _print(args, outcome, own)
    return outcome.exit_code


def _own_times(outcome: commands.Outcome, engine: EngineClient) -> OwnTimes | None:
    """The operator times of the model after a generation; None for anything else, or if they were not timed."""
    (answered,) = outcome.answers
    request, result = answered.request, answered.result
    if not isinstance(request, Generate) or not isinstance(result, GenerationFinished) or not request.use_cache:
        return None
    sizes = {"prompt_tokens": len(result.prompt_ids), "new_tokens": len(result.ids)}
    took_s = (max(result.token_times_ns, default=result.start_ns) - result.start_ns) / 1e9
    asked = own_request(request, budget_s=min(BUDGET_S, PREDICTION_SHARE * took_s), **sizes)
    for event in engine.stream(asked):
        if isinstance(event, OwnTimesMeasured):
            return event.times
    return None


def _parse(name: str, argv: Sequence[str], prog: str) -> argparse.Namespace:
    parser = engine_cli.mode_parser(name.replace("-", "_"), prog, _description(name))
    _read_as_calc_does(parser)
    parser.set_defaults(plot=None)
    if name in MEASUREMENTS and MEASUREMENTS[name].plots:
        parser.add_argument(
            "--plot", type=Path, metavar="FILE", help="plot the measurements to a .svg, .png or .txt file"
        )
    add_output_options(parser)
    args = parser.parse_args(argv)
    args.json = args.format != "text"  # formats other than text are printed at the end, not streamed
    return args


def _description(name: str) -> str:
    if name in MEASUREMENTS:
        return MEASUREMENTS[name].description
    return "Run a real transformer with its KV cache, token by token."


def _read_as_calc_does(parser: argparse.ArgumentParser) -> None:
    """Numbers and lists of numbers as in every command: 1k, 8Ki, 64..1k. The engine checks their range."""
    parser.register("type", int, whole_number)
    parser.register("type", engine_cli.reader(parse_counts), counts)
    parser.register("type", engine_cli.reader(parse_new_tokens), new_tokens)


def engine_guarded(run: Callable[[], int], prog: str) -> int:
    """Run what uses the engine; turn its errors into one sentence and an exit code."""
    try:
        return run()
    except EngineError as error:
        say(f"{prog}: {error.message}")
        return error.exit_code


def _print(args: argparse.Namespace, outcome: commands.Outcome, own: OwnTimes | None) -> None:
    (answered,) = outcome.answers
    job = _job(answered)
    if args.format == "json":
        emit(args, to_json(_document(answered, own)))
    elif job is not None:
        emit(args, "\n\n".join([_measured_text(args, job), *_screen_plot(args, job)]))
    elif args.format == "text":
        commands.print_text(args, outcome)
        _say_predicted(args, answered, own)
    else:
        emit(args, (as_csv if args.format == "csv" else as_markdown)(_generation_table(answered, own)))


def _say_predicted(args: argparse.Namespace, answered: commands.Answered, own: OwnTimes | None) -> None:
    """A remark on the prediction for a generation: times, the ratio measured / predicted, and why they differ."""
    if own is None or args.quiet:
        return
    document = _document(answered, own)
    parts = [
        f"{name} {format_duration_s(document[f'{key}_predicted_s'])} (ratio {document[f'{key}_ratio']:.2f})"
        for name, key in (("first after", "ttft"), ("then", "tpot"))
        if document[f"{key}_ratio"] is not None
    ]
    if parts and (came := document["speculation"]) is not None and came["gain"] is not None:
        parts.append(_gain_text(came))
    if parts:
        say(f"predicted: {', '.join(parts)}" + (f"; {document['why']}" if document["why"] else ""))


def _gain_text(came: Document) -> str:
    """The gain of speculation, measured and predicted."""
    pays = came["pays_from_acceptance"]
    pays_text = "would not be faster at any acceptance" if pays is None else f"is faster from {pays:.2f} upwards"
    return (
        f"speculation: {came['gain']:.2f} times as fast as without (predicted {came['gain_predicted']:.2f}: "
        f"{came['tokens_per_step_predicted']:.2f} tokens per step at an acceptance of {came['acceptance'] or 0:.2f}; "
        f"it {pays_text})"
    )


def _job(answered: commands.Answered) -> Job | None:
    """A measurement as the app would show it; None for a generation."""
    if answered.measurement is None:
        return None
    return Job.finished(answered.request, answered.result, answered.model)


def _measured_text(args: argparse.Namespace, job: Job) -> str:
    """The table of a measurement, the same in every format, with its outcome and its notes."""
    machine = getattr(job.result, "machine", None)
    where = [] if machine is None else [f"Measured on {machine_text(machine)}."]
    sentences = [job.outcome, *job.notes, *where]
    heading = job.measurement.table(job.result).title
    return rendered(args.format, heading, [job.data_table], sentences, on_screen=on_screen(args))


def _screen_plot(args: argparse.Namespace, job: Job) -> list[str]:
    """The chart of a measurement in characters, if its text goes to a terminal."""
    if args.format != "text" or job.presentation.figure is None or not on_screen(args):
        return []
    from tui.charts.chart_text import draw

    utf8 = (sys.stdout.encoding or "").lower().startswith("utf")
    width = min(screen()[0], PLOT_WIDTH)
    return [draw(job.presentation.figure(job), width=width, height=PLOT_HEIGHT, marker="braille" if utf8 else "dot")]


def _write_plot(args: argparse.Namespace, outcome: commands.Outcome) -> None:
    """The chart of --plot, with predictions if there are any. Raises OptionError if it cannot be written."""
    (answered,) = outcome.answers
    if args.plot is None:
        return
    job = _job(answered)
    if job is None or job.presentation.figure is None:
        raise TypeError(f"a {type(answered.result).__name__} has no plot")
    write_whole(args.plot, render(args.plot, job.presentation.figure(job)))
    if not args.quiet:
        say(f"wrote {args.plot}")


def _document(answered: commands.Answered, own: OwnTimes | None = None) -> Document:
    """The JSON document, with calc's figures beside the measured ones, and the predictions from the model's own
    operators."""
    job, result, model = _job(answered), answered.result, answered.model
    if job is not None:
        return job.presentation.document(job)
    if not isinstance(result, GenerationFinished) or model is None:
        return answered.document()
    predicted = int(predicted_cache_bytes(model, result.kv_capacity, result.cache))
    least = times = None
    if result.kv_cache_bytes:
        sizes = {"prompt_tokens": len(result.prompt_ids), "new_tokens": len(result.ids)}
        least = predicted_times(model, result.cache, **sizes)
        times = run_times(own, result.cache, drafted=result.drafted, **sizes)
    measured = timing(result.start_ns, result.token_times_ns)
    return generation_document(
        result,
        model=model.name,
        kv_cache_bytes_predicted=predicted,
        ttft_predicted_s=times.ttft_s if times is not None else None,
        tpot_predicted_s=times.tpot_s if times is not None else None,
        ttft_least_s=least.ttft_s if least is not None else None,
        tpot_least_s=least.tpot_s if least is not None else None,
        why=times.why(measured.ttft_s, measured.tpot_s) if times is not None else None,
        own_times=None if own is None else plain_document(own),
        speculation_predicted=_speculation_predicted(times, measured.tpot_s),
    )


def _speculation_predicted(times: RunTimes | None, tpot_s: float | None) -> dict[str, float | None]:
    """The prediction for a run's speculation, and the measured gain relative to a predicted time."""
    found = None if times is None else times.speculated
    if found is None:
        return {}
    return {
        "tokens_per_step_predicted": found.step_tokens,
        "tpot_without_predicted_s": found.without_s,
        "gain": found.measured_gain(tpot_s),
        "gain_predicted": found.gain,
        "pays_from_acceptance": found.pays_from,
    }


def _generation_table(answered: commands.Answered, own: OwnTimes | None) -> Table:
    document = _document(answered, own).items()
    rows = tuple((key, str(value)) for key, value in document if not isinstance(value, list | dict))
    return Table(title="generate", columns=("field", "value"), rows=rows)


def run_study(argv: Sequence[str], prog: str, client: ClientFactory = EngineClient) -> int:
    """``kvscope --no-tui`` alone: memory, intensity, evaluate, kv-evaluate and a short benchmark, one after another.

    The options are those of ``memory``. Exit code 1 if an evaluation fails.
    """
    args = study_parser(prog).parse_args(argv)
    state = initial_state(study_from(args))
    return engine_guarded(lambda: _run_study(args, state, client), prog)


def _run_study(args: argparse.Namespace, state: AppState, client: ClientFactory) -> int:
    options = argparse.Namespace(mode="run", json=True, output=None, quiet=args.quiet, **engine_cli.UNUSED)
    with client() as engine:
        outcome = commands.follow(options, _study_requests(), engine.stream)
    if args.format == "json":
        emit(args, to_json(_study_document(analyse(state), outcome)))
    else:
        emit(args, _study_text(args, analyse(state), outcome))
    return outcome.exit_code


def _study_requests() -> list[Request]:
    short = Benchmark(lengths=SHORT_LENGTHS, new_tokens=SHORT_NEW_TOKENS, repeats=SHORT_REPEATS)
    return [Evaluate(), Evaluate(cached=True), short]


def _study_document(analysis: Analysis, outcome: commands.Outcome) -> Document:
    measured_parts = [_document(answered) for answered in outcome.answers]
    parts = [memory_document(analysis.memory), intensity_document(analysis.intensity), *measured_parts]
    return {"command": "study", "schema": 1, **{part["command"]: part for part in parts}}


def _study_text(args: argparse.Namespace, analysis: Analysis, outcome: commands.Outcome) -> str:
    answers = (memory_answer(analysis.memory), intensity_answer(analysis.intensity))
    blocks = [rendered(args.format, *answer, on_screen=on_screen(args)) for answer in answers]
    for job in filter(None, map(_job, outcome.answers)):
        blocks += [_measured_text(args, job), *_screen_plot(args, job)]
    return "\n\n".join(blocks)
