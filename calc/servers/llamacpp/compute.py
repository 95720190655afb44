"""llama.cpp's compute buffers: what one batch needs on a device and on the host, with flash attention.

ggml-alloc.c reuses the memory of tensors that are no longer needed. The sums below are the tensors that are live at the
peak, derived from buffers that llama.cpp itself reserves (docs/accuracy.md). The unit is one float32 per token of the
batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from calc.model.layers import Attention, Dense, Experts, FeedForward, Latent, Mixer
from calc.model.parts import LayerSpec, Mlp
from calc.model.spec import ModelSpec
from calc.servers.cache_layers import RECURRENT, CacheLayers
from calc.servers.llamacpp.cache import CacheShape, row_bytes
from calc.servers.llamacpp.placement import HOST, Placement
from calc.servers.llamacpp.weights import Weights

FLOAT_BYTES = 4
HALF_BYTES = 2
OFFLOADED_BATCH = 32
"""From this many rows upwards, products with weights on the host run on the first device: the weights are copied
there."""
PIPELINE_COPIES = 4
"""Copies of the inputs if several devices hold all layers and batches are pipelined through them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What a step carries: tokens, outputs with logits, and a mask per kind of layer.

    For the largest layer: `stored_bytes` of its cache, and `converted_bytes`, K and V in 16 bits if they are stored in
    another format. `kv_width`: elements of K and V per token.
    """

    tokens: int
    outputs: int
    mask_bytes: int
    stored_bytes: int
    converted_bytes: int
    kv_width: int

    def floats(self, elements: int) -> int:
        """Bytes of `elements` per token."""
        return elements * self.tokens * FLOAT_BYTES


def batch_of(cached: Sequence[tuple[CacheLayers, ...]], shape: CacheShape, outputs: int) -> Batch:
    """The batch that fills a cache of `shape`."""
    layers = {each for layer in cached for each in layer if each.kind != RECURRENT}
    masks = {(each.window, shape.cells_of(each)) for each in layers}
    return Batch(
        tokens=shape.batch,
        outputs=min(outputs, shape.batch),
        mask_bytes=sum(cells for _, cells in masks) * shape.batch * HALF_BYTES,
        stored_bytes=max((shape.cells_of(each) * sum(row_bytes(each, shape)) for each in layers), default=0),
        converted_bytes=max((_converted(each, shape) for each in layers), default=0),
        kv_width=max((each.n_kv_heads * (each.key_dim + each.value_dim) for each in layers), default=0),
    )


def _converted(cached: CacheLayers, shape: CacheShape) -> int:
    keys = cached.n_kv_heads * cached.key_dim if shape.key_bytes != HALF_BYTES else 0
    values = cached.n_kv_heads * cached.value_dim if shape.value_bytes != HALF_BYTES else 0
    return (keys + values) * shape.cells_of(cached) * HALF_BYTES


# A layer


def layer_floats(layer: LayerSpec) -> int:
    """Live floats per token in the widest step of a layer, including the residual and the model's input."""
    beside = 2 * layer.hidden_size + max((_mixed(mixer, layer.hidden_size) for mixer in layer.mixers), default=0)
    feeds = [beside + _fed(part, layer.hidden_size) for part in layer.feed_forwards]
    return max([*feeds, *(_mixing(mixer, layer.hidden_size) for mixer in layer.mixers)], default=0)


def _mixed(mixer: Mixer, hidden_size: int) -> int:
    """Output width of a mixer before its output projection."""
    return mixer.n_heads * mixer.head_dim if isinstance(mixer, Attention) else hidden_size


def _fed(part: FeedForward, hidden_size: int) -> int:
    """Inner activations: gate, up and their product; for experts, once per expert that a token uses.

    The experts' outputs reuse the memory of gate and up if they are not wider.
    """
    matrices = 3 if part.mlp is Mlp.GATED else 2
    if isinstance(part, Dense):
        return matrices * part.intermediate_size
    outputs = part.top_k * hidden_size if 2 * part.expert_size < hidden_size else 0
    return matrices * part.top_k * part.expert_size + outputs


def _mixing(mixer: Mixer, hidden_size: int) -> int:
    if isinstance(mixer, Attention):
        return 2 * hidden_size + 2 * mixer.n_heads * mixer.head_dim
    if isinstance(mixer, Latent):
        heads = 2 * mixer.kv_lora_rank + mixer.nope_dim + 3 * mixer.rope_dim
        return 2 * hidden_size + mixer.q_lora_rank + mixer.n_heads * heads
    return hidden_size + 4 * getattr(mixer, "conv_channels", hidden_size)


def _attention_floats(layer: LayerSpec) -> int:
    """Floats beside the 16-bit copies of a cache stored in another format."""
    return max((_mixing(mixer, layer.hidden_size) for mixer in layer.mixers if not _stateful(mixer)), default=0)


def _stateful(mixer: Mixer) -> bool:
    return mixer.state_elements > 0


# A device and the host


def device_compute(model: ModelSpec, weights: Weights, placement: Placement, batch: Batch, device: int) -> int:
    """Bytes of the compute buffer of one device. The first device also computes batches for layers on the host."""
    own = {model.layers[i] for i, place in enumerate(placement.of_layer[:-1]) if place == device}
    if device == 0 and HOST in placement.of_layer:
        own |= set(model.layers)
    widest = batch.floats(max((layer_floats(layer) for layer in own), default=0))
    if copied := _copied_weights(weights, placement) if device == 0 else 0:
        widest = _with_weights(model, batch, widest, copied, placement)
    step = max(widest, _attention(batch, own, from_host=device == 0 and _has_host_cache(placement)))
    logits = _logits(model, weights, placement, batch, device)
    if is_pipelined(model, placement):
        rows = batch.floats(model.hidden_size) * (1 if device == 0 else 2)
        return max(step, logits) + PIPELINE_COPIES * (batch.mask_bytes + rows)
    if device and step:
        step -= batch.floats(model.hidden_size)  # the model's input is on the first device
    return max(step + batch.mask_bytes if own else 0, logits)


def _attention(batch: Batch, own: set[LayerSpec], *, from_host: bool) -> int:
    """Attention with copies of one layer's cache: in 16 bits if stored in another format, or from the host."""
    copies = batch.converted_bytes + (batch.stored_bytes if from_host else 0)
    return batch.floats(max((_attention_floats(layer) for layer in own), default=0)) + copies if copies else 0


def _has_host_cache(placement: Placement) -> bool:
    return placement.cache_on_host or HOST in placement.of_layer[:-1]


def _logits(model: ModelSpec, weights: Weights, placement: Placement, batch: Batch, device: int) -> int:
    """Logits and states of the outputs, on the device of the output; with a copy of the head if that is on the host."""
    made = batch.outputs * (model.vocab_size + model.hidden_size) * FLOAT_BYTES
    place = placement.of_layer[-1]
    if place == device:
        return made
    return weights.head + made if place == HOST and device == 0 and batch.outputs >= OFFLOADED_BATCH else 0


def is_pipelined(model: ModelSpec, placement: Placement) -> bool:
    """Whether batches are pipelined through several devices (pipeline parallelism in its log)."""
    everything = placement.on_devices > model.n_layers and not placement.host_experts
    return placement.n_devices > 1 and everything and not placement.cache_on_host


def _copied_weights(weights: Weights, placement: Placement) -> int:
    """The largest matrix on the host that multiplies batches: it is copied to the first device."""
    places = zip(weights.layers, placement.of_layer, strict=False)
    whole = [layer.largest for layer, place in places if place == HOST]
    experts = [layer.largest for layer in weights.layers[: placement.host_experts] if layer.experts]
    return max([*whole, *experts], default=0)


def _with_weights(model: ModelSpec, batch: Batch, step: int, copied: int, placement: Placement) -> int:
    """The widest step together with the copy of a matrix."""
    sparse = [part for layer in model.groups for part in layer.feed_forwards if isinstance(part, Experts)]
    if not sparse:
        inner = batch.floats(max((part.inner for layer in model.groups for part in layer.feed_forwards), default=0))
        cached = 3 if copied < inner else 2  # a larger copy leaves room for the third after its use
        return max(step, copied + cached * inner + batch.floats(4 * model.hidden_size))
    if placement.on_devices <= model.n_layers:
        return copied + step
    part = max(sparse, key=lambda each: each.top_k * each.expert_size)
    freed = min(part.top_k * model.hidden_size, 2 * part.top_k * part.expert_size)
    return copied + max(0, step - batch.floats(freed))


def host_compute(model: ModelSpec, placement: Placement, batch: Batch) -> int:
    """Bytes of the compute buffer of the host: masks, and the embedded tokens twice, or K and V in transfer to it."""
    if is_pipelined(model, placement):
        return PIPELINE_COPIES * batch.mask_bytes + batch.floats((PIPELINE_COPIES + 1) * model.hidden_size)
    incoming = batch.kv_width if _has_host_cache(placement) else 0
    return batch.mask_bytes + batch.floats(model.hidden_size + max(model.hidden_size, incoming))
