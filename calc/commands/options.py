"""Options that several commands share, and the study that they describe."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from calc.errors import CalcError, QuantityError, SpecError
from calc.model.parts import Mlp
from calc.model.spec import DIMENSIONS, TYPED_IN, ModelSpec, uniform
from calc.model.storage import StorageFormat, parse_format
from calc.model.study import DeviceSpec, Policy, Study
from calc.plain import one_line
from calc.servers.names import ENGINES
from calc.units import parse_count, parse_counts, parse_duration, parse_rate, parse_share, parse_size

if TYPE_CHECKING:
    from calc.model.named import NamedFormat

T = TypeVar("T")
FORMATS = ("text", "json", "csv", "md")
SERVERS = ENGINES
"""Policies that count what a server reserves; only they import `calc.servers`."""
DEFAULT_CONTEXT = 8192
"""Default tokens per request."""
TPS = (1, 2, 4, 8)
"""Default degrees of the tensor-parallel table."""


class Parser(argparse.ArgumentParser):
    """An argument parser that refuses with one sentence (exit code 2) and whose usage line does not list the
    options."""

    def __init__(self, usage: str = "%(prog)s [OPTIONS]", **settings: Any) -> None:
        super().__init__(usage=usage, **settings)

    def error(self, message: str) -> NoReturn:
        self.exit(2, one_line(f"{self.prog}: {message} (see {self.prog} --help)") + "\n")


# --- readers ------------------------------------------------------------------------------------------------


def reader(read: Callable[[str], T]) -> Callable[[str], T]:
    """`read` for argparse: its error becomes the parser's error."""

    def convert(text: str) -> T:
        try:
            return read(text)
        except CalcError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


POLICIES = (*map(str, Policy), *SERVERS, "trtllm")
"""Every value of --policy: rules for splitting heads, and engines. Each command accepts some of them."""


def policy_among(taken: Iterable[str], others: str) -> Callable[[str], str]:
    """A reader of a policy that ignores case and punctuation (``vLLM``, ``llama.cpp``, ``Equal Split``).

    `others`: why a command does not accept the rest of `POLICIES`.
    """
    names, known = tuple(taken), named_in(POLICIES, tensorrtllm="trtllm")
    among = f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]

    def read(text: str) -> str:
        name = known(text)
        if name not in names:
            why = f"{name} {others}" if name in POLICIES else f"{text!r} is not known"
            raise argparse.ArgumentTypeError(f"{why}: use {among}")
        return name

    return read


def named_in(names: Iterable[str], **others: str) -> Callable[[str], str]:
    """A reader of one of `names` that ignores case and punctuation; `others` are further spellings."""
    known = {**others, **{_letters(name): name for name in names}}
    return lambda text: known.get(_letters(text), text)


def _letters(text: str) -> str:
    return "".join(sign for sign in text.lower() if sign.isalnum())


def layers(text: str) -> tuple[int, ...]:
    """The layers per pipeline stage: ``27,27,26``."""
    return tuple(count(part) for part in text.split(","))


count = reader(parse_count)
counts = reader(parse_counts)
size = reader(parse_size)
storage = reader(parse_format)


@reader
def weight_storage(text: str) -> StorageFormat | NamedFormat | None:
    """How weights are stored, as the option says it."""
    from calc.model.typed_formats import parse_weights

    return parse_weights(text)


@reader
def cache_storage(text: str) -> StorageFormat | None:
    """How the cache is stored, as the option says it."""
    from calc.model.typed_formats import parse_cache

    return parse_cache(text)


# --- model, device, formats ---------------------------------------------------------------------------------


def add_study_options(parser: argparse.ArgumentParser) -> None:
    """Options for the model, the device and the storage formats."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model", metavar="NAME|PATH", help="catalog name, config.json, model folder, .gguf or spec .toml"
    )
    for name in DIMENSIONS:
        model.add_argument(f"--{name.replace('_', '-')}", type=count, metavar="N")
    model.add_argument("--mlp", choices=[str(m) for m in Mlp], help="gated uses three matrices, plain two")
    tie = model.add_mutually_exclusive_group()
    tie.add_argument("--tied", action="store_true", default=None, help="the output head shares the embedding's weights")
    tie.add_argument(
        "--untied", action="store_false", dest="tied", default=None, help="the output head has its own weights"
    )
    device = parser.add_argument_group("device")
    device.add_argument("--device", metavar="NAME", help="catalog name (see kvscope devices)")
    device.add_argument(
        "--gpu-memory", type=size, metavar="SIZE", help="80GB or 80GiB (default: the device's, or 80GB)"
    )
    stored = parser.add_argument_group("storage")
    weights = stored.add_mutually_exclusive_group()
    weights.add_argument(
        "--weight-bytes", dest="weight_format", type=storage, metavar="X",
        help="bytes per weight (default: as in the checkpoint, else 2)",
    )  # fmt: skip
    weights.add_argument(
        "--weight-format", type=weight_storage, metavar="bf16|fp8|int8|q4_k|Q4_K_M|awq|…",
        help="one size per weight, a GGUF mix, a quantized checkpoint (awq, gptq, nf4, w4a16, mlx-4bit, …), or auto",
    )  # fmt: skip
    kv = stored.add_mutually_exclusive_group()
    kv.add_argument("--kv-bytes", dest="kv_format", type=storage, metavar="X", help="bytes per element (default 2)")
    kv.add_argument(
        "--kv-format",
        type=cache_storage,
        metavar="bf16|fp8|q8_0/q4_0|…",
        help="one format for both, K/V for two, or auto",
    )


def model_from(args: argparse.Namespace) -> ModelSpec:
    """The model of --model with the overrides; without --model, all sizes together define a model. Raises CalcError."""
    from calc.sources import DEFAULT_MODEL, load_model

    given = {name: value for name in (*DIMENSIONS, "tied") if (value := getattr(args, name)) is not None}
    if args.mlp is not None:
        given["mlp"] = Mlp(args.mlp)
    named = args.model is not None
    if not named and given.keys() >= {*DIMENSIONS}:
        return uniform(name=TYPED_IN, **given)
    model = load_model(args.model, any_storage=args.weight_format is not None) if named else load_model(DEFAULT_MODEL)
    if not given:
        return model
    from calc.model.edit import edit, edit_unnamed

    return (edit if named else edit_unnamed)(model, **given)


def device_from(args: argparse.Namespace) -> DeviceSpec:
    """The device of --device or --gpu-memory; with both, the device with that memory. Raises CalcError."""
    from calc.sources.catalog import find_device, manual_device, memory_reading

    memory = args.gpu_memory
    if args.device is None:
        return manual_device(memory if memory is not None else 80 * 10**9)
    device = find_device(device_names(args)[0])
    if memory is None or memory == device.memory_bytes:
        return device
    return replace(device, name=f"{device.name} (edited)", memory_bytes=memory, reading=memory_reading(memory))


def device_names(args: argparse.Namespace) -> list[str]:
    """The names of ``--device A,B``; only llama.cpp uses several different devices. Raises SpecError."""
    names = [name.strip() for name in args.device.split(",")]
    if len(names) > 1 and args.policy != "llamacpp":
        raise SpecError(
            "device", f"{len(names)} devices: only --policy llamacpp shares a model among different devices"
        )
    if len(names) > 1 and args.gpu_memory is not None:
        raise SpecError("gpu_memory", "--gpu-memory is for one device: leave it out with --device A,B")
    return names


def formats_from(args: argparse.Namespace, model: ModelSpec) -> dict[str, StorageFormat]:
    """The requested storage formats for `model`; by default, weights as its checkpoint stores them."""
    given = {"weight_format": weights_for(model, args.weight_format), "kv_format": cache_for(model, args.kv_format)}
    return {name: value for name, value in given.items() if value is not None}


def weights_for(model: ModelSpec, chosen: StorageFormat | NamedFormat | None) -> StorageFormat | None:
    """The weight format for `model` (a mix is computed over its tensors); None if none is given."""
    if isinstance(chosen, StorageFormat):
        return chosen
    if chosen is not None:
        from calc.model.named import weights_as

        return weights_as(chosen, model)
    if model.stored is None:
        return None
    from calc.model.stored_format import stored_format

    return stored_format(model)


def cache_for(model: ModelSpec, chosen: StorageFormat | None) -> StorageFormat | None:
    """The cache format for `model`; different formats for K and V are averaged by the model's sizes. Raises
    SpecError."""
    if chosen is None or chosen.pair is None:
        return chosen
    from calc.model.cache_pair import cache_as

    return cache_as(chosen, model)


# --- the study ----------------------------------------------------------------------------------------------


def add_workload_options(parser: argparse.ArgumentParser, *, servers: bool = False) -> None:
    """Options for the load, the number of devices, and the way memory is counted."""
    parser.add_argument(
        "--context", type=count, default=DEFAULT_CONTEXT, metavar="N", help="tokens per request (default 8192)"
    )
    parser.add_argument(
        "--tp", type=counts, metavar="1,2,4,8",
        help="tensor-parallel degrees; the answer is for the first (default: one device)",
    )  # fmt: skip
    add_policy_option(parser, servers=servers)


UNCOUNTED = "has no memory model here"


def add_policy_option(parser: argparse.ArgumentParser, *, servers: bool = False, timed: bool = False) -> None:
    """How heads are split among devices, or (with `servers`) which server's memory or (`timed`) time is counted."""
    server = ", or the server to model" if servers else ""
    taken = (*map(str, Policy), *(SERVERS if servers else ()), *(["trtllm"] if timed else ()))
    parser.add_argument(
        "--policy",
        type=policy_among(taken, UNCOUNTED if servers else "is an engine; here --policy is a rule for splitting heads"),
        metavar="|".join(taken),
        default=str(Policy.EQUAL_SPLIT),
        help=f"how heads are split among devices{server} (default equal-split)",
    )


def study_parser(prog: str, description: str = "The whole study.") -> Parser:
    """Model, device, storage, workload and output: the options of the app and of ``kvscope --no-tui``."""
    parser = Parser(prog=prog, description=description)
    add_study_options(parser)
    add_workload_options(parser, servers=True)
    add_output_options(parser)
    return parser


def study_from(args: argparse.Namespace, *, servers: bool = False) -> Study:
    """The study that the options describe; `servers` if the command accepts server policies. Raises CalcError."""
    server = args.policy in SERVERS
    if server and not servers:
        raise SpecError(
            "policy", f"--policy {args.policy} works with the app and the commands memory, solve and sweep only"
        )
    model = model_from(args)
    return Study(
        model=model,
        device=device_from(args),
        context=args.context,
        tps=_degrees(args),
        policy=Policy.REPLICATED if server else Policy(args.policy),
        **formats_from(args, model),
    )


def _degrees(args: argparse.Namespace) -> tuple[int, ...]:
    """The degrees of --tp; for different devices, their number."""
    n = 1 if args.device is None else len(device_names(args))
    return args.tp or TPS if n == 1 else (n,)


def add_parallel_options(parser: argparse.ArgumentParser) -> None:
    """Other ways to share a model, in addition to tensor parallelism; each adds a table of stages."""
    shared = parser.add_argument_group("parallelism, in addition to --tp")
    shared.add_argument("--pp", type=count, metavar="N", help="pipeline stages")
    shared.add_argument("--pp-layers", type=layers, metavar="27,27,26", help="layers per stage, if uneven")
    shared.add_argument("--ep", type=count, metavar="N", help="expert-parallel degree, within the TP devices")
    shared.add_argument("--dp-attention", type=count, metavar="N", help="attention groups with their own requests")
    shared.add_argument("--dcp", type=count, metavar="N", help="devices that share the tokens of repeated KV heads")


LIMITS = ("ttft", "tpot", "e2e")


def limits(text: str) -> dict[str, float]:
    """``ttft=500ms,tpot=50ms`` in seconds. Raises QuantityError."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, given, value = part.partition("=")
        if name.strip().lower() not in LIMITS or not given:
            raise QuantityError(f"limit {part.strip()!r} is not one of ttft, tpot and e2e with a time: ttft=500ms")
        found[name.strip().lower()] = parse_duration(value)
    return found


def add_limit_option(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Latency limits for an answer."""
    parser.add_argument("--limit", type=reader(limits), metavar="ttft=500ms,tpot=50ms,e2e=10s", help="latency limits")


def add_limit_options(parser: argparse.ArgumentParser) -> None:
    """Latency limits, and the load under which they must hold."""
    timed = parser.add_argument_group("latency limits, for --find batch, tp, device, and (with --rate) devices")
    add_limit_option(timed)
    timed.add_argument("--rate", type=reader(parse_rate), metavar="R", help="requests per second")
    timed.add_argument("--prompt-tokens", type=count, metavar="P", help="prompt tokens (default 1024)")
    timed.add_argument("--new-tokens", type=count, metavar="G", help="generated tokens (default 256)")


# --- a server -----------------------------------------------------------------------------------------------

SERVER_OPTIONS = (
    "engine_version", "gpu_memory_utilization", "max_num_batched_tokens", "max_num_seqs", "block_size", "kv_pool",
    "enforce_eager", "speculative_layers", "speculative_tokens", "prefix_caching", "disable_hybrid",
    "n_gpu_layers", "n_cpu_moe", "kv_on_host", "tensor_split", "parallel", "swa_full", "cache_ram",
)  # fmt: skip


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Start options of the server of --policy."""
    server = parser.add_argument_group("server, with --policy vllm, sglang, transformers or llamacpp")
    server.add_argument("--engine-version", metavar="V", help="such as 0.19.0; accounting and defaults depend on it")
    server.add_argument("--gpu-memory-utilization", type=reader(parse_share), metavar="0.9")
    server.add_argument("--max-num-batched-tokens", type=count, metavar="N", help="maximum tokens per step")
    server.add_argument("--max-num-seqs", type=count, metavar="N", help="maximum sequences per step (llama.cpp: slots)")
    server.add_argument("--block-size", type=count, metavar="N", help="tokens per cache block")
    server.add_argument("--kv-pool", type=size, metavar="SIZE", help="cache pool per GPU, instead of the computed one")
    server.add_argument("--enforce-eager", action="store_true", help="disable CUDA graphs")
    server.add_argument("--speculative-layers", type=count, metavar="N", help="layers of the draft module (MTP)")
    server.add_argument("--speculative-tokens", type=count, metavar="N", help="tokens drafted per step")
    server.add_argument("--prefix-caching", action="store_true", help="also cache recurrent states")
    server.add_argument("--disable-hybrid", action="store_true", help="window layers cache the whole context")


def check_server_options(args: argparse.Namespace) -> None:
    """Raise SpecError for server options without a server policy, and for options that no server counts."""
    given = [
        name for name in SERVER_OPTIONS if getattr(args, name, None) is not None and getattr(args, name) is not False
    ]
    if given and args.policy not in SERVERS:
        words = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        needs = "needs" if len(given) == 1 else "need"
        policies = f"{', '.join(SERVERS[:-1])} or {SERVERS[-1]}"
        raise SpecError(given[0], f"{words} {needs} a server policy: add --policy {policies}")
    if args.policy in SERVERS and args.ep:
        raise SpecError("ep", "--ep is not counted with a server policy: give only one of them")


# --- output -------------------------------------------------------------------------------------------------


def add_output_options(
    parser: argparse.ArgumentParser,
    *,
    form: str = "text",
    answer: str = "the answer",
    output: str = "write the answer to this file, completely or not at all",
    required: bool = False,
) -> None:
    """How and where the answer is printed; `form` is the default format."""
    out = parser.add_argument_group("output")
    formats = out.add_mutually_exclusive_group()
    formats.add_argument(
        "--json", action="store_const", const="json", dest="format", help="one JSON document: --format json"
    )
    formats.add_argument("--format", choices=FORMATS, help=f"format of {answer} (default {form})")
    out.add_argument("--output", type=Path, metavar="FILE", required=required, help=output)
    out.add_argument("--quiet", action="store_true", help="no progress or remarks on stderr")
    parser.set_defaults(format=form)
