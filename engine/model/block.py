"""One layer of a decoder: attention and an MLP (or experts), each with its norms and its residual sum."""

from torch import Tensor

from engine.model.cache import Cache
from engine.model.config import ConvConfig, DeltaConfig, ModelConfig
from engine.model.experts import Experts
from engine.model.latent import LatentAttention
from engine.model.layers import MLP, Attention, ByteInputs, ForwardContext, Linear, LinearMaker, Norm, Weights
from engine.model.recurrent import GatedDelta, ShortConv


class Block:
    """Pre-norm: x + attention(norm(x)), then x + mlp(norm(x))."""

    mlp_norm_name = "post_attention_layernorm"  # Llama names this norm after its position

    def __init__(
        self, config: ModelConfig, weights: Weights, layer: int, *, kind: int = 0, linear: LinearMaker = Linear.of
    ) -> None:
        name = f"model.layers.{layer}"
        self.attention_norm = Norm.of(weights, f"{name}.input_layernorm", config)
        self.attention = make_attention(config, weights, layer, kind=kind, linear=linear)
        self.mlp_norm = Norm.of(weights, f"{name}.{self.mlp_norm_name}", config)
        self.mlp = make_mlp(config, weights, layer, linear=linear)

    def forward(self, x: Tensor, context: ForwardContext, cache: Cache | None) -> Tensor:
        """x (N, D) -> (N, D)."""
        x = self.attention.add_to(x, self.attention_norm(x), context, cache)
        return self.mlp.add_to(x, self.mlp_norm(x))


class ScaledBlock(Block):
    """Granite: the output of attention and of the MLP is scaled before the residual sum."""

    def __init__(
        self, config: ModelConfig, weights: Weights, layer: int, *, kind: int = 0, linear: LinearMaker = Linear.of
    ) -> None:
        super().__init__(config, weights, layer, kind=kind, linear=linear)
        self.scale = config.residual_scale

    def forward(self, x: Tensor, context: ForwardContext, cache: Cache | None) -> Tensor:
        """x (N, D) -> (N, D)."""
        x = x + self.attention(self.attention_norm(x), context, cache) * self.scale
        return x + self.mlp(self.mlp_norm(x)) * self.scale


class SandwichBlock(Block):
    """Gemma 2 and 3: pre-norm, and the outputs of attention and MLP are also normalized before the residual sum."""

    mlp_norm_name = "pre_feedforward_layernorm"

    def __init__(
        self, config: ModelConfig, weights: Weights, layer: int, *, kind: int = 0, linear: LinearMaker = Linear.of
    ) -> None:
        super().__init__(config, weights, layer, kind=kind, linear=linear)
        name = f"model.layers.{layer}"
        self.post_attention_norm = Norm.of(weights, f"{name}.post_attention_layernorm", config)
        self.post_mlp_norm = Norm.of(weights, f"{name}.post_feedforward_layernorm", config)

    def forward(self, x: Tensor, context: ForwardContext, cache: Cache | None) -> Tensor:
        """x (N, D) -> (N, D)."""
        x = x + self.post_attention_norm(self.attention(self.attention_norm(x), context, cache))
        return x + self.post_mlp_norm(self.mlp(self.mlp_norm(x)))


class PostBlock:
    """OLMo 2 and EXAONE 4: only the outputs of attention and MLP are normalized (post-norm)."""

    def __init__(
        self, config: ModelConfig, weights: Weights, layer: int, *, kind: int = 0, linear: LinearMaker = Linear.of
    ) -> None:
        name = f"model.layers.{layer}"
        self.attention = make_attention(config, weights, layer, kind=kind, linear=linear)
        self.post_attention_norm = Norm.of(weights, f"{name}.post_attention_layernorm", config)
        self.mlp = make_mlp(config, weights, layer, linear=linear)
        self.post_mlp_norm = Norm.of(weights, f"{name}.post_feedforward_layernorm", config)

    def forward(self, x: Tensor, context: ForwardContext, cache: Cache | None) -> Tensor:
        """x (N, D) -> (N, D)."""
        x = x + self.post_attention_norm(self.attention(x, context, cache))
        return x + self.post_mlp_norm(self.mlp(x))


class ParallelBlock:
    """Falcon, Phi, Cohere, GPT-NeoX: attention and MLP read the same x, through two norms or one."""

    def __init__(
        self, config: ModelConfig, weights: Weights, layer: int, *, kind: int = 0, linear: LinearMaker = Linear.of
    ) -> None:
        name = f"model.layers.{layer}"
        self.attention_norm = Norm.of(weights, f"{name}.input_layernorm", config)
        self.attention = make_attention(config, weights, layer, kind=kind, linear=linear)
        self.mlp_norm = self.attention_norm
        if config.parallel_norms == 2:
            self.mlp_norm = Norm.of(weights, f"{name}.post_attention_layernorm", config)
        self.mlp = make_mlp(config, weights, layer, linear=linear)

    def forward(self, x: Tensor, context: ForwardContext, cache: Cache | None) -> Tensor:
        """x (N, D) -> (N, D)."""
        read = self.attention_norm(x)
        inner = read if self.mlp_norm is self.attention_norm else self.mlp_norm(x)
        return self.mlp.add_to(self.attention.add_to(x, read, context, cache), inner)


AnyBlock = Block | PostBlock | ParallelBlock
Mixer = Attention | LatentAttention | ShortConv | GatedDelta
"""A token mixer: attention, or a recurrent layer."""


def make_block(config: ModelConfig, weights: Weights, layer: int, *, kind: int, linear: LinearMaker) -> AnyBlock:
    """The block that the config asks for."""
    linear = ByteInputs.maker(linear) if config.byte_inputs else linear
    match config.block:
        case "sandwich":
            return SandwichBlock(config, weights, layer, kind=kind, linear=linear)
        case "post":
            return PostBlock(config, weights, layer, kind=kind, linear=linear)
        case "parallel":
            return ParallelBlock(config, weights, layer, kind=kind, linear=linear)
        case "pre":
            block = Block if config.residual_scale == 1.0 else ScaledBlock
            return block(config, weights, layer, kind=kind, linear=linear)


def make_attention(config: ModelConfig, weights: Weights, layer: int, *, kind: int, linear: LinearMaker) -> Mixer:
    """The token mixer of one layer: attention, or a recurrent layer."""
    if isinstance(config.recurrent, ConvConfig) and config.layer(layer).recurrent:
        return ShortConv(config, config.recurrent, weights, layer, linear=linear)
    if isinstance(config.recurrent, DeltaConfig) and config.layer(layer).recurrent:
        return GatedDelta(config, config.recurrent, weights, layer, linear=linear)
    if config.latent is not None:
        return LatentAttention(config, config.latent, weights, layer, kind=kind, linear=linear)
    return Attention(config, weights, layer, kind=kind, linear=linear)


def make_mlp(config: ModelConfig, weights: Weights, layer: int, *, linear: LinearMaker) -> MLP | Experts:
    """The MLP of one layer, or its experts."""
    name = f"model.layers.{layer}.mlp"
    if config.experts is not None and config.layer(layer).experts:
        return Experts(config, config.experts, weights, name, linear=linear)
    return MLP(config, weights, name, linear=linear)
