"""How fast this machine reads the weights of a loaded model and multiplies with them: what predictions start from.

A decode step reads every weight once, a prefill multiplies many tokens with each: memory's speed bounds the one, the
processor's the other (the roofline: Williams, Waterman, Patterson 2009). Both are measured on the model's own
matrices, with its own threads; some tens of milliseconds.
"""

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.machine import cpu_name, usable_cores
from engine.model.config import ModelConfig
from engine.model.decoder import Decoder
from engine.model.devices import device_name, synchronize
from engine.model.layers import Linear
from engine.model.shapes import n_parameters
from engine.records import Machine
from engine.weights.formats import GroupedLinear, linear_layers, packed

ROUNDS = 3
MAX_S = 0.1
"""After this much of reading, or of multiplying, what has been measured so far counts."""
LARGE_BYTES = 8_000_000
PREFILL_TOKENS = 128
LAYER_S = 0.1
LEAST_CHUNK, MOST_CHUNK = 128, 4096
RANKS_CHUNK = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """The best of a few tries: bytes of weights read, and FLOPs of a prefill's matrix product, in a second."""

    read_bytes_per_s: float
    matmul_flops_per_s: float


def probe(decoder: Decoder) -> Rates | None:
    """The machine's rates for this model; None for layers that have no plain matrix (reordered, other ranks)."""
    layers = [layer for layer in linear_layers(decoder) if isinstance(layer, Linear | GroupedLinear)]
    if not layers or decoder.communication_ns is not None:
        return None
    with torch.inference_mode():
        largest = max(layers[1:] or layers, key=each_flops)  # the head, which is first, is not for all tokens
        return Rates(
            read_bytes_per_s=_bytes_per_s([packed_values(layer) for layer in layers]),
            matmul_flops_per_s=_flops_per_s(largest, decoder),
        )


def machine_facts(decoder: Decoder) -> Machine:
    """The processor, what torch may use of it, and the versions, at this moment."""
    return facts(decoder.device, str(decoder.dtype).removeprefix("torch."))


def facts(device: torch.device, dtype: str) -> Machine:
    """The same for any device and dtype."""
    return Machine(
        cpu=cpu_name(),
        cores=usable_cores(),
        threads=torch.get_num_threads(),
        device=device_name(device),
        dtype=dtype,
        torch=str(torch.__version__),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
    )


def prefill_chunk(decoder: Decoder, rates: Rates | None) -> int | None:
    """Prompt tokens a pass, so that none of its layers, between which it can be stopped, takes longer than LAYER_S.

    Chunks cost: the first is a triangle to the attention kernel, later ones come with a mask (a prompt of 2,000 tokens
    took 14 % longer in chunks of 512 with SmolLM2-135M in float32, 30 % in bfloat16), so they are as long as they can
    be. Several ranks stop between passes alone.
    """
    if rates is None:
        return RANKS_CHUNK if decoder.communication_ns is not None else None
    tokens = int(LAYER_S * rates.matmul_flops_per_s / layer_flops(decoder.config))
    return min(max(tokens, LEAST_CHUNK), MOST_CHUNK)


def layer_flops(config: ModelConfig) -> float:
    """FLOPs of one token through the matrices of a layer, on average, with the experts that it goes to."""
    experts = config.experts
    active = config if experts is None else replace(config, experts=replace(experts, n_experts=experts.n_active))
    tables = (1 if config.tied else 2) * config.vocab_size * config.hidden_size
    return 2 * (n_parameters(active) - tables) / config.n_layers


def packed_values(layer: Linear | GroupedLinear) -> Tensor:
    """The numbers of a matrix as they lie in memory."""
    if not isinstance(layer, GroupedLinear):
        return layer.weight
    return max((part.values for part in packed(layer)), key=Tensor.numel)


def each_flops(layer: Linear | GroupedLinear) -> int:
    """FLOPs of one token through a layer: a multiply and an add a weight."""
    if isinstance(layer, GroupedLinear):
        return 2 * layer.rows * layer.cols
    return 2 * layer.weight.numel()


def _bytes_per_s(weights: Sequence[Tensor]) -> float:
    """The best rate of reading a matrix that no cache holds; of reading all of them where they are small.

    Matrix by matrix, so that a moment in which another process has the core does not count.
    """
    large = [[weight] for weight in weights if weight.nbytes >= LARGE_BYTES]
    best, began = 0.0, time.perf_counter()
    for some in (large or [list(weights)]) * ROUNDS:
        start = time.perf_counter()
        for weight in some:
            _read(weight)
        synchronize(some[0].device)
        best = max(best, sum(weight.nbytes for weight in some) / (time.perf_counter() - start))
        if time.perf_counter() - began > MAX_S:
            break
    return best


def _read(weight: Tensor) -> None:
    flat = weight.reshape(-1).view(torch.uint8)
    flat[: flat.numel() // 8 * 8].view(torch.int64).sum()  # whole numbers: nothing is slow, whatever the bytes


def _flops_per_s(layer: Linear | GroupedLinear, decoder: Decoder) -> float:
    inputs = layer.cols if isinstance(layer, GroupedLinear) else layer.weight.size(1)
    x = torch.ones(PREFILL_TOKENS, inputs, dtype=decoder.dtype, device=decoder.device)
    times: list[float] = []
    while len(times) < ROUNDS and sum(times) < MAX_S:
        start = time.perf_counter()
        layer(x)
        synchronize(decoder.device)
        times.append(time.perf_counter() - start)
    return each_flops(layer) * PREFILL_TOKENS / min(times)
