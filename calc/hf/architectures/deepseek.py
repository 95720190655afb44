"""DeepSeek and models that use its latent attention: Kimi K2, LongCat, A.X, Youtu, MiniCPM 3."""

from __future__ import annotations

from dataclasses import replace

from calc.hf.architecture import BIASED, MLP_BIAS, Architecture
from calc.hf.feed_forward import feed_forwards
from calc.hf.latent import latent_mixer
from calc.hf.reader import HIDDEN_SIZE, N_HEADS, Reader
from calc.model.layers import Dense, Experts, LayerSpec


def _longcat_count(reader: Reader) -> int:
    """num_hidden_layers, if present, counts attentions: two per layer."""
    found = reader.maybe("num_layers")
    stated = reader.maybe("num_hidden_layers", minimum=2)
    if found is not None:
        return found
    return stated // 2 if stated is not None else reader.count("num_hidden_layers", minimum=2)


def _longcat_layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """LongCat: two latent attentions and two dense blocks per layer, with experts beside them.

    Some experts are identities: the router has rows for them, but they have no weights.
    """
    latent = latent_mixer(reader, arch)
    n_experts, idle = reader.count("n_routed_experts"), reader.maybe("zero_expert_num", minimum=0) or 0
    router = (n_experts + idle) * hidden_size + ((n_experts + idle) if reader.flag("router_bias") else 0)
    experts = Experts(
        n_experts=n_experts,
        top_k=min(n_experts, reader.count("moe_topk", "num_experts_per_tok")),
        expert_size=reader.count("expert_ffn_hidden_size", "moe_intermediate_size"),
        router_params=router,
    )
    if idle:
        reader.notes.append(f"{idle:,} of the experts are identities without weights: a token may use fewer")
    dense = Dense(intermediate_size=reader.count("ffn_hidden_size", "intermediate_size"))
    layer = LayerSpec(
        hidden_size=hidden_size,
        mixers=(latent, latent),
        feed_forwards=(dense, dense, experts),
        norm_params=4 * hidden_size,
    )
    return [layer] * n_layers


def _axk2_layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """A.X K2: queries and an output gate from one projection of twice the rank, norms with a low-rank gate."""
    latent = latent_mixer(reader, arch)
    rank, n_heads = latent.q_lora_rank, latent.n_heads
    if not rank:
        raise reader.fail("q_lora_rank missing: queries and gates of an axk2 model are projected from it")
    more = rank * n_heads * (latent.nope_dim + latent.rope_dim) + 2 * rank * n_heads * latent.value_dim
    latent = replace(latent, extra_params=latent.extra_params + more)
    gate = 2 * hidden_size * reader.count("gated_norm_rank")
    layers = []
    for block in feed_forwards(reader, arch, n_layers):
        gated = 2 if any(isinstance(part, Experts) for part in block) else 1
        norms = 2 * hidden_size + gated * gate
        layers.append(LayerSpec(hidden_size=hidden_size, mixers=(latent,), feed_forwards=block, norm_params=norms))
    return layers


def _minicpm3(reader: Reader, arch: Architecture) -> Architecture:
    """v_head_dim: missing in the configs; the class divides hidden_size by the heads."""
    if not reader.has("v_head_dim"):
        each = reader.count(*HIDDEN_SIZE) // reader.count(*N_HEADS)
        reader.put("v_head_dim", each, note=f"{each}, hidden_size divided by the heads")
    return arch


def _v2(reader: Reader, arch: Architecture) -> Architecture:
    """use_mla false (DeepSeek-VL2 and OCR): the plain attention of a Llama."""
    if not reader.flag("use_mla", True):
        reader.drop("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "head_dim")
    return arch


ARCHITECTURES = (
    replace(BIASED, names=("deepseek",)),
    replace(BIASED, names=("deepseek_v2",), mlp_bias=MLP_BIAS, adapt=_v2),
    replace(BIASED, names=("deepseek_v3", "deepseek_r1", "mistral4")),
    replace(BIASED, names=("deepseek_v32",)),
    replace(BIASED, names=("kimi_k2", "kimi_k25")),
    replace(BIASED, names=("youtu",), tied=True),
    replace(BIASED, names=("dots1",), qk_norm="head"),
    replace(BIASED, names=("axk1",), sparse_norms=1, first_dense=True),
    replace(BIASED, names=("axk2",), first_dense=True, layers=_axk2_layers),
    replace(BIASED, names=("longcat_flash",), count_layers=_longcat_count, layers=_longcat_layers),
    replace(BIASED, names=("minicpm3",), mlp_bias=MLP_BIAS, tied=True, adapt=_minicpm3),
    Architecture(names=("minicpm",), tied=True),
)
