"""GPT-2, GPT-Neo, GPT-J and GPT-NeoX, and other decoders of that time: BLOOM, OPT, MPT, StarCoder and others."""

from __future__ import annotations

from dataclasses import replace

from calc.hf.architecture import ATTENTION_BIAS, MLP_BIAS, Architecture, Outer
from calc.hf.reader import HIDDEN_SIZE, Reader

_PLAIN = Architecture(norm="layer", gated=False)
_BIASED = replace(_PLAIN, qkv_bias=True, o_bias=True, mlp_bias=True)
_GPT = replace(_BIASED, tied=True, wide_inner=True, needs_inner=False)
_GPTJ = replace(_PLAIN, norms=1, mlp_bias=True, head_bias=True, wide_inner=True, needs_inner=False)


def _opt(reader: Reader, arch: Architecture) -> Architecture:
    """OPT-350m has norms after the blocks and no final norm."""
    before = reader.flag("do_layer_norm_before", True) and not reader.flag("_remove_final_layer_norm")
    affine = reader.flag("layer_norm_elementwise_affine", True)
    return replace(arch, norm=arch.norm if affine else "none", final_norm=before)


def _opt_outer(reader: Reader) -> Outer:
    """OPT-350m has embeddings narrower than its layers, with projections in and out."""
    hidden_size = reader.count(*HIDDEN_SIZE)
    width = reader.count("word_embed_proj_dim", default=hidden_size)
    return Outer() if width == hidden_size else Outer(2 * width * hidden_size, width)


def _mpt(reader: Reader, arch: Architecture) -> Architecture:
    """ALiBi or a learned table; the transformers class supports only ALiBi, without biases."""
    attention = reader.section("attn_config")
    if attention is not None and (attention.flag("multiquery_attention") or attention.maybe("kv_n_heads")):
        raise reader.fail("kvscope does not support attn_config with kv_n_heads")
    if not reader.flag("no_bias", True):
        raise reader.fail("kvscope does not support no_bias false: only MPT without biases")
    alibi = attention is None or attention.flag("alibi", True)
    return arch if alibi else replace(arch, positions=0)


def _mpt_inner(reader: Reader, hidden_size: int) -> int:
    return reader.count("expansion_ratio", default=4) * hidden_size


def _japanese_inner(reader: Reader, hidden_size: int) -> int:
    return reader.count("intermediate_multiple_size", default=4) * hidden_size


def _japanese_outer(reader: Reader) -> Outer:
    """The bias of the last layer's projection."""
    return Outer(reader.count(*HIDDEN_SIZE))


ARCHITECTURES = (
    replace(_GPT, names=("gpt2", "gpt2_lm"), positions=0, default_positions=1024),
    replace(_GPT, names=("gpt-sw3",), positions=0, default_positions=1024),
    replace(_GPT, names=("gpt_bigcode",), positions=0, default_positions=1024),
    replace(_GPT, names=("gpt_neo",), unused=("window_size",), positions=0, default_positions=2048, qkv_bias=False),
    replace(_GPT, names=("openai-gpt",), positions=0, default_positions=512, final_norm=False),
    replace(_GPT, names=("biogpt",), positions=2),
    replace(_GPT, names=("bloom",), embedding_norm=True),
    replace(_GPTJ, names=("gptj",)),
    replace(_GPTJ, names=("codegen",)),
    replace(
        _PLAIN,
        names=("gpt_neox",),
        qkv_bias=("attention_bias", True),
        o_bias=("attention_bias", True),
        mlp_bias=True,
    ),
    replace(
        _PLAIN,
        names=("gpt_neox_japanese",),
        tied=True,
        needs_inner=False,
        inner_size=_japanese_inner,
        outer=_japanese_outer,
    ),
    replace(
        _PLAIN,
        names=("opt",),
        qkv_bias=("enable_bias", True),
        o_bias=("enable_bias", True),
        mlp_bias=("enable_bias", True),
        tied=True,
        positions=2,
        adapt=_opt,
        outer=_opt_outer,
    ),
    Architecture(
        names=("mpt",),
        norm="layer_weight",
        gated=False,
        tied=True,
        needs_inner=False,
        adapt=_mpt,
        inner_size=_mpt_inner,
    ),
    replace(_BIASED, names=("xglm",), tied=True, rename={"attention_heads": "num_attention_heads"}),
    replace(_BIASED, names=("persimmon",), qk_norm="head", qk_key=("qk_layernorm", True)),
    replace(
        _PLAIN,
        names=("starcoder2",),
        qkv_bias=("use_bias", True),
        o_bias=("use_bias", True),
        mlp_bias=("use_bias", True),
        tied=True,
        window="all",
    ),
    replace(
        _PLAIN,
        names=("jais2",),
        qkv_bias=("attention_bias", True),
        o_bias=("attention_bias", True),
        mlp_bias=("mlp_bias", True),
    ),
    replace(_PLAIN, names=("nemotron",), qkv_bias=ATTENTION_BIAS, o_bias=ATTENTION_BIAS, mlp_bias=MLP_BIAS),
    Architecture(
        names=("gpt_oss",),
        qkv_bias=("attention_bias", True),
        o_bias=("attention_bias", True),
        expert_bias=True,
        router_bias=True,
        sinks=True,
        window="every:2",
        default_window=128,
    ),
)
