"""The assignment's transformer as a textbook writes it, with and without a KV cache. Read this file first.

Two pre-norm layers of single-head attention and a ReLU feed-forward, learned positions, in plain `nn.Module`s that
carry the assignment's own names, so that its state dict loads with ``strict=True``. Nothing is fast here and nothing
is general: `engine.model.decoder` is both, and is tested against this file (tests/engine/model/test_plain.py);
``bench/decode_step.py`` measures what the difference is worth.

Shapes: B prompts, T new tokens, S tokens in all (cached and new), D = d_model, V = vocabulary.

The whole idea of the cache is in `Attention.forward`. The keys and values of a token depend only on that token and on
those before it, so they never change: keep them, and a step needs the query, key and value of the new token alone.
Without a cache, every step computes the keys and values of the whole text again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

LayerCache = tuple[Tensor, Tensor]
"""Keys and values of one layer, (B, S, D) each."""


class Attention(nn.Module):
    """Causal attention with one head: softmax(Q K^T / sqrt(D)) V W_o."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.W_q = nn.Linear(d_model, d_model, bias=False)
        self.W_k = nn.Linear(d_model, d_model, bias=False)
        self.W_v = nn.Linear(d_model, d_model, bias=False)
        self.W_o = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> tuple[Tensor, LayerCache]:
        """`x` (B, T, D) -> (B, T, D), and the keys and values of all S tokens."""
        q, k, v = self.W_q(x), self.W_k(x), self.W_v(x)
        if cache is not None:  # append: what was cached, then the new tokens
            k, v = torch.cat((cache[0], k), dim=1), torch.cat((cache[1], v), dim=1)
        scores = q @ k.transpose(1, 2) / math.sqrt(q.size(-1))  # (B, T, S)
        new, total = scores.shape[1:]
        # Token i of the new ones is token S - T + i of the text: it sees no later one.
        later = torch.ones(new, total, dtype=torch.bool).triu(diagonal=total - new + 1)
        weights = scores.masked_fill(later, -math.inf).softmax(dim=-1)
        return self.W_o(weights @ v), (k, v)


class FeedForward(nn.Module):
    """fc2(relu(fc1(x)))."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(d_model, d_ff)
        self.fc2 = nn.Linear(d_ff, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D), each token for itself: nothing to cache."""
        out: Tensor = self.fc2(torch.relu(self.fc1(x)))
        return out


class Layer(nn.Module):
    """x + attention(norm1(x)), then x + feed_forward(norm2(x))."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.attention = Attention(d_model)
        self.feed_forward = FeedForward(d_model, d_ff)
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> tuple[Tensor, LayerCache]:
        """(B, T, D) -> (B, T, D), and this layer's cache."""
        attended, cache = self.attention(self.norm1(x), cache)
        x = x + attended
        return x + self.feed_forward(self.norm2(x)), cache


class PlainTransformer(nn.Module):
    """The reference model. The defaults are those of the assignment's harness."""

    def __init__(
        self, vocab_size: int = 1000, d_model: int = 50, d_ff: int = 100, n_layers: int = 2, max_seq_len: int = 128
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, d_model)
        self.pos_embedding = nn.Embedding(max_seq_len, d_model)
        self.layers = nn.ModuleList(Layer(d_model, d_ff) for _ in range(n_layers))
        self.norm = nn.LayerNorm(d_model)
        self.output_projection = nn.Linear(d_model, vocab_size)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> PlainTransformer:
        """The model that `state` belongs to: its sizes are the shapes of its tensors."""
        vocab_size, d_model = state["token_embedding.weight"].shape
        model = cls(
            vocab_size,
            d_model,
            d_ff=state["layers.0.feed_forward.fc1.weight"].size(0),
            n_layers=sum(name.endswith("attention.W_q.weight") for name in state),
            max_seq_len=state["pos_embedding.weight"].size(0),
        ).to(state["token_embedding.weight"].dtype)
        model.load_state_dict(dict(state))
        return model.eval()

    def forward(self, ids: Tensor, cache: list[LayerCache] | None = None) -> tuple[Tensor, list[LayerCache]]:
        """Token ids (B, T), those after the cached ones -> logits (B, T, V) and the cache of all S tokens."""
        past = 0 if cache is None else cache[0][0].size(1)
        positions = torch.arange(past, past + ids.size(1))
        x = self.token_embedding(ids) + self.pos_embedding(positions)
        new_cache = []
        for i, layer in enumerate(self.layers):
            x, layer_cache = layer(x, None if cache is None else cache[i])
            new_cache.append(layer_cache)
        return self.output_projection(self.norm(x)), new_cache

    @torch.no_grad()
    def generate(self, prompt: list[int], new_tokens: int, *, use_cache: bool = True) -> list[int]:
        """The likeliest `new_tokens` after `prompt`: the same with and without the cache, only sooner with it."""
        ids, cache, fed = list(prompt), None, prompt
        for _ in range(new_tokens):
            logits, new_cache = self(torch.tensor([fed]), cache)
            ids.append(int(logits[0, -1].argmax()))
            fed, cache = (ids[-1:], new_cache) if use_cache else (ids, None)
        return ids[len(prompt) :]
