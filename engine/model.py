"""The decoder: token ids in, logits out; config and weights are read-only, the cache is passed in.

B rows, T new tokens, N = B x T, D hidden size, V vocabulary.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from engine.cache import KVCache
from engine.config import ModelConfig, n_parameters, parameter_shapes
from engine.errors import PromptError
from engine.layers import Block, Linear, Norm, Rotary, Step, attention_mask


class Decoder:
    """A decoder-only transformer; its config says whether it is the assignment's model or a Llama.

    ``weights``: every name of `parameter_shapes`, in one dtype on one device. Projections that read the
    same input (q, k, v; gate, up) are laid side by side, so that each pair or triple is one product.
    """

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor]) -> None:
        embedding = weights["model.embed_tokens.weight"]
        self.config = config
        self.dtype = embedding.dtype
        self.device = embedding.device
        self.n_parameters = n_parameters(config)
        self.embedding = embedding
        self.position_embedding = weights.get("model.embed_positions.weight")
        self.rotary = Rotary(config, dtype=self.dtype, device=self.device) if config.positions == "rope" else None
        self.blocks = [Block(config, weights, layer) for layer in range(config.n_layers)]
        self.norm = Norm.of(weights, "model.norm", config.norm_eps)
        head = embedding if config.tied else weights["lm_head.weight"]
        self.head = Linear(head, weights.get("lm_head.bias"))

    @property
    def weight_bytes(self) -> int:
        """Bytes of all parameters in this dtype."""
        return self.n_parameters * self.dtype.itemsize

    def new_cache(self, capacity: int, batch_size: int = 1) -> KVCache:
        """An empty cache for ``capacity`` tokens a row, in the model's dtype, on its device."""
        return KVCache(self.config, capacity, batch_size=batch_size, dtype=self.dtype, device=self.device)

    def forward(self, ids: Tensor, cache: KVCache | None = None, *, last_only: bool = False) -> Tensor:
        """ids (B, T) int64 -> logits (B, T, V), or (B, 1, V) of the last position with ``last_only``.

        With a cache the T tokens follow those it holds, and it then holds them too. Raises PromptError
        past the last position, CacheError when the cache is full. Ids are checked by `check_ids`, not here.
        """
        with torch.inference_mode():
            batch_size, n_new = ids.shape
            past = 0 if cache is None else cache.length
            if cache is not None:
                cache.require(batch_size, n_new)
            step = self._step(batch_size, n_new, past)
            x = self._embed(ids, past)
            for block in self.blocks:
                x = block.forward(x, step, cache)
            if cache is not None:
                cache.advance(n_new)
            if last_only and n_new > 1:
                x = x.view(batch_size, n_new, -1)[:, -1]
            return self.head(self.norm(x)).view(batch_size, -1, self.config.vocab_size)

    def _embed(self, ids: Tensor, past: int) -> Tensor:
        """Token embeddings, plus learned positions where the model has them: (N, D), a fresh tensor."""
        x = torch.embedding(self.embedding, ids)
        if self.position_embedding is not None:
            x.add_(self.position_embedding[past : past + ids.size(1)])
        return x.view(-1, self.config.hidden_size)

    def _step(self, batch_size: int, n_new: int, past: int) -> Step:
        self._check_positions(past + n_new)
        cos, sin = self.rotary.rows(past, past + n_new) if self.rotary is not None else (None, None)
        if n_new == 1:
            return Step(batch_size, n_new, None, False, cos, sin)
        window = self.config.sliding_window
        slides = window is not None and past + n_new > window
        if past == 0 and not slides:
            return Step(batch_size, n_new, None, True, cos, sin)
        mask = attention_mask(n_new, past, window, self.device)
        return Step(batch_size, n_new, mask, False, cos, sin)

    def _check_positions(self, n_tokens: int) -> None:
        if n_tokens > self.config.max_positions:
            raise PromptError(f"{n_tokens:,} tokens do not fit the model's {self.config.max_positions:,} positions")

    def with_positions(self, max_positions: int, *, seed: int = 0) -> "Decoder":
        """The same weights with room for ``max_positions`` (self when there is room already).

        New rows of a learned table are random, spread like the known ones: good for timing, not for text.
        """
        if max_positions <= self.config.max_positions:
            return self
        other = object.__new__(Decoder)
        other.__dict__.update(self.__dict__)
        other.config = replace(self.config, max_positions=max_positions)
        if self.position_embedding is not None:
            table = _extend(self.position_embedding, max_positions, seed)
            other.position_embedding = table
        other.n_parameters = n_parameters(other.config)
        return other


def _extend(table: Tensor, n_rows: int, seed: int) -> Tensor:
    rows = torch.empty(n_rows - table.size(0), table.size(1), dtype=torch.float64)
    rows.normal_(generator=torch.Generator().manual_seed(seed))
    spread = table.double().std().item()
    return torch.cat((table, (rows * spread).to(table)))


def check_ids(ids: Tensor, config: ModelConfig) -> None:
    """Raise PromptError unless ids (B, T) are at least one token, all inside the vocabulary."""
    if ids.numel() == 0:
        raise PromptError("the prompt is empty; the model needs at least one token")
    low, high = ids.aminmax()
    for value in (int(low), int(high)):
        if not 0 <= value < config.vocab_size:
            raise PromptError(f"token id {value} is outside the vocabulary; ids run from 0 to {config.vocab_size - 1}")


def empty_weights(
    config: ModelConfig, *, dtype: torch.dtype = torch.float32, device: str = "meta"
) -> dict[str, Tensor]:
    """Weights without values; on the meta device (the default) they take no memory at all."""
    return {name: torch.empty(shape, dtype=dtype, device=device) for name, shape in parameter_shapes(config).items()}


def random_weights(config: ModelConfig, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    """Random weights of a sensible size (linear layers 1/sqrt(inputs), norms near 1), for tests."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in parameter_shapes(config).items():
        values = torch.empty(shape, dtype=torch.float64).normal_(generator=generator)
        if len(shape) == 2:
            values /= math.sqrt(shape[1]) if "embed" not in name else 1
        else:
            values = 0.1 * values + (1 if "norm" in name and name.endswith("weight") else 0)
        weights[name] = values.to(dtype)
    return weights
