"""Image and audio encoders beside a text model, and the projectors between them, which a server also loads.

Sizes follow ``modeling_*.py`` of transformers 5.23; the tests compare with its classes on the meta device. A config may
omit what its class assumes, so the defaults of each class are here. What is not determined is None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from calc.units import MAX_COUNT

CHANNELS = 3
MEL_BINS = 128
"""Bins of a spectrum, which two convolutions of stride 2 reduce to a quarter."""


class Unknown(Exception):
    """A size that the config does not determine."""


class Fields:
    """Sizes of one part of a config, with its class's defaults. Raises Unknown."""

    def __init__(self, config: object, defaults: Mapping[str, Any] | None = None) -> None:
        if not isinstance(config, Mapping):
            raise Unknown
        self.values = {**(defaults or {}), **{key: value for key, value in config.items() if value is not None}}
        self.kind = str(self.values.get("model_type", ""))

    def n(self, *keys: str) -> int:
        """The count under the first key that has one; for a list, its first number (a square image or patch)."""
        found = next((self.values[key] for key in keys if key in self.values), None)
        if isinstance(found, list) and found:
            found = found[0]
        if isinstance(found, bool) or not isinstance(found, int) or not 0 < found <= MAX_COUNT:
            raise Unknown
        return found

    def size(self, key: str) -> int:
        """The length of a list."""
        found = self.values.get(key)
        return len(found) if isinstance(found, list) else 0

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        return bool(self.values.get(key, default))

    def part(self, key: str, defaults: Mapping[str, Any] | None = None) -> Fields:
        """A section of the config."""
        return Fields(self.values.get(key), defaults)


def linear(inputs: int, outputs: int, bias: bool = True) -> int:
    """A linear layer."""
    return outputs * (inputs + bias)


def block(h: int, inner: int, *, gated: bool = False, qkv: bool = True, out: bool = True, mlp: bool = True) -> int:
    """Attention and feed-forward of a layer of width `h`, with the given biases, without its norms."""
    attention = 3 * linear(h, h, qkv) + linear(h, h, out)
    return attention + (2 if gated else 1) * linear(h, inner, mlp) + linear(inner, h, mlp)


def places(fields: Fields) -> int:
    """Patches per image."""
    return (fields.n("image_size") // fields.n("patch_size")) ** 2


def patch(fields: Fields, h: int, *, bias: bool) -> int:
    """The projection of a patch, or of several frames if the encoder combines them."""
    frames = fields.n("temporal_patch_size") if "temporal_patch_size" in fields.values else 1
    return linear(CHANNELS * frames * fields.n("patch_size", "spatial_patch_size") ** 2, h, bias)


# Towers: parameters of an encoder


def siglip(fields: Fields) -> int:
    """SigLIP and Idefics 3's variant: patches with a bias, positions, LayerNorms, and an optional pooling head."""
    h, inner = fields.n("hidden_size"), fields.n("intermediate_size")
    positions = fields.n("num_patches") if fields.kind.startswith("siglip2") else places(fields)
    layers = fields.n("num_hidden_layers") * (block(h, inner) + 4 * h)
    head = h + block(h, inner) + 2 * h if fields.flag("vision_use_head") else 0
    return patch(fields, h, bias=True) + positions * h + layers + 2 * h + head


def clip(fields: Fields) -> int:
    """CLIP: a class token, patches without a bias, norms before and after."""
    h = fields.n("hidden_size")
    layers = fields.n("num_hidden_layers") * (block(h, fields.n("intermediate_size")) + 4 * h)
    return h + patch(fields, h, bias=False) + (places(fields) + 1) * h + layers + 4 * h


def pixtral(fields: Fields) -> int:
    """Pixtral: gated layers without biases, RMSNorm, no position table."""
    h = fields.n("hidden_size")
    plain = block(h, fields.n("intermediate_size"), gated=True, qkv=False, out=False, mlp=False)
    return patch(fields, h, bias=False) + h + fields.n("num_hidden_layers") * (plain + 2 * h)


def qwen2_vl(fields: Fields) -> int:
    """Qwen2-VL: its own width; groups of four patches are merged into the text model's width."""
    h = fields.n("embed_dim")
    wide = h * fields.n("spatial_merge_size") ** 2
    layers = fields.n("depth") * (block(h, h * fields.n("mlp_ratio")) + 4 * h)
    merger = 2 * h + linear(wide, wide) + linear(wide, fields.n("hidden_size"))
    return patch(fields, h, bias=False) + layers + merger


def qwen2_5_vl(fields: Fields) -> int:
    """Qwen2.5-VL: gated layers with RMSNorm."""
    h = fields.n("hidden_size")
    wide = h * fields.n("spatial_merge_size") ** 2
    layers = fields.n("depth") * (block(h, fields.n("intermediate_size"), gated=True) + 2 * h)
    merger = h + linear(wide, wide) + linear(wide, fields.n("out_hidden_size"))
    return patch(fields, h, bias=False) + layers + merger


def qwen3_vl(fields: Fields) -> int:
    """Qwen3-VL and 3.5: positions, and separate mergers for some layers of the text model."""
    h = fields.n("hidden_size")
    wide = h * fields.n("spatial_merge_size") ** 2
    merged = linear(wide, wide) + linear(wide, fields.n("out_hidden_size"))
    layers = fields.n("depth") * (block(h, fields.n("intermediate_size")) + 4 * h)
    deep = fields.size("deepstack_visual_indexes") * (2 * wide + merged)
    return patch(fields, h, bias=True) + fields.n("num_position_embeddings") * h + layers + 2 * h + merged + deep


def glm4v(fields: Fields) -> int:
    """GLM-4.1V to 4.6V: gated layers of the text model's width, a merging convolution, a gated merger."""
    h, out, inner = fields.n("hidden_size"), fields.n("out_hidden_size"), fields.n("intermediate_size")
    bias = fields.flag("attention_bias")
    plain = block(h, out, gated=True, qkv=bias, out=False, mlp=False)
    merging = linear(h * fields.n("spatial_merge_size") ** 2, out)
    merger = linear(out, out, False) + 2 * out + 3 * out * inner
    layers = fields.n("depth") * (plain + 2 * h)
    return patch(fields, h, bias=True) + places(fields) * h + layers + 2 * h + merging + merger


def llama4(fields: Fields) -> int:
    """Llama 4: a class token, norms before and after, an adapter after the pixel shuffle."""
    h, inner = fields.n("hidden_size"), fields.n("intermediate_size")
    layers = fields.n("num_hidden_layers") * (block(h, inner) + 4 * h)
    adapter = inner * fields.n("projector_input_dim")
    adapter += fields.n("projector_input_dim") * fields.n("projector_output_dim")
    return h + (places(fields) + 1) * h + patch(fields, h, bias=False) + 4 * h + layers + adapter


def mllama(fields: Fields) -> int:
    """Llama 3.2 Vision: tiles with their own positions, and gated layers over all of them."""
    h, n_ratios = fields.n("hidden_size"), fields.size("supported_aspect_ratios") or 8
    plain = block(h, fields.n("intermediate_size"), qkv=False, out=False) + 4 * h
    tiles, rows = fields.n("max_num_tiles"), (places(fields) + 1) * h
    positions = rows + 1 + (n_ratios + 1) * tiles * (rows + 2 * h) + 2
    layers = fields.n("num_hidden_layers") * plain + fields.n("num_global_layers") * (plain + 2)
    return h + patch(fields, h, bias=False) + positions + 4 * h + layers


def internvl(fields: Fields) -> int:
    """InternViT: a class token, scales of both residuals, optional norms of Q and K."""
    h = fields.n("hidden_size")
    norm = 1 if fields.values.get("norm_type") == "rms_norm" else 2
    qkv = fields.flag("attention_bias", fields.flag("qkv_bias"))
    normed = fields.flag("use_qk_norm", fields.flag("qk_normalization"))
    layer = block(h, fields.n("intermediate_size"), qkv=qkv) + 2 * h + 2 * norm * h + (2 * h if normed else 0)
    return h + patch(fields, h, bias=True) + (places(fields) + 1) * h + fields.n("num_hidden_layers") * layer


def moonvit(fields: Fields) -> int:
    """MoonViT (Kimi K2.5): a table of positions by height and width."""
    h = fields.n("hidden_size")
    table = fields.n("pos_emb_height") * fields.n("pos_emb_width") * h
    layers = fields.n("num_hidden_layers") * (block(h, fields.n("intermediate_size")) + 4 * h)
    return patch(fields, h, bias=True) + table + layers + 2 * h


def minimax_m3(fields: Fields) -> int:
    """MiniMax M3: a norm before its layers, positions by rotation."""
    h = fields.n("hidden_size")
    layers = fields.n("num_hidden_layers") * (block(h, fields.n("intermediate_size")) + 4 * h)
    return patch(fields, h, bias=False) + 2 * h + layers


def step(fields: Fields) -> int:
    """Step 3.7: scales of both residuals, and two convolutions that halve the sides."""
    h = fields.n("hidden_size")
    layers = fields.n("num_hidden_layers") * (block(h, fields.n("intermediate_size")) + 6 * h)
    halved = linear(9 * h, 2 * h) + linear(9 * 2 * h, 4 * h)
    return patch(fields, h, bias=False) + fields.n("max_position_embeddings") * h + 2 * h + layers + halved


def gemma4(fields: Fields) -> int:
    """Gemma 4: positions by row and column, gated layers with four norms and norms of Q and K."""
    h, head = fields.n("hidden_size"), fields.n("head_dim")
    rows = (2 * fields.n("num_attention_heads") + 2 * fields.n("num_key_value_heads")) * head
    if fields.flag("attention_bias"):
        raise Unknown
    layer = rows * h + 2 * head + 3 * h * fields.n("intermediate_size") + 4 * h
    table = 2 * fields.n("position_embedding_size") * h
    return patch(fields, h, bias=False) + table + fields.n("num_hidden_layers") * layer


def gemma4_audio(fields: Fields) -> int:
    """Gemma 4's audio encoder: a conformer with two feed-forwards and a convolution per layer."""
    h, channels = fields.n("hidden_size"), fields.values.get("subsampling_conv_channels")
    if not isinstance(channels, list) or len(channels) != 2 or not all(isinstance(n, int) for n in channels):
        raise Unknown
    first, second = (int(n) for n in channels)
    subsampled = 9 * first + first + 9 * first * second + second + MEL_BINS // 4 * second * h
    feed = 8 * h * h + 2 * h
    attention = 5 * h * h + h // fields.n("num_attention_heads")
    convolution = 3 * h * h + fields.n("conv_kernel_size") * h + 2 * h
    layers = fields.n("num_hidden_layers") * (2 * feed + attention + convolution + 3 * h)
    return subsampled + layers + linear(h, fields.n("output_proj_dims"))


def whisper(fields: Fields) -> int:
    """Whisper's encoder: two convolutions, positions, layers whose keys have no bias."""
    h = fields.n("d_model", "hidden_size")
    inner, n_layers = fields.n("encoder_ffn_dim", "intermediate_size"), fields.n("encoder_layers", "num_hidden_layers")
    convolutions = linear(3 * fields.n("num_mel_bins"), h) + linear(3 * h, h)
    return convolutions + fields.n("max_source_positions") * h + n_layers * (block(h, inner) - h + 4 * h) + 2 * h


TOWERS: Mapping[str, tuple[Callable[[Fields], int], Mapping[str, Any]]] = {
    "siglip_vision_model": (siglip, {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "patch_size": 16, "image_size": 224,
        "vision_use_head": True,
    }),
    "siglip2_vision_model": (siglip, {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "patch_size": 16, "num_patches": 256,
        "vision_use_head": True,
    }),
    "idefics3_vision": (siglip, {
        "hidden_size": 1152, "intermediate_size": 3072, "num_hidden_layers": 12, "patch_size": 32, "image_size": 224,
    }),
    "clip_vision_model": (clip, {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "patch_size": 32, "image_size": 224,
    }),
    "pixtral": (pixtral, {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "patch_size": 16,
    }),
    "qwen2_vl": (qwen2_vl, {
        "depth": 32, "embed_dim": 1280, "hidden_size": 3584, "mlp_ratio": 4, "patch_size": 14,
        "spatial_merge_size": 2, "temporal_patch_size": 2,
    }),
    "qwen2_5_vl": (qwen2_5_vl, {
        "depth": 32, "hidden_size": 3584, "intermediate_size": 3420, "out_hidden_size": 3584, "patch_size": 14,
        "spatial_merge_size": 2, "temporal_patch_size": 2,
    }),
    "qwen3_vl": (qwen3_vl, {
        "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "out_hidden_size": 3584, "patch_size": 16,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [8, 16, 24],
    }),
    "qwen3_5": (qwen3_vl, {
        "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "out_hidden_size": 3584, "patch_size": 16,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 2304,
    }),
    "glm4v": (glm4v, {
        "depth": 24, "hidden_size": 1536, "out_hidden_size": 4096, "intermediate_size": 13696, "patch_size": 14,
        "image_size": 336, "spatial_merge_size": 2, "temporal_patch_size": 2,
    }),
    "llama4_vision_model": (llama4, {
        "hidden_size": 768, "intermediate_size": 5632, "num_hidden_layers": 34, "patch_size": 14, "image_size": 448,
        "projector_input_dim": 4096, "projector_output_dim": 4096, "vision_output_dim": 7680,
    }),
    "mllama_vision_model": (mllama, {
        "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_global_layers": 8,
        "patch_size": 14, "image_size": 448, "max_num_tiles": 4, "vision_output_dim": 7680,
    }),
    "internvl_vision": (internvl, {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "patch_size": 14, "image_size": 448,
    }),
    "kimi_k25_vision": (moonvit, {
        "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "patch_size": 14,
        "pos_emb_height": 64, "pos_emb_width": 64,
    }),
    "minimax_m3_vl_vision": (minimax_m3, {
        "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "patch_size": 14,
        "temporal_patch_size": 2,
    }),
    "step3p5_vision": (step, {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 47, "patch_size": 14,
        "max_position_embeddings": 2704,
    }),
    "gemma4_vision": (gemma4, {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 16, "num_attention_heads": 12,
        "num_key_value_heads": 12, "head_dim": 64, "patch_size": 16, "position_embedding_size": 10240,
    }),
    "gemma4_audio": (gemma4_audio, {
        "hidden_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 8, "conv_kernel_size": 5,
        "output_proj_dims": 1536, "subsampling_conv_channels": [128, 32],
    }),
    "whisper": (whisper, {"num_mel_bins": 128, "max_source_positions": 1500}),
}  # fmt: skip
"""Towers by the model_type of their section, with the defaults of its class."""
SAME_TOWER: Mapping[str, str] = {
    "smolvlm_vision": "idefics3_vision", "qwen2_vl_vision": "qwen2_vl", "qwen2_5_vl_vision": "qwen2_5_vl",
    "qwen3_vl_vision": "qwen3_vl", "qwen3_vl_moe": "qwen3_vl", "qwen3_vl_moe_vision": "qwen3_vl",
    "qwen3_5_vision": "qwen3_5", "qwen3_5_moe": "qwen3_5", "qwen3_5_moe_vision": "qwen3_5",
    "qwen4_exp": "qwen3_5", "qwen4_exp_vision": "qwen3_5", "cohere_compass": "qwen3_vl",
    "cohere_compass_vision": "qwen3_vl", "glm4v_vision": "glm4v",
    "glm4v_moe_vision": "glm4v", "glm4v_moe": "glm4v", "intern_vit_6b": "internvl_vision",
    "qwen2_audio_encoder": "whisper", "voxtral_encoder": "whisper",
}  # fmt: skip
"""Other names of the same towers."""


def tower(config: Fields, key: str, assumed: str) -> tuple[int, Fields]:
    """(parameters, fields) of the encoder under `key`, whose type is stated or assumed by its model."""
    kind = config.part(key).kind or assumed
    name = SAME_TOWER.get(kind, kind)
    if name not in TOWERS:
        name = assumed if kind == config.kind else ""
    if name not in TOWERS:
        raise Unknown
    count, defaults = TOWERS[name]
    fields = config.part(key, defaults)
    fields.kind = name
    return count(fields), fields
