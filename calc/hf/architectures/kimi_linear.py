"""Kimi Linear, Kimi K3 and Bailing (Ling): Kimi delta attention, with latent attention in every few layers."""

from __future__ import annotations

from dataclasses import replace

from calc.hf.architecture import BIASED, Architecture
from calc.hf.attention import full_attention, head_size
from calc.hf.feed_forward import feed_forwards
from calc.hf.latent import is_latent, latent_mixer
from calc.hf.layer_kinds import FULL_TYPE, LINEAR_TYPE, linear_or_full
from calc.hf.layers import Block, stack
from calc.hf.reader import N_HEADS, Reader
from calc.model.layers import Experts, FeedForward, KimiDelta, LayerSpec, Mixer, Stated


def _kimi_layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Kimi Linear: linear_attn_config or layer_types lists the latent layers. K3 has more gates, smaller experts."""
    own = reader.section("linear_attn_config")
    if own is not None:
        heads, head_dim, kernel = (own.count(key) for key in ("num_heads", "head_dim", "short_conv_kernel_size"))
    else:
        heads, head_dim = reader.count("linear_num_heads"), reader.count("linear_head_dim")
        kernel = reader.count("linear_conv_kernel_dim")
    whole_gate = (own or reader).flag("use_full_rank_gate")
    delta = KimiDelta(n_heads=heads, head_dim=head_dim, kernel=kernel, gate_rank=head_dim, whole_gate=whole_gate)
    types = linear_or_full(reader, n_layers) or _listed_types(reader, own, n_layers)
    of: dict[str, tuple[Mixer, ...]] = {LINEAR_TYPE: (delta,)}
    if FULL_TYPE in types:
        of[FULL_TYPE] = (replace(latent_mixer(reader, arch), gated=reader.flag("mla_use_output_gate")),)
    blocks = _latent_experts(reader, hidden_size, feed_forwards(reader, arch, n_layers))
    _note_residuals(reader, n_layers, hidden_size)
    return stack(reader, arch, hidden_size, [of[kind] for kind in types], blocks)


def _latent_experts(reader: Reader, hidden_size: int, blocks: list[Block]) -> list[Block]:
    """K3: routed experts have a smaller width, with projections into and out of it, and a norm."""
    width = reader.maybe("routed_expert_hidden_size")
    if width is None:
        return blocks
    norm = width if reader.flag("latent_moe_use_norm") else 0

    def narrow(part: FeedForward) -> FeedForward:
        if not isinstance(part, Experts):
            return part
        around = 2 * hidden_size * width + norm + part.n_experts  # also a bias for the router's choice
        return replace(part, input_size=width, router_params=part.router_params + around)

    return [tuple(narrow(part) for part in block) for block in blocks]


def _note_residuals(reader: Reader, n_layers: int, hidden_size: int) -> None:
    """Attention over the residuals of earlier blocks: a norm and a row, twice per layer and once at the end."""
    if reader.maybe("attn_res_block_size") is not None:
        params = (2 * n_layers + 1) * 2 * hidden_size
        reader.notes.append(f"the mixing of residuals of earlier blocks is not counted ({params:,} parameters)")


def _listed_types(reader: Reader, own: Reader | None, n_layers: int) -> list[str]:
    """Layers are numbered from 1 in linear_attn_config."""
    if own is None or not own.has("full_attn_layers"):
        raise reader.fail("linear_attn_config missing: its full_attn_layers lists the layers with latent attention")
    own.ignore("kda_layers")  # all others
    full = own.indices("full_attn_layers")
    return [FULL_TYPE if i + 1 in full else LINEAR_TYPE for i in range(n_layers)]


def _bailing_layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Bailing hybrid: gates of full rank; the last layer of each group is latent.

    Ling 2.5 and Ring 2.5 have the same model_type, but use lightning attention whose outputs are normalized in groups.
    """
    if reader.has("group_norm_size") and not reader.has("linear_head_dim"):
        return _lightning_layers(reader, arch, n_layers, hidden_size)
    if not reader.has("linear_head_dim"):
        raise reader.fail("linear_head_dim missing: a bailing_hybrid config states it")
    n_heads = reader.count(*N_HEADS)
    head_dim = reader.maybe("linear_head_dim") or reader.count("head_dim")
    kernel = reader.count("linear_conv_kernel_dim", "short_conv_kernel_size")
    delta = KimiDelta(n_heads=reader.maybe("linear_num_heads") or n_heads, head_dim=head_dim, kernel=kernel)
    types = linear_or_full(reader, n_layers)
    reader.ignore("layer_group_size")  # layer_types says more
    if types is None:
        group = reader.count("layer_group_size")
        types = [LINEAR_TYPE if (i + 1) % group else FULL_TYPE for i in range(n_layers)]
    of: dict[str, tuple[Mixer, ...]] = {LINEAR_TYPE: (delta,)}
    if FULL_TYPE in types:
        reader.put("q_lora_rank", None)  # the class projects queries directly
        latent = latent_mixer(reader, arch)
        of[FULL_TYPE] = (replace(latent, extra_params=latent.extra_params + hidden_size * n_heads),)
    return stack(reader, arch, hidden_size, [of[kind] for kind in types], feed_forwards(reader, arch, n_layers))


def _lightning_layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Ling and Ring linear: lightning attention with an output gate and a norm over groups of heads.

    The last layer of each group is full, as are the layers after the last complete group: latent in 2.5, plain before.
    """
    reader.ignore("group_norm_size", "linear_backend", "num_kv_heads_for_linear_attn")
    n_heads = reader.count(*N_HEADS)
    head_dim = head_size(reader, n_heads)
    inner, normed = n_heads * head_dim, reader.flag("use_qk_norm")
    biases = (3 * inner if reader.flag("use_qkv_bias") else 0) + (hidden_size if reader.flag("use_bias") else 0)
    lightning = Stated(
        label="gated lightning attention",
        params=5 * hidden_size * inner + inner + biases + (2 * head_dim if normed else 0),
        state_elements=n_heads * head_dim * head_dim,
    )
    group = reader.count("layer_group_size")
    whole = n_layers // group * group
    full: Mixer = latent_mixer(reader, arch) if is_latent(reader) else full_attention(reader, arch)
    mixers: list[tuple[Mixer, ...]] = [
        (full,) if (i + 1) % group == 0 or i >= whole else (lightning,) for i in range(n_layers)
    ]
    return stack(reader, arch, hidden_size, mixers, feed_forwards(reader, arch, n_layers))


_BAILING = Architecture(
    qkv_bias=("use_qkv_bias", False),
    o_bias=("use_bias", False),
    mlp_bias=("use_bias", False),
    qk_norm="head",
    qk_key=("use_qk_norm", False),
)

ARCHITECTURES = (
    replace(BIASED, names=("kimi_linear",), first_dense=True, sparse_from_first=True, layers=_kimi_layers),
    replace(BIASED, names=("bailing_hybrid",), unused=("kda_safe_gate",), layers=_bailing_layers),
    replace(_BAILING, names=("bailing_moe", "bailing_moe_v2")),
    replace(_BAILING, names=("bailing_moe_linear", "bailing_moe_linear_v2"), layers=_lightning_layers),
)
