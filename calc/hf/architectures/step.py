"""Step 3.5 and 3.7: sliding layers with their own head count, a gate per head, experts from layer 3 upwards."""

from __future__ import annotations

from dataclasses import replace

from calc.hf.architecture import BIASED, MLP_BIAS, Architecture
from calc.hf.attention import attention_mixer
from calc.hf.feed_forward import WHICH_SPARSE, feed_forwards
from calc.hf.layer_kinds import SLIDING, layer_kinds
from calc.hf.layers import stack
from calc.hf.reader import Reader
from calc.model.layers import Attention, LayerSpec, Mixer

FIRST_SPARSE = 3
"""The first layer with experts, if the config does not list them."""


def _layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    reader.ignore("num_sliding_attention_heads", "attention_other_setting", "per_layer_config")  # read for sliding ones
    if not reader.has(*WHICH_SPARSE):
        reader.put("mlp_layer_types", _mlp_types(reader, n_layers))
    gated = reader.flag("use_head_wise_attn_gate", True)
    mixers: list[tuple[Mixer, ...]] = []
    for kind in layer_kinds(reader, arch, n_layers):
        mixer = attention_mixer(reader, arch, kind)
        if kind.name == SLIDING:
            mixer = _sliding(reader, mixer)
        gate = hidden_size * mixer.n_heads if gated else 0
        mixers.append((replace(mixer, extra_params=mixer.extra_params + gate),))
    return stack(reader, arch, hidden_size, mixers, feed_forwards(reader, arch, n_layers))


def _sliding(reader: Reader, full: Attention) -> Attention:
    """The mixer with the sizes of sliding layers from attention_other_setting or num_sliding_attention_heads."""
    own = reader.section("attention_other_setting")
    if own is None:
        return replace(full, n_heads=reader.maybe("num_sliding_attention_heads") or full.n_heads)
    head_dim = own.maybe("head_dim") or full.head_dim
    return replace(
        full,
        n_heads=own.maybe("num_attention_heads") or full.n_heads,
        n_kv_heads=own.maybe("num_attention_groups", "num_key_value_heads") or full.n_kv_heads,
        head_dim=head_dim,
        value_dim=head_dim,
    )


def _mlp_types(reader: Reader, n_layers: int) -> list[str]:
    """From moe_layers_enum, a list of layers (also as text); else all from the fourth upwards."""
    listed = reader.get("moe_layers_enum")
    if listed is None:
        reader.assume("moe_layers_enum", f"all layers from {FIRST_SPARSE} upwards")
        sparse = set(range(FIRST_SPARSE, n_layers))
    else:
        items = listed.split(",") if isinstance(listed, str) else listed
        if not isinstance(items, list) or not all(str(item).strip().isdigit() for item in items):
            raise reader.fail("moe_layers_enum must be a list of layer numbers")
        sparse = {int(item) for item in items}
    return ["sparse" if i in sparse else "dense" for i in range(n_layers)]


ARCHITECTURES = (
    replace(
        BIASED,
        names=("step3p5", "step3p7"),
        mlp_bias=MLP_BIAS,
        qk_norm="head",
        required=("layer_types",),
        layers=_layers,
        rename={
            "num_attention_groups": "num_key_value_heads",
            "share_expert_dim": "shared_expert_intermediate_size",
            "share_expert_dims": "shared_expert_intermediate_size",
        },
    ),
)
