"""What a model is: a stack of layers, and what is outside of them. A frozen record, checked when made.

Names follow the field's usage (Hugging Face's, without ``num_``): n_layers, n_heads, n_kv_heads, head_dim, hidden_size
(embedding dimension, h1), intermediate_size (inner dimension, h2), vocab_size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from calc.errors import SpecError
from calc.model.checks import check_count, check_heads
from calc.model.parts import Attention, Dense, LayerSpec, Mlp, Norm, counted, grouped, layer_norm_params, shared_objects

if TYPE_CHECKING:
    from calc.model.stored import StoredWeights

MAX_LAYERS = 10_000
TYPED_IN = "typed-in model"
"""The name of a model that is given only by its sizes."""

DIMENSIONS = ("n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_size", "intermediate_size", "vocab_size")
SIZES = (
    "n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_size", "intermediate_size", "mlp", "norm", "qkv_bias",
    "o_bias", "mlp_bias", "qk_norm", "n_sliding_layers", "window",
)  # fmt: skip
"""Fields of the flat view that describe layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A decoder-only language model: a stack of layers and the parts outside them.

    The fields after `edited` are a read-only view of the layers, with the sizes of the most common kind. If all layers
    are equal except for a window (`uniform`), the view is complete, and `edit` can change it. `spread`: it is not known
    which layers keep a window; they are assumed to be evenly spread. `other_params` are outside the layers, embedding
    and head; `embedding_size` is given if it is not hidden_size, `final_norm_params` if the norm is unusual.
    `head_rows` is given if the head does not have one row per token (a classifier's labels; 0 for no head); `embeds` is
    false if the embedding belongs to another model. `encoder_params` are those of image and audio encoders and their
    projectors, which are in no count. `stored` are the weights as in a checkpoint, if they are quantized or a file was
    read; `model_type` is the type in its config, "" if unknown.

    Raises SpecError (with the field's name) if a field has an impossible value.
    """

    name: str
    layers: tuple[LayerSpec, ...] = field(hash=False)
    vocab_size: int
    tied: bool = False
    head_bias: bool = False
    n_learned_positions: int = 0
    max_context: int | None = None
    source: str = "typed in"
    notes: tuple[str, ...] = ()
    other_params: int = 0
    embedding_size: int | None = None
    final_norm_params: int | None = None
    head_rows: int | None = None
    embeds: bool = True
    encoder_params: int = 0
    stored: StoredWeights | None = None
    spread: bool = False
    edited: bool = False
    model_type: str = ""
    groups: Mapping[LayerSpec, int] = field(init=False, compare=False, repr=False)
    uniform: bool = field(init=False, compare=False, repr=False)
    n_layers: int = field(init=False, compare=False, repr=False)
    n_heads: int = field(init=False, compare=False, repr=False)
    n_kv_heads: int = field(init=False, compare=False, repr=False)
    head_dim: int = field(init=False, compare=False, repr=False)
    hidden_size: int = field(init=False, compare=False, repr=False)
    intermediate_size: int = field(init=False, compare=False, repr=False)
    mlp: Mlp = field(init=False, compare=False, repr=False)
    norm: Norm = field(init=False, compare=False, repr=False)
    qkv_bias: bool = field(init=False, compare=False, repr=False)
    o_bias: bool = field(init=False, compare=False, repr=False)
    mlp_bias: bool = field(init=False, compare=False, repr=False)
    qk_norm: bool = field(init=False, compare=False, repr=False)
    n_sliding_layers: int = field(init=False, compare=False, repr=False)
    window: int | None = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_count("vocab_size", self.vocab_size)
        for name in ("n_learned_positions", "other_params", "encoder_params"):
            check_count(name, getattr(self, name), minimum=0)
        for name in ("embedding_size", "final_norm_params", "head_rows"):
            if (value := getattr(self, name)) is not None:
                check_count(name, value, minimum=0)
        _check_layers(self.name, self.layers)
        groups = grouped(self.layers)
        view = flat_view(self.layers, groups)
        values = {**view, "layers": shared_objects(self.layers), "groups": groups}
        values["uniform"] = _says_all(self, view, groups)
        if values["uniform"]:
            values["embedding_size"] = values["final_norm_params"] = None  # the usual ones
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def title(self) -> str:
        """Its name for display."""
        return f"{self.name} (edited)" if self.edited else self.name

    @property
    def provenance(self) -> str:
        """Its source for display."""
        return f"{self.source}, edited" if self.edited else self.source

    @property
    def group_size(self) -> int:
        """Query heads that share a KV head (1 is multi-head attention)."""
        return self.n_heads // self.n_kv_heads

    @property
    def n_full_layers(self) -> int:
        """Layers that keep every token."""
        return self.n_layers - self.n_sliding_layers

    @property
    def embedding_width(self) -> int:
        """Columns of the embedding and of the head."""
        return self.hidden_size if self.embedding_size is None else self.embedding_size

    @property
    def head_size(self) -> int:
        """Rows of the head, tied or not."""
        return self.vocab_size if self.head_rows is None else self.head_rows

    @property
    def final_norm_size(self) -> int:
        """Parameters of the norm before the head."""
        return _final_norm(self.layers[0]) if self.final_norm_params is None else self.final_norm_params


def _final_norm(layer: LayerSpec) -> int:
    return layer.hidden_size * (1 if layer.norm is Norm.RMS else 2)


def _check_layers(name: str, layers: tuple[LayerSpec, ...]) -> None:
    if not layers or not all(isinstance(layer, LayerSpec) for layer in layers):
        raise SpecError("layers", "layers must be a tuple of LayerSpec, at least one")
    if any(layer.hidden_size != layers[0].hidden_size for layer in layers):
        raise SpecError("layers", "all layers must have the same hidden_size")
    if not any(mixer.cache_elements or mixer.state_elements for layer in layers for mixer in layer.mixers):
        raise SpecError("layers", f"no layer of {name} keeps a cache or a state")


# The flat view


def flat_view(layers: tuple[LayerSpec, ...], groups: Mapping[LayerSpec, int]) -> dict[str, Any]:
    """SIZES of the most common kind: attention before other mixers, dense feed-forwards before experts.

    Biases and norms of Q and K are set only if the first layer's parts are the only ones.
    """
    first, hidden_size = layers[0], layers[0].hidden_size
    mixers: dict[Any, int] = counted(groups, lambda layer: layer.mixers)
    feeds: dict[Any, int] = counted(groups, lambda layer: layer.feed_forwards)
    ranks = {"attention": 2, "latent": 1}
    mixer = max(mixers, key=lambda part: (ranks.get(part.kind, 0), mixers[part]), default=None)
    feed = max(feeds, key=lambda part: (part.kind == "dense", feeds[part]), default=None)
    n_heads, n_kv_heads, head_dim = (1, 1, hidden_size) if mixer is None else mixer.heads(hidden_size)
    windows = _windows(mixers)
    view = {
        "n_layers": len(layers),
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "head_dim": head_dim,
        "hidden_size": hidden_size,
        "intermediate_size": hidden_size if feed is None else feed.inner,
        "mlp": Mlp.GATED if feed is None else feed.mlp,
        "norm": first.norm,
        "qkv_bias": False,
        "o_bias": False,
        "mlp_bias": False,
        "qk_norm": False,
        "n_sliding_layers": min(sum(windows.values()), len(layers)),
        "window": max(windows, key=lambda window: windows[window], default=None),
    }
    parts = (*first.mixers, *first.feed_forwards)
    if len(parts) == 2 and isinstance(parts[0], Attention) and isinstance(parts[1], Dense):
        biased = view | {
            "qkv_bias": parts[0].qkv_bias,
            "o_bias": parts[0].o_bias,
            "mlp_bias": parts[1].bias,
            "qk_norm": first.norm_params == _norms(view, qk_norm=True),
        }
        if all(_is_plain(layer, biased) for layer in groups):
            return biased
    return view


def _windows(mixers: Mapping[Any, int]) -> dict[int, int]:
    """Layers by the window that they keep."""
    windows: dict[int, int] = {}
    for part, n in mixers.items():
        if part.window is not None and part.cache_elements:
            windows[part.window] = windows.get(part.window, 0) + n
    return windows


def _norms(view: Mapping[str, Any], *, qk_norm: bool) -> int:
    sizes = {name: view[name] for name in ("hidden_size", "head_dim", "norm")}
    return int(layer_norm_params(**sizes, qk_norm=qk_norm))


def _is_plain(layer: LayerSpec, view: Mapping[str, Any]) -> bool:
    """Whether the flat view describes `layer` exactly, whatever its window."""
    window = layer.mixers[0].window if layer.mixers else None
    return layer == _plain_layer(view, window)


def _says_all(model: ModelSpec, view: Mapping[str, Any], groups: Mapping[LayerSpec, int]) -> bool:
    """Whether the flat view is complete: layers equal except for one window, nothing unusual outside them."""
    first = model.layers[0]
    return (
        all(_is_plain(layer, view) and layer.mixers[0].window in (None, view["window"]) for layer in groups)
        and not model.other_params
        and model.embedding_size in (None, first.hidden_size)
        and model.final_norm_params in (None, _final_norm(first))
    )


def _plain_layer(sizes: Mapping[str, Any], window: int | None) -> LayerSpec:
    mixer = Attention(
        n_heads=sizes["n_heads"],
        n_kv_heads=sizes["n_kv_heads"],
        head_dim=sizes["head_dim"],
        value_dim=sizes["head_dim"],
        window=window,
        qkv_bias=sizes["qkv_bias"],
        o_bias=sizes["o_bias"],
    )
    feed = Dense(intermediate_size=sizes["intermediate_size"], mlp=sizes["mlp"], bias=sizes["mlp_bias"])
    return LayerSpec(
        hidden_size=sizes["hidden_size"],
        mixers=(mixer,),
        feed_forwards=(feed,),
        norm_params=_norms(sizes, qk_norm=sizes["qk_norm"]),
        norm=sizes["norm"],
    )


# Making


def uniform(
    *,
    name: str,
    n_layers: int,
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    hidden_size: int,
    intermediate_size: int,
    vocab_size: int,
    mlp: Mlp = Mlp.GATED,
    norm: Norm = Norm.RMS,
    qkv_bias: bool = False,
    o_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
    n_sliding_layers: int = 0,
    window: int | None = None,
    **outer: Any,
) -> ModelSpec:
    """A model with equal layers; `n_sliding_layers` of them keep only the last `window` tokens.

    These are assumed to be evenly spread, starting with the first, as in Gemma, Mistral and gpt-oss. `outer`: the
    fields of ModelSpec outside the layers. Raises SpecError.
    """
    sizes: dict[str, Any] = {
        "n_layers": n_layers, "n_heads": n_heads, "n_kv_heads": n_kv_heads, "head_dim": head_dim,
        "hidden_size": hidden_size, "intermediate_size": intermediate_size, "mlp": mlp, "norm": norm,
        "qkv_bias": qkv_bias, "o_bias": o_bias, "mlp_bias": mlp_bias, "qk_norm": qk_norm,
    }  # fmt: skip
    for dimension in DIMENSIONS:
        check_count(dimension, sizes.get(dimension, vocab_size))
    check_count("n_sliding_layers", n_sliding_layers, minimum=0)
    if window is not None:
        check_count("window", window)
    check_heads(n_heads, n_kv_heads)
    if n_layers > MAX_LAYERS:
        raise SpecError("n_layers", f"n_layers must be at most {MAX_LAYERS:,}, not {n_layers:,}")
    if n_sliding_layers > n_layers:
        raise SpecError("n_sliding_layers", f"n_sliding_layers {n_sliding_layers} exceeds n_layers {n_layers}")
    if n_sliding_layers and window is None:
        raise SpecError("window", "window must be given when there are sliding layers")
    full = _plain_layer(sizes, None)
    near = _plain_layer(sizes, window) if n_sliding_layers else full
    ends = (-(-n_sliding_layers * i // n_layers) for i in range(n_layers + 1))
    layers = tuple(near if after > before else full for before, after in pairwise(ends))
    spread = 0 < n_sliding_layers < n_layers
    return ModelSpec(name=name, layers=layers, vocab_size=vocab_size, spread=spread, **outer)


def model_of(**fields: Any) -> ModelSpec:
    """A model from a document's fields: by its layers, which flat sizes may repeat, or only by flat sizes.

    Raises SpecError, naming the field, if a flat size contradicts the layers.
    """
    if "layers" not in fields:
        return uniform(**fields)
    said = {name: fields.pop(name) for name in SIZES if name in fields}
    model = ModelSpec(**fields)
    for name, value in said.items():
        if getattr(model, name) != value and not (model.uniform and isinstance(value, bool)):
            raise SpecError(name, edit_refusal(model, name))
    return model


def edit_refusal(model: ModelSpec, name: str) -> str:
    """Why the size `name` of `model` cannot be changed alone."""
    return (
        f"{name} cannot be edited in {model.name}, because its {model.n_layers} layers are not all alike (edit its "
        "config.json, or start from a plain model such as llama-3-8b)"
    )


def field_names(record: type) -> tuple[str, ...]:
    """Names of a record's fields, in order."""
    return tuple(f.name for f in fields(record))
