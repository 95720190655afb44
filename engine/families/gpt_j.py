"""GPT-J: parallel layers with one norm, partly rotated heads (adjacent pairs), an output head with a bias."""

from collections.abc import Mapping

from engine.families.common import common_config, partial_rope
from engine.families.family import Family
from engine.families.keys import Keys
from engine.families.tensors import in_halves, renamed
from engine.model.config import ModelConfig
from engine.weights.lazy import Stored


def _config(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults({"n_positions": 2048, "n_embd": 4096, "n_layer": 28, "n_head": 16, "vocab_size": 50_400})
    width, n_heads = raw.count("n_embd"), raw.count("n_head")
    names = {
        "hidden_size": width,
        "num_hidden_layers": raw.get("n_layer"),
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_heads,
        "max_position_embeddings": raw.get("n_positions"),
        "intermediate_size": raw.get("n_inner") or 4 * width,
        "hidden_act": raw.get("activation_function") or "gelu_new",
    }
    raw = Keys({**raw.document, **names})
    head_dim = max(1, width // n_heads)
    turned = head_dim if raw.document.get("rotary_dim", 64) is None else raw.count("rotary_dim", 64)
    return common_config(
        raw,
        norm="layernorm",
        norm_eps=raw.positive("layer_norm_epsilon", 1e-5),
        block="parallel",
        gated_mlp=False,
        mlp_bias=True,
        head_bias=True,
        **partial_rope(raw, head_dim, share=turned / head_dim),
    )


_PARTS = {
    "ln_1": "input_layernorm",
    "attn.q_proj": "self_attn.q_proj",
    "attn.k_proj": "self_attn.k_proj",
    "attn.v_proj": "self_attn.v_proj",
    "attn.out_proj": "self_attn.o_proj",
    "mlp.fc_in": "mlp.up_proj",
    "mlp.fc_out": "mlp.down_proj",
}
_ENDS = {"wte": "model.embed_tokens", "ln_f": "model.norm"}


def _tensors(tensors: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    ours = {renamed(name, _PARTS, _ENDS): stored for name, stored in tensors.items()}
    return {name: in_halves(name, stored, config) for name, stored in ours.items()}


FAMILIES = {"gptj": Family(config=_config, tensors=_tensors)}
