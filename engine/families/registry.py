"""All families that the engine runs, by the model_type of a config.json."""

from collections.abc import Mapping

from engine.errors import ConfigError, UnsupportedArchitecture
from engine.families import (
    cohere,
    deepseek,
    exaone,
    falcon,
    gemma,
    glm,
    gpt2,
    gpt_neox,
    gpt_oss,
    granite,
    lfm2,
    llama,
    mixtral,
    nanochat,
    olmo,
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

FAMILIES: dict[str, Family] = {
    **llama.FAMILIES,
    **qwen.FAMILIES,
    **gemma.FAMILIES,
    **gpt2.FAMILIES,
    **phi3.FAMILIES,
    **mixtral.FAMILIES,
    **deepseek.FAMILIES,
    **gpt_oss.FAMILIES,
    **olmo.FAMILIES,
    **granite.FAMILIES,
    **stablelm.FAMILIES,
    **starcoder2.FAMILIES,
    **cohere.FAMILIES,
    **glm.FAMILIES,
    **exaone.FAMILIES,
    **phi.FAMILIES,
    **falcon.FAMILIES,
    **gpt_neox.FAMILIES,
    **nanochat.FAMILIES,
    **lfm2.FAMILIES,
    **qwen3_next.FAMILIES,
}
_BUFFERS = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")  # tables that old writers stored


def config_from_hf(document: object) -> ModelConfig:
    """The config that a parsed config.json describes. Raises ConfigError, UnsupportedArchitecture."""
    if not isinstance(document, dict):
        raise ConfigError("config.json must hold one JSON object")
    raw = Keys(document)
    model_type = raw.text("model_type")
    family = FAMILIES.get(model_type)
    if family is None:
        raise UnsupportedArchitecture(
            f'config.json has model_type "{model_type}", which the engine cannot run; it runs {", ".join(FAMILIES)}'
        )
    if raw.get("quantization_config") is not None and not _is_widened(raw, family):
        raise UnsupportedArchitecture(
            "config.json has a quantization_config; the engine loads unquantised weights only"
        )
    return family.config(raw)


def _is_widened(raw: Keys, family: Family) -> bool:
    section = raw.section("quantization_config") if family.quantization else None
    return section is not None and section.get("quant_method") in family.quantization


def canonical_names(tensors: Mapping[str, Stored], *, model_type: str, config: ModelConfig) -> dict[str, Stored]:
    """Tensors of a Hugging Face checkpoint under our names; views where possible. Unknown names are kept."""
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(_BUFFERS)}
    if config.tied:
        kept.pop("lm_head.weight", None)
    family = FAMILIES.get(model_type)
    return kept if family is None or family.tensors is None else family.tensors(kept, config)
