"""Which architectures of llama.cpp a layer-by-layer reading is right for (src/llama-arch.cpp, LLM_ARCH_NAMES).

Sizes come from the tensors and the metadata of each layer, whatever the architecture. What must be known of it is
that llama.cpp keeps for each layer what its tensors suggest: K and V, a latent, or a state.
"""

from __future__ import annotations

from collections.abc import Mapping

from calc.sources.gguf.facts import Facts, Undetermined

BY_LAYERS = frozenset(
    """afmoe apertus arcee arctic arwkv7 baichuan bailingmoe bailingmoe2 bailingmoe3 bitnet bloom chameleon chatglm
    codeshell cogvlm cohere2 cohere2moe command-r dbrx deci deepseek deepseek2 deepseek2-ocr deepseek32 deepseek4 dots1
    ernie4_5 ernie4_5-moe exaone exaone-moe exaone4 falcon falcon-h1 gemma gemma2 gemma3 gemma3n gemma4 glm-dsa glm4
    glm4moe glm5-next gpt-oss gpt2 gptj gptneox granite granite_swa granitehybrid granitemoe grok grovemoe hunyuan-dense
    hunyuan-moe hunyuan_vl hy_v3 hy_v4 internlm2 jais jais2 jamba kimi-k3 kimi-linear laguna lfm2 lfm2moe llama llama4
    maincoder mamba mamba2 maple mellum mimo2 minicpm minicpm3 minimax-01 minimax-m2 minimax-m3 mistral3 mistral4 mpt
    muse-glimmer nanbeige nemotron nemotron_h nemotron_h_moe olmo olmo2 olmoe openelm orion paddleocr pangu-embedded
    phi2 phi3 phimoe plamo plamo2 plamo3 plm qwen qwen2 qwen2moe qwen2vl qwen3 qwen35 qwen35moe qwen3moe qwen3next
    qwen3vl qwen3vlmoe qwen4exp refact rwkv6 rwkv6qwen2 rwkv7 seed_oss smallthinker smollm3 spark2_5 stablelm starcoder
    starcoder2 step35 talkie xverse""".split()
)

_ENCODER = "is an encoder, which keeps no cache"
_DIFFUSION = "is a diffusion model, which keeps no cache"
_DRAFT = "is a draft head, which reads the cache of another model"
OTHERWISE: Mapping[str, str] = {
    **dict.fromkeys(
        """bert eurobert gemma-embedding jina-bert-v2 jina-bert-v3 llama-embed modern-bert neo-bert nomic-bert
        nomic-bert-moe t5encoder""".split(),
        _ENCODER,
    ),
    **dict.fromkeys(("dream", "llada", "llada-moe", "rnd1"), _DIFFUSION),
    **dict.fromkeys(("dflash", "eagle3", "gemma4-assistant"), _DRAFT),
    "clip": "is an encoder of images or sound, which keeps no cache",
    "dots3note": "keeps windows of latents, which kvscope does not count from GGUF",
    "graniteswitch": "keeps the signals of its adapters, which kvscope does not count from GGUF",
    "hrm_text": "goes through its layers several times, which kvscope does not count from GGUF",
    "t5": "has an encoder and a decoder, which kvscope does not count from GGUF",
}
"""Why the cache of an architecture is not told by its layers."""


def _bare(name: str) -> str:
    return name.replace("-", "").replace("_", "")


_BARE = frozenset(map(_bare, BY_LAYERS))
"""Names however they are hyphenated (gptj, gpt-j)."""


def check_readable(facts: Facts) -> None:
    """Raise Undetermined for an architecture whose cache its layers do not tell."""
    name, kind = facts.architecture, facts.header.metadata.get("general.type", "model")
    if name in OTHERWISE:
        raise Undetermined(f"architecture {name!r} {OTHERWISE[name]}")
    if kind != "model":
        raise Undetermined(f"general.type is {str(kind)[:40]!r}, not a model")
    if _bare(name) not in _BARE:
        raise Undetermined(f"architecture {name[:40]!r} is not one that kvscope reads from GGUF")
    if any(block.has("ple_key") for block in facts.blocks):
        raise Undetermined("embeddings of n-grams keep a state that kvscope does not count")
