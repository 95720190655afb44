"""GPT-Neo (TinyStories): a GPT-2 with alternating full and window attention, and unscaled scores."""

from collections.abc import Mapping

from engine.errors import ConfigError
from engine.families.common import FULL, SLIDING, common_config, n_layers_of, window_fields
from engine.families.family import Family
from engine.families.gpt2 import ENDS
from engine.families.keys import Keys
from engine.families.tensors import renamed
from engine.model.config import ModelConfig
from engine.weights.lazy import Stored


def _config(raw: Keys) -> ModelConfig:
    n_layers, n_heads, width = raw.count("num_layers", 24), raw.count("num_heads", 16), raw.count("hidden_size", 2048)
    names = {
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_heads,
        "hidden_size": width,
        "intermediate_size": raw.get("intermediate_size") or 4 * width,
        "hidden_act": raw.get("activation_function") or "gelu_new",
        "sliding_window": raw.count("window_size", 256),
    }
    defaults = {"tie_word_embeddings": True, "max_position_embeddings": 2048, "vocab_size": 50_257}
    raw = Keys({**defaults, **raw.document, **names})
    return common_config(
        raw,
        rope_theta=1e4,
        norm="layernorm",
        norm_eps=raw.positive("layer_norm_epsilon", 1e-5),
        positions="learned",
        attention_scale=1.0,
        gated_mlp=False,
        o_bias=True,
        mlp_bias=True,
        **window_fields(raw, _kinds(raw)[:n_layers]),
    )


def _kinds(raw: Keys) -> list[str]:
    """``attention_types`` repeats a list of kinds: [[["global", "local"], 12]]."""
    n_layers = n_layers_of(raw)
    types = raw.get("attention_types") or [[["global", "local"], n_layers]]
    try:
        kinds = [kind for several, n in types for _ in range(min(n, n_layers)) for kind in several]
    except (TypeError, ValueError):
        kinds = []
    if len(kinds) < n_layers or not set(kinds) <= {"global", "local"}:
        raise ConfigError('config.json: attention_types must be like [[["global", "local"], 12]], one for each layer')
    return [SLIDING if kind == "local" else FULL for kind in kinds]


_PARTS = {
    "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm",
    "attn.attention.q_proj": "self_attn.q_proj",
    "attn.attention.k_proj": "self_attn.k_proj",
    "attn.attention.v_proj": "self_attn.v_proj",
    "attn.attention.out_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.up_proj",
    "mlp.c_proj": "mlp.down_proj",
}
_MASKS = (".attention.bias", ".attention.masked_bias")


def _tensors(tensors: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    return {renamed(name, _PARTS, ENDS): t for name, t in tensors.items() if not name.endswith(_MASKS)}


FAMILIES = {"gpt_neo": Family(config=_config, tensors=_tensors)}
