"""GLM from ChatGLM to GLM-5.3, and Solar, which follows GLM-4.5."""

from __future__ import annotations

from dataclasses import replace

from calc.hf.architecture import ATTENTION_BIAS, BIASED, Architecture
from calc.hf.architectures.deepseek_v4 import residual_streams
from calc.hf.feed_forward import feed_forwards
from calc.hf.latent import latent_mixer, share_indexers
from calc.hf.layer_kinds import LINEAR_TYPE
from calc.hf.layers import stack
from calc.hf.reader import Reader, shown
from calc.model.layers import KimiDelta, Latent, LayerSpec, Mixer

_GLM4_MOE = Architecture(qkv_bias=ATTENTION_BIAS, qk_norm="head", qk_key=("use_qk_norm", False))


def _chatglm(reader: Reader, arch: Architecture) -> Architecture:
    return replace(arch, final_norm=reader.flag("post_layer_norm", True))


def _next_layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """GLM-5.3: Kimi delta attention, sparse latent attention in every fourth layer, several residual streams."""
    reader.ignore("hc_sinkhorn_iters")
    own = reader.section("linear_attn_config") or reader
    own.ignore("kda_layers", "full_attn_layers")  # layer_types lists them
    heads, head_dim = own.count("linear_num_heads", "num_heads"), own.count("linear_head_dim", "head_dim")
    kernel = own.count("linear_conv_kernel_dim", "short_conv_kernel_size")
    delta = KimiDelta(n_heads=heads, head_dim=head_dim, kernel=kernel, gate_rank=head_dim)
    types = _next_types(reader, n_layers)
    latent = latent_mixer(reader, arch)
    of: dict[bool, tuple[Mixer, ...]] = {True: (delta,), False: (latent,)}
    mixers = [
        tuple(_with_pools(reader, mixer, hidden_size) for mixer in own)
        for own in share_indexers(reader, [of[linear] for linear in types])
    ]
    reader.notes.append("indexer keys are counted before pooling; transformers also keeps gates")
    mixed = replace(arch, extra_params=2 * residual_streams(reader, hidden_size))
    return stack(reader, mixed, hidden_size, mixers, feed_forwards(reader, arch, n_layers))


def _next_types(reader: Reader, n_layers: int) -> list[bool]:
    """Whether each layer is linear: by layer_types, else all but every fourth."""
    listed = reader.per_layer("layer_types", n_layers)
    if listed is None:
        return [i % 4 != 3 for i in range(n_layers)]
    known = (LINEAR_TYPE, "deepseek_sparse_attention", "indexed_attention", "full_attention")
    if unknown := [kind for kind in listed if kind not in known]:
        raise reader.fail(f"layer_types has {shown(unknown[0])}: kvscope knows {', '.join(known)}")
    return [kind == LINEAR_TYPE for kind in listed]


def _with_pools(reader: Reader, mixer: Mixer, hidden_size: int) -> Mixer:
    """The indexer pools the keys of `index_kpool` tokens into one, with a gate and one row per position."""
    pool = reader.count("index_kpool")
    if not (isinstance(mixer, Latent) and mixer.index_heads):
        return mixer
    return replace(mixer, extra_params=mixer.extra_params + mixer.index_dim * (pool + hidden_size))


ARCHITECTURES = (
    Architecture(
        names=("chatglm",),
        qkv_bias=("add_qkv_bias", False),
        o_bias=("add_bias_linear", False),
        mlp_bias=("add_bias_linear", False),
        adapt=_chatglm,
    ),
    Architecture(names=("glm",), qkv_bias=ATTENTION_BIAS),
    Architecture(names=("glm4",), norms=4, qkv_bias=ATTENTION_BIAS),
    Architecture(names=("glm4v_text",), norms=4, qkv_bias=True),
    Architecture(names=("glm_ocr_text",), norms=4),
    replace(_GLM4_MOE, names=("glm4_moe", "glm4v_moe_text")),
    replace(_GLM4_MOE, names=("solar_open",)),
    replace(BIASED, names=("glm4_moe_lite",), first_dense=True),
    replace(BIASED, names=("glm_moe_dsa",)),
    replace(BIASED, names=("glm5_next_text",), defaults={"first_k_dense_replace": 3}, layers=_next_layers),
)
