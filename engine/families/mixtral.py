"""Mixtral: a Mistral whose MLPs are experts. Its GGUF files are Llama's, with experts."""

import re
from collections.abc import Mapping

from engine.families.common import common_config, window_fields
from engine.families.family import Family
from engine.families.keys import Keys
from engine.model.config import ExpertsConfig, ModelConfig
from engine.weights.lazy import Stored


def _config(raw: Keys) -> ModelConfig:
    experts = ExpertsConfig(
        n_experts=raw.count("num_local_experts", 8),
        n_active=raw.count("num_experts_per_tok", 2),
        intermediate_size=raw.count("intermediate_size"),
        normalize=True,
    )
    eps = raw.positive("rms_norm_eps", 1e-5)
    return common_config(raw, theta=1e6, norm_eps=eps, experts=experts, **window_fields(raw, None))


_PARTS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_EXPERT = re.compile(r"(.+)\.experts\.(\d{1,5})\.(w[123])\.weight")


def mixtral_tensors(tensors: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    """The tensors with experts under our names."""
    return {mixtral_name(name): tensor for name, tensor in tensors.items()}


def mixtral_name(name: str) -> str:
    """Our name of an expert's matrix; other names are unchanged."""
    name = name.replace(".block_sparse_moe.", ".mlp.")
    match = _EXPERT.fullmatch(name)
    return f"{match[1]}.experts.{match[2]}.{_PARTS[match[3]]}.weight" if match else name


FAMILIES = {"mixtral": Family(config=_config, tensors=mixtral_tensors)}
