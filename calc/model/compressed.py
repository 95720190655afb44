"""Compressed attention (DeepSeek-V4): a window of uncompressed tokens, and one row per group of earlier tokens.

Source: DeepSeek-V4 2026, sections 2.2 and 2.3; sizes as in its reference model (``inference/model.py``: Attention,
Compressor, Indexer) and in transformers 5.23 (``modeling_deepseek_v4.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from calc.errors import SpecError
from calc.explain.terms import Term, derive
from calc.model.parts import PARAMS, check_sizes, heads_problem
from calc.model.tensors import NORM, OTHER, WHOLE, Attended, Tensor


def window_attention_params(
    *,
    hidden_size: Any,
    n_heads: Any,
    head_dim: Any,
    q_lora_rank: Any,
    o_groups: Any,
    o_lora_rank: Any,
) -> Any:
    """Queries through a latent, one row that is both key and value, an output through a latent per group; norms, sinks.

    >>> window_attention_params(hidden_size=4096, n_heads=64, head_dim=512, q_lora_rank=1024, o_groups=8,
    ...                         o_lora_rank=1024)
    106956352
    """
    queries = q_lora_rank * (hidden_size + n_heads * head_dim + 1)
    row = head_dim * (hidden_size + 1)
    output = o_lora_rank * (n_heads * head_dim + o_groups * hidden_size)
    return queries + row + output + n_heads


def compressor_params(*, hidden_size: Any, ratio: Any, width: Any, head_dim: Any) -> Any:
    """Values and weights of `width` per token, a bias per position in a group, the norm of a row."""
    return width * (2 * hidden_size + ratio) + head_dim


def indexed_compressor_params(
    *, hidden_size: Any, ratio: Any, width: Any, head_dim: Any, q_lora_rank: Any, index_heads: Any, index_dim: Any
) -> Any:
    """As `compressor_params` for rows and keys together, plus the queries and weights of the indexer's heads."""
    both = width * (2 * hidden_size + ratio) + head_dim + index_dim
    return both + index_heads * (q_lora_rank * index_dim + hidden_size)


class _OneRow:
    """A cache of rows that all heads share and every rank holds."""

    __slots__ = ()
    prefix: ClassVar[str] = "self_attn."

    @property
    def cache_elements(self) -> int:
        """Elements per token."""
        raise NotImplementedError

    def rank_cache_elements(self, tp: int) -> int:
        """All elements: one row serves all heads."""
        return self.cache_elements


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowRow(_OneRow):
    """Attention over a window of `window` tokens (and the rows of a `Compressor`); a row is both key and value."""

    kind: ClassVar[str] = "window_row"
    state_elements: ClassVar[int] = 0
    state_flops: ClassVar[int] = 0
    index_elements: ClassVar[int] = 0
    n_heads: int
    head_dim: int
    rope_dim: int
    q_lora_rank: int
    o_groups: int
    o_lora_rank: int
    window: int

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.n_heads % self.o_groups:
            raise SpecError("o_groups", f"{self.n_heads:,} heads are not divisible by {self.o_groups:,} groups")

    @property
    def label(self) -> str:
        """What it is, in words."""
        return f"attention over shared key/value rows, window {self.window:,}"

    @property
    def cache_elements(self) -> int:
        """Elements per token."""
        return self.head_dim

    @property
    def rope_width(self) -> int:
        """Columns of its rotary position table."""
        return self.rope_dim

    def heads(self, hidden_size: int) -> tuple[int, int, int]:
        """Query heads, KV heads and head dimension, for the flat view of a model."""
        return self.n_heads, 1, self.head_dim

    def attended(self, *, absorbed: bool = True) -> Attended:
        """How a token attends: a row is read once, as both key and value of all heads."""
        size = self.head_dim
        return Attended(self.label, self.n_heads, size, size, kv_heads=1, token_elements=size, window=self.window)

    def rank_state_elements(self, tp: int) -> int:
        """None: its memory is the cache."""
        return 0

    def problem(self, tp: int) -> str | None:
        """Why `tp` ranks cannot share it in whole heads and groups; None if they can."""
        if (text := heads_problem(self.n_heads, tp)) is not None:
            return text
        if self.o_groups % tp:
            return f"the {self.o_groups:,} groups of the output projection are not divisible by {tp:,}"
        return None

    def tensors(self, hidden_size: int) -> Iterator[Tensor]:
        """Its tensors: projections into a latent or a row are on every rank; the rest is divided by heads and
        groups."""
        inner, out = self.n_heads * self.head_dim, self.o_groups * self.o_lora_rank
        yield Tensor("q_a_proj", self.q_lora_rank, hidden_size, WHOLE)
        yield Tensor("q_a_norm", self.q_lora_rank, share=WHOLE, role=NORM)
        yield Tensor("q_b_proj", inner, self.q_lora_rank)
        yield Tensor("kv_proj", self.head_dim, hidden_size, WHOLE)
        yield Tensor("kv_norm", self.head_dim, share=WHOLE, role=NORM)
        yield Tensor("o_a_proj", out, inner // self.o_groups)
        yield Tensor("o_b_proj", hidden_size, out, summed=True)
        yield Tensor("sinks", self.n_heads, role=OTHER)

    def term(self, hidden_size: int) -> Term:
        """Its parameters."""
        sizes: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        del sizes["window"], sizes["rope_dim"]
        name = "Attention over a window (per layer)"
        return derive(name, window_attention_params, unit=PARAMS, hidden_size=hidden_size, **sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressor(_OneRow):
    """One row of head_dim per `ratio` tokens, made from them (with `overlap`, also from the previous group).

    `index_heads` > 0: an indexer selects `index_topk` rows by keys of index_dim, which are made in the same way and
    kept in addition to the cache. `read_heads` of the layer's window read the rows. Tokens that are not yet in a row
    are kept per sequence, in fp32: values and weights of up to two groups.
    """

    kind: ClassVar[str] = "compressor"
    window: ClassVar[None] = None
    rope_width: ClassVar[int] = 0
    fp32_state: ClassVar[bool] = True
    state_flops: ClassVar[int] = 0
    head_dim: int
    ratio: int
    overlap: bool
    q_lora_rank: int
    index_heads: int = 0
    index_dim: int = 0
    index_topk: int = 0
    read_heads: int = 0

    def __post_init__(self) -> None:
        check_sizes(self)
        for name in ("head_dim", "index_dim"):
            if (size := getattr(self, name)) % self.ratio:
                raise SpecError(name, f"{name} {size:,} is not divisible by the {self.ratio:,} tokens per row")

    @property
    def label(self) -> str:
        """What it is, in words."""
        chosen = ", some of which an indexer selects" if self.index_heads else ""
        return f"one row per {self.ratio:,} tokens{chosen}"

    @property
    def groups(self) -> int:
        """Groups of tokens that a row is made from."""
        return 2 if self.overlap else 1

    @property
    def cache_elements(self) -> int:
        """Elements per token: its share of a row."""
        return self.head_dim // self.ratio

    @property
    def index_elements(self) -> int:
        """Elements per token that the indexer keeps: its share of a key."""
        return self.index_dim // self.ratio if self.index_heads else 0

    @property
    def state_elements(self) -> int:
        """Elements per sequence: a value and a weight per token of the groups, for the row and for the key."""
        width = self.head_dim + (self.index_dim if self.index_heads else 0)
        return self.groups * self.ratio * 2 * self.groups * width

    def heads(self, hidden_size: int) -> tuple[int, int, int]:
        """One row that all heads share, for the flat view of a model."""
        return 1, 1, self.head_dim

    def attended(self, *, absorbed: bool = True) -> Attended:
        """How a token attends: the heads of the layer's window also read its rows."""
        return Attended(
            self.label,
            self.read_heads,
            self.head_dim,
            self.head_dim,
            kv_heads=1,
            token_elements=self.head_dim,
            chosen=self.index_topk or None,
            index_heads=self.index_heads,
            index_dim=self.index_dim,
            ratio=self.ratio,
        )

    def rank_state_elements(self, tp: int) -> int:
        """All of it, on every rank."""
        return self.state_elements

    def problem(self, tp: int) -> None:
        """None: every rank has all of it."""
        return

    def tensors(self, hidden_size: int) -> Iterator[Tensor]:
        """Its tensors, all on every rank; every quantization leaves values and weights in 16 bits."""
        yield from self._compressor("compressor.", hidden_size, self.head_dim)
        if self.index_heads:
            yield from self._compressor("indexer.compressor.", hidden_size, self.index_dim)
            yield Tensor("indexer.q_b_proj", self.index_heads * self.index_dim, self.q_lora_rank, WHOLE)
            yield Tensor("indexer.weights_proj", self.index_heads, hidden_size, WHOLE, OTHER)

    def _compressor(self, prefix: str, hidden_size: int, size: int) -> Iterator[Tensor]:
        for name in ("kv_proj", "gate_proj"):
            yield Tensor(f"{prefix}{name}", self.groups * size, hidden_size, WHOLE, OTHER)
        yield Tensor(f"{prefix}position_bias", self.ratio, self.groups * size, WHOLE, OTHER)
        yield Tensor(f"{prefix}kv_norm", size, share=WHOLE, role=NORM)

    def term(self, hidden_size: int) -> Term:
        """Its parameters, including the indexer's."""
        name = f"Rows of {self.ratio:,} tokens (per layer)"
        sizes: dict[str, Any] = {"hidden_size": hidden_size, "ratio": self.ratio}
        width, each = self.groups * self.head_dim, self.head_dim
        if not self.index_heads:
            return derive(name, compressor_params, unit=PARAMS, width=width, head_dim=each, **sizes)
        queries: dict[str, Any] = {n: getattr(self, n) for n in ("q_lora_rank", "index_heads", "index_dim")}
        both: dict[str, Any] = {"width": width + self.groups * self.index_dim, "head_dim": each}
        return derive(name, indexed_compressor_params, unit=PARAMS, **both, **queries, **sizes)
