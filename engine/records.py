"""The records that measurements and the protocol share, typed and without torch: see `engine.process.events`.

The records are ``msgspec.Struct``: frozen, checked when a line is decoded, encoded without any code here.
"""

from typing import TYPE_CHECKING, Any, Literal

import msgspec

DType = Literal["auto", "float64", "float32", "bfloat16", "float16", "int8", "int4"]
Device = Literal["auto", "cpu", "cuda"]
CompileMode = Literal["auto", "off", "on"]
CacheKind = Literal["full", "window", "int8"]
TO_THE_END = 1 << 40
"""As `max_new_tokens`: until the model's context is full."""
ALL = "all"
"""How people write that."""
MAX_RANKS = 64
NS_PER_S = 1_000_000_000


class Record(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Base of every request and event. `EngineClient.submit` numbers requests; events repeat the number."""

    request_id: int = 0


class Request(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what the app asks of the engine. A field that the engine does not know is an error."""


class OnModel(Request, frozen=True, kw_only=True):
    """Base of the requests that run a model of their own choice.

    `model` is a path or org/name; None means the bundled model. `threads` None: one for a small model (under 20 million
    parameters), torch's own choice for others.
    """

    model: str | None = None
    dtype: DType = "auto"
    threads: int | None = None
    tp: int = 1
    """Tensor-parallel ranks, each a process of its own."""
    compile: CompileMode = "auto"
    """The compiled decode step: "auto" builds it in the background and uses it when ready, "on" waits for it."""
    n_heads: int | None = None
    """Attention heads of weights of the assignment's form, which do not say it; None: one."""
    device: Device = "auto"
    """Where it runs; "auto" takes a GPU where torch sees one. With tensor parallelism each rank has its own GPU."""


class Load(OnModel, frozen=True, kw_only=True):
    """Load a model and answer `Loaded`."""


class Event(Record, frozen=True, kw_only=True):
    """Base of what the engine says."""


class LastEvent(Event, frozen=True, kw_only=True):
    """Base of the events that end any request."""


class Cancelled(LastEvent, frozen=True, kw_only=True):
    """The request was stopped before its end. A `Generate` that has its model ends in `GenerationFinished` instead."""


class RowMeasured(Event, frozen=True, kw_only=True):
    """Base of the events that carry one row of a measurement; a later row with the same key replaces the earlier."""

    if TYPE_CHECKING:

        @property
        def row(self) -> Any:
            """What was measured."""


class MeasurementFinished(LastEvent, frozen=True, kw_only=True):
    """Base of the events that carry a whole result and end a measurement."""

    result: Any


class Progress(Event, frozen=True, kw_only=True):
    """How far a long request is. `remaining_s` is an estimate, None while there is nothing to base it on.

    `stage` is "load" or what is measured. A load counts bytes of its files; `total` is 0 while it is not known, and
    `detail` is the model's name, after "downloading" for what comes over the network.
    """

    stage: str
    done: int
    total: int
    elapsed_ns: int
    remaining_s: float | None = None
    detail: str = ""


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
    """Dtype of the cache and of arithmetic, where it is not `dtype` (weights of few bits)."""
    step_weight_bytes: int | None = None
    """Bytes of the weights that a decode step reads, where `dtype` is a mix of formats ("int4+int6")."""
    read_bytes_per_s: float | None = None
    """How fast this machine reads the model's weights; None where it was not measured (see `engine.measure.rates`)."""
    matmul_flops_per_s: float | None = None
    """How fast it multiplies a prefill's tokens with one of its matrices."""
    notes: tuple[str, ...] = ()
    """What people should know of how its files were read, one sentence each."""
    sampling: str = ""
    """How the model's makers sample from it, in words; empty where they do not say."""
    step_note: str = ""
    """Why decode steps run layer by layer; empty where they do not, or were asked to."""
    device: str = "cpu"
    """Where it runs: cpu or cuda."""


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
