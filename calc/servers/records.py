"""Questions to a server policy and its answers: frozen records, with every size in bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import floor
from types import MappingProxyType

from calc.errors import SpecError
from calc.explain.terms import Term
from calc.model.checks import check_count
from calc.model.study import DeviceSpec, Study
from calc.servers.names import ENGINES

STARTS_SHORT = ("sglang", "transformers")
"""Servers that start with a pool smaller than one full-length request."""

Band = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What a server loads besides the text model, which is not in a ModelSpec.

    `rope_elements`: elements of the precomputed cos/sin tables (None: one table of the model's context).
    `vision_params`: parameters of encoders and projectors, part of every rank's share. An image of `image_elements`
    pixels times channels becomes `image_tokens` tokens; `item_tokens` is the longest item (a video), the minimum of
    vLLM's tokens per step. An image is cut into `image_patches`; per patch, an encoder layer has `encoder_hidden`
    elements, and at its peak `encoder_attention` or `encoder_mlp`. `state_element_bytes`: the config's own type of
    recurrent state. `repeated_kv`: transformers caches K and V once per query head (falcon). `cache_format`: the
    checkpoint's own cache format, written by its `quantizer` (modelopt, compressed-tensors); `cache_scales`: a format
    that it has scales for, but that must be requested (Quark).
    """

    rope_elements: int | None = None
    vision_params: int = 0
    multimodal: bool = False
    image_elements: int = 0
    image_tokens: int = 0
    image_patches: int = 0
    encoder_hidden: int = 0
    encoder_attention: int = 0
    encoder_mlp: int = 0
    item_tokens: int = 0
    state_element_bytes: int | None = None
    repeated_kv: bool = False
    cache_format: str | None = None
    quantizer: str = ""
    cache_scales: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """The start options of a server. None: the engine's own default for its version and the device.

    `kv_pool_bytes` replaces the computed pool, per GPU. `pp_layers`: layers per stage (VLLM_PP_LAYER_PARTITION).
    `dp_attention` is SGLang's ``--dp-size`` with attention data-parallel inside the TP group. `state_element_bytes`
    applies to the recurrent state (None: the version's default). The options from `n_gpu_layers` (None: all) are
    llama.cpp's; `devices` are different devices, in order (none: `tp` of the study's device). Raises SpecError.
    """

    engine: str = "vllm"
    version: str | None = None
    gpu_memory_utilization: Fraction | None = None
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    block_size: int | None = None
    kv_pool_bytes: int | None = None
    enforce_eager: bool = False
    speculative_layers: int = 0
    speculative_tokens: int | None = None
    prefix_caching_of_states: bool = False
    disable_hybrid: bool = False
    tp: int = 1
    pp: int = 1
    pp_layers: tuple[int, ...] | None = None
    dcp: int = 1
    dp_attention: int = 1
    max_model_len: int | None = None
    activation_element_bytes: int = 2
    state_element_bytes: int | None = None
    facts: ModelFacts = field(default_factory=ModelFacts)
    n_gpu_layers: int | None = None
    n_cpu_moe: int = 0
    kv_on_host: bool = False
    swa_full: bool = False
    cache_ram_bytes: int | None = None
    tensor_split: tuple[Fraction, ...] = ()
    devices: tuple[DeviceSpec, ...] = ()

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise SpecError("engine", f"unknown engine {self.engine!r}: {', '.join(ENGINES)}")
        for name in ("tp", "pp", "dcp", "dp_attention", "activation_element_bytes"):
            check_count(name, getattr(self, name))
        for name in ("speculative_layers", "n_cpu_moe", *(["n_gpu_layers"] if self.n_gpu_layers is not None else [])):
            check_count(name, getattr(self, name), minimum=0)
        for name in _OPTIONAL_COUNTS:
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if self.gpu_memory_utilization is not None and not 0 < self.gpu_memory_utilization <= 1:
            raise SpecError(
                "gpu_memory_utilization",
                f"gpu_memory_utilization is a share of the device such as 0.9, not "
                f"{float(self.gpu_memory_utilization):g}",
            )
        if self.tp % self.dp_attention or self.tp % self.dcp:
            what = "dp_attention" if self.tp % self.dp_attention else "dcp"
            raise SpecError(what, f"tp {self.tp} is not divisible by {what} {getattr(self, what)}")


_OPTIONAL_COUNTS = (
    "max_num_batched_tokens",
    "max_num_seqs",
    "block_size",
    "speculative_tokens",
    "max_model_len",
    "state_element_bytes",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheGroup:
    """Layers that share a block table: `block_tokens` tokens per block, `blocks_per_request` at full length."""

    kind: str
    layers: int
    block_tokens: int
    blocks_per_request: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceShare:
    """What llama.cpp puts on one device. `room_bytes`: what the driver's memory leaves for it."""

    name: str
    weight_bytes: int
    kv_bytes: int
    compute_bytes: int
    room_bytes: int

    @property
    def total_bytes(self) -> int:
        """All bytes."""
        return self.weight_bytes + self.kv_bytes + self.compute_bytes

    @property
    def free_bytes(self) -> int:
        """Free bytes; negative if it does not fit."""
        return self.room_bytes - self.total_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class HostShare:
    """What llama.cpp keeps in host memory."""

    weight_bytes: int
    kv_bytes: int
    compute_bytes: int
    prompt_cache_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerReport:
    """What the server reserves and what its start-up log says, for the GPU that limits the batch.

    `bands` gives (low, high) for every estimated size; exact values have none. A negative `kv_pool_bytes` means that
    the server does not start; blocks, tokens and concurrency are then 0. `refusal`: why it does not start, whatever the
    pool holds.
    """

    study: Study
    options: ServerOptions
    name: str
    version: str
    block_size: int
    weight_bytes_per_gpu: int
    activation_bytes: int
    non_torch_bytes: int
    cuda_graph_bytes: int
    kv_pool_bytes: int
    kv_blocks: int
    kv_tokens: int
    max_concurrency: float
    kv_request_bytes: int
    groups: tuple[CacheGroup, ...]
    assumptions: tuple[str, ...]
    bands: Mapping[str, Band] = field(default_factory=lambda: MappingProxyType({}))
    steps: tuple[Term, ...] = ()
    utilization: Fraction | None = None
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    refusal: str | None = None
    devices: tuple[DeviceShare, ...] = ()
    host: HostShare | None = None
    n_gpu_layers: int | None = None
    n_cpu_moe: int = 0

    @property
    def fullest(self) -> DeviceShare | None:
        """The device with the least room; None if the server divides the model evenly."""
        return min(self.devices, key=lambda share: share.free_bytes, default=None)

    @property
    def cache_room_bytes(self) -> int:
        """The room for the cache on the device that limits the batch: its pool, or everything that llama.cpp leaves
        there."""
        full = self.fullest
        return self.kv_pool_bytes if full is None else full.free_bytes + full.kv_bytes

    @property
    def context(self) -> int:
        """Tokens per full-length request."""
        return self.options.max_model_len or self.study.context

    @property
    def fits(self) -> bool:
        """Whether the server starts and has the blocks for one full-length request."""
        return self.refusal is None and self.max_concurrency >= 1

    @property
    def starts(self) -> bool:
        """Whether the server starts: vLLM and llama.cpp only start if a full-length request fits."""
        return self.fits or (self.refusal is None and self.kv_pool_bytes > 0 and self.options.engine in STARTS_SHORT)

    @property
    def requests(self) -> int:
        """Full-length requests that the server holds at once; 0 if it does not start."""
        return floor(self.max_concurrency + 1e-9) if self.refusal is None else 0
