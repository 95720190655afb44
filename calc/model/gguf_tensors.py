"""The tensors of a model with the names and shapes of a GGUF file; `calc.model.gguf_rule` chooses their types.

Source: conversion/*.py and gguf-py/gguf/tensor_mapping.py of llama.cpp 0c1e57098bba. Norms, biases, routers,
convolutions and state matrices are F32 in every file; the experts of a layer are one tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from calc.model.components import component_of
from calc.model.count import EMBED_TOKENS, LM_HEAD, outer_tensors
from calc.model.gguf_rule import FileFacts, GgufTensor
from calc.model.parts import LayerSpec
from calc.model.tensors import LINEAR, OTHER, Tensor

if TYPE_CHECKING:
    from calc.model.spec import ModelSpec

FUSED_QKV = frozenset(
    "gpt2 gpt_bigcode gpt_neox gptj falcon RefinedWeb RefinedWebModel bloom mpt phi3 qwen chatglm codeshell "
    "dbrx".split()
)
"""Classes whose Q, K and V are one matrix, in their checkpoints and so in GGUF (attn_qkv)."""
FUSED_UP = frozenset("phi3 glm glm4 chatglm".split())
"""Classes whose gate and up are one matrix (ffn_up)."""
ONE_NUMBER_OF_KV_HEADS = frozenset(("qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"))
"""Classes whose files state one number of KV heads, even for recurrent layers."""
UNSPLIT_LATENT = frozenset(("minicpm3", "plm"))
"""Classes whose kv_b_proj stays one matrix; for the others, llama.cpp splits it into K and V."""
LARGE = {"llama": 80, "qwen2": 80, "nemotron-nas": 80, "deci": 80, "olmo": 80, "jais2": 68, "": 80}
"""Numbers of layers at which llama.cpp treats a class as 70B; the first also for typed-in models."""

FUSED_NAMES = ("attn_qkv.weight", "ffn_up.weight")
UNKNOWN = "unknown.weight"
"""The name of a part whose individual tensors are not known."""
LARGEST_VECTORS = 4
"""Size, in multiples of the hidden size, up to which an unnamed part is assumed to be vectors."""
NAMES: Mapping[str, str] = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_a_proj": "attn_q_a", "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa", "self_attn.kv_b_proj": "attn_kv_b",
    "self_attn.indexer.wq_b": "indexer.attn_q_b", "self_attn.indexer.wk": "indexer.attn_k",
    "mixer.q_proj": "attn_q", "mixer.k_proj": "attn_k", "mixer.v_proj": "attn_v", "mixer.o_proj": "attn_output",
    "mixer.in_proj": "ssm_in", "mixer.out_proj": "ssm_out", "mixer.x_proj": "ssm_x", "mixer.dt_proj": "ssm_dt",
    "mixer.f_a_proj": "ssm_f_a", "mixer.f_b_proj": "ssm_f_b", "mixer.g_a_proj": "ssm_g_a",
    "mixer.g_b_proj": "ssm_g_b", "mixer.b_proj": "ssm_beta", "mixer.in_proj_qkv": "attn_qkv",
    "mixer.in_proj_z": "attn_gate", "mixer.in_proj_ba": "ssm_ba", "mixer.in_proj_b": "ssm_beta",
    "mixer.in_proj_a": "ssm_alpha", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "mlp.experts.0.gate_proj": "ffn_gate_exps", "mlp.experts.0.up_proj": "ffn_up_exps",
    "mlp.experts.0.down_proj": "ffn_down_exps", "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp", "mlp.shared_experts.down_proj": "ffn_down_shexp",
}  # fmt: skip
"""Paths below a layer, and the GGUF names of their matrices."""


def gguf_tensors(model: ModelSpec) -> Iterator[GgufTensor]:
    """All tensors of `model`. A part with unknown shapes is one matrix of its full size."""
    yield from _outside(model)
    known: dict[int, list[GgufTensor]] = {}  # equal layers are one object
    for i, layer in enumerate(model.layers):
        if id(layer) not in known:
            known[id(layer)] = _of_layer(layer, model.model_type)
        for tensor in known[id(layer)]:
            yield tensor._replace(name=f"blk.{i}.{tensor.name}", layer=i)


def file_facts(model: ModelSpec, *, importance: bool) -> FileFacts:
    """What the rule needs to know about `model`."""
    parts: list[Any] = [part for layer in model.groups for part in layer.feed_forwards]
    mixers: list[Any] = [mixer for layer in model.groups for mixer in layer.mixers]
    n_experts = max((part.n_experts for part in parts if part.kind == "experts"), default=0)
    grouped = any(getattr(mixer, "n_kv_heads", 0) < getattr(mixer, "n_heads", 0) for mixer in mixers)
    large = LARGE.get(model.model_type) == model.n_layers and (grouped or model.model_type not in ("", "llama"))
    return FileFacts(
        n_layers=model.n_layers,
        n_experts=n_experts,
        group=_group(model),
        falcon=model.model_type in ("falcon", "RefinedWeb", "RefinedWebModel"),
        large=large and not n_experts,
        importance=importance,
    )


def _group(model: ModelSpec) -> int:
    """Query heads per KV head in the first layer, as a file states them: a latent is one KV head."""
    layers = model.layers if model.model_type in ONE_NUMBER_OF_KV_HEADS else model.layers[:1]
    mixers: list[Any] = [mixer for layer in layers for mixer in layer.mixers]
    for mixer in mixers:
        if mixer.kind == "attention":
            return int(mixer.n_heads // mixer.n_kv_heads)
        if mixer.kind == "latent":
            return 1 if model.model_type in UNSPLIT_LATENT else int(mixer.n_heads)
    return 0


def _outside(model: ModelSpec) -> Iterator[GgufTensor]:
    for tensor in outer_tensors(model):
        if tensor.name == EMBED_TOKENS:
            yield _matrix("token_embd", tensor)._replace(layer=-1, component="embedding")
        elif tensor.name == LM_HEAD:
            yield _matrix("output", tensor)._replace(layer=-1, component="head")
        else:
            yield _unnamed(tensor, model.hidden_size)._replace(layer=-1, component=component_of(tensor))


def _of_layer(layer: LayerSpec, model_type: str) -> list[GgufTensor]:
    """The tensors of a layer; what the class fuses is a single tensor."""
    found: dict[str, GgufTensor] = {}
    others = []
    for tensor in _apart(layer, model_type):
        if tensor.name in FUSED_NAMES and (same := found.get(tensor.name)) is not None:
            found[tensor.name] = same._replace(rows=same.rows + tensor.rows)
        elif tensor.name in FUSED_NAMES:
            found[tensor.name] = tensor
        else:
            others.append(tensor)
    return [*found.values(), *others]


def _apart(layer: LayerSpec, model_type: str) -> Iterator[GgufTensor]:
    for mixer in layer.mixers:
        for tensor in mixer.tensors(layer.hidden_size):
            path = mixer.prefix + tensor.name
            if path == "self_attn.kv_b_proj" and model_type not in UNSPLIT_LATENT:
                yield from _split_latent(mixer, tensor)
            elif path == "mixer.in_proj_qkvz":
                yield from _split_gate(mixer, tensor)
            elif mixer.kind == "conv" and tensor.role == LINEAR:
                yield _matrix(f"shortconv.{tensor.name}", tensor)
            else:
                yield _named(path, tensor, layer.hidden_size, model_type)
    for tensor in layer.rest():
        yield _named(tensor.name, tensor, layer.hidden_size, model_type)._replace(component=component_of(tensor))


def _named(path: str, tensor: Tensor, hidden_size: int, model_type: str) -> GgufTensor:
    name = NAMES.get(path)
    if name in ("attn_q", "attn_k", "attn_v") and model_type in FUSED_QKV:
        name = "attn_qkv"
    if name == "ffn_gate" and model_type in FUSED_UP:
        name = "ffn_up"
    if name is None and tensor.role == LINEAR:
        name = path.rpartition(".")[2]
    return _unnamed(tensor, hidden_size) if name is None else _matrix(name, tensor)


def _matrix(name: str, tensor: Tensor) -> GgufTensor:
    return GgufTensor(f"{name}.weight", 0, tensor.rows, tensor.columns, tensor.copies, share=tensor.share)


def _split_latent(mixer: Any, tensor: Tensor) -> Iterator[GgufTensor]:
    """kv_b_proj as llama.cpp stores it: per head a transposed matrix for K and one for V."""
    rank, heads = mixer.kv_lora_rank, mixer.n_heads
    yield GgufTensor("attn_k_b.weight", 0, rank, mixer.nope_dim, heads, share=tensor.share)
    yield GgufTensor("attn_v_b.weight", 0, mixer.value_dim, rank, heads, share=tensor.share)


def _split_gate(mixer: Any, tensor: Tensor) -> Iterator[GgufTensor]:
    """in_proj_qkvz as converted: Q, K and V, and the gate."""
    gate = mixer.value_heads * mixer.value_dim
    yield _matrix("attn_qkv", tensor._replace(rows=tensor.rows - gate))
    yield _matrix("attn_gate", tensor._replace(rows=gate))


def _unnamed(tensor: Tensor, hidden_size: int) -> GgufTensor:
    """Norms, biases, routers and convolutions are F32. A large part with unknown tensors is one matrix."""
    unknown = tensor.role == OTHER and tensor.columns == 1 and tensor.rows > LARGEST_VECTORS * hidden_size
    if unknown:
        return GgufTensor(UNKNOWN, 0, 1, tensor.rows, tensor.copies, share=tensor.share)
    return GgufTensor("f32", 0, tensor.rows, tensor.columns, tensor.copies, fixed=True, share=tensor.share)
