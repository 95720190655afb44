"""The names and shapes that every weight of a model must have; they follow from its config alone. No torch here."""

import math

from engine.model.config import ConvConfig, DeltaConfig, ExpertsConfig, LatentConfig, ModelConfig, QKNormKind

Shape = tuple[int, ...]
CHOICE_BIAS = "e_score_correction_bias"


def parameter_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Every weight a checkpoint must hold, by its Hugging Face name, in the order of the forward pass.

    The names are Llama's for every family (those of Gemma, Qwen-MoE and DeepSeek for what Llama lacks);
    `engine.families` translates. A linear layer's weight is (outputs, inputs). Tied models have no
    ``lm_head.weight``.
    """
    c = config
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (c.vocab_size, c.hidden_size)}
    if c.positions == "learned":
        shapes["model.embed_positions.weight"] = (c.max_positions, c.hidden_size)
    shapes |= _norm_shapes(c, "model.embed_norm") if c.embed_norm else {}
    for i in range(c.n_layers):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in _layer_shapes(c, i).items()}
    shapes |= _norm_shapes(c, "model.norm")
    if not c.tied:
        shapes["lm_head.weight"] = (c.vocab_size, c.hidden_size)
    if c.head_bias:
        shapes["lm_head.bias"] = (c.vocab_size,)
    return shapes


def n_parameters(config: ModelConfig) -> int:
    """Parameters as a checkpoint stores them; a tied head counts once. The bias that balances experts is
    not counted for DeepSeek, where it is a buffer, but is for ERNIE, where it is a parameter.
    """
    buffers = CHOICE_BIAS if config.experts is not None and config.experts.scoring == "sigmoid" else None
    shapes = parameter_shapes(config).items()
    return sum(math.prod(shape) for name, shape in shapes if buffers is None or not name.endswith(buffers))


def _layer_shapes(c: ModelConfig, layer: int) -> dict[str, Shape]:
    kind = c.layer(layer)
    shapes = _norm_shapes(c, "input_layernorm") if c.block != "post" else {}
    shapes |= _mixer_shapes(c, recurrent=kind.recurrent)
    if c.block != "parallel" or c.parallel_norms == 2:
        shapes |= _norm_shapes(c, "post_attention_layernorm")
    if c.block == "sandwich":
        shapes |= _norm_shapes(c, "pre_feedforward_layernorm")
    if c.experts is not None and kind.experts:
        shapes |= _expert_shapes(c, c.experts)
    else:
        shapes |= _mlp_shapes(c, "mlp", c.intermediate_size)
    return shapes | _norm_shapes(c, "post_feedforward_layernorm") if c.post_norms else shapes


def _mixer_shapes(c: ModelConfig, *, recurrent: bool) -> dict[str, Shape]:
    """The weights of the token mixer: attention, or what replaces it."""
    if recurrent and isinstance(c.recurrent, ConvConfig):
        return _conv_shapes(c, c.recurrent)
    if recurrent and isinstance(c.recurrent, DeltaConfig):
        return _delta_shapes(c, c.recurrent)
    return _attention_shapes(c) if c.latent is None else _latent_shapes(c, c.latent)


def _conv_shapes(c: ModelConfig, conv: ConvConfig) -> dict[str, Shape]:
    shapes = _linear_shapes("conv.in_proj", c.hidden_size, 3 * c.hidden_size, conv.bias)
    shapes |= {"conv.conv.weight": (c.hidden_size, 1, conv.width)}
    shapes |= {"conv.conv.bias": (c.hidden_size,)} if conv.bias else {}
    return shapes | _linear_shapes("conv.out_proj", c.hidden_size, c.hidden_size, conv.bias)


def _delta_shapes(c: ModelConfig, delta: DeltaConfig) -> dict[str, Shape]:
    mixed = 2 * delta.key_size + delta.value_size
    return {
        "linear_attn.in_proj_qkv.weight": (mixed, c.hidden_size),
        "linear_attn.in_proj_z.weight": (delta.value_size, c.hidden_size),
        "linear_attn.in_proj_b.weight": (delta.n_value_heads, c.hidden_size),
        "linear_attn.in_proj_a.weight": (delta.n_value_heads, c.hidden_size),
        "linear_attn.conv1d.weight": (mixed, 1, delta.width),
        "linear_attn.dt_bias": (delta.n_value_heads,),
        "linear_attn.A_log": (delta.n_value_heads,),
        "linear_attn.norm.weight": (delta.value_dim,),
        "linear_attn.out_proj.weight": (c.hidden_size, delta.value_size),
    }


def _attention_shapes(c: ModelConfig) -> dict[str, Shape]:
    q_size, kv_size = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    shapes = _linear_shapes("self_attn.q_proj", c.hidden_size, q_size, c.qkv_bias)
    if c.attention_gate:
        shapes |= _linear_shapes("self_attn.q_gate_proj", c.hidden_size, q_size, c.qkv_bias)
    shapes |= _linear_shapes("self_attn.k_proj", c.hidden_size, kv_size, c.qkv_bias)
    shapes |= _linear_shapes("self_attn.v_proj", c.hidden_size, kv_size, c.qkv_bias)
    shapes |= _linear_shapes("self_attn.o_proj", q_size, c.hidden_size, c.o_bias)
    if c.sub_norms:
        shapes["self_attn.attn_sub_norm.weight"] = (q_size,)
    if c.qk_norm and c.norm_weights:
        for name, n_heads in (("q_norm", c.n_heads), ("k_norm", c.n_kv_heads)):
            shapes[f"self_attn.{name}.weight"] = _qk_norm_shape(c, n_heads)
    return shapes | {"self_attn.sinks.weight": (c.n_heads,)} if c.sinks else shapes


def _qk_norm_shape(c: ModelConfig, n_heads: int) -> Shape:
    shapes: dict[QKNormKind, Shape] = {
        "head": (c.head_dim,),
        "each": (n_heads, c.head_dim),
        "all": (n_heads * c.head_dim,),
    }
    return shapes[c.qk_norm_kind]


def _latent_shapes(c: ModelConfig, latent: LatentConfig) -> dict[str, Shape]:
    query_size = c.n_heads * (latent.nope_dim + latent.rope_dim)
    if latent.query_rank is None:
        shapes = _linear_shapes("self_attn.q_proj", c.hidden_size, query_size, False)
    else:
        shapes = _linear_shapes("self_attn.q_a_proj", c.hidden_size, latent.query_rank, c.qkv_bias)
        shapes |= {"self_attn.q_a_layernorm.weight": (latent.query_rank,)}
        shapes |= _linear_shapes("self_attn.q_b_proj", latent.query_rank, query_size, False)
    shapes |= _linear_shapes("self_attn.kv_a_proj_with_mqa", c.hidden_size, latent.width, c.qkv_bias)
    shapes |= {"self_attn.kv_a_layernorm.weight": (latent.rank,)}
    kv_size = c.n_heads * (latent.nope_dim + latent.value_dim)
    shapes |= _linear_shapes("self_attn.kv_b_proj", latent.rank, kv_size, False)
    return shapes | _linear_shapes("self_attn.o_proj", c.n_heads * latent.value_dim, c.hidden_size, c.o_bias)


def _mlp_shapes(c: ModelConfig, name: str, inner: int) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for part in ("gate_proj", "up_proj") if c.gated_mlp else ("up_proj",):
        shapes |= _linear_shapes(f"{name}.{part}", c.hidden_size, inner, c.mlp_bias)
    if c.activation == "xielu":
        shapes |= {f"{name}.act_fn.alpha_p": (1,), f"{name}.act_fn.alpha_n": (1,)}
    if c.sub_norms:
        shapes[f"{name}.ffn_sub_norm.weight"] = (inner,)
    return shapes | _linear_shapes(f"{name}.down_proj", inner, c.hidden_size, c.mlp_bias)


def _expert_shapes(c: ModelConfig, experts: ExpertsConfig) -> dict[str, Shape]:
    shapes = _linear_shapes("mlp.gate", c.hidden_size, experts.n_experts, experts.router_bias)
    if experts.choice_bias:
        shapes[f"mlp.gate.{CHOICE_BIAS}"] = (experts.n_experts,)
    for i in range(experts.n_experts):
        shapes |= _mlp_shapes(c, f"mlp.experts.{i}", experts.intermediate_size)
    if experts.shared_size:
        shapes |= _mlp_shapes(c, "mlp.shared_experts", experts.shared_size)
    if experts.shared_gate:
        shapes["mlp.shared_expert_gate.weight"] = (1, c.hidden_size)
    return shapes


def _linear_shapes(name: str, inputs: int, outputs: int, bias: bool) -> dict[str, Shape]:
    weight: dict[str, Shape] = {f"{name}.weight": (outputs, inputs)}
    return weight | {f"{name}.bias": (outputs,)} if bias else weight


def _norm_shapes(c: ModelConfig, name: str) -> dict[str, Shape]:
    if not c.norm_weights:
        return {}
    weight: dict[str, Shape] = {f"{name}.weight": (c.hidden_size,)}
    return weight | {f"{name}.bias": (c.hidden_size,)} if c.norm == "layernorm" and c.norm_bias else weight
