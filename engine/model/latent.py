"""Multi-head latent attention (DeepSeek-V2): heads attend to one small vector per token instead of to K and V.

Each token stores c (rank values, normalized) and a rotated key of rope_dim values, shared by all heads.
A head's key would be [W_k c, rotated] and its value W_v c. Both matrices are absorbed into the other side: the query
is multiplied by W_k once and the weighted sum of c by W_v once, so that keys and values are never computed
("absorbed", arXiv 2405.04434 section 2.1.2). This is exact, and the cache keeps rank + rope_dim values per token.

Shapes: B rows, T new tokens, S tokens in sight, H heads, r rank, n = nope_dim, e = rope_dim, v = value_dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.model.cache import Cache
from engine.model.config import LatentConfig, ModelConfig
from engine.model.layers import ForwardContext, Linear, LinearLike, LinearMaker, Norm, Weights
from engine.model.rotary import rotate_


class LatentAttention:
    """Takes the place of `Attention`; appends (B, T, r + e) to the cache."""

    def __init__(
        self,
        config: ModelConfig,
        latent: LatentConfig,
        weights: Weights,
        layer: int,
        *,
        kind: int = 0,
        linear: LinearMaker = Linear.of,
    ) -> None:
        name = f"model.layers.{layer}.self_attn"
        self.layer = layer
        self.kind = kind
        self.n_heads = config.n_heads
        self.latent = latent
        self.scale = config.attention_scale
        self.compress_query: LinearLike | None = None
        self.query_norm: Norm | None = None
        query = "q_proj"
        if latent.query_rank is not None:
            query = "q_b_proj"
            self.compress_query = linear(weights, f"{name}.q_a_proj")
            self.query_norm = Norm(weights[f"{name}.q_a_layernorm.weight"], None, latent.norm_eps)
        self.query = linear(weights, f"{name}.{query}")
        self.compress = linear(weights, f"{name}.kv_a_proj_with_mqa")
        self.norm = Norm(weights[f"{name}.kv_a_layernorm.weight"], None, latent.norm_eps)
        self.up = weights[f"{name}.kv_b_proj.weight"]  # (H x (n + v), r)
        by_head = self.up.view(config.n_heads, latent.nope_dim + latent.value_dim, latent.rank)
        self.key_weight = by_head[:, : latent.nope_dim]  # (H, n, r)
        self.value_weight = by_head[:, latent.nope_dim :].transpose(1, 2)  # (H, r, v)
        self.output = linear(weights, f"{name}.o_proj")

    def add_to(self, residual: Tensor, x: Tensor, context: ForwardContext, cache: Cache | None) -> Tensor:
        """residual + attention(x); both (N, D)."""
        return self.output.add_to(residual, self.mix(x, context, cache))

    def __call__(self, x: Tensor, context: ForwardContext, cache: Cache | None) -> Tensor:
        """attention(x), (N, D)."""
        return self.output(self.mix(x, context, cache))

    def mix(self, x: Tensor, context: ForwardContext, cache: Cache | None) -> Tensor:
        """The concatenated outputs of the heads, (N, H x v)."""
        shared = context.kinds[self.kind]
        query, left = self._query(x, context), self._left(x, context)
        if shared.cos is not None and shared.sin is not None:
            rotate_(query[..., self.latent.nope_dim :], shared.cos, shared.sin)
            rotate_(left[:, :, None, self.latent.rank :], shared.cos, shared.sin)
        if cache is None:
            keys, values = left[:, None], left[:, None, :, : self.latent.rank]
        else:
            keys, values = cache.append(self.layer, left)
        mixed = self._attend(self._absorbed(query), keys, values, context)  # (B, H, T, r)
        return (mixed @ self.value_weight).transpose(1, 2).reshape(context.batch_size * context.n_new, -1)

    def _query(self, x: Tensor, context: ForwardContext) -> Tensor:
        """(B, T, H, n + e)."""
        if self.compress_query is not None and self.query_norm is not None:
            x = self.query_norm(self.compress_query(x))
        return self.query(x).view(context.batch_size, context.n_new, self.n_heads, -1)

    def _left(self, x: Tensor, context: ForwardContext) -> Tensor:
        """The cache entries of the new tokens, (B, T, r + e)."""
        left = self.compress(x)
        rank = self.latent.rank
        return torch.cat((self.norm(left[:, :rank]), left[:, rank:]), -1).view(context.batch_size, context.n_new, -1)

    def _absorbed(self, query: Tensor) -> Tensor:
        """Queries against c instead of against keys: (B, T, H, n + e) -> (B, H, T, r + e)."""
        query = query.transpose(1, 2)
        against_c = query[..., : self.latent.nope_dim] @ self.key_weight
        return torch.cat((against_c, query[..., self.latent.nope_dim :]), -1)

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, context: ForwardContext) -> Tensor:
        """(B, H, T, r + e) -> (B, H, T, r): all heads look at the same S vectors, keys (B, 1, S, r + e)."""
        shared = context.kinds[self.kind]
        if context.n_new == 1:  # the heads can be the rows of one matrix
            mixed = F.scaled_dot_product_attention(
                query.transpose(1, 2), keys, values, attn_mask=shared.mask, scale=self.scale
            )
            return mixed.transpose(1, 2)
        every = (-1, self.n_heads, -1, -1)
        return F.scaled_dot_product_attention(
            query,
            keys.expand(every),
            values.expand(every),
            attn_mask=shared.mask,
            is_causal=shared.causal,
            scale=self.scale,
        )
