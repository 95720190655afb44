"""One layer of a decoder: attention and an MLP (or experts), each with its norms and its residual sum."""

from torch import Tensor

from engine.model.cache import Cache
from engine.model.config import ModelConfig
from engine.model.experts import Experts
from engine.model.latent import LatentAttention
from engine.model.layers import MLP, Attention, ForwardContext, Linear, LinearMaker, Norm, Weights


class Block:
    """Pre-norm: x + attention(norm(x)), then x + mlp(norm(x))."""

    mlp_norm_name = "post_attention_layernorm"  # Llama names it by its place

    def __init__(
        self, config: ModelConfig, weights: Weights, layer: int, *, kind: int = 0, linear: LinearMaker = Linear.of
    ) -> None:
        name = f"model.layers.{layer}"
        eps, offset = config.norm_eps, config.norm_offset
        self.attention_norm = Norm.of(weights, f"{name}.input_layernorm", eps, offset=offset)
        self.attention = make_attention(config, weights, layer, kind=kind, linear=linear)
        self.mlp_norm = Norm.of(weights, f"{name}.{self.mlp_norm_name}", eps, offset=offset)
        self.mlp = make_mlp(config, weights, layer, linear=linear)

    def forward(self, x: Tensor, context: ForwardContext, cache: Cache | None) -> Tensor:
        """x (N, D) -> (N, D)."""
        x = self.attention.add_to(x, self.attention_norm(x), context, cache)
        return self.mlp.add_to(x, self.mlp_norm(x))


class SandwichBlock(Block):
    """Gemma 2 and 3: what attention and MLP give is normalised too, before it is added."""

    mlp_norm_name = "pre_feedforward_layernorm"

    def __init__(
        self, config: ModelConfig, weights: Weights, layer: int, *, kind: int = 0, linear: LinearMaker = Linear.of
    ) -> None:
        super().__init__(config, weights, layer, kind=kind, linear=linear)
        name = f"model.layers.{layer}"
        eps, offset = config.norm_eps, config.norm_offset
        self.post_attention_norm = Norm.of(weights, f"{name}.post_attention_layernorm", eps, offset=offset)
        self.post_mlp_norm = Norm.of(weights, f"{name}.post_feedforward_layernorm", eps, offset=offset)

    def forward(self, x: Tensor, context: ForwardContext, cache: Cache | None) -> Tensor:
        """x (N, D) -> (N, D)."""
        x = x + self.post_attention_norm(self.attention(self.attention_norm(x), context, cache))
        return x + self.post_mlp_norm(self.mlp(self.mlp_norm(x)))


def make_block(config: ModelConfig, weights: Weights, layer: int, *, kind: int, linear: LinearMaker) -> Block:
    """The block that the config asks for."""
    block = SandwichBlock if config.post_norms else Block
    return block(config, weights, layer, kind=kind, linear=linear)


def make_attention(
    config: ModelConfig, weights: Weights, layer: int, *, kind: int, linear: LinearMaker
) -> Attention | LatentAttention:
    """Attention of one layer."""
    if config.latent is not None:
        return LatentAttention(config, config.latent, weights, layer, kind=kind, linear=linear)
    return Attention(config, weights, layer, kind=kind, linear=linear)


def make_mlp(config: ModelConfig, weights: Weights, layer: int, *, linear: LinearMaker) -> MLP | Experts:
    """The MLP of one layer, or its experts."""
    name = f"model.layers.{layer}.mlp"
    if config.experts is not None and config.layer(layer).experts:
        return Experts(config, config.experts, weights, name, linear=linear)
    return MLP(config, weights, name, linear=linear)
