"""What a study is about: model, device, storage formats, workload. Frozen records, checked when made.

Names are those of the field (Hugging Face's, without ``num_``): n_layers, n_heads, n_kv_heads, head_dim,
hidden_size (embedding dimension, h1), intermediate_size (inner dimension, h2), vocab_size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

from calc.errors import SpecError
from calc.model.checks import MAX_COUNT as MAX_COUNT
from calc.model.checks import check_count as check_count
from calc.model.checks import check_heads
from calc.model.parts import Mlp as Mlp
from calc.model.parts import Norm as Norm
from calc.model.storage import FORMATS, StorageFormat

if TYPE_CHECKING:
    from calc.model.layers import LayerSpec
    from calc.model.stored import StoredWeights

MAX_BYTES = 10**18


class Policy(StrEnum):
    """How tensor parallelism splits the KV cache."""

    EQUAL_SPLIT = "equal-split"
    REPLICATED = "replicated"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A decoder-only transformer, as far as its sizes go.

    `window` caps what the sliding layers keep; `n_sliding_layers` says how many of them there are.
    Where layers are not all alike (experts, latent or recurrent layers, several widths), `layers` gives them one by
    one and everything is counted from it; the flat fields then sum it up (`calc.model.layers.summary`: the commonest
    kind), and editing one of them is refused. With `layers` go `other_params` (outside layers, embedding and head),
    `embedding_size` (where it is not hidden_size) and `final_norm_params`. `stored` are the weights as a checkpoint
    holds them, where they are quantized or a file was read.
    Raises SpecError (with the field's name) when a field is impossible.
    """

    name: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    mlp: Mlp = Mlp.GATED
    norm: Norm = Norm.RMS
    tied: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    qk_norm: bool = False
    n_learned_positions: int = 0
    n_sliding_layers: int = 0
    window: int | None = None
    max_context: int | None = None
    source: str = "typed in"
    notes: tuple[str, ...] = ()
    layers: tuple[LayerSpec, ...] = ()
    other_params: int = 0
    embedding_size: int | None = None
    final_norm_params: int | None = None
    stored: StoredWeights | None = None

    def __post_init__(self) -> None:
        for name in DIMENSIONS:
            check_count(name, getattr(self, name))
        check_count("n_learned_positions", self.n_learned_positions, minimum=0)
        check_count("n_sliding_layers", self.n_sliding_layers, minimum=0)
        if self.window is not None:
            check_count("window", self.window)
        check_heads(self.n_heads, self.n_kv_heads)
        if self.n_sliding_layers > self.n_layers:
            raise SpecError(
                "n_sliding_layers", f"n_sliding_layers {self.n_sliding_layers} exceeds n_layers {self.n_layers}"
            )
        if self.n_sliding_layers and self.window is None:
            raise SpecError("window", "window must be given when there are sliding layers")
        self._check_layers()

    def _check_layers(self) -> None:
        """That `layers` and the flat fields agree, and that what only goes with layers is alone nowhere."""
        check_count("other_params", self.other_params, minimum=0)
        for name in ("embedding_size", "final_norm_params"):
            if (value := getattr(self, name)) is not None:
                check_count(name, value, minimum=0)
        if self.layers:
            from calc.model.layers import check_summary, shared_objects

            check_summary(self)
            object.__setattr__(self, "layers", shared_objects(self.layers))
        elif self.other_params or self.embedding_size is not None or self.final_norm_params is not None:
            raise SpecError("layers", "other_params, embedding_size and final_norm_params go with layers alone")

    @property
    def group_size(self) -> int:
        """Query heads that share a KV head (1 is multi-head attention)."""
        return self.n_heads // self.n_kv_heads

    @property
    def n_full_layers(self) -> int:
        """Layers that keep every token."""
        return self.n_layers - self.n_sliding_layers


DIMENSIONS = ("n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_size", "intermediate_size", "vocab_size")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """An accelerator. Peaks are dense (no sparsity), by dtype: "bf16", "fp8", "int8", "fp4", "fp32".

    `memory_bytes` is what calculations use; `reading` says where that number comes from ("80 GB read as
    80 x 10^9 B"). What is not known is None or absent, never guessed.
    """

    name: str
    memory_bytes: int
    reading: str
    bandwidth_bytes_per_s: float | None = None
    peak_flops_per_s: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    interconnect: str | None = None
    interconnect_bytes_per_s: float | None = None
    source: str = "typed in"

    def __post_init__(self) -> None:
        if isinstance(self.memory_bytes, bool) or not isinstance(self.memory_bytes, int) or self.memory_bytes <= 0:
            raise SpecError("memory_bytes", f"device memory must be a positive size, not {self.memory_bytes!r}")
        if self.memory_bytes > MAX_BYTES:
            raise SpecError("memory_bytes", f"device memory must be at most {MAX_BYTES:,} B, an exabyte")

    def ridge(self, dtype: str = "bf16") -> float | None:
        """FLOP a byte at which compute and bandwidth balance; None where either is unknown."""
        peak = self.peak_flops_per_s.get(dtype)
        if peak is None or self.bandwidth_bytes_per_s is None:
            return None
        return peak / self.bandwidth_bytes_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """Everything a calculation needs: one value that the app edits and the command line builds."""

    model: ModelSpec
    device: DeviceSpec
    context: int = 8192
    weight_format: StorageFormat = FORMATS["bf16"]
    kv_format: StorageFormat = FORMATS["bf16"]
    tps: tuple[int, ...] = (1, 2, 4, 8)
    policy: Policy = Policy.EQUAL_SPLIT

    def __post_init__(self) -> None:
        check_count("context", self.context)
        if not self.tps:
            raise SpecError("tp", "tp needs at least one number, such as 1,2,4,8")
        for tp in self.tps:
            check_count("tp", tp)


def field_names(record: type) -> tuple[str, ...]:
    """Names of a record's fields, in order."""
    return tuple(f.name for f in fields(record))
