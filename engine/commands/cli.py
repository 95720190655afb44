"""Options of `python -m engine`, checked before torch is imported."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeVar, get_args

from engine.commands.line_plot import check_plot_path
from engine.errors import EngineError, OptionError
from engine.files import check_writable
from engine.measure.options import (
    check_batch,
    check_benchmark,
    check_formats,
    check_ranks,
    check_threads,
    parse_counts,
    parse_formats,
    parse_ids,
)
from engine.plain import one_line
from engine.process.events import (
    Batch,
    Benchmark,
    CacheKind,
    CompileMode,
    Device,
    DType,
    Evaluate,
    Formats,
    Generate,
    Request,
    Turn,
)

PROG = "python -m engine"
MODES = ("generate", "evaluate", "kv_evaluate", "benchmark", "batch", "formats", "run")
PLOT_MODES = ("benchmark", "batch", "run")
RUN_MODES = ("evaluate", "kv_evaluate", "benchmark")
"""What the assignment's `run` stands for: everything that it asks to be shown."""

UNUSED = {"plot": None, "ids": False, "stream": False}
"""What the options of other modes stand at where a mode does not have them."""

T = TypeVar("T")

_EXAMPLES = """\
modes
  generate      continue a prompt, token by token, with the KV cache (or --no-cache)
  evaluate      logits against the expected ones
  kv_evaluate   the same with the cache, and cached against uncached
  benchmark     latency with and without the cache, by prompt length
  batch         decode steps of several prompts at once: tokens a second against batch
  formats       memory, speed and error of each weight and cache format
  run           evaluate, kv_evaluate and benchmark

exit codes: 0 done, 1 a check failed, 2 bad input, 3 the engine failed, 130 interrupted
"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose refusal is one sentence and exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, without the usage."""
        self.exit(2, one_line(f"{self.prog}: {message} (see {self.prog} --help)") + "\n")


def parse(argv: list[str]) -> argparse.Namespace:
    """The options; exits with code 2 and one sentence if they cannot be used together."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.serve is not None and len(argv) > 1:
        parser.error("serve takes no options: it reads requests from standard input")
    if args.serve is None and args.mode is None:
        parser.error("say what to do: serve, or --mode " + ", ".join(MODES))
    if args.plot is not None and args.mode not in PLOT_MODES:
        parser.error(f"--plot belongs to --mode benchmark or batch, not {args.mode}")
    return args


def make_parser() -> Parser:
    """All options of all modes."""
    parser = Parser(
        prog=PROG,
        usage=f"{PROG} serve\n       {PROG} --mode MODE [OPTIONS]",
        description="Runs decoder-only transformers with a KV cache.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("serve", nargs="?", choices=["serve"], help="answer JSON lines on stdin (the app's engine)")
    _add_modes(parser)
    _add_model_options(parser)
    for add in dict.fromkeys(add for adders in _OPTIONS.values() for add in adders):
        add(parser)
    out = parser.add_argument_group("output")
    out.add_argument("--json", action="store_true", help="one JSON document on stdout")
    out.add_argument("--output", type=Path, metavar="FILE", help="write there, whole or not at all")
    out.add_argument("--quiet", action="store_true", help="no progress and no remarks on stderr")
    return parser


def mode_parser(mode: str, prog: str, description: str) -> Parser:
    """The options of one mode alone, without those of output: for a front end with commands of its own."""
    parser = Parser(prog=prog, description=description, allow_abbrev=False)
    parser.set_defaults(mode=mode, **UNUSED)
    _add_model_options(parser)
    for add in _OPTIONS[mode]:
        add(parser)
    return parser


def _add_modes(parser: Parser) -> None:
    group = parser.add_argument_group("what to do").add_mutually_exclusive_group()
    group.add_argument("--mode", type=_mode, metavar="MODE", help=" | ".join(MODES))
    group.add_argument("--evaluate", action="store_const", const="evaluate", dest="mode")
    group.add_argument("--kv-evaluate", "--kv_evaluate", action="store_const", const="kv_evaluate", dest="mode")
    group.add_argument("--benchmark", action="store_const", const="benchmark", dest="mode")


def _add_model_options(parser: Parser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--weights",
        "--model_state_dict",
        "--model-state-dict",
        "--model",
        metavar="FILE",
        help=".gguf, .safetensors, .pt, a model folder, org/name or org/name:Q4_K_M (default: the bundled model)",
    )
    group.add_argument("--dtype", choices=get_args(DType), help="default: float64 to evaluate, else auto")
    group.add_argument("--compile", choices=get_args(CompileMode), help="the decode step in one piece (default auto)")
    group.add_argument("--tp", type=int, default=1, metavar="N", help="tensor-parallel ranks, as processes (default 1)")
    group.add_argument(
        "--device", choices=get_args(Device), default="auto", help="default auto: cuda where torch sees one, else cpu"
    )
    group.add_argument("--threads", type=int, metavar="N", help="threads of torch (default: 1 for a small model)")


def _add_evaluate_options(parser: Parser) -> None:
    group = parser.add_argument_group("evaluate, kv_evaluate")
    group.add_argument(
        "--test_cases", "--test-cases", "--cases", dest="cases", metavar="FILE", help="JSON (default: the bundled)"
    )
    group.add_argument("--atol", type=float, metavar="X", help="largest absolute error that passes")


def _add_generate_options(parser: Parser) -> None:
    group = parser.add_argument_group("generate")
    prompt = group.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT")
    prompt.add_argument("--prompt-file", type=Path, metavar="FILE", help="UTF-8 text")
    prompt.add_argument("--prompt-ids", type=_reader(parse_ids), metavar="1,2,3")
    group.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="default 64")
    group.add_argument("--temperature", type=float, default=0.0, metavar="X", help="default 0: greedy")
    group.add_argument("--top-k", type=int, metavar="N")
    group.add_argument("--top-p", type=float, metavar="X")
    group.add_argument("--seed", type=int, metavar="N")
    group.add_argument("--chat", action="store_true", help="the prompt is a chat's turn, in the model's own template")
    group.add_argument("--system", metavar="TEXT", help="the chat's system prompt (with --chat)")
    group.add_argument(
        "--cache", choices=get_args(CacheKind), default="full", help="how K and V are kept (default full)"
    )
    group.add_argument("--no-cache", action="store_true", help="recompute everything for every token")
    group.add_argument(
        "--stream", action=argparse.BooleanOptionalAction, default=True, help="print tokens as they are made"
    )
    group.add_argument("--ids", action="store_true", help="print token ids instead of text")


def _add_measuring_options(parser: Parser) -> None:
    group = parser.add_argument_group("benchmark, batch")
    group.add_argument("--new-tokens", type=int, metavar="N", help="default 40; for batch 16 steps")
    group.add_argument("--repeats", type=int, default=5, metavar="N", help="default 5")
    group.add_argument("--plot", type=Path, metavar="FILE", help="what was measured as a plot: .svg, .png, .txt")


def _add_benchmark_options(parser: Parser) -> None:
    group = parser.add_argument_group("benchmark")
    group.add_argument(
        "--lengths", type=_reader(parse_counts), default=Benchmark().lengths, metavar="10,50,100",
        help="prompt lengths (default 10,50,100,500,1000)",
    )  # fmt: skip
    group.add_argument("--warmup", type=int, default=1, metavar="N", help="runs not counted (default 1)")


def _add_batch_options(parser: Parser) -> None:
    group = parser.add_argument_group("batch")
    group.add_argument(
        "--batches", type=_reader(parse_counts), default=Batch().batches, metavar="1..32",
        help="rows at once: a list, or a range that doubles (default 1..32)",
    )  # fmt: skip
    group.add_argument("--context", type=int, default=64, metavar="N", help="tokens of the longest row (default 64)")
    group.add_argument("--equal", action="store_true", help="rows of one length (default: from half of that upwards)")


def _add_formats_options(parser: Parser) -> None:
    group = parser.add_argument_group("formats")
    group.add_argument(
        "--formats", type=_reader(parse_formats), default=Formats().choices, metavar="LIST",
        help="dtypes, each with /CACHE for another cache (default bfloat16,float16,int8,int4,float32/int8)",
    )  # fmt: skip
    group.add_argument(
        "--tokens", type=int, default=128, metavar="N", help="tokens of text to measure on (default 128)"
    )


_OPTIONS: dict[str, tuple[Callable[[Parser], None], ...]] = {
    "evaluate": (_add_evaluate_options,),
    "kv_evaluate": (_add_evaluate_options,),
    "generate": (_add_generate_options,),
    "benchmark": (_add_measuring_options, _add_benchmark_options),
    "batch": (_add_measuring_options, _add_batch_options),
    "formats": (_add_formats_options,),
}


def requests(args: argparse.Namespace) -> list[Request]:
    """The checked requests that the options stand for, in their order. Raises EngineError."""
    check_threads(args.threads)
    check_ranks(args.tp)
    if args.tp > 1 and args.mode not in ("generate", "benchmark", "batch"):
        raise OptionError("tp", f"--tp belongs to generate, benchmark and batch, not to {args.mode}")
    if args.output is not None:
        check_writable(args.output)
    if args.plot is not None:
        check_plot_path(args.plot)
        check_writable(args.plot, "plot")
    modes = RUN_MODES if args.mode == "run" else (args.mode,)
    return [_MAKERS[mode](args) for mode in modes]


def _generate_request(args: argparse.Namespace) -> Generate:
    prompt = args.prompt if args.prompt_file is None else read_prompt(args.prompt_file)
    if prompt is None and args.prompt_ids is None:
        raise OptionError("prompt", "there is no prompt: give --prompt, --prompt-file or --prompt-ids")
    turns = _turns(args, prompt)
    return Generate(
        prompt=prompt if turns is None else None,
        turns=turns,
        cache=args.cache,
        compile=args.compile or "auto",
        prompt_ids=args.prompt_ids,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
        use_cache=not args.no_cache,
        model=args.weights,
        dtype=args.dtype or "auto",
        threads=args.threads,
        tp=args.tp,
        device=args.device,
    )


def _turns(args: argparse.Namespace, prompt: str | None) -> tuple[Turn, ...] | None:
    """The turns of a chat, with --chat. Raises OptionError."""
    if not args.chat:
        if args.system is not None:
            raise OptionError("system", "--system is a chat's: give --chat with it")
        return None
    if prompt is None:
        raise OptionError("chat", "a chat's turn is text: give --prompt or --prompt-file, not ids")
    system = () if args.system is None else (Turn(role="system", content=args.system),)
    return (*system, Turn(role="user", content=prompt))


def _evaluate_request(args: argparse.Namespace, *, cached: bool = False) -> Evaluate:
    return Evaluate(
        weights=args.weights,
        cases=args.cases,
        atol=args.atol,
        dtype=args.dtype or "float64",
        cached=cached,
        device=args.device,
    )


def _benchmark_request(args: argparse.Namespace) -> Benchmark:
    request = Benchmark(
        model=args.weights,
        lengths=args.lengths,
        new_tokens=Benchmark().new_tokens if args.new_tokens is None else args.new_tokens,
        repeats=args.repeats,
        warmup=args.warmup,
        compile=args.compile or "off",
        dtype=args.dtype or "auto",
        threads=args.threads,
        tp=args.tp,
        device=args.device,
    )
    check_benchmark(request)
    return request


def _batch_request(args: argparse.Namespace) -> Batch:
    request = Batch(
        model=args.weights,
        batches=args.batches,
        context=args.context,
        new_tokens=Batch().new_tokens if args.new_tokens is None else args.new_tokens,
        repeats=args.repeats,
        ragged=not args.equal,
        compile=args.compile or "auto",
        dtype=args.dtype or "auto",
        threads=args.threads,
        tp=args.tp,
        device=args.device,
    )
    check_batch(request)
    return request


def _formats_request(args: argparse.Namespace) -> Formats:
    if args.dtype is not None:
        raise OptionError("dtype", "formats are compared with float32; name those to measure with --formats")
    request = Formats(
        model=args.weights,
        choices=args.formats,
        n_tokens=args.tokens,
        threads=args.threads,
        compile=args.compile or "auto",
        device=args.device,
    )
    check_formats(request)
    return request


_MAKERS: dict[str, Callable[[argparse.Namespace], Request]] = {
    "generate": _generate_request,
    "evaluate": _evaluate_request,
    "kv_evaluate": partial(_evaluate_request, cached=True),
    "benchmark": _benchmark_request,
    "batch": _batch_request,
    "formats": _formats_request,
}


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
        raise argparse.ArgumentTypeError(f"{text!r} is no mode; the modes are {', '.join(MODES)}")
    return mode


def _reader(read: Callable[[str], T]) -> Callable[[str], T]:
    """`read` for argparse: its refusal becomes the parser's sentence."""

    def convert(text: str) -> T:
        try:
            return read(text)
        except (ValueError, EngineError) as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert
