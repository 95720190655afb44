"""The record of one architecture: what the config's fields do not say, and how its layers differ from the usual.

Taken from ``modeling_*.py`` and ``configuration_*.py`` of transformers 5.23; the tests compare with its classes on the
meta device. The records are in `calc.hf.architectures`, one file per lineage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calc.hf.reader import Reader
    from calc.model.layers import LayerSpec

Bias = bool | tuple[str, bool]
"""True, False, or the key of the config that decides, with the default of the class."""

ATTENTION_BIAS: Bias = ("attention_bias", False)
MLP_BIAS: Bias = ("mlp_bias", False)

Layers = Callable[["Reader", "Architecture", int, int], "list[LayerSpec]"]
"""(reader, architecture, n_layers, hidden_size) -> all layers, bottom first."""


@dataclass(frozen=True, slots=True)
class Outer:
    """Parameters outside the layers, the embedding and the head; the embedding's width if it is not hidden_size."""

    params: int = 0
    embedding_size: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One architecture. The defaults are those of a Llama: RMSNorm, gated MLP, no bias, nothing tied.

    Names:
        `names` are its model_types.
    Parts of a layer:
        `norm` is "rms" (a weight), "layer" (weight and bias), "layer_weight" (a LayerNorm without a bias) or "none";
        `norms` says how many of hidden_size a layer has, `sparse_norms` how many more a layer with experts has.
        `qk_norm` is "" (none), "head" (one of head_dim for Q and one for K), "full" (over all heads) or "each" (a
        weight for each head); `qk_key` is the flag that turns it on, if there is one.
        `gated_attention` doubles the query projection, `separate_gate` adds a matrix of its own. `sinks` adds one
        number per head, `extra_params` and `extra_head_dims` (times head_dim) small parameters of every layer.
        `shared_gate` gates the shared expert; `shared_is_dense` gives it the size of a dense layer; `always_experts`
        keeps the router even for one expert.
        `state_norms`, `state_biases` (keys for the projections in and out) and `state_norm` describe Mamba layers;
        `split_delta` says that a gated delta layer has its projections one by one.
    Which layers have a sliding window:
        `window` is "" (the fields say it), "all" (every layer, if a window is given), "upper" (use_sliding_window
        and max_window_layers) or "every:N" (each Nth layer is full); `default_window` is the window of the class.
    Outside the layers:
        `positions` is the number of rows of a learned position table beyond the context, None for no table;
        `default_positions` is the context that the class assumes.
    What a config leaves out:
        `defaults` are keys with the values that the class takes (beside assets/class_defaults.json); `layer_types`
        is the pattern that the class repeats; `first_dense` makes the first layer dense; `wide_inner` makes the
        inner size four times hidden_size. `required` are keys that a config must state, if only as null.
        `unused` are keys that look like sizes but have no effect in this architecture.
        `needs_heads` and `needs_inner` say whether a config must state query heads and the inner size.
    Differences:
        `rename` maps keys of its own ("section.key" for a nested one) to the usual key. `adapt` returns the record as
        one config has it. `count_layers`, `inner_size` (for a hidden_size), `layers` and `outer` replace the usual
        reading.
    """

    names: tuple[str, ...] = ()
    norm: str = "rms"
    norms: int = 2
    sparse_norms: int = 0
    qk_norm: str = ""
    qk_key: tuple[str, bool] | None = None
    gated: bool = True
    qkv_bias: Bias = False
    o_bias: Bias = False
    mlp_bias: Bias = False
    head_bias: Bias = False
    expert_bias: bool = False
    router_bias: bool = False
    gated_attention: bool = False
    separate_gate: bool = False
    sinks: bool = False
    extra_params: int = 0
    extra_head_dims: int = 0
    shared_gate: bool = False
    shared_is_dense: bool = False
    always_experts: bool = False
    sparse_from_first: bool = False
    state_norms: bool = False
    state_biases: tuple[tuple[str, ...], tuple[str, ...]] = (("mamba_proj_bias", "use_bias"),) * 2
    state_norm: Bias = True
    split_delta: bool = False
    window: str = ""
    default_window: int | None = None
    positions: int | None = None
    default_positions: int | None = None
    tied: bool = False
    embedding_norm: bool = False
    final_norm: bool = True
    defaults: Mapping[str, Any] = field(default_factory=dict)
    layer_types: tuple[str, ...] = ()
    first_dense: bool = False
    wide_inner: bool = False
    required: tuple[str, ...] = ()
    needs_heads: bool = True
    needs_inner: bool = True
    unused: tuple[str, ...] = ()
    rename: Mapping[str, str] = field(default_factory=dict)
    adapt: Callable[[Reader, Architecture], Architecture] | None = None
    count_layers: Callable[[Reader], int] | None = None
    inner_size: Callable[[Reader, int], int] | None = None
    layers: Layers | None = None
    outer: Callable[[Reader], Outer] | None = None

    @property
    def known(self) -> bool:
        """Whether a record names the model_type; otherwise `fallback` assumed it."""
        return bool(self.names)

    def norm_params(self, hidden_size: int) -> int:
        """Parameters of one norm over hidden_size."""
        return {"rms": 1, "layer_weight": 1, "layer": 2, "none": 0}[self.norm] * hidden_size


BIASED = Architecture(qkv_bias=ATTENTION_BIAS, o_bias=ATTENTION_BIAS)
"""A Llama whose attention_bias puts a bias on all four projections: the most common base of a record."""
