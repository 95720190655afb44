"""ModernBERT as a decoder (Ettin): windows in two of three layers, a norm of the embedding, a layer before the head."""

from __future__ import annotations

from dataclasses import replace

from calc.hf.architecture import ATTENTION_BIAS, MLP_BIAS, Architecture, Outer
from calc.hf.attention import attention_mixer
from calc.hf.feed_forward import dense_block
from calc.hf.heads import class_name
from calc.hf.layer_kinds import Kind, layer_kinds
from calc.hf.layers import stack
from calc.hf.reader import HIDDEN_SIZE, N_LAYERS, Reader
from calc.model.layers import LayerSpec, Mixer


def _modernbert(reader: Reader, arch: Architecture) -> Architecture:
    """The window is half of local_attention; layers are full at every global_attn_every_n_layers."""
    reader.put("sliding_window", reader.count("local_attention", minimum=2) // 2)
    every = reader.maybe("global_attn_every_n_layers") or 3
    if not reader.has("layer_types"):
        n_layers = reader.count(*N_LAYERS)
        reader.put("layer_types", ["sliding_attention" if i % every else "full_attention" for i in range(n_layers)])
    return replace(arch, norm="layer" if reader.flag("norm_bias") else "layer_weight")


def _layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """The first layer has no norm before its attention: the embedding's norm takes its place."""
    kinds = layer_kinds(reader, arch, n_layers)
    of: dict[Kind, tuple[Mixer, ...]] = {kind: (attention_mixer(reader, arch, kind),) for kind in dict.fromkeys(kinds)}
    dense = dense_block(reader, arch)
    first, *others = stack(reader, arch, hidden_size, [of[kind] for kind in kinds], [(dense,)] * n_layers)
    return [replace(first, norm_params=first.norm_params - arch.norm_params(hidden_size)), *others]


def _outer(reader: Reader) -> Outer:
    """The embedding's norm, and before the head, if there is one, a square matrix and a norm."""
    hidden_size = reader.count(*HIDDEN_SIZE)
    norm = hidden_size * (2 if reader.flag("norm_bias") else 1)
    before_head = hidden_size * (hidden_size + reader.flag("classifier_bias")) + norm
    bare = class_name(reader.config).endswith("Model")
    return Outer(norm if bare else norm + before_head)


ARCHITECTURES = (
    Architecture(
        names=("modernbert-decoder",),
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        mlp_bias=MLP_BIAS,
        head_bias=("decoder_bias", True),
        tied=True,
        adapt=_modernbert,
        layers=_layers,
        outer=_outer,
    ),
)
