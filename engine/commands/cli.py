"""Options of `python -m engine`, checked before torch is imported."""

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

from engine.errors import EngineError, OptionError
from engine.files import check_writable
from engine.measure.measurement import Measurement
from engine.measure.options import MODEL_OPTIONS, Option, check_ranks, check_threads, parse_ids, parse_new_tokens
from engine.measure.registry import MEASUREMENTS
from engine.plain import one_line
from engine.process.events import Generate, Turn
from engine.records import CacheKind, Request
from engine.sampling_options import check_at_least_one, check_sampling, check_stop
from engine.speculation import parse_speculate

PROG = "python -m engine"
GENERATE, RUN = "generate", "run"
_BY_MODE = {measurement.mode: measurement for measurement in MEASUREMENTS.values()}
MODES = (GENERATE, *_BY_MODE, RUN)
RUN_MODES = ("evaluate", "kv_evaluate", "benchmark")
"""The modes of the assignment's `run`: everything that it asks for."""

UNUSED = {"ids": False, "stream": True}
"""Defaults of generate's options for the other modes, which do not have them."""

T = TypeVar("T")

_SUMMARIES = {
    GENERATE: "continue a prompt, token by token, with the KV cache (or --no-cache)",
    **{mode: measurement.summary for mode, measurement in _BY_MODE.items()},
    RUN: "evaluate, kv_evaluate and benchmark",
}
_EPILOG = "\n".join(
    [
        "modes",
        *(f"  {mode:<13} {summary}" for mode, summary in _SUMMARIES.items()),
        "",
        "exit codes: 0 success, 1 a check failed, 2 bad input, 3 the engine failed, 130 interrupted",
    ]
)


class Parser(argparse.ArgumentParser):
    """An argument parser that refuses with one sentence and exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Print the error without the usage, and exit with code 2."""
        self.exit(2, one_line(f"{self.prog}: {message} (see {self.prog} --help)") + "\n")


def parse(argv: list[str]) -> argparse.Namespace:
    """The parsed options. Exits with code 2 and one sentence if they cannot be combined."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.serve is not None and len(argv) > 1:
        parser.error("serve takes no options: it reads requests from standard input")
    if args.serve is None and args.mode is None:
        parser.error("choose a mode: serve, or --mode " + ", ".join(MODES))
    if args.plot is not None:
        drawn = " or ".join(f"kvscope {measurement.name}" for measurement in MEASUREMENTS.values() if measurement.plots)
        parser.error(f"plots are drawn by kvscope: run {drawn} with --plot {one_line(args.plot)}")
    return args


def make_parser() -> Parser:
    """All options of all modes."""
    parser = Parser(
        prog=PROG,
        usage=f"{PROG} serve\n       {PROG} --mode MODE [OPTIONS]",
        description="Runs decoder-only transformers with a KV cache.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("serve", nargs="?", choices=["serve"], help="answer JSON lines on stdin (the app's engine)")
    _add_modes(parser)
    _add_options(parser, "model", MODEL_OPTIONS)
    _add_generate_options(parser)
    parser.add_argument("--plot", help=argparse.SUPPRESS)
    for title, options in _own_options().items():
        _add_options(parser, title, options)
    out = parser.add_argument_group("output")
    out.add_argument("--json", action="store_true", help="one JSON document on stdout")
    out.add_argument(
        "--output", type=Path, metavar="FILE", help="write the answer to this file, completely or not at all"
    )
    out.add_argument("--quiet", action="store_true", help="no progress or remarks on stderr")
    return parser


def mode_parser(mode: str, prog: str, description: str) -> Parser:
    """The options of one mode, without output options, for a front end with its own commands."""
    parser = Parser(prog=prog, usage="%(prog)s [OPTIONS]", description=description, allow_abbrev=False)
    parser.set_defaults(mode=mode, **UNUSED)
    if mode == GENERATE:
        _add_options(parser, "model", MODEL_OPTIONS)
        _add_generate_options(parser)
        return parser
    measurement = _BY_MODE[mode]
    own = {option.name: option for option in measurement.options}
    shared = [own.get(option.name, option) for option in MODEL_OPTIONS]
    _add_options(parser, "model", shared, hidden={option.name for option in MODEL_OPTIONS} - own.keys())
    _add_options(parser, measurement.name, [option for option in measurement.options if not _is_models(option)])
    return parser


def _own_options() -> dict[str, list[Option]]:
    """The options of measurements besides those of the model, by the measurements that share them."""
    users: dict[str, tuple[Option, list[str]]] = {}
    for mode, measurement in _BY_MODE.items():
        for option in measurement.options:
            if not _is_models(option):
                users.setdefault(option.name, (option, []))[1].append(mode)
    groups: dict[str, list[Option]] = {}
    for option, modes in users.values():
        groups.setdefault(", ".join(modes), []).append(option)
    return groups


def _is_models(option: Option) -> bool:
    return option.name in {each.name for each in MODEL_OPTIONS}


def _add_options(parser: Parser, title: str, options: Iterable[Option], *, hidden: Set[str] = frozenset()) -> None:
    """Add `options`; `hidden` ones are read (to be refused with a sentence) but not in the help."""
    group = parser.add_argument_group(title)
    for option in options:
        if option.constant is not None:
            group.add_argument(
                *option.flags, dest=option.name, action="store_const", const=option.constant, help=option.help
            )
            continue
        shown, aliases = option.flags[:2], option.flags[2:]
        reads: dict[str, Any] = {
            "dest": option.name,
            "type": option.read if option.read in (int, float, str) else reader(option.read),
            "choices": option.choices or None,
            "metavar": option.metavar or None,
        }
        group.add_argument(*shown, help=argparse.SUPPRESS if option.name in hidden else option.help, **reads)
        if aliases:
            group.add_argument(*aliases, help=argparse.SUPPRESS, default=argparse.SUPPRESS, **reads)


def _add_modes(parser: Parser) -> None:
    group = parser.add_argument_group("what to do").add_mutually_exclusive_group()
    group.add_argument("--mode", type=_mode, metavar="MODE", help=" | ".join(MODES))
    group.add_argument("--evaluate", action="store_const", const="evaluate", dest="mode")
    group.add_argument("--kv-evaluate", "--kv_evaluate", action="store_const", const="kv_evaluate", dest="mode")
    group.add_argument("--benchmark", action="store_const", const="benchmark", dest="mode")


def _add_generate_options(parser: Parser) -> None:
    group = parser.add_argument_group("generate")
    _add_prompt_options(group)
    _add_sampling_options(group)
    _add_chat_options(group)
    _add_run_options(group)


def _add_prompt_options(group: argparse._ArgumentGroup) -> None:
    prompt = group.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT")
    prompt.add_argument("--prompt-file", type=Path, metavar="FILE", help="UTF-8 text")
    prompt.add_argument("--prompt-ids", type=reader(parse_ids), metavar="1,2,3")
    group.add_argument(
        "--max-new-tokens",
        type=reader(parse_new_tokens),
        default=64,
        metavar="N|all",
        help="maximum number of tokens to generate (default 64); all: up to the model's context limit",
    )


def _add_sampling_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--temperature", type=float, default=0.0, metavar="X", help="0 always takes the most likely token (default 0)"
    )
    group.add_argument("--top-k", type=int, metavar="N", help="sample from the N most likely tokens")
    group.add_argument(
        "--top-p", type=float, metavar="X", help="sample from the most likely tokens, up to total probability X"
    )
    group.add_argument(
        "--min-p", type=float, metavar="X", help="leave out tokens below X times the highest probability"
    )
    group.add_argument(
        "--repetition-penalty",
        type=float,
        metavar="X",
        help="divide the logits of tokens already in the text by X (1: off)",
    )
    group.add_argument(
        "--presence-penalty", type=float, metavar="X", help="subtract X from the logits of generated tokens (0: off)"
    )
    group.add_argument(
        "--model-sampling",
        action="store_true",
        help="use the model's generation_config.json for options that are not given",
    )
    group.add_argument(
        "--stop", action="append", metavar="TEXT", help="end before this text; may be given several times"
    )
    group.add_argument("--seed", type=int, metavar="N", help="the same seed draws the same tokens")


def _add_chat_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--chat", action="store_true", help="send the prompt as a chat message, in the model's own template"
    )
    group.add_argument(
        "--thinking",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="let a chat model think first, or not (needs --chat and a template with enable_thinking)",
    )
    group.add_argument("--system", metavar="TEXT", help="system prompt of the chat (needs --chat)")


def _add_run_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--cache", choices=get_args(CacheKind), default="full", help="how K and V are cached (default full)"
    )
    group.add_argument(
        "--speculate",
        type=reader(parse_speculate),
        metavar="lookup|MODEL[,K]",
        help="draft K tokens per step, from the text so far or with a smaller model; the tokens stay the same",
    )
    group.add_argument("--no-cache", action="store_true", help="recompute every token at each step")
    group.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="print each token as it is generated (default)",
    )
    group.add_argument("--ids", action="store_true", help="print token ids instead of text")


def requests(args: argparse.Namespace) -> list[Request]:
    """The checked requests of the options, in order. Raises EngineError."""
    _check_taken(args)
    check_threads(args.threads)
    check_ranks(1 if args.tp is None else args.tp)
    if args.output is not None:
        check_writable(args.output)
    if args.mode == GENERATE:
        return [_generate_request(args)]
    return [measurement.make(vars(args)) for measurement in _measurements(args.mode)]


def _measurements(mode: str) -> list[Measurement]:
    return [_BY_MODE[each] for each in (RUN_MODES if mode == RUN else (mode,))]


def _check_taken(args: argparse.Namespace) -> None:
    """Raise `OptionError` for an option that the mode does not accept. The assignment passes weights and cases to all
    modes."""
    taken = {"weights", "cases"}
    if args.mode == GENERATE:
        taken |= {option.name for option in MODEL_OPTIONS} | set(_generate_defaults())
        refusals: Mapping[str, str] = {}
    else:
        measurements = _measurements(args.mode)
        taken |= {option.name for measurement in measurements for option in measurement.options}
        refusals = {name: why for measurement in measurements for name, why in measurement.refusals.items()}
    for name, flag, default in _all_options():
        if name not in taken and getattr(args, name, default) != default:
            why = f": {refusals[name]}" if name in refusals else f" (see the options of {args.mode} in --help)"
            raise OptionError(name, f"{args.mode.replace('_', '-')} takes no {flag}{why}")


def _all_options() -> Iterator[tuple[str, str, object]]:
    """Name, first word and default of every option of every mode."""
    every = (*MODEL_OPTIONS, *(option for measurement in _BY_MODE.values() for option in measurement.options))
    yield from ((option.name, option.flags[0], None) for option in every)
    yield from ((name, f"--{name.replace('_', '-')}", default) for name, default in _generate_defaults().items())


@cache
def _generate_defaults() -> dict[str, object]:
    """The options of generate only, with their defaults."""
    parser = Parser(add_help=False)
    _add_generate_options(parser)
    return vars(parser.parse_args([]))


def _generate_request(args: argparse.Namespace) -> Generate:
    prompt = args.prompt if args.prompt_file is None else read_prompt(args.prompt_file)
    if prompt is None and args.prompt_ids is None:
        raise OptionError("prompt", "no prompt: give --prompt, --prompt-file or --prompt-ids")
    _check_generation(args)
    turns = _turns(args, prompt)
    return Generate(
        prompt=prompt if turns is None else None,
        turns=turns,
        cache=args.cache,
        prompt_ids=args.prompt_ids,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        presence_penalty=args.presence_penalty,
        model_sampling=args.model_sampling,
        stop=tuple(args.stop or ()),
        thinking=args.thinking,
        seed=args.seed,
        use_cache=not args.no_cache,
        speculate=args.speculate,
        **{o.field: value for o in MODEL_OPTIONS if (value := getattr(args, o.name)) is not None},
    )


def _check_generation(args: argparse.Namespace) -> None:
    """Raise OptionError for values that mean nothing, before an engine is started for them."""
    check_sampling(
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        presence_penalty=args.presence_penalty,
        seed=args.seed,
    )
    check_stop(args.stop or ())
    check_at_least_one(max_new_tokens=args.max_new_tokens)


def _turns(args: argparse.Namespace, prompt: str | None) -> tuple[Turn, ...] | None:
    """The turns of a chat, with --chat. Raises OptionError."""
    if not args.chat:
        if args.system is not None:
            raise OptionError("system", "--system needs --chat")
        if args.thinking is not None:
            raise OptionError("thinking", "--thinking needs --chat")
        return None
    if prompt is None:
        raise OptionError("chat", "--chat needs text: give --prompt or --prompt-file, not ids")
    system = () if args.system is None else (Turn(role="system", content=args.system),)
    return (*system, Turn(role="user", content=prompt))


def read_prompt(path: Path) -> str:
    """The text of a prompt file. Raises OptionError."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise OptionError("prompt_file", f"cannot read {path}: it is not UTF-8 text") from None
    except (OSError, ValueError) as error:
        raise OptionError("prompt_file", f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def _mode(text: str) -> str:
    mode = text.replace("-", "_")
    if mode not in MODES:
        raise argparse.ArgumentTypeError(f"{text!r} is not a mode; the modes are {', '.join(MODES)}")
    return mode


@cache
def reader(read: Callable[[str], T]) -> Callable[[str], T]:
    """`read` for argparse: its error becomes the parser's error.

    Returns the same function for the same `read`, so that a front end can replace it with its own reader.
    """

    def convert(text: str) -> T:
        try:
            return read(text)
        except (ValueError, EngineError) as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert
