"""What is run to time a model's own operators: shallow copies of it with some layers, caches, and calls.

The cache holds the same number everywhere and tokens are all alike: only times count.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from engine.compiled.attach import attach
from engine.machine import available_bytes, last_cache_bytes
from engine.measure.own import Needs
from engine.measure.products import first_rows
from engine.model.cache import Cache
from engine.model.cache_choice import cache_bytes
from engine.model.cache_kinds import KVCache, LatentCache
from engine.model.config import ModelConfig
from engine.model.decoder import Decoder
from engine.model.devices import synchronize
from engine.model.layers import Linear
from engine.model.shapes import n_parameters
from engine.weights.formats import GroupedLinear, linear_layers, read_bytes

BATCHES = (1, 16, 4, 2, 32)
"""Rows of the steps that are timed, the most wanted first."""
SHORT = 32
"""Tokens of the shorter of two contexts."""
MOST_TOKENS = 8192
"""Of all rows of a step together; their cache takes `CACHE_SHARE` of the free memory at most."""
CACHE_SHARE = 0.1
PROMPTS = (128, 32, 512)
MOST_PROMPT = 2048
LATER = 512
"""Tokens before a later chunk of a prompt."""
LINEAR_ROWS = (1, 16)
LEAST_BYTES = 256 * 2**20
CACHE_TIMES = 8
"""The layers that are timed take LEAST_BYTES, or so many times the last cache: no cache holds them."""
STEP_S = 0.06
"""A step whose layers are slow, because they widen their weights, is timed on as many as take about so long."""
PROMPT_S = 0.1
"""A pass over a prompt is timed on as many layers as take about so long."""
HEAD_ROWS = 32
"""Of the head that stands in for the model's own where layers are timed alone."""


class Timed(NamedTuple):
    """What is timed.

    `kind`: "whole" steps, "layers" (of a step, alone), "headed" (the same layers with the head), "fixed" (what is no
    layer), "text" (whole steps over tokens of one text), "prompt" (its layers), "prompt-fixed", "linears". `rows`: of a
    step, or tokens of a prompt or text.
    """

    kind: str
    rows: int
    past: int
    n_layers: int


Runs = dict[Timed, Callable[[], object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The runs of one model. `flops_per_s`: about what products of many rows reach; `layer_s`: what a layer of a step
    takes, 0 where that is not known."""

    decoder: Decoder
    needs: Needs
    chunk: int | None
    flops_per_s: float
    layer_s: float = 0.0

    @property
    def n_timed(self) -> int:
        """Layers of a step that stand for all: enough that no cache holds them; all of a model whose layers differ."""
        config = self.decoder.config
        if _differ(config):
            return config.n_layers
        least = max(LEAST_BYTES, CACHE_TIMES * (last_cache_bytes() or 0))
        enough = -(-least * config.n_layers // read_bytes(self.decoder))
        if self.layer_s:
            enough = min(enough, round(STEP_S / self.layer_s))
        return min(config.n_layers, max(2, enough))

    def groups(self) -> Iterator[Runs]:
        """Runs that belong together, the most wanted first."""
        batches = [batch for batch in BATCHES if batch <= self._most_rows()]
        prompts = self._prompts()
        yield self._steps(batches[0])
        if self.needs.text > 1:
            yield self._texts()
        yield from prompts[:1]
        for batch in batches[1:2]:
            yield self._steps(batch)
        yield from prompts[1:]
        for batch in batches[2:]:
            yield self._steps(batch)
        if self.decoder.decode_step is None and self.decoder.config.experts is None:
            yield self._linears()

    def _most_rows(self) -> int:
        """The least of `BATCHES` that is at least as large as what is asked for."""
        step = self.decoder.decode_step
        most = self.needs.rows if step is None else min(self.needs.rows, step.max_rows)
        return min((batch for batch in BATCHES if batch >= most), default=max(BATCHES))

    def _steps(self, batch: int) -> Runs:
        """A step of so many rows over a short and over a long context."""
        n_timed, longest = self.n_timed, self._context(batch)
        contexts = sorted({min(SHORT, longest), longest})
        if n_timed == self.decoder.config.n_layers:
            cache = filled_cache(self.decoder, longest + 1, batch)
            return {Timed("whole", batch, n, n_timed): step_run(self.decoder, cache, n) for n in contexts}
        if self.decoder.decode_step is None:
            layers = shallow(self.decoder, n_timed)
            cache = filled_cache(layers, longest + 1, batch)
            runs = {Timed("layers", batch, n, n_timed): _layers_run(layers, cache, 1, n) for n in contexts}
            return {**runs, Timed("fixed", batch, 0, 0): _fixed_run(self.decoder, batch, 1)}
        headed = _compiled(shallow(self.decoder, n_timed))
        cache = filled_cache(headed, longest + 1, batch)
        bare = _compiled(without_head(shallow(self.decoder, n_timed)))
        runs = {Timed("layers", batch, n, n_timed): step_run(bare, cache, n) for n in contexts}
        return {**runs, Timed("headed", batch, contexts[0], n_timed): step_run(headed, cache, contexts[0])}

    def _texts(self) -> Runs:
        """Steps over two tokens of one text, and over as many as are asked for."""
        context = self._context(1)
        cache = filled_cache(self.decoder, context + self.needs.text, 1)
        most = min(self.needs.text, self.decoder.config.max_positions - context)
        sizes = sorted({min(2, most), most} - {1})
        return {
            Timed("text", n, context, self.decoder.config.n_layers): text_run(self.decoder, cache, n, context)
            for n in sizes
        }

    def _context(self, batch: int) -> int:
        """Tokens of the longer context: what is asked for, within the model's positions and the memory to spare."""
        config, free = self.decoder.config, available_bytes()
        each = cache_bytes(config, 1, dtype=self.decoder.dtype) * self.n_timed // config.n_layers
        room = MOST_TOKENS if free is None else min(MOST_TOKENS, int(free * CACHE_SHARE) // max(1, each))
        return max(1, min(self.needs.context, config.max_positions - 1, room // batch))

    def _prompts(self) -> list[Runs]:
        """Passes over prompts of several lengths, whole, and as later chunks of a long one."""
        longest = min(self.needs.prompt, self.decoder.config.max_positions, MOST_PROMPT)
        if longest < 1:
            return []
        chunk = min(self.chunk or longest, longest)
        lengths = [n for n in PROMPTS if n < chunk] + [chunk]
        pasts = sorted({min(LATER, longest - chunk), longest - chunk} - {0})
        return [self._prompt(n, 0) for n in lengths] + [self._prompt(chunk, past) for past in pasts]

    def _prompt(self, tokens: int, past: int) -> Runs:
        n_timed = self._prompt_layers(tokens)
        layers = shallow(self.decoder, n_timed)
        cache = filled_cache(layers, past + tokens, 1)
        return {
            Timed("prompt", tokens, past, n_timed): _layers_run(layers, cache, tokens, past),
            Timed("prompt-fixed", tokens, 0, 0): _fixed_run(self.decoder, 1, tokens),
        }

    def _prompt_layers(self, tokens: int) -> int:
        """Layers whose pass over `tokens` takes some PROMPT_S; all of a model whose layers differ."""
        config = self.decoder.config
        if _differ(config):
            return config.n_layers
        layer_s = 2 * tokens * n_parameters(config) / config.n_layers / self.flops_per_s
        return min(config.n_layers, max(1, round(PROMPT_S / layer_s)))

    def _linears(self) -> Runs:
        """All linear layers of the timed layers, once through."""
        _, *layers = linear_layers(shallow(self.decoder, self.n_timed))  # the head is first
        if not all(isinstance(layer, Linear | GroupedLinear) for layer in layers):
            return {}  # reordered for another kernel: their sizes are not to be seen
        runs = {Timed("linears", n, 0, self.n_timed): _linears_run(layers, n, self.decoder) for n in LINEAR_ROWS}
        return {**runs, Timed("fixed", 1, 0, 0): _fixed_run(self.decoder, 1, 1)}


def layer_run(decoder: Decoder) -> Callable[[], object]:
    """A step through the first layer alone, run as a layer."""
    first = shallow(decoder, 1)
    return _layers_run(first, filled_cache(first, SHORT + 1, 1), 1, SHORT)


def shallow(decoder: Decoder, n_layers: int) -> Decoder:
    """The decoder with its first layers alone, run one by one. The weights are shared."""
    other = copy.copy(decoder)
    other.config = _first_layers(decoder.config, n_layers)
    other.blocks = decoder.blocks[:n_layers]
    other.decode_step = None
    return other


def without_head(decoder: Decoder) -> Decoder:
    """The decoder with a head of HEAD_ROWS words, which takes no time; one in another format stays as it is."""
    if isinstance(decoder.head, Linear | GroupedLinear) and decoder.config.vocab_size > HEAD_ROWS:
        decoder.head = first_rows(decoder.head, HEAD_ROWS)
        decoder.config = replace(decoder.config, vocab_size=HEAD_ROWS)
    return decoder


def _differ(config: ModelConfig) -> bool:
    """Whether the first layers do not stand for all."""
    return len(set(config.layers())) > 1


def _first_layers(config: ModelConfig, n_layers: int) -> ModelConfig:
    return replace(
        config,
        n_layers=n_layers,
        sliding_layers=config.sliding_layers[:n_layers],
        rope_layers=config.rope_layers[:n_layers],
        expert_layers=config.expert_layers[:n_layers],
    )


def _compiled(decoder: Decoder) -> Decoder:
    """The decoder with a compiled step of its own; the library is there, as the whole model has a step."""
    attach(decoder)
    return decoder


def filled_cache(decoder: Decoder, capacity: int, batch: int) -> Cache:
    """A cache without numbers that processors are slow at."""
    cache = decoder.new_cache(capacity, batch)
    assert isinstance(cache, KVCache | LatentCache)
    cache.storage.fill_(0.01)
    return cache


def _layers_run(decoder: Decoder, cache: Cache, n_new: int, past: int) -> Callable[[], object]:
    """All layers of a decoder, on rows that are all alike."""
    batch = cache.batch_size
    x = torch.full((batch * n_new, decoder.config.hidden_size), 0.1, dtype=decoder.dtype, device=decoder.device)
    x += torch.arange(len(x), dtype=x.dtype, device=x.device)[:, None] / len(x)
    cache.reset()
    cache.advance(past)
    context = decoder.context(batch, n_new, cache)

    def run() -> None:
        _hold(cache, past)
        y = x
        for block in decoder.blocks:
            y = block.forward(y, context, cache)
        synchronize(decoder.device)

    return run


def _fixed_run(decoder: Decoder, batch: int, n_new: int) -> Callable[[], object]:
    """What is no layer: looking up, what layers share, the last norm, the head of the last token and its choice."""
    empty = shallow(decoder, 1)
    empty.blocks = []
    ids = torch.zeros(batch, n_new, dtype=torch.int64, device=decoder.device)
    return lambda: empty.forward(ids, last_only=True).argmax(-1).tolist()


def step_run(decoder: Decoder, cache: Cache, past: int) -> Callable[[], object]:
    """A whole step of one token per row."""
    ids = torch.zeros(cache.batch_size, 1, dtype=torch.int64, device=decoder.device)

    def run() -> None:
        _hold(cache, past)
        decoder.forward(ids, cache, last_only=True).argmax(-1).tolist()

    return run


def text_run(decoder: Decoder, cache: Cache, tokens: int, past: int) -> Callable[[], object]:
    """A whole step over some tokens of one text, none of which stays."""
    ids = torch.zeros(1, tokens, dtype=torch.int64, device=decoder.device)

    def run() -> None:
        _hold(cache, past)
        decoder.forward_rows(ids, cache).argmax(-1).tolist()

    return run


def _hold(cache: Cache, n_tokens: int) -> None:
    """Let a cache believe that it holds so many tokens."""
    cache.reset()
    cache.advance(n_tokens)


def _linears_run(layers: Sequence[object], rows: int, decoder: Decoder) -> Callable[[], object]:
    inputs = [
        torch.full((rows, layer.cols if isinstance(layer, GroupedLinear) else layer.weight.size(1)), 0.1)
        .to(decoder.dtype)
        .to(decoder.device)
        for layer in layers
        if isinstance(layer, Linear | GroupedLinear)
    ]
    timed = [layer for layer in layers if isinstance(layer, Linear | GroupedLinear)]

    def run() -> None:
        for layer, x in zip(timed, inputs, strict=True):
            layer(x)
        synchronize(decoder.device)

    return run
