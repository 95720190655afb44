"""GGUF headers of published models: parameters as published, elements per token and state by hand.

The tensor lists are those that llama.cpp loads (src/models/*.cpp). Totals are those of the published weights or of
transformers' classes, plus what a GGUF file holds in addition: the correction biases of routers (one for each
expert), and K and V of Gemma 3n's last layers (whose table has no rows for images). Metadata keys are those of
gguf-py's constants. llama.cpp itself loaded these headers and printed the same parameters and cache (docs/LOG.md).
"""

import pytest

from calc.model.cache import cache_elements, state_elements
from calc.model.count import parameters
from calc.sources import load_model
from tests.calc import gguf_headers as g
from tests.calc.gguf_headers import MLA, Published, heads, moe


def qwen35(i, moe, *, joint):
    """A layer of Qwen3-Next or Qwen3.5: every fourth has gated attention."""
    if i % 4 == 3:
        mixer = g.attention(2048, 2 * 4096, 512, out=4096) | g.qk_norm(256)
    else:
        mixer = g.gated_delta(2048, 16, 32, 128, 4, joint=joint)
    norms = {"attn_norm.weight": (2048,), "post_attention_norm.weight": (2048,)}
    return mixer | moe | norms | {"ffn_gate_inp_shexp.weight": (2048,)}


DELTA = {"ssm.conv_kernel": 4, "ssm.state_size": 128, "ssm.group_count": 16, "ssm.time_step_rank": 32}
QWEN = heads(16, 2, key=256, value=256) | DELTA | {"ssm.inner_size": 4096}


def gemma3n(i):
    layer = g.attention(2048, 2048, 512) | g.qk_norm(256) | g.mlp(2048, 16384)
    layer |= g.norms(2048, "post_attention_norm", "post_ffw_norm", "post_norm", "laurel_post_norm", "altup_router_norm")
    return layer | {
        "inp_gate.weight": (2048, 256), "proj.weight": (256, 2048), "altup_correct_coef.weight": (4, 4),
        "altup_correct_scale.weight": (2048,), "altup_predict_coef.weight": (4, 16), "altup_router.weight": (2048, 4),
        "laurel_l.weight": (2048, 64), "laurel_r.weight": (64, 2048),
    }  # fmt: skip


GEMMA3N_OUTER = {
    "altup_proj.weight": (2048, 2048, 3), "altup_unembd_proj.weight": (2048, 2048, 3),
    "per_layer_token_embd.weight": (256 * 35, 262144), "per_layer_model_proj.weight": (2048, 256 * 35),
    "per_layer_proj_norm.weight": (256,),
}  # fmt: skip


def gemma4(i):
    """Five layers slide, one is full: with twice the width, two KV heads, and V from K."""
    if i % 6 == 5:
        mixer = g.attention(2816, 16 * 512, 2 * 512) | g.qk_norm(512)
        del mixer["attn_v.weight"]
    else:
        mixer = g.attention(2816, 16 * 256, 8 * 256) | g.qk_norm(256)
    more = ("post_attention_norm", "post_ffw_norm", "post_ffw_norm_1", "post_ffw_norm_2", "pre_ffw_norm_2")
    moe = g.experts(2816, 704, 128) | {"ffn_gate_inp.scale": (2816,), "ffn_down_exps.scale": (128,)}
    return mixer | g.mlp(2816, 2112) | moe | g.norms(2816, *more)


def glm45(i):
    mixer = g.attention(5120, 96 * 128, 8 * 128) | g.qk_norm(128)
    mixer |= {"attn_q.bias": (96 * 128,), "attn_k.bias": (1024,), "attn_v.bias": (1024,)}
    feed = g.mlp(5120, 12288) if i < 3 else g.experts(5120, 1536, 160, shared=1536, biased=True)
    return mixer | feed | {"attn_norm.weight": (5120,), "post_attention_norm.weight": (5120,)}


PREDICTOR = {
    "nextn.eh_proj.weight": (2 * 5120, 5120), "nextn.enorm.weight": (5120,), "nextn.hnorm.weight": (5120,),
    "nextn.shared_head_norm.weight": (5120,),
}  # fmt: skip


def deepseek(i, mixer, hidden=7168, dense=18432, inner=2048, n=256, first=3):
    feed = g.mlp(hidden, dense) if i < first else g.experts(hidden, inner, n, shared=inner, biased=True)
    return mixer | feed | g.norms(hidden)


V3 = g.latent(7168, 128, 512, 128, 64, 128, 1536)
V2_LITE = g.whole_latent(2048, 16, 512, 128, 64, 128)


def v2_lite(i):
    feed = g.mlp(2048, 10944) if i < 1 else g.experts(2048, 1408, 64, shared=2816)
    return V2_LITE | feed | g.norms(2048)


def kimi(i):
    """Every fourth layer, and the last, is latent."""
    full = i + 1 in (4, 8, 12, 16, 20, 24, 27)
    mixer = g.latent(2304, 32, 512, 128, 64, 128) if full else g.kimi_delta(2304, 32, 128, 4)
    feed = g.mlp(2304, 9216) if i < 1 else g.experts(2304, 1024, 256, shared=1024, biased=True)
    return mixer | feed | g.norms(2304)


def nemotron(letter):
    """Mamba-2, attention or experts, each with one norm."""
    parts = {
        "M": g.mamba2(2688, 4096, 64, 8, 128, 4),
        "*": g.attention(2688, 32 * 128, 2 * 128),
        "E": g.experts(2688, 1856, 128, shared=3712, gated=False, biased=True),
    }
    return parts[letter] | {"attn_norm.weight": (2688,)}


NEMOTRON = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
SSM = {"ssm.conv_kernel": 4, "ssm.state_size": 128, "ssm.group_count": 8, "ssm.inner_size": 4096}


def jamba(i):
    state = g.mamba(4096, 8192, 16, 4, 256)
    state |= {"ssm_dt_norm.weight": (256,), "ssm_b_norm.weight": (16,), "ssm_c_norm.weight": (16,)}
    mixer = g.attention(4096, 4096, 1024) if i % 8 == 4 else state
    return mixer | (g.experts(4096, 14336, 16) if i % 2 else g.mlp(4096, 14336)) | g.norms(4096)


def falcon_h1(i):
    state = g.mamba2(1024, 1536, 24, 1, 128, 4)
    del state["ssm_norm.weight"]
    return (
        state
        | g.attention(1024, 8 * 64, 2 * 64)
        | g.mlp(1024, 2048)
        | {"attn_norm.weight": (1024,), "ffn_norm": (1024,)}
    )


def mimo(i):
    slides = bool(i and (i + 1) % 6)
    kv = 8 if slides else 4
    mixer = g.attention(4096, 64 * 192, kv * 192, kv * 128, 64 * 128)
    mixer |= {"attn_sinks.weight": (64,)} if slides else {}
    feed = g.mlp(4096, 16384) if i < 1 else g.experts(4096, 2048, 256, biased=True)
    return mixer | feed | g.norms(4096)


MIMO_SLIDES = [bool(i and (i + 1) % 6) for i in range(48)]


def gpt_oss(i):
    mixer = g.attention(2880, 4096, 512) | {"attn_sinks.weight": (64,), "attn_output.bias": (2880,)}
    mixer |= {"attn_q.bias": (4096,), "attn_k.bias": (512,), "attn_v.bias": (512,)}
    moe = g.experts(2880, 2880, 128) | {"ffn_gate_inp.bias": (128,)}
    moe |= {f"ffn_{name}_exps.bias": (2880, 128) for name in ("gate", "up", "down")}
    return mixer | moe | {"attn_norm.weight": (2880,), "post_attention_norm.weight": (2880,)}


OPENELM_HEADS = [12] * 5 + [16] * 7 + [20] * 4
OPENELM_KV = [3] * 5 + [4] * 7 + [5] * 4
OPENELM_INNER = [
    768, 1024, 1280, 1536, 1792, 2048, 2560, 2816, 3072, 3328, 3584, 3840, 4352, 4608, 4864, 5120,
]  # fmt: skip


def openelm(i):
    mixer = g.fused(1280, 64 * OPENELM_HEADS[i], 64 * OPENELM_KV[i]) | g.qk_norm(64)
    return mixer | g.mlp(1280, OPENELM_INNER[i]) | g.norms(1280)


def chatglm(i):
    mixer = g.fused(4096, 4096, 256) | {"attn_qkv.bias": (4096 + 512,)}
    return mixer | {"ffn_up.weight": (4096, 2 * 13696), "ffn_down.weight": (13696, 4096)} | g.norms(4096)


def phimoe(i):
    mixer = g.attention(4096, 4096, 1024) | {"attn_output.bias": (4096,)}
    mixer |= {"attn_q.bias": (4096,), "attn_k.bias": (1024,), "attn_v.bias": (1024,)}
    norms = {"attn_norm.bias": (4096,), "ffn_norm.bias": (4096,)}
    return mixer | g.experts(4096, 6400, 16) | g.norms(4096) | norms


def ling(i):
    mixer = g.fused(2048, 2048, 512) | g.qk_norm(128)
    feed = g.mlp(2048, 5120) if i < 1 else g.experts(2048, 512, 256, shared=512, biased=True)
    return mixer | feed | g.norms(2048)


def deepseek4(i):
    """Two windows alone, then a row for 4 tokens and one for 128 in turn; the first three choose experts by a table."""
    ratio = 0 if i < 2 else 4 if i % 2 == 0 else 128
    sparse = g.experts(4096, 2048, 256, shared=2048, biased=i >= 3)
    table = {"ffn_gate_tid2eid.weight": (6, 129280)} if i < 3 else {}
    return g.compressed(4096, 64, 512, 1024, 8, 1024, ratio) | g.streams(4096, 4) | sparse | table | g.norms(4096)


QWEN2 = g.attention(3584, 3584, 512) | g.mlp(3584, 18944) | g.norms(3584)
QWEN2 |= {"attn_q.bias": (3584,), "attn_k.bias": (512,), "attn_v.bias": (512,)}
PERIOD = [True, True, True, True, True, False]
EXAONE4 = g.attention(5120, 5120, 1024) | g.qk_norm(128) | g.mlp(5120, 27392)
EXAONE4 |= {"post_attention_norm.weight": (5120,), "post_ffw_norm.weight": (5120,)}

PUBLISHED = {
    "Qwen3.5-35B-A3B": Published(
        "qwen35moe", 34_660_610_688,
        [qwen35(i, g.experts(2048, 512, 256, shared=512), joint=False) for i in range(40)], 2048, 248320,
        QWEN | moe(256, 8), full=10 * 2 * 2 * 256, state=30 * (32 * 128 * 128 + 64 * 128 * 4),
    ),
    "Qwen3-Next-80B-A3B": Published(
        "qwen3next", 79_674_391_296,
        [qwen35(i, g.experts(2048, 512, 512, shared=512), joint=True) for i in range(48)], 2048, 151936,
        QWEN | moe(512, 10), full=12 * 2 * 2 * 256, state=36 * (32 * 128 * 128 + 64 * 128 * 4),
    ),
    "Qwen3-VL-8B": Published(
        "qwen3vl", 8_190_735_360,
        [g.attention(4096, 4096, 1024) | g.qk_norm(128) | g.mlp(4096, 12288) | g.norms(4096)] * 36, 4096, 151936,
        heads(32, 8, key=128, value=128), full=73_728,
    ),
    "Qwen3-VL-30B-A3B": Published(
        "qwen3vlmoe", 30_532_122_624,
        [g.attention(2048, 4096, 512) | g.qk_norm(128) | g.experts(2048, 768, 128) | g.norms(2048)] * 48, 2048, 151936,
        heads(32, 4, key=128, value=128) | moe(128, 8), full=49_152,
    ),
    "Qwen2-VL-7B": Published("qwen2vl", 7_615_616_512, [QWEN2] * 28, 3584, 152064, heads(28, 4), full=28_672),
    "gemma-3n-E4B": Published(
        "gemma3n", 6_835_235_568 + 15 * (2 * 2048 * 512 + 256) - 256 * 2048, [gemma3n(i) for i in range(35)], 2048,
        262144,
        heads(8, 2, key=256, value=256) | {"attention.sliding_window": 512, "attention.shared_kv_layers": 15},
        full=4 * 1024, windowed={512: 16 * 1024}, tied=True, outer=GEMMA3N_OUTER,
    ),
    "gemma-4-26B-A4B": Published(
        "gemma4", 25_233_141_760, [gemma4(i) for i in range(30)], 2816, 262144,
        heads(16, [8, 8, 8, 8, 8, 2] * 5, key=512, value=512) | moe(128, 8) | {
            "attention.key_length_swa": 256, "attention.value_length_swa": 256, "attention.sliding_window": 1024,
            "attention.sliding_window_pattern": PERIOD * 5,
        },
        full=5 * 2 * 2 * 512, windowed={1024: 25 * 8 * 2 * 256}, tied=True, outer={"rope_freqs.weight": (256,)},
    ),
    "GLM-4.5": Published(
        "glm4moe", 352_797_814_784 + 89 * 160, [glm45(i) for i in range(92)] + [glm45(92) | PREDICTOR], 5120, 151552,
        heads(96, 8, key=128, value=128) | moe(160, 8, nextn_predict_layers=1), full=188_416,
    ),
    "GLM-5": Published(
        "glm-dsa", 743_911_199_232 + 75 * 256,
        [
            deepseek(i, g.latent(6144, 64, 512, 192, 64, 256, 2048) | g.indexer(6144, 32, 128, 2048), 6144, 12288)
            for i in range(78)
        ],
        6144, 154880,
        heads(64, 1) | moe(256, 8) | MLA | {"attention.key_length_mla": 256, "attention.value_length_mla": 256},
        latent=78 * 576,
    ),
    "DeepSeek-V3": Published(
        "deepseek2", 671_026_404_352 + 58 * 256, [deepseek(i, V3) for i in range(61)], 7168, 129280,
        heads(128, 1) | moe(256, 8) | MLA, latent=61 * 576,
    ),
    "DeepSeek-V3.2": Published(
        "deepseek32", 671_877_929_216 + 58 * 256,
        [deepseek(i, V3 | g.indexer(7168, 64, 128, 1536)) for i in range(61)], 7168, 129280,
        heads(128, 1) | moe(256, 8) | MLA, latent=61 * 576,
    ),
    "DeepSeek-V4-Flash": Published(
        "deepseek4", 284_332_230_231 + 40 * 256, [deepseek4(i) for i in range(43)], 4096, 129280,
        heads(64, 1, key=512, value=512) | moe(256, 6) | {
            "attention.output_group_count": 8, "attention.output_lora_rank": 1024, "attention.sliding_window": 128,
        },
        latent=21 * 128 + 20 * 4, windowed={128: 43 * 512},
        outer={"output_hc_fn.weight": (4 * 4096, 4), "output_hc_base.weight": (4,), "output_hc_scale.weight": (1,)},
    ),
    "DeepSeek-V2-Lite before April 2025": Published(
        "deepseek2", 15_706_484_224, [v2_lite(i) for i in range(27)], 2048, 102400,
        heads(16, 16, key=192, value=128) | moe(64, 6) | {"attention.kv_lora_rank": 512}, full=27 * 16 * (192 + 128),
    ),
    "MiniCPM3-4B": Published(
        "minicpm3", 4_073_875_968,
        [g.whole_latent(2560, 40, 256, 64, 32, 64, 768) | g.mlp(2560, 6400) | g.norms(2560)] * 62, 2560, 73448,
        heads(40, 40, key=96, value=64) | {"attention.kv_lora_rank": 256, "attention.q_lora_rank": 768},
        full=62 * 40 * (96 + 64), tied=True,
    ),
    "Kimi-Linear-48B-A3B": Published(
        "kimi-linear", 49_122_675_072 + 26 * 256, [kimi(i) for i in range(27)], 2304, 163840,
        heads(32, [0 if (i + 1) % 4 and i < 26 else 1 for i in range(27)]) | moe(256, 8) | MLA | {"kda.head_dim": 128},
        latent=7 * 576, state=20 * 32 * (128 * 128 + 3 * 128 * 4),
    ),
    "Llama-4-Scout": Published(
        "llama4", 107_769_861_120,
        [g.attention(5120, 5120, 1024) | g.experts(5120, 8192, 16, shared=8192) | g.norms(5120)] * 48, 5120, 202048,
        heads(40, 8, key=128, value=128) | moe(16, 1, interleave_moe_layer_step=1), full=24_576,
        windowed={8192: 73_728},
    ),
    "deepseek-moe-16b": Published(
        "deepseek", 16_375_728_128,
        [
            g.attention(2048, 2048, 2048) | g.norms(2048)
            | (g.mlp(2048, 10944) if i < 1 else g.experts(2048, 1408, 64, shared=2816)) for i in range(28)
        ],
        2048, 102400, heads(16, 16) | moe(64, 6), full=28 * 2 * 2048,
    ),
    "Nemotron-3-Nano-30B-A3B": Published(
        "nemotron_h_moe", 31_577_937_344 + 23 * 128, [nemotron(letter) for letter in NEMOTRON], 2688, 131072,
        heads(32, [2 if letter == "*" else 0 for letter in NEMOTRON], key=128, value=128) | moe(128, 6) | SSM,
        full=3_072, state=12_623_872,
    ),
    "Jamba-v0.1": Published(
        "jamba", 51_570_323_328, [jamba(i) for i in range(32)], 4096, 65536,
        heads(32, [8 if i % 8 == 4 else 0 for i in range(32)]) | moe(16, 2), full=8_192, state=4_587_520,
    ),
    "mamba-130m": Published(
        "mamba", 129_135_360, [g.mamba(768, 1536, 16, 4, 48) | {"attn_norm.weight": (768,)}] * 24, 768, 50280,
        heads(0), state=24 * 1536 * (16 + 4), tied=True,
    ),
    "Mamba-Codestral-7B": Published(
        "mamba2", 7_285_403_648, [g.mamba2(4096, 8192, 128, 8, 128, 4) | {"attn_norm.weight": (4096,)}] * 64, 4096,
        32768, {"ssm.group_count": 8}, state=64 * (8192 * 128 + (8192 + 2 * 8 * 128) * 4),
    ),
    "Falcon-H1-0.5B": Published(
        "falcon-h1", 521_411_104, [falcon_h1(i) for i in range(36)], 1024, 32784,
        heads(8, 2, key=64, value=64) | {"ssm.group_count": 1}, full=36 * 2 * 2 * 64,
        state=36 * (1536 * 128 + (1536 + 2 * 128) * 4),
    ),
    "Ling-mini-2.0": Published(
        "bailingmoe2", 16_255_638_528 + 19 * 256, [ling(i) for i in range(20)], 2048, 157184,
        heads(16, 4, key=128, value=128) | moe(256, 8), full=20 * 2 * 4 * 128,
    ),
    "MiMo-V2-Flash": Published(
        "mimo2", 308_778_768_832 + 47 * 256, [mimo(i) for i in range(48)], 4096, 152576,
        heads(64, [8 if slides else 4 for slides in MIMO_SLIDES], key=192, value=128) | moe(256, 8) | {
            "attention.sliding_window": 128, "attention.sliding_window_pattern": MIMO_SLIDES,
        },
        full=9 * 4 * 320, windowed={128: 39 * 8 * 320},
    ),
    "OpenELM-270M": Published(
        "openelm", 271_527_168, [openelm(i) for i in range(16)], 1280, 32000,
        heads(OPENELM_HEADS, OPENELM_KV, key=64, value=64), full=8_064, tied=True,
    ),
    "chatglm3-6b": Published(
        "chatglm", 6_243_584_000, [chatglm(i) for i in range(28)], 4096, 65024, heads(32, 2), full=14_336
    ),
    "Phi-3.5-MoE": Published(
        "phimoe", 41_873_153_344, [phimoe(i) for i in range(32)], 4096, 32064, heads(32, 8) | moe(16, 2), full=65_536,
        outer={"output_norm.bias": (4096,), "output.bias": (32064,)},
    ),
    "gpt-oss-120b": Published(
        "gpt-oss", 116_829_156_672, [gpt_oss(i) for i in range(36)], 2880, 201088,
        heads(64, 8, key=64, value=64) | moe(128, 4) | {"attention.sliding_window": 128},
        full=18 * 1024, windowed={128: 18 * 1024},
    ),
    "EXAONE-4.0-32B": Published(
        "exaone4", 32_003_216_384, [EXAONE4] * 64, 5120, 102400, heads(40, 8) | {"attention.sliding_window": 4096},
        full=32_768, windowed={4096: 98_304},
    ),
    "baichuan-7b": Published(
        "baichuan", 7_000_559_616, [g.attention(4096, 4096, 4096) | g.mlp(4096, 11008) | g.norms(4096)] * 32, 4096,
        64000, heads(32, 32), full=262_144,
    ),
    "minicpm-2b": Published(
        "minicpm", 2_724_880_896, [g.attention(2304, 2304, 2304) | g.mlp(2304, 5760) | g.norms(2304)] * 40, 2304,
        122753, heads(36, 36), full=184_320, tied=True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published(name, tmp_path):
    known = PUBLISHED[name]
    model = load_model(str(known.write(tmp_path / "m.gguf")))
    assert parameters(model).total == known.params
    elements = cache_elements(model)
    assert (elements.full, elements.latent, elements.windowed) == (known.full, known.latent, known.windowed)
    assert state_elements(model) == known.state
    assert model.tied is known.tied
