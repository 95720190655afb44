"""The protocol between the app and the engine process: one JSON object a line, typed, without torch.

Requests go to the engine's stdin, events come from its stdout. Each line is one record of this module
with a ``"type"`` field that names its class. Timestamps are raw ``time.perf_counter_ns`` values of the
engine process: only differences mean something, and rates are made from them in `engine.measure.timing` alone.

The records are ``msgspec.Struct``: frozen, checked when a line is decoded, encoded without any code here.
Every request ends in exactly one terminal event (`TERMINAL_EVENTS`).
"""

from typing import Literal, TypeVar

import msgspec

from engine.errors import EngineFailure

_T = TypeVar("_T")


class ProtocolError(EngineFailure):
    """A line that is no record of this protocol. `message` says what is wrong with it."""


DType = Literal["auto", "float64", "float32", "bfloat16", "float16", "int8", "int4"]
Device = Literal["auto", "cpu", "cuda"]
CompileMode = Literal["auto", "off", "on"]
CacheKind = Literal["full", "window", "int8"]
Role = Literal["system", "user", "assistant"]
FailureKind = Literal["input", "engine", "memory"]
StopReason = Literal["eos", "length", "positions", "cache", "cancelled"]


class Record(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Base of every request and event. `EngineClient.submit` numbers requests; events repeat the number."""

    request_id: int = 0


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of a chat."""

    role: Role
    content: str


# --- requests: app -> engine ------------------------------------------------------------------------------


class Load(Record, frozen=True, kw_only=True):
    """Load a model and answer `Loaded`. `model` is a path or org/name; None means the bundled model.

    `threads` None: one for a small model (under 20 million parameters), torch's own choice for others.
    """

    model: str | None = None
    dtype: DType = "auto"
    threads: int | None = None
    tp: int = 1
    """Tensor-parallel ranks, processes of their own."""
    compile: CompileMode = "auto"
    """The decode step in one piece: built in the background and used when ready, never, or waited for."""
    device: Device = "auto"
    """Where it runs; auto: a GPU where torch sees one, else the processor. With tensor parallelism one GPU a rank."""


class Generate(Record, frozen=True, kw_only=True):
    """Continue a prompt: text, ids, or the turns of a chat (exactly one of the three).

    Turns are put into the model's own template. `reuse`: what the cache still holds of the last run is not run again,
    as far as the new prompt begins with it (a chat's earlier turns).

    `model`, `dtype` and `threads` mean what they mean in `Load`: the request says everything, so None is the
    bundled model even after another one was loaded. The model is loaded (and `Loaded` sent) only if it is not
    the one in memory. Temperature 0 is greedy.
    """

    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    turns: tuple[Turn, ...] | None = None
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    use_cache: bool = True
    cache: CacheKind = "full"
    reuse: bool = False
    model: str | None = None
    dtype: DType = "auto"
    threads: int | None = None
    tp: int = 1
    compile: CompileMode = "auto"
    device: Device = "auto"


class Evaluate(Record, frozen=True, kw_only=True):
    """Compare logits with a file of expected ones. None stands for the bundled weights, cases, tolerance.

    `cached` also runs every case with the KV cache (whole prompt, token by token, in chunks): kv-evaluate.
    """

    weights: str | None = None
    cases: str | None = None
    atol: float | None = None
    dtype: DType = "float64"
    cached: bool = False
    device: Device = "auto"


class Benchmark(Record, frozen=True, kw_only=True):
    """Time `new_tokens` tokens after prompts of `lengths` tokens, with and without the KV cache."""

    model: str | None = None
    lengths: tuple[int, ...] = (10, 50, 100, 500, 1000)
    new_tokens: int = 40
    repeats: int = 5
    warmup: int = 1
    dtype: DType = "auto"
    threads: int | None = None
    tp: int = 1
    compile: CompileMode = "off"
    """Off, so that both arms run the same code."""
    device: Device = "auto"


class FormatChoice(msgspec.Struct, frozen=True, kw_only=True):
    """A dtype of the weights and a way to keep the cache. The row of "auto" says what that turned out to be."""

    dtype: DType
    cache: CacheKind = "full"


class Formats(Record, frozen=True, kw_only=True):
    """What each of `choices` costs and gains against float32 with a full cache: memory, speed, error of the logits.

    Measured on the first `n_tokens` tokens of a text that the engine brings along, one decode step a token.
    """

    model: str | None = None
    choices: tuple[FormatChoice, ...] = (
        FormatChoice(dtype="bfloat16"),
        FormatChoice(dtype="float16"),
        FormatChoice(dtype="int8"),
        FormatChoice(dtype="int4"),
        FormatChoice(dtype="float32", cache="int8"),
    )
    n_tokens: int = 128
    threads: int | None = None
    compile: CompileMode = "auto"
    device: Device = "auto"


class Batch(Record, frozen=True, kw_only=True):
    """Time decode steps of several rows at once, for each of `batches` counts of rows.

    The longest row has `context` tokens before the first of `new_tokens` steps; `ragged` rows are from half of that
    upwards, evenly spread, else all have as many. Batches take turns in each of `repeats` rounds, after one to warm up.
    """

    model: str | None = None
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    context: int = 64
    new_tokens: int = 16
    repeats: int = 5
    ragged: bool = True
    dtype: DType = "auto"
    threads: int | None = None
    tp: int = 1
    device: Device = "auto"
    compile: CompileMode = "auto"
    """As in `Load`, but a build is waited for, so that all steps are of one kind."""


class Cancel(Record, frozen=True, kw_only=True):
    """Stop the request `target_id`, running or queued; it then ends early. Has no answer of its own."""

    target_id: int


class Shutdown(Record, frozen=True, kw_only=True):
    """Stop what runs and leave with exit code 0. Has no answer."""


# --- parts of events --------------------------------------------------------------------------------------


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine loaded: enough to build the calculator's spec and compare predicted with measured."""

    name: str
    path: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    n_parameters: int
    weight_bytes: int
    dtype: str
    kv_bytes_per_token: int
    has_tokenizer: bool
    gated_mlp: bool
    tied: bool
    norm: Literal["layernorm", "rmsnorm"]
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    head_bias: bool
    qk_norm: bool
    learned_positions: bool
    sliding_window: int | None = None
    load_ns: int | None = None
    """Time the load took; None where it was not measured."""
    tp: int = 1
    rank_weight_bytes: int | None = None
    """Bytes of one tensor-parallel rank's weights; None on a single rank."""
    has_chat: bool = False
    cache_dtype: str = ""
    """Dtype of the cache and of arithmetic, where it is not `dtype` (int8 and int4 weights)."""
    read_bytes_per_s: float | None = None
    """How fast this machine reads the model's weights; None where it was not measured (see `engine.measure.probe`)."""
    matmul_flops_per_s: float | None = None
    """How fast it multiplies a prefill's tokens with one of its matrices."""
    step_note: str = ""
    """Why decode steps run layer by layer; empty where they do not, or were asked to."""
    device: str = "cpu"
    """Where it runs: cpu or cuda."""


class CaseResult(msgspec.Struct, frozen=True, kw_only=True):
    """One evaluation case. Errors are max |logit - expected|; None is "not run", or not a finite number."""

    case: int
    prompt_tokens: int
    passed: bool
    max_abs_error: float | None
    cache_max_abs_error: float | None = None
    sequential_max_abs_error: float | None = None
    chunked_max_abs_error: float | None = None


class EvaluationResult(msgspec.Struct, frozen=True, kw_only=True):
    """All cases. `passed` is true only if there is a case and every case passed."""

    command: Literal["evaluate", "kv-evaluate"]
    weights: str
    dtype: str
    atol: float
    passed: bool
    cases: tuple[CaseResult, ...]


class BenchmarkRow(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt length. Times are medians, minima and maxima over the repeats of prompt plus new tokens.

    `prefill_s` (prompt to first token) and `tpot_s` (mean over the later tokens; None with one new token)
    are medians of the arm with the cache. `speedup` is the ratio of the two medians.
    """

    prompt_tokens: int
    with_cache_s: float
    without_cache_s: float
    with_cache_min_s: float
    with_cache_max_s: float
    without_cache_min_s: float
    without_cache_max_s: float
    speedup: float
    prefill_s: float
    tpot_s: float | None
    kv_cache_bytes: int
    tpot_p50_s: float | None = None
    tpot_p95_s: float | None = None
    """Percentiles over every later token of every repeat, with the cache."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where a measurement was made."""

    cpu: str
    cores: int
    threads: int
    device: str
    dtype: str
    torch: str
    python: str
    system: str


class BenchmarkResult(msgspec.Struct, frozen=True, kw_only=True):
    """All rows, with what is needed to read them. `notes` are whole sentences."""

    model: str
    new_tokens: int
    repeats: int
    warmup: int
    rows: tuple[BenchmarkRow, ...]
    machine: Machine
    notes: tuple[str, ...] = ()


class FormatRow(msgspec.Struct, frozen=True, kw_only=True):
    """One choice of formats. Errors: |logit - float32's| over all tokens and the whole vocabulary.

    `n_same`: of `n_tokens` predictions those with the same likeliest token. `perplexity`: e to the mean of -log p of
    the token that follows. Times are those of decode steps.
    """

    dtype: str
    cache: CacheKind
    weight_bytes: int
    kv_bytes_per_token: int
    load_s: float
    tpot_p50_s: float
    tpot_p95_s: float
    tokens_per_s: float
    n_tokens: int
    n_same: int
    mean_error: float
    max_error: float
    perplexity: float
    compiled: bool


class FormatsResult(msgspec.Struct, frozen=True, kw_only=True):
    """The reference (float32, full cache) first, then what was asked for. `notes` are whole sentences."""

    model: str
    rows: tuple[FormatRow, ...]
    machine: Machine
    notes: tuple[str, ...] = ()


class BatchRow(msgspec.Struct, frozen=True, kw_only=True):
    """Decode steps of one batch: the median, least and greatest time of all steps of all rounds so far.

    `tokens_per_s` is that of all rows together: the batch over the median step.
    """

    batch: int
    context_tokens: float
    """Tokens a row has in the middle of the run, the mean over rows; what fills rows up is not counted."""
    step_p50_s: float
    step_min_s: float
    step_max_s: float
    tokens_per_s: float
    kv_cache_bytes: int
    weight_bytes: int
    """Bytes of the matrices that a step multiplies with (of routed experts all)."""


class BatchResult(msgspec.Struct, frozen=True, kw_only=True):
    """All rows, and the median time of a prompt of `prefill_tokens`, where arithmetic binds. `notes`: sentences."""

    model: str
    context: int
    new_tokens: int
    repeats: int
    ragged: bool
    rows: tuple[BatchRow, ...]
    prefill_tokens: int
    prefill_s: float
    machine: Machine
    notes: tuple[str, ...] = ()


# --- events: engine -> app --------------------------------------------------------------------------------


class Ready(Record, frozen=True, kw_only=True):
    """First line of the process, sent when torch is imported. `request_id` is 0."""

    pid: int
    torch_version: str
    device: str
    threads: int


class Progress(Record, frozen=True, kw_only=True):
    """How far a long request is. `remaining_s` is an estimate, None while there is nothing to base it on.

    A load counts bytes of its files; `total` is 0 while it is not known, and `detail` the model's name, after
    "downloading" for what comes over the network.
    """

    stage: Literal["load", "evaluate", "benchmark", "formats", "batch"]
    done: int
    total: int
    elapsed_ns: int
    remaining_s: float | None = None
    detail: str = ""


class Loaded(Record, frozen=True, kw_only=True):
    """A model is in memory. Ends a `Load`; precedes the first event of a `Generate` that had to load."""

    model: ModelInfo


class GenerationStarted(Record, frozen=True, kw_only=True):
    """The prompt is encoded, the cache allocated, the clock (`start_ns`) runs; the prefill comes next."""

    prompt_ids: tuple[int, ...]
    start_ns: int
    kv_cache_bytes: int
    kv_bytes_per_token: int
    prompt_text: str | None = None
    reused_tokens: int = 0
    """Tokens of the prompt whose keys and values the cache had already."""
    kv_capacity: int = 0
    """Tokens the cache has room for."""


class TokenGenerated(Record, frozen=True, kw_only=True):
    """One new token, `index` from 0. `text` is what it adds; it may be empty until a character is whole."""

    index: int
    token_id: int
    text: str
    time_ns: int
    kv_tokens: int
    kv_used_bytes: int


class GenerationFinished(Record, frozen=True, kw_only=True):
    """The whole run. `ids` and `text` hold the new tokens only; `text` is None without a tokenizer.

    A cancelled run ends like this too, with the tokens made so far and the reason "cancelled".
    `kv_cache_bytes` is the cache allocated for the run, 0 without one; with tensor parallelism it is one rank's.
    `communication_ns` is what rank 0 spent waiting for and adding up with the others, None on a single rank.
    """

    reason: StopReason
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    text: str | None
    start_ns: int
    token_times_ns: tuple[int, ...]
    kv_cache_bytes: int
    communication_ns: int | None = None
    kv_capacity: int = 0
    cache: CacheKind = "full"


class CaseEvaluated(Record, frozen=True, kw_only=True):
    """One case of an `Evaluate` is done."""

    case: CaseResult


class EvaluationFinished(Record, frozen=True, kw_only=True):
    """Ends an `Evaluate`."""

    result: EvaluationResult


class BenchmarkRowMeasured(Record, frozen=True, kw_only=True):
    """One prompt length of a `Benchmark` is done."""

    row: BenchmarkRow


class BenchmarkFinished(Record, frozen=True, kw_only=True):
    """Ends a `Benchmark`."""

    result: BenchmarkResult


class FormatMeasured(Record, frozen=True, kw_only=True):
    """One choice of a `Formats` is done; the reference comes first."""

    row: FormatRow


class FormatsFinished(Record, frozen=True, kw_only=True):
    """Ends a `Formats`."""

    result: FormatsResult


class BatchRowMeasured(Record, frozen=True, kw_only=True):
    """A `Batch` has timed one of its batches in one round more; the row stands for all rounds so far."""

    row: BatchRow
    prefill_tokens: int
    prefill_s: float


class BatchFinished(Record, frozen=True, kw_only=True):
    """Ends a `Batch`."""

    result: BatchResult


class Failed(Record, frozen=True, kw_only=True):
    """The request ended in an error, said in one sentence. The engine lives on.

    `kind`: "input" = the request or a file it names is wrong; "memory" = it did not fit; "engine" = a defect.
    """

    kind: FailureKind
    message: str


class Cancelled(Record, frozen=True, kw_only=True):
    """The request was stopped before its end. A `Generate` that has its model ends in `GenerationFinished` instead."""


class EngineExited(Record, frozen=True, kw_only=True):
    """The process is gone; made by the client, one for each unanswered request (id 0 if there was none).

    `returncode` is negative for a signal and None if the process could not be started. `message` is a
    sentence; `stderr_tail` holds the last lines the process wrote, for a log or a details view.
    """

    returncode: int | None
    message: str
    stderr_tail: str = ""


Request = Load | Generate | Evaluate | Benchmark | Formats | Batch | Cancel | Shutdown
Event = (
    Ready
    | Progress
    | Loaded
    | GenerationStarted
    | TokenGenerated
    | GenerationFinished
    | CaseEvaluated
    | EvaluationFinished
    | BenchmarkRowMeasured
    | BenchmarkFinished
    | FormatMeasured
    | FormatsFinished
    | BatchRowMeasured
    | BatchFinished
    | Failed
    | Cancelled
    | EngineExited
)

TERMINAL_EVENTS = (
    GenerationFinished,
    EvaluationFinished,
    BenchmarkFinished,
    FormatsFinished,
    BatchFinished,
    Failed,
    Cancelled,
    EngineExited,
)
"""Events that end any request; `Loaded` also ends a `Load` (see `ends`)."""

_ENCODER = msgspec.json.Encoder()
_EVENTS: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
_REQUESTS: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
_QUOTED_CHARACTERS = 80


def ends(request: Request, event: Event) -> bool:
    """Whether `event` is the last one of `request` (their ids are not compared)."""
    return isinstance(event, TERMINAL_EVENTS) or (isinstance(request, Load) and isinstance(event, Loaded))


def encode(record: Request | Event) -> bytes:
    """One line of the protocol, newline included; `ProtocolError` for text that is no Unicode."""
    try:
        return _ENCODER.encode(record) + b"\n"
    except UnicodeEncodeError as error:
        raise ProtocolError(f"{type(record).__name__} holds text that cannot be sent: {error}") from None


def decode_event(line: bytes | str) -> Event:
    """The event in a line of the engine's stdout; `ProtocolError` if it is none."""
    return _decode(_EVENTS, line, "an engine event")


def decode_request(line: bytes | str) -> Request:
    """The request in a line of the engine's stdin; `ProtocolError` if it is none."""
    return _decode(_REQUESTS, line, "an engine request")


def _decode(decoder: "msgspec.json.Decoder[_T]", line: bytes | str, wanted: str) -> _T:
    try:
        return decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not {wanted}: {error}; the line is {_quoted(line)}") from None


def _quoted(line: bytes | str) -> str:
    text = line.decode("utf-8", "backslashreplace") if isinstance(line, bytes) else line
    text = text.rstrip("\n")
    return repr(text if len(text) <= _QUOTED_CHARACTERS else text[:_QUOTED_CHARACTERS] + "...")
