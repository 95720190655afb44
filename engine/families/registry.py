"""All families that the engine runs, by the model_type of a config.json."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine.errors import ConfigError, UnsupportedArchitecture
from engine.families import (
    apertus,
    bitnet,
    bloom,
    cohere,
    deepseek,
    ernie,
    exaone,
    falcon,
    gemma,
    glm,
    gpt2,
    gpt_bigcode,
    gpt_j,
    gpt_neo,
    gpt_neox,
    gpt_oss,
    granite,
    hunyuan,
    lfm2,
    llama,
    minimax,
    mixtral,
    mpt,
    nanochat,
    nemotron,
    olmo,
    opt,
    phi,
    phi3,
    qwen,
    qwen3_next,
    stablelm,
    starcoder2,
)
from engine.families.family import Family
from engine.families.keys import Keys
from engine.model.config import ModelConfig
from engine.weights.lazy import Stored
from engine.weights.quantized import METHODS

FAMILIES: dict[str, Family] = {
    **llama.FAMILIES,
    **qwen.FAMILIES,
    **gemma.FAMILIES,
    **gpt2.FAMILIES,
    **gpt_bigcode.FAMILIES,
    **gpt_j.FAMILIES,
    **gpt_neo.FAMILIES,
    **phi3.FAMILIES,
    **mixtral.FAMILIES,
    **bloom.FAMILIES,
    **mpt.FAMILIES,
    **deepseek.FAMILIES,
    **gpt_oss.FAMILIES,
    **olmo.FAMILIES,
    **opt.FAMILIES,
    **granite.FAMILIES,
    **hunyuan.FAMILIES,
    **stablelm.FAMILIES,
    **starcoder2.FAMILIES,
    **cohere.FAMILIES,
    **glm.FAMILIES,
    **exaone.FAMILIES,
    **phi.FAMILIES,
    **falcon.FAMILIES,
    **gpt_neox.FAMILIES,
    **nanochat.FAMILIES,
    **nemotron.FAMILIES,
    **ernie.FAMILIES,
    **lfm2.FAMILIES,
    **apertus.FAMILIES,
    **minimax.FAMILIES,
    **bitnet.FAMILIES,
    **qwen3_next.FAMILIES,
}
_BUFFERS = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")  # tables in files of old writers


def config_from_hf(document: object) -> ModelConfig:
    """The config that a parsed config.json describes. Raises ConfigError, UnsupportedArchitecture."""
    if not isinstance(document, dict):
        raise ConfigError("config.json must hold one JSON object")
    raw = Keys(document)
    model_type = model_type_of(raw)
    family = FAMILIES.get(model_type)
    if family is None:
        raise UnsupportedArchitecture(
            f'config.json has model_type "{model_type}", which the engine cannot run; it supports {", ".join(FAMILIES)}'
        )
    _check_quantization(raw, family)
    config, section = family.config(raw), raw.section("quantization_config")
    return replace(config, byte_inputs=True) if section is not None and _method(section) == "bitnet" else config


def model_type_of(raw: Keys) -> str:
    """The model_type, or that of the class in ``architectures``. Raises ConfigError."""
    classes = raw.get("architectures")
    if raw.get("model_type") is None and isinstance(classes, list) and classes:
        wanted = str(classes[0]).removesuffix("ForCausalLM").removesuffix("LMHeadModel").lower()
        found = next((name for name in FAMILIES if name.replace("_", "") == wanted), None)
        if found is not None:
            return found
    return raw.text("model_type")


def _check_quantization(raw: Keys, family: Family) -> None:
    section = raw.section("quantization_config")
    if section is None or (method := _method(section)) in (*METHODS, *family.quantization):
        return
    raise UnsupportedArchitecture(
        f"config.json has a quantization_config of {method!r}; only {', '.join(METHODS)} are supported"
    )


def _method(section: Keys) -> Any:
    """The quant_method; inferred for the first bitsandbytes files, which do not state it."""
    old = section.get("load_in_4bit") or section.get("load_in_8bit")
    return section.get("quant_method") or ("bitsandbytes" if old else None)


def canonical_names(tensors: Mapping[str, Stored], *, model_type: str, config: ModelConfig) -> dict[str, Stored]:
    """Tensors of a Hugging Face checkpoint with our names; views if possible. Unknown names are kept."""
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(_BUFFERS)}
    if config.tied:
        kept.pop("lm_head.weight", None)  # stored a second time
    family = FAMILIES.get(model_type)
    return kept if family is None or family.tensors is None else family.tensors(kept, config)
