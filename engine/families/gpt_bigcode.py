"""GPT-BigCode (StarCoder, SantaCoder): a GPT-2 that may share one KV head (MQA); matrices have the outputs first."""

from typing import Any

from engine.families.family import Family, GGUFForm
from engine.families.gpt2 import ENDS, gpt2_config, gpt2_keys
from engine.families.keys import Keys
from engine.families.tensors import renamed_with_groups
from engine.model.config import ModelConfig
from engine.weights.gguf import GGUFFile


def _config(raw: Keys) -> ModelConfig:
    n_kv_heads = 1 if raw.flag("multi_query", True) else None
    return gpt2_config(raw, n_kv_heads=n_kv_heads, hidden_act="gelu_pytorch_tanh")


_PARTS = {
    "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm",
    "attn.c_attn": "self_attn.qkv_proj",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.up_proj",
    "mlp.c_proj": "mlp.down_proj",
}


def _gguf_keys(file: GGUFFile) -> dict[str, Any]:
    """The stated inner size is always 4 times the width, even if the real one differs."""
    up = file.tensors.get("blk.0.ffn_up.weight")
    return gpt2_keys(file) | {
        "multi_query": file.get("attention.head_count_kv") == 1,
        "n_inner": up.shape[0] if up is not None else None,
    }


# One KV head: all queries first; several: the query, key and value of each head in turn.
FAMILIES = {
    "gpt_bigcode": Family(
        config=_config,
        tensors=renamed_with_groups(_PARTS, ENDS),
        gguf=GGUFForm(architecture="starcoder", keys=_gguf_keys),
    )
}
