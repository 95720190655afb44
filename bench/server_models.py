"""Shapes of the models in the server logs, as facts of their published configs, built without reading any file.

Used by bench/accuracy.py and the tests of calc.servers if no config.json of the model is available.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from calc.model.layers import (
    Attention,
    Dense,
    Experts,
    FeedForward,
    GatedDelta,
    Latent,
    LayerSpec,
    Mamba2,
    Mixer,
)
from calc.model.parts import Mlp, Norm
from calc.model.spec import ModelSpec, uniform
from calc.servers.records import ModelFacts


def dense(
    name: str, shape: Sequence[int], *, context: int, sliding: tuple[int, int] = (0, 0), **more: Any
) -> ModelSpec:
    """A plain decoder: layers, heads, KV heads, head dimension, hidden, inner, vocabulary; (sliding layers, window)."""
    fields = ("n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_size", "intermediate_size", "vocab_size")
    sizes: dict[str, Any] = dict(zip(fields, shape, strict=True))
    n_sliding, window = sliding
    return uniform(name=name, max_context=context, n_sliding_layers=n_sliding, window=window or None, **sizes, **more)


def layered(name: str, layers: Sequence[LayerSpec], *, vocab: int, context: int, tied: bool = False) -> ModelSpec:
    """A model given layer by layer."""
    return ModelSpec(name=name, vocab_size=vocab, tied=tied, max_context=context, layers=tuple(layers))


def _gqa(n_heads: int, n_kv_heads: int, head_dim: int, **more: Any) -> Attention:
    return Attention(n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim, value_dim=head_dim, **more)


def _layer(hidden: int, mixer: Mixer, *parts: FeedForward, norms: int = 2) -> LayerSpec:
    return LayerSpec(hidden_size=hidden, mixers=(mixer,), feed_forwards=parts, norm_params=norms * hidden)


def _experts(hidden: int, n: int, top_k: int, size: int) -> Experts:
    return Experts(n_experts=n, top_k=top_k, expert_size=size, router_params=n * hidden)


def moe(
    name: str, n: int, hidden: int, mixer: Mixer, experts: tuple[int, int, int], *, vocab: int, context: int
) -> ModelSpec:
    """`n` equal layers of attention and (number, a token, size) experts."""
    layer = _layer(hidden, mixer, _experts(hidden, *experts))
    return layered(name, [layer] * n, vocab=vocab, context=context)


def _qwen35(name: str, n: int, hidden: int, delta: GatedDelta, full: Attention, *parts: FeedForward) -> ModelSpec:
    """Gated delta layers, every fourth one with full attention."""
    one, four = _layer(hidden, delta, *parts), _layer(hidden, full, *parts)
    return layered(name, [four if i % 4 == 3 else one for i in range(n)], vocab=248_320, context=262_144)


def _delta(value_heads: int) -> GatedDelta:
    return GatedDelta(key_heads=16, key_dim=128, value_heads=value_heads, value_dim=128, kernel=4)


def _gemma4() -> ModelSpec:
    slide, full = _gqa(16, 8, 256, window=1024), _gqa(16, 2, 512)
    parts = (Dense(intermediate_size=2112), _experts(2816, 128, 8, 704))
    layers = [_layer(2816, full if i % 6 == 5 else slide, *parts) for i in range(30)]
    return layered("gemma-4-26b", layers, vocab=262_144, context=262_144, tied=True)


def _scout() -> ModelSpec:
    parts = (Dense(intermediate_size=8192), _experts(5120, 16, 1, 8192))
    chunked, full = _gqa(40, 8, 128, window=8192, chunked=True), _gqa(40, 8, 128)
    layers = [_layer(5120, full if i % 4 == 3 else chunked, *parts) for i in range(48)]
    return layered("llama-4-scout", layers, vocab=202_048, context=10_485_760)


def _nemotron() -> ModelSpec:
    """Its state and 4 attention layers follow from one log (3 padding layers, 98.20 requests, 208,320 tokens)."""
    state = Mamba2(inner=7680, n_heads=96, groups=8, state=128, kernel=4)
    inner = LayerSpec(hidden_size=3136, mixers=(), feed_forwards=(Dense(intermediate_size=12544),), norm_params=3136)
    layers = [*[_layer(3136, state, norms=1)] * 21, *[_layer(3136, _gqa(40, 8, 128), norms=1)] * 4, *[inner] * 17]
    return layered("nemotron-3-nano-4b", layers, vocab=131_072, context=262_144)


def _deepseek(name: str, *, n: int, hidden: int, heads: int, experts: int, index_layers: int = 0) -> ModelSpec:
    def mixer(i: int) -> Latent:
        index: dict[str, Any] = {"index_heads": 64, "index_dim": 128} if i < index_layers else {}
        return Latent(
            n_heads=heads, kv_lora_rank=512, nope_dim=128, rope_dim=64, value_dim=128, q_lora_rank=1536, **index
        )

    first = [_layer(hidden, mixer(i), Dense(intermediate_size=18432)) for i in range(3)]
    shared = Dense(intermediate_size=2048)
    rest = [_layer(hidden, mixer(i), shared, _experts(hidden, experts, 8, 2048)) for i in range(3, n)]
    return layered(name, [*first, *rest], vocab=129_280, context=163_840)


def _qwen2(name: str, shape: Sequence[int], *, tied: bool = False, context: int = 32_768) -> ModelSpec:
    return dense(name, shape, context=context, qkv_bias=True, tied=tied)


def models() -> dict[str, ModelSpec]:
    """All shapes by the model name of the logs."""
    return {**_llama_and_qwen(), **_other_dense(), **_mixed()}


def _llama_and_qwen() -> dict[str, ModelSpec]:
    llama3 = dense("llama-3-8b", (32, 32, 8, 128, 4096, 14336, 128_256), context=8192)
    llama31 = dense("llama-3.1-8b", (32, 32, 8, 128, 4096, 14336, 128_256), context=131_072)
    llama70 = dense("llama-3.3-70b", (80, 64, 8, 128, 8192, 28672, 128_256), context=131_072)
    qwen7 = _qwen2("qwen2.5-7b", (28, 28, 4, 128, 3584, 18944, 152_064))
    return {
        "RedHatAI/Llama-3.3-70B-Instruct-fp8-dynamic": llama70,
        "redhatai/Llama-3.3-70B-Instruct-quantized.w8a8": llama70,
        "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16": llama31,
        "meta-llama/Llama-3.1-8B-Instruct": llama31,
        "meta-llama/Meta-Llama-3.1-8B-Instruct": llama31,
        "meta-llama/Meta-Llama-3-8B-Instruct": llama3,
        "meta-llama/Meta-Llama-3-8B": llama3,
        "meta-llama/Llama-2-7b-chat-hf": dense("llama-2-7b", (32, 32, 32, 128, 4096, 11008, 32_000), context=4096),
        "RedHatAI/Qwen2.5-7B-Instruct-fp8-dynamic": qwen7,
        "Qwen/Qwen2.5-7B-Instruct": qwen7,
        "Qwen/Qwen2.5-VL-7B-Instruct": qwen7,
        "Qwen/Qwen2-VL-7B-Instruct-AWQ": qwen7,
        "Qwen/Qwen2.5-0.5B-Instruct-AWQ": _qwen2("qwen2.5-0.5b", (24, 14, 2, 64, 896, 4864, 151_936), tied=True),
        "Qwen/Qwen2.5-1.5B-Instruct": _qwen2("qwen2.5-1.5b", (28, 12, 2, 128, 1536, 8960, 151_936), tied=True),
        "Qwen/Qwen2.5-3B-Instruct": _qwen2("qwen2.5-3b", (36, 16, 2, 128, 2048, 11008, 151_936), tied=True),
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": _qwen2(
            "qwen2.5-14b", (48, 40, 8, 128, 5120, 13824, 152_064), context=131_072
        ),
        "moonshotai/Kimi-Dev-72B": _qwen2("kimi-dev-72b", (80, 64, 8, 128, 8192, 29568, 152_064), context=131_072),
        "Qwen/Qwen3-8B": dense("qwen3-8b", (36, 32, 8, 128, 4096, 12288, 151_936), context=40_960, qk_norm=True),
        "Qwen/Qwen3-14B": dense("qwen3-14b", (40, 40, 8, 128, 5120, 17408, 151_936), context=40_960, qk_norm=True),
        "Qwen/Qwen3-32B": dense("qwen3-32b", (64, 64, 8, 128, 5120, 25600, 151_936), context=40_960, qk_norm=True),
        "Qwen/Qwen3-VL-Embedding-2B": dense(
            "qwen3-vl-2b", (28, 16, 8, 128, 2048, 6144, 151_936), context=262_144, tied=True
        ),
    }


def _other_dense() -> dict[str, ModelSpec]:
    phi4 = dense("phi-4", (40, 40, 10, 128, 5120, 17920, 100_352), context=16_384)
    return {
        "google/gemma-2-2b-it": dense(
            "gemma-2-2b", (26, 8, 4, 256, 2304, 9216, 256_000), context=8192, sliding=(13, 4096), tied=True
        ),
        "google/gemma-2-9b-it": dense(
            "gemma-2-9b", (42, 16, 8, 256, 3584, 14336, 256_000), context=8192, sliding=(21, 4096), tied=True
        ),
        "google/gemma-7b": dense("gemma-7b", (28, 16, 16, 256, 3072, 24576, 256_000), context=8192, tied=True),
        "google/gemma-3-1b-it": dense(
            "gemma-3-1b", (26, 4, 1, 256, 1152, 6912, 262_144), context=32_768, sliding=(22, 512), tied=True
        ),
        "google/gemma-3-4b-it": dense(
            "gemma-3-4b", (34, 8, 4, 256, 2560, 10240, 262_208), context=131_072, sliding=(29, 1024), tied=True
        ),
        "google/gemma-3-12b-it": dense(
            "gemma-3-12b", (48, 16, 8, 256, 3840, 15360, 262_208), context=131_072, sliding=(40, 1024), tied=True
        ),
        "google/gemma-3-27b-it": dense(
            "gemma-3-27b", (62, 32, 16, 128, 5376, 21504, 262_208), context=131_072, sliding=(52, 1024), tied=True
        ),
        "ibm-granite/granite-3.1-2b-instruct": dense(
            "granite-3.1-2b", (40, 32, 8, 64, 2048, 8192, 49_155), context=131_072, tied=True
        ),
        "microsoft/phi-2": dense(
            "phi-2",
            (32, 32, 32, 80, 2560, 10240, 51_200),
            context=2048,
            mlp=Mlp.PLAIN,
            qkv_bias=True,
            o_bias=True,
            mlp_bias=True,
            head_bias=True,
            norm=Norm.LAYER,
        ),
        "microsoft/phi-4": phi4,
        "mistralai/Mistral-Small-3.1-24B-Instruct-2503": dense(
            "mistral-small-24b", (40, 32, 8, 128, 5120, 32768, 131_072), context=131_072
        ),
    }


def _mixed() -> dict[str, ModelSpec]:
    """Models whose layers are given one by one."""
    q30 = moe("qwen3-30b-a3b", 48, 2048, _gqa(32, 4, 128), (128, 8, 768), vocab=151_936, context=40_960)
    q235 = moe("qwen3-235b-a22b", 94, 4096, _gqa(64, 4, 128), (128, 8, 1536), vocab=151_936, context=40_960)
    next80 = _qwen35(
        "qwen3-next-80b", 48, 2048, _delta(32), _gqa(16, 2, 256, gated=True), Dense(intermediate_size=512),
        _experts(2048, 512, 10, 512),
    )  # fmt: skip
    q27 = _qwen35("qwen3.5-27b", 64, 5120, _delta(48), _gqa(24, 4, 256, gated=True), Dense(intermediate_size=17408))
    q36 = _qwen35(
        "qwen3.6-35b-a3b", 40, 2048, _delta(32), _gqa(16, 2, 256, gated=True), Dense(intermediate_size=512),
        _experts(2048, 256, 8, 512),
    )  # fmt: skip
    return {
        "Qwen/Qwen3-30B-A3B": q30,
        "Qwen/Qwen3-235B-A22B": q235,
        "Qwen/Qwen3-Coder-480B-A35B": moe(
            "qwen3-coder-480b", 62, 6144, _gqa(96, 8, 128), (160, 8, 2560), vocab=151_936, context=262_144
        ),
        "Qwen/Qwen3-Next-80B-A3B-Instruct": next80,
        "Qwen/Qwen3.5-27B": q27,
        "Qwen/Qwen3.8-27B": q27,
        "Qwen/Qwen3.6-35B-A3B": q36,
        "mistralai/Mixtral-8x7B-Instruct-v0.1": moe(
            "mixtral-8x7b", 32, 4096, _gqa(32, 8, 128), (8, 2, 14336), vocab=32_000, context=32_768
        ),
        "nvidia/NVIDIA-Nemotron-3-Nano-4B-FP8": _nemotron(),
        "google/gemma-4-26B-A4B-it": _gemma4(),
        "meta-llama/Llama-4-Scout-17B-16E-Instruct": _scout(),
        "deepseek-ai/DeepSeek-R1": _deepseek("deepseek-r1", n=61, hidden=7168, heads=128, experts=256),
        "deepseek-ai/DeepSeek-V3.2": _deepseek(
            "deepseek-v3.2", n=61, hidden=7168, heads=128, experts=256, index_layers=61
        ),
        "zai-org/GLM-5.2": _deepseek("glm-5.2", n=78, hidden=6144, heads=64, experts=256, index_layers=21),
    }


def facts() -> dict[str, ModelFacts]:
    """What servers load beside the text model: vision towers and projectors (parameters), by the log's model name."""

    def tower(n: int, rope: int | None = None, image: tuple[int, int] = (0, 0)) -> ModelFacts:
        side, tokens = image
        return ModelFacts(
            vision_params=n, multimodal=True, rope_elements=rope, image_elements=3 * side * side, image_tokens=tokens
        )

    gemma = 131_072 * (8 + 1)  # positions of the global layers, stretched eightfold, and of the local ones
    return {
        "google/gemma-3-4b-it": tower(419_820_000, gemma * 256, (896, 256)),
        "google/gemma-3-12b-it": tower(421_290_000, gemma * 256, (896, 256)),
        "google/gemma-3-27b-it": tower(423_000_000, gemma * 128, (896, 256)),
        "mistralai/Mistral-Small-3.1-24B-Instruct-2503": tower(439_060_000, None, (1540, 3025)),
        "meta-llama/Llama-4-Scout-17B-16E-Instruct": tower(869_000_000),
        "google/gemma-4-26B-A4B-it": ModelFacts(multimodal=True, item_tokens=2496),
        "Qwen/Qwen3.5-27B": ModelFacts(state_element_bytes=4),
        "Qwen/Qwen3.8-27B": ModelFacts(state_element_bytes=4),
        "Qwen/Qwen3.6-35B-A3B": ModelFacts(state_element_bytes=4),
    }
