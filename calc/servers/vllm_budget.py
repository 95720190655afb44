"""What vLLM reserves besides weights and cache: activations, memory outside PyTorch, CUDA graphs.

The profile run that sizes the pool has two peaks. The sampler's dummy run holds float32 copies of the logits of all
sequences, complete on every rank; the forward pass holds the inner activations of all tokens of a step. The larger peak
counts. Since 0.17, the workspaces of experts stay allocated during both (modular_kernel.py, TritonExperts). Constants:
fitted on every second distinct run of vLLM 0.19 on H100 and checked on the others (docs/accuracy.md); those of older
versions come from single start-up logs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from calc.model.layers import Experts
from calc.model.spec import ModelSpec
from calc.servers.records import Band, ModelFacts
from calc.servers.versions import VLLM_LEAN_SAMPLER, VLLM_PIXELS_CAST, VLLM_V1, Version
from calc.servers.vllm_v0 import counted_context_bytes
from calc.servers.weights import widest_dense
from calc.units import GIB

SAMPLER_WORDS = 3.16
"""float32 copies of the logits that the sampler holds at once since 0.17; before, it sorted them."""
SAMPLER_WORDS_SORTED = 9.0
BASE_BYTES = int(0.035 * GIB)
GRAPH_SIZES = 51
"""Batch sizes captured up to 512: 1, 2, 4, every 8th to 256, every 16th above."""


def sampler_peak(
    *, max_num_seqs: Any, vocab_size: Any, sampler_words: Any, element_bytes: Any, batched_tokens: Any, hidden_size: Any
) -> Any:
    """Bytes while the first tokens of all sequences are sampled: logits, their float32 copies, hidden states."""
    return (
        max_num_seqs * vocab_size * (4 * sampler_words + element_bytes) + batched_tokens * hidden_size * element_bytes
    )


STATES, STATES_V0 = 4, 3
"""Tensors of the hidden size beside a layer's inner ones; for the V0 engine, as Llama-3.1-8B shows on 0.6.4 (2.07 GiB
for 20,000 tokens, 2.99 for 29,000)."""


def forward_peak(
    *,
    batched_tokens: Any,
    intermediate_size: Any,
    tp: Any,
    hidden_size: Any,
    element_bytes: Any,
    states: int = STATES,
) -> Any:
    """Bytes inside a layer: gate, up and their product, and `states` of the hidden size."""
    return batched_tokens * (3 * intermediate_size / tp + states * hidden_size) * element_bytes


def expert_workspace(*, batched_tokens: Any, top_k: Any, rows_in: int, hidden_size: int, element_bytes: Any) -> Any:
    """Bytes of the two workspaces of fused experts; `rows_in` is gate and up on a rank."""
    widths = max(rows_in, hidden_size) + max(rows_in // 2, hidden_size)
    return batched_tokens * top_k * widths * element_bytes


def encoder_bytes(*, batched_tokens: int, hidden_size: int, element_bytes: int, facts: ModelFacts) -> int:
    """Encoder outputs for a whole step and their pixels."""
    if not facts.multimodal:
        return 0
    images = _images(batched_tokens, facts)
    outputs = max(batched_tokens, images * facts.image_tokens)
    return outputs * hidden_size * element_bytes + images * facts.image_elements * element_bytes


def _images(batched_tokens: int, facts: ModelFacts) -> int:
    """Number of largest images per step, at least one."""
    return max(1, batched_tokens // facts.image_tokens) if facts.image_tokens else 0


def encoder_peak(*, batched_tokens: int, tp: int, element_bytes: int, facts: ModelFacts) -> int:
    """Bytes inside an encoder layer, and the pixels (qwen2_5_vl.py: Qwen2_5_VisionBlock).

    Besides its input and the normalized input: what attention holds (with Q, K and V of all heads if ranks gather
    them), or what its MLP holds.
    """
    h, images = facts.encoder_hidden, _images(batched_tokens, facts)
    gathered = 3 * h + 6 * h / tp if tp > 1 else 0
    inside = max(gathered, facts.encoder_attention / tp, facts.encoder_mlp / tp)
    return int(images * (facts.image_patches * (2 * h + inside) + facts.image_elements) * element_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSetting:
    """What the activations depend on."""

    version: Version
    tp: int
    batched_tokens: int
    max_num_seqs: int
    element_bytes: int
    last: bool
    split: bool
    facts: ModelFacts


def _workspace(model: ModelSpec, setting: StepSetting) -> int:
    experts = [part for layer in model.layers for part in layer.feed_forwards if isinstance(part, Experts)]
    return max(
        (
            int(
                expert_workspace(
                    batched_tokens=setting.batched_tokens,
                    top_k=part.top_k,
                    rows_in=2 * part.expert_size // setting.tp,
                    hidden_size=part.input_size or model.hidden_size,
                    element_bytes=setting.element_bytes,
                )
            )
            for part in set(experts)
        ),
        default=0,
    )


def activation_bytes(model: ModelSpec, setting: StepSetting) -> int:
    """Peak activation memory of a rank, as the start-up log prints it."""
    workspace = _workspace(model, setting)
    each, tokens = setting.element_bytes, setting.batched_tokens
    forward = forward_peak(
        batched_tokens=tokens,
        intermediate_size=widest_dense(model),
        tp=setting.tp,
        hidden_size=model.hidden_size,
        element_bytes=each,
        states=STATES if setting.version >= VLLM_V1 else STATES_V0,
    )
    lean = setting.version >= VLLM_LEAN_SAMPLER
    sampler = sampler_peak(
        max_num_seqs=min(setting.max_num_seqs, tokens),
        vocab_size=model.vocab_size,
        sampler_words=SAMPLER_WORDS if lean else SAMPLER_WORDS_SORTED,
        element_bytes=each,
        batched_tokens=tokens,
        hidden_size=model.hidden_size,
    )
    if not setting.last:
        sampler = 0
    passed = 2 * tokens * model.hidden_size * each if setting.split else 0
    outside = encoder_bytes(
        batched_tokens=tokens, hidden_size=model.hidden_size, element_bytes=each, facts=setting.facts
    )
    if setting.version < VLLM_PIXELS_CAST:
        outside += _images(tokens, setting.facts) * setting.facts.image_elements * each
    encoder = encoder_peak(batched_tokens=tokens, tp=setting.tp, element_bytes=each, facts=setting.facts)
    if lean:
        return int(max(max(sampler + BASE_BYTES, forward + passed) + workspace + outside, encoder))
    return int(max(max(sampler, forward + passed + workspace) + outside, encoder) + BASE_BYTES // 2)


def non_torch_bytes(version: Version, *, tp: int, pp: int, hidden_size: int) -> int:
    """Bytes outside PyTorch's allocator: NCCL and all-reduce buffers, the context's growth."""
    if version < VLLM_V1:
        return int((0.2 if tp * pp == 1 else 0.75) * GIB) + counted_context_bytes(version)
    if version < VLLM_LEAN_SAMPLER:
        return int((0.07 if tp == 1 else 1.38) * GIB)
    if tp == 1:
        return int((0.25 if pp == 1 else 0.2) * GIB)
    if version >= (0, 25):
        return int(0.95 * GIB)
    return int(2.045 * GIB) + 7200 * (tp - 1) * hidden_size


def capture_sizes(max_num_seqs: int) -> int:
    """Number of batch sizes with a captured CUDA graph.

    >>> capture_sizes(256), capture_sizes(1024), capture_sizes(64)
    (51, 51, 19)
    """
    largest = min(2 * max_num_seqs, 512)
    sizes = [1, 2, 4, *range(8, 257, 8), *range(272, 513, 16)]
    return sum(size <= largest for size in sizes)


def cuda_graph_bytes(*, n_layers: int, sizes: int, eager: bool) -> int:
    """Bytes of the captured graphs: a share per layer and size; about 0.01 GiB per size in total."""
    return 0 if eager else int((0.2 + 0.019 * n_layers) * GIB * sizes / GRAPH_SIZES)


def activation_band(version: Version, value: int, *, large: bool) -> Band:
    """Low and high: 5 % if it was measured (0.17 to 0.20 on a large device), else one third."""
    share = 0.05 if VLLM_LEAN_SAMPLER <= version < (0, 21) and large else 0.33
    return int(value * (1 - share)), int(value * (1 + share))


def non_torch_band(version: Version, value: int, *, tp: int) -> Band:
    """Low and high over the observed versions and machines."""
    if tp == 1 and version < VLLM_V1:
        return int(0.02 * GIB), value + int(0.25 * GIB)
    return (int(0.05 * GIB), value + int(0.25 * GIB)) if tp == 1 else (int(0.7 * GIB), value + int(0.2 * GIB))


def cuda_graph_band(value: int) -> Band:
    """Low and high: captures vary by half in either direction."""
    return value // 3, value * 3 // 2
