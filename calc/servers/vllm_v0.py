"""vLLM before 0.8 (V0 engine): the tokens per step, and what its profile run leaves behind.

Sources: config.py, engine/arg_utils.py, worker/worker.py and distributed/parallel_state.py of 0.3.0 to 0.7.3.

Until 0.6.3, the pool was the memory that the driver reported as free after the profile run, so everything that PyTorch
held counted as used. Sums over ranks ran on NCCL's own stream, and PyTorch does not reuse a tensor that another stream
still reads. If the host runs ahead of its GPU, it leaves up to one such tensor per sum, as long as the device has room;
their number depends on how far ahead it was. The logs show all of the 10.1 GiB that Llama-2-70B can leave at TP 4 on
A100 (pull request 2031), and about half of what Llama-3.1-405B and DeepSeek-Coder-V2 can leave on 8 H100 (0.5.3).
"""

from __future__ import annotations

from calc.model.spec import ModelSpec
from calc.servers.versions import Version
from calc.units import GIB

CHUNKED: Version = (0, 5, 3)
"""Since then, prompts of a model with a context beyond 32,768 tokens are split into chunks; before, never by
default."""
CHUNKS_OF_2048: Version = (0, 6, 5)
"""Since then, chunks have 2,048 tokens; before, 512."""
COUNTED_BY_PYTORCH: Version = (0, 6, 4)
"""Since then, the pool is computed from the peak size of PyTorch's tensors."""
CONTEXT_LEFT_OUT: Version = (0, 3, 1)
"""Since then, memory in use before vLLM started does not count; before, its own CUDA context did."""
CONTEXT_BYTES = GIB // 2
LONG_CONTEXT = 32_768
LEAST_TOKENS = 2048
CUSTOM_SUM_BYTES = 8 * 2**20
"""Sums of smaller tensors use vLLM's own kernels, on the model's stream."""


def batched_tokens(version: Version, max_model_len: int, *, whole_prompts: bool) -> int:
    """--max-num-batched-tokens of the V0 engine. `whole_prompts`: the model's prompts are never split (windows,
    images).

    >>> [batched_tokens(v, 131_072, whole_prompts=False) for v in ((0, 5, 2), (0, 5, 3), (0, 6, 5))]
    [131072, 512, 2048]
    """
    if version < CHUNKED or max_model_len <= LONG_CONTEXT or whole_prompts:
        return max(max_model_len, LEAST_TOKENS)
    return LEAST_TOKENS if version >= CHUNKS_OF_2048 else 512


def counted_context_bytes(version: Version) -> int:
    """The CUDA context, if it counts as used."""
    return CONTEXT_BYTES if version < CONTEXT_LEFT_OUT else 0


def unreturned_bytes(
    model: ModelSpec, version: Version, *, tp: int, batched_tokens: int, element_bytes: int, room_bytes: int
) -> int:
    """The most that tensors of unfinished sums hold when the profile run ends; 0 if they do not count.

    `room_bytes`: what the device has beside everything else. If it is full, PyTorch waits and reuses such tensors.
    """
    each = batched_tokens * model.hidden_size * element_bytes
    if version >= COUNTED_BY_PYTORCH or tp == 1 or each <= CUSTOM_SUM_BYTES:
        return 0
    sums = 1 + sum(bool(layer.mixers) + bool(layer.feed_forwards) for layer in model.layers)
    return min(sums * each, max(0, room_bytes))
