"""What single architectures do that no field of others means: kept apart so that the rest stays plain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from calc.hf import kinds, linear, rarer, state_space, unlike
from calc.hf.attention import attention_mixer
from calc.hf.experts import EXPERT_SIZE, N_EXPERTS, TOP_K
from calc.hf.families import Family
from calc.hf.kinds import Kind
from calc.hf.reader import HIDDEN_SIZE, N_HEADS, N_LAYERS, Reader, shown
from calc.hf.recurrent import recurrent_mixer
from calc.model.layers import Attention, Dense, Experts, FeedForward, LayerSpec, Mixer
from calc.model.spec import Mlp


@dataclass(frozen=True, slots=True)
class More:
    """Parameters outside layers, embedding and head; the embedding's width where it is not hidden_size."""

    other_params: int = 0
    embedding_size: int | None = None


REFUSED = frozenset("jetmoe blt rwkv rwkv6 xlstm deepseek_v4 plamo2 arctic".split())
"""Model types that are known to hold more than their fields say, or other things."""
BUILDERS: Mapping[str, state_space.Builder] = {**state_space.BUILDERS, **linear.BUILDERS, **rarer.BUILDERS}
"""What makes the layers of model types whose layers follow rules of their own."""


def adapt(reader: Reader, family: Family) -> tuple[Family, More]:
    """The family as this config has it, and what stands outside its layers. Raises UnsupportedArchitecture."""
    match reader.model_type:
        case "opt":
            return _opt(reader, family)
        case "falcon":
            return _falcon(reader, family), More()
        case "mpt":
            return _mpt(reader, family), More()
        case model_type if model_type.startswith("gemma4"):
            return family, _gemma4(reader)
        case "hy_v4":
            return family, More(rarer.hunyuan4_other(reader))
        case "dbrx":
            return family, _dbrx(reader)
        case "chatglm":
            return replace(family, final_norm=reader.flag("post_layer_norm", True)), More()
        case "stablelm":
            return _stablelm(reader, family), More()
        case _:
            family, other_params = unlike.adapt(reader, family)
            return family, More(other_params)


def _opt(reader: Reader, family: Family) -> tuple[Family, More]:
    """OPT-350m: embeddings narrower than the layers, projections in and out, norms after, no final norm."""
    hidden_size = reader.count(*HIDDEN_SIZE)
    width = reader.count("word_embed_proj_dim", default=hidden_size)
    before = reader.flag("do_layer_norm_before", True) and not reader.flag("_remove_final_layer_norm")
    if not reader.flag("layer_norm_elementwise_affine", True):
        family = replace(family, norm="none")
    family = replace(family, final_norm=before)
    other = 2 * width * hidden_size if width != hidden_size else 0
    return family, More(other, width if width != hidden_size else None)


def _falcon(reader: Reader, family: Family) -> Family:
    """Parallel blocks share one norm, but the 40b form has two."""
    if reader.flag("new_decoder_architecture"):
        n_norms = reader.maybe("num_ln_in_parallel_attn") or 2
        return replace(family, norms=n_norms)
    return replace(family, norms=1 if reader.flag("parallel_attn", True) else 2)


def _mpt(reader: Reader, family: Family) -> Family:
    """ALiBi or a learned table; transformers' class knows no bias and ALiBi alone."""
    attention = reader.section("attn_config")
    if attention is not None and (attention.flag("multiquery_attention") or attention.maybe("kv_n_heads")):
        raise reader.fail("attn_config with kv_n_heads is not one that kvscope knows")
    if not reader.flag("no_bias", True):
        raise reader.fail("no_bias false: kvscope knows MPT without biases")
    alibi = attention is None or attention.flag("alibi", True)
    return family if alibi else replace(family, positions=0)


def _stablelm(reader: Reader, family: Family) -> Family:
    """use_parallel_residual drops the second norm; qk_layernorm has a norm for each head."""
    if reader.flag("use_parallel_residual"):
        family = replace(family, norms=1)
    return replace(family, qk_norm="each", qk_key=("qk_layernorm", False))


def _dbrx(reader: Reader) -> More:
    """Heads and experts stand in sections of their own: brought up beside the rest."""
    for key in ("attn_config", "ffn_config"):
        inner = reader.section(key)
        if inner is None:
            raise reader.fail(f"{key} missing")
        reader.config = {**reader.config, **inner.config}
    if "kv_n_heads" not in reader.config:
        raise reader.fail("attn_config: kv_n_heads missing")
    reader.config = {**reader.config, "num_key_value_heads": reader.config["kv_n_heads"]}
    return More()


def n_layers(reader: Reader) -> int:
    """How many layers there are: stated, or as many as are listed."""
    for key in ("layers_block_type", "block_configs"):
        if not reader.has(*N_LAYERS) and isinstance(listed := reader.get(key), list) and listed:
            return len(listed)
    if reader.model_type == "longcat_flash":
        return _longcat_layers(reader)
    return reader.count(*N_LAYERS)


def _longcat_layers(reader: Reader) -> int:
    """num_hidden_layers, where a config has it, counts attentions: two a layer."""
    if (found := reader.maybe("num_layers")) is not None:
        return found
    return reader.count("num_hidden_layers", minimum=2) // 2


def heads_key(reader: Reader) -> tuple[tuple[str, ...], ...]:
    """The key of query heads, where a model has attention."""
    return () if reader.model_type in state_space.NO_ATTENTION else (N_HEADS,)


def states_inner_size(reader: Reader, family: Family) -> bool:
    """Whether the config must say intermediate_size."""
    if family.wide_inner or reader.has("block_configs", "expansion_ratio", "block_ff_dim", "ffn_config"):
        return False
    own = ("mpt", "nemotron_h", "dbrx", "zamba2", *state_space.NO_ATTENTION)
    return reader.model_type not in own and not reader.has(*EXPERT_SIZE)


def inner_size(reader: Reader, hidden_size: int) -> int | None:
    """The inner dimension where a config does not state it as such; None for all others."""
    match reader.model_type:
        case "mpt":
            return reader.count("expansion_ratio", default=4) * hidden_size
        case "qwen":
            return reader.count("intermediate_size") // 2
        case "gpt_neox_japanese":
            return reader.count("intermediate_multiple_size", default=4) * hidden_size
        case "lfm2" | "lfm2_moe":
            return _lfm2_inner(reader)
    return None


def _lfm2_inner(reader: Reader) -> int:
    size = reader.count("intermediate_size", "block_ff_dim")
    if not reader.flag("block_auto_adjust_ff_dim", reader.model_type == "lfm2"):
        return size
    factor = reader.get("block_ffn_dim_multiplier")
    size = int(2 * size / 3)
    if isinstance(factor, int | float) and not isinstance(factor, bool) and 0 < factor < 100:
        size = int(factor * size)
    multiple = reader.maybe("block_multiple_of") or 256
    return -(-size // multiple) * multiple


def _gemma4(reader: Reader) -> More:
    """The embeddings of each layer's input; heads of full layers are wider even where the config does not say so."""
    if not reader.has("global_head_dim", "per_layer_config"):
        reader.config = {**reader.config, "global_head_dim": 512}
        reader.assume("global_head_dim", 512)
    if reader.maybe("hidden_size_per_layer_input", minimum=0):
        n_layers, per_layer = reader.count(*N_LAYERS), reader.count("hidden_size_per_layer_input")
        hidden_size = reader.count(*HIDDEN_SIZE)
        rows = reader.count("vocab_size_per_layer_input")
        return More(n_layers * per_layer * (rows + hidden_size) + per_layer)
    return More()


def layers(reader: Reader, family: Family, n_layers: int, hidden_size: int) -> list[LayerSpec] | None:
    """All layers of a model whose layers follow rules of their own; None for all others."""
    if reader.get("block_configs") is not None:
        return _block_configs(reader, family, n_layers, hidden_size)
    if (builder := BUILDERS.get(reader.model_type)) is not None:
        return builder(reader, family, n_layers, hidden_size)
    if reader.has("indexer_types"):
        return rarer.indexed_layers(reader, family, n_layers, hidden_size)
    if reader.model_type == "nemotron_h":
        return _single_blocks(reader, family, n_layers, hidden_size)
    if reader.model_type.startswith("gemma4"):
        return _gemma4_layers(reader, family, n_layers, hidden_size)
    return unlike.layers(reader, family, n_layers, hidden_size)


def _block_configs(reader: Reader, family: Family, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Nemotron NAS: each block has its own heads and inner size, or neither attention nor feed-forward."""
    blocks = reader.per_layer("block_configs", n_layers) or []
    reader.config = {**reader.config, "num_key_value_heads": reader.count(*N_HEADS)}  # each block says its own
    return [_block(reader, family, block, hidden_size) for block in blocks]


def _block(reader: Reader, family: Family, block: object, hidden_size: int) -> LayerSpec:
    if not isinstance(block, dict) or not all(isinstance(block.get(k), dict) for k in ("attention", "ffn")):
        raise reader.fail("block_configs must hold objects with attention and ffn")
    attention, ffn = block["attention"], block["ffn"]
    mixers: tuple[Mixer, ...] = ()
    feed: tuple[FeedForward, ...] = ()
    extra = 0
    if attention.get("replace_with_linear"):
        extra += hidden_size * hidden_size
    elif not attention.get("no_op"):
        group = reader.checked("n_heads_in_group", attention.get("n_heads_in_group"))
        mixer = attention_mixer(reader, family, Kind(kinds.FULL))
        mixers = (replace(mixer, n_kv_heads=mixer.n_heads // group),)
    if ffn.get("replace_with_linear"):
        extra += hidden_size * hidden_size
    elif not ffn.get("no_op"):
        feed = (Dense(intermediate_size=_nas_inner(reader, ffn, hidden_size)),)
    norms = sum(not part.get("no_op") for part in (attention, ffn))
    return LayerSpec(
        hidden_size=hidden_size, mixers=mixers, feed_forwards=feed, norm_params=norms * hidden_size + extra
    )


def _nas_inner(reader: Reader, ffn: dict[str, object], hidden_size: int) -> int:
    if ffn.get("intermediate_size") is not None:
        return reader.checked("intermediate_size", ffn["intermediate_size"])
    factor = ffn.get("ffn_mult")
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < 1000:
        raise reader.fail(f"ffn_mult must be a number above 0, not {shown(factor)}")
    return -(-int(2 * factor * hidden_size / 3) // 256) * 256


def _single_blocks(reader: Reader, family: Family, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Nemotron-H: every layer is one block of Mamba-2 (M), attention (*), experts (E) or MLP (-), and one norm."""
    pattern = _letters(reader, family, n_layers)
    made: dict[str, LayerSpec] = {}
    for letter in dict.fromkeys(pattern):
        mixers: tuple[Mixer, ...] = ()
        feed: tuple[FeedForward, ...] = ()
        if letter == "M":
            mixers = (recurrent_mixer(reader, kinds.MAMBA2, hidden_size),)
        elif letter == "*":
            mixers = (attention_mixer(reader, family, Kind(kinds.FULL)),)
        elif letter == "-":
            feed = (
                Dense(intermediate_size=reader.count("intermediate_size"), mlp=Mlp.PLAIN, bias=reader.flag("mlp_bias")),
            )
        else:
            feed = _nemotron_experts(reader, hidden_size)
        made[letter] = LayerSpec(hidden_size=hidden_size, mixers=mixers, feed_forwards=feed, norm_params=hidden_size)
    return [made[letter] for letter in pattern]


def _letters(reader: Reader, family: Family, n_layers: int) -> str:
    """The pattern of letters, or one made of layers_block_type."""
    if isinstance(pattern := reader.get("hybrid_override_pattern"), str):
        kinds.layer_kinds(reader, family, n_layers)
        return pattern
    words = {"linear_attention": "M", "mamba": "M", "full_attention": "*", "attention": "*", "moe": "E", "mlp": "-"}
    listed = reader.per_layer("layers_block_type", n_layers)
    if listed is None:
        raise reader.fail("hybrid_override_pattern missing: it says what each layer is")
    if wrong := [word for word in listed if word not in words]:
        raise reader.fail(f"layers_block_type has {shown(wrong[0])}: kvscope knows {', '.join(words)}")
    return "".join(words[word] for word in listed)


def _nemotron_experts(reader: Reader, hidden_size: int) -> tuple[FeedForward, ...]:
    n_experts = reader.count(*N_EXPERTS)
    latent = reader.maybe("moe_latent_size")
    shared = reader.count("moe_shared_expert_intermediate_size") if reader.maybe("n_shared_experts", minimum=0) else 0
    bias = latent + hidden_size if latent and reader.flag("mlp_bias") else 0
    into_latent = 2 * hidden_size * latent + bias if latent else 0
    experts = Experts(
        n_experts=n_experts,
        top_k=reader.count(*TOP_K),
        expert_size=reader.count(*EXPERT_SIZE),
        router_params=n_experts * hidden_size + into_latent,
        mlp=Mlp.PLAIN,
        input_size=latent,
    )
    dense = Dense(intermediate_size=shared, mlp=Mlp.PLAIN, bias=reader.flag("mlp_bias")) if shared else None
    return (dense, experts) if dense is not None else (experts,)


def _gemma4_layers(reader: Reader, family: Family, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Gemma 4: full layers have wider heads and V from K; upper layers may read a lower layer's cache; experts stand
    beside the dense MLP; an input a layer is projected and normed."""
    found = kinds.layer_kinds(reader, family, n_layers)
    found[-1] = Kind(kinds.FULL)  # the class makes it so, whatever layer_types says
    first_shared = n_layers - (reader.maybe("num_kv_shared_layers", minimum=0) or 0)
    inner = reader.count("intermediate_size")
    own = reader.section("per_layer_config")
    out = []
    for i, kind in enumerate(found):
        mixer = attention_mixer(reader, family, kind)
        if own is not None and (layer := own.section(f"{i:02d}") or own.section(str(i))) is not None:
            head_dim = layer.maybe("head_dim") or mixer.head_dim
            n_kv_heads = layer.maybe("num_key_value_heads") or mixer.n_kv_heads
            mixer = replace(mixer, head_dim=head_dim, value_dim=head_dim, n_kv_heads=n_kv_heads)
        shared = i >= first_shared
        if shared:
            mixer = replace(mixer, keys=False, values=False)
        wide = 2 if shared and reader.flag("use_double_wide_mlp") else 1
        out.append(_gemma4_layer(reader, mixer, hidden_size=hidden_size, inner=inner * wide, shared=shared))
    return out


def _gemma4_layer(reader: Reader, mixer: Attention, *, hidden_size: int, inner: int, shared: bool) -> LayerSpec:
    norms = 4 * hidden_size + mixer.head_dim * (1 if shared else 2)
    feed: tuple[FeedForward, ...] = (Dense(intermediate_size=inner),)
    if reader.flag("enable_moe_block"):
        n_experts = reader.count(*N_EXPERTS)
        norms += 3 * hidden_size
        router = n_experts * hidden_size + hidden_size + n_experts
        size = reader.count(*EXPERT_SIZE)
        feed = (*feed, Experts(n_experts=n_experts, top_k=reader.count(*TOP_K), expert_size=size, router_params=router))
    if per_layer := reader.maybe("hidden_size_per_layer_input", minimum=0):
        norms += 2 * hidden_size * per_layer + hidden_size
    return LayerSpec(hidden_size=hidden_size, mixers=(mixer,), feed_forwards=feed, norm_params=norms)
