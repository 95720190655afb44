"""Count the parameters of a published config without calc: build the transformers class on the meta device."""

from __future__ import annotations

from typing import Any

RELEASE = "5.23"
"""The transformers that counted; sources name it."""
NOT_SIZES = (
    "model_type", "quantization_config", "architectures", "auto_map", "transformers_version", "torch_dtype", "dtype",
    "text_config", "vision_config",
)  # fmt: skip
SAME_FIELDS = {"kimi_k2": "deepseek_v3", "minimax_m3": "minimax_m3_vl_text"}
"""Types of published configs whose class transformers has under another name."""


def counted_by(config: dict[str, Any]) -> str:
    """What `count` used, in words."""
    return f"the {config['model_type']} class of transformers {RELEASE} on the meta device"


def count(config: dict[str, Any]) -> int:
    """Parameters of the text model: no weights, no arithmetic of ours."""
    import torch
    from transformers import AutoConfig

    config = {**config, **(config.get("text_config") or {})}
    model_type = SAME_FIELDS.get(config["model_type"], config["model_type"])
    sizes = {key: value for key, value in config.items() if key not in NOT_SIZES}
    with torch.device("meta"):
        if model_type == "step3p7":
            return _count_step(sizes)
        # pad_token_id: Phi-3's class default lies outside some vocabularies; it changes no size.
        extra = {"pad_token_id": 0} if model_type == "phi3" else {}
        model = _causal_model(AutoConfig.for_model(model_type, **sizes, **extra))
        model.tie_weights()
    return sum(parameter.numel() for parameter in model.parameters())


def _causal_model(config: Any) -> Any:
    """The class with a head; a few types have one that AutoModelForCausalLM does not list."""
    import torch
    import transformers

    if config.model_type == "mistral4":
        return transformers.Mistral4ForCausalLM(config)
    if config.model_type == "glm5_next_text":
        bare = transformers.AutoModel.from_config(config)
        bare.head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        return bare
    return transformers.AutoModelForCausalLM.from_config(config)


def _count_step(sizes: dict[str, Any]) -> int:
    """Step's text model, which transformers has without a head, and the head."""
    from transformers import Step3p7TextConfig, Step3p7TextModel

    sizes = dict(sizes)
    own = sizes.pop("attention_other_setting", {})
    names = {"num_experts": "n_routed_experts", "use_head_wise_attn_gate": "gating"}
    renamed = {names.get(key, key): value for key, value in sizes.items()}
    config = Step3p7TextConfig(**renamed, num_sliding_attention_heads=own.get("num_attention_heads"))
    model = Step3p7TextModel(config)
    return sum(parameter.numel() for parameter in model.parameters()) + config.vocab_size * config.hidden_size
