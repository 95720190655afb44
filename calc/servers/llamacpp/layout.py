"""How llama.cpp places a model: bytes of weights, cache and compute buffers on each device and on the host."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from calc.errors import SpecError
from calc.model.study import DeviceSpec, Study
from calc.servers.budget import visible_bytes
from calc.servers.cache_layers import CacheLayers
from calc.servers.llamacpp.builds import (
    FEW_OUTPUTS,
    HOST_PROMPTS,
    QUANTIZED_KEYS,
    QUANTIZED_VALUES,
    SINCE,
    build_of,
    check_build,
)
from calc.servers.llamacpp.cache import CacheShape, kept_by_layer, layer_bytes
from calc.servers.llamacpp.compute import batch_of, device_compute, host_compute
from calc.servers.llamacpp.placement import HOST, Placement, placed
from calc.servers.llamacpp.weights import Weights, weights_of
from calc.servers.records import DeviceShare, HostShare, ServerOptions
from calc.units import GIB, largest

UBATCH = 512
MOST_SLOTS = 256
CONTEXT_BYTES = GIB // 2
"""A CUDA context with its kernels, outside of llama.cpp's own buffers."""
PROMPT_CACHE_BYTES = 8 * GIB
"""The server's --cache-ram, 8192 MiB by default."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A study as llama.cpp places it with `options`, before the number of slots is known."""

    study: Study
    options: ServerOptions
    build: int
    devices: tuple[DeviceSpec, ...]
    weights: Weights
    placement: Placement
    cached: tuple[tuple[CacheLayers, ...], ...]

    @property
    def context(self) -> int:
        """Tokens per slot."""
        return self.options.max_model_len or self.study.context

    @cached_property
    def rooms(self) -> tuple[int, ...]:
        """Bytes of each device that are available for weights, cache and compute buffers."""
        return tuple(visible_bytes(device)[0] - CONTEXT_BYTES for device in self.devices)

    @cached_property
    def weight_bytes(self) -> dict[int, int]:
        """Weights by place."""
        weights, placement = self.weights, self.placement
        held = dict.fromkeys((HOST, *range(len(self.devices))), 0)
        held[HOST] += weights.input
        for i, layer in enumerate(weights.layers):
            held[placement.of_layer[i]] += layer.rest
            held[placement.experts_of(i)] += layer.experts
        last = placement.of_layer[-1]
        held[last] += weights.output - (weights.head if weights.tied and last == HOST else 0)
        return held

    @cached_property
    def cache_places(self) -> dict[tuple[int, CacheLayers], int]:
        """Number of layers that keep the same in the same place."""
        counts: dict[tuple[int, CacheLayers], int] = {}
        for i, layer in enumerate(self.cached):
            for each in layer:
                key = self.placement.cache_of(i), each
                counts[key] = counts.get(key, 0) + 1
        return counts

    def shape(self, slots: int) -> CacheShape:
        """The cache of `slots`."""
        cache = self.study.kv_format
        keys, values = cache.pair or (cache, cache)
        ubatch = self.options.max_num_batched_tokens or UBATCH
        return CacheShape(
            context=self.context,
            slots=slots,
            ubatch=ubatch,
            key_bytes=keys.bytes_per_element,
            value_bytes=values.bytes_per_element,
            whole_windows=self.options.swa_full,
        )

    def cache_bytes(self, slots: int) -> dict[int, int]:
        """Cache by place."""
        shape, held = self.shape(slots), dict.fromkeys((HOST, *range(len(self.devices))), 0)
        for (place, cached), layers in self.cache_places.items():
            held[place] += layers * layer_bytes(cached, shape)
        return held

    def compute_bytes(self, slots: int) -> dict[int, int]:
        """Compute buffers by place."""
        shape, model = self.shape(slots), self.study.model
        batch = batch_of(self.cached, shape, slots if self.build >= FEW_OUTPUTS else shape.batch)
        held = {i: device_compute(model, self.weights, self.placement, batch, i) for i in range(len(self.devices))}
        return {HOST: host_compute(model, self.placement, batch), **held}

    def shares(self, slots: int) -> tuple[DeviceShare, ...]:
        """The contents of each device with `slots`."""
        cache, compute = self.cache_bytes(slots), self.compute_bytes(slots)
        return tuple(
            DeviceShare(
                name=device.name,
                weight_bytes=self.weight_bytes[i],
                kv_bytes=cache[i],
                compute_bytes=compute[i],
                room_bytes=self.rooms[i],
            )
            for i, device in enumerate(self.devices)
        )

    def fits(self, slots: int) -> bool:
        """Whether every device holds its share."""
        return all(share.free_bytes >= 0 for share in self.shares(slots))

    def most_slots(self) -> int:
        """The most slots that fit; 0 if not even one does."""
        return largest(self.fits, MOST_SLOTS)

    def host(self, slots: int) -> HostShare:
        """The contents of the host with `slots`."""
        prompts = PROMPT_CACHE_BYTES if self.options.cache_ram_bytes is None else self.options.cache_ram_bytes
        return HostShare(
            weight_bytes=self.weight_bytes[HOST],
            kv_bytes=self.cache_bytes(slots)[HOST],
            compute_bytes=self.compute_bytes(slots)[HOST],
            prompt_cache_bytes=prompts if self.build >= HOST_PROMPTS else 0,
        )


def layout_of(study: Study, options: ServerOptions) -> Layout:
    """How llama.cpp places `study`. Raises SpecError if it would refuse the options."""
    build, model = build_of(options.version), study.model
    check_build(build, {name: getattr(options, name) for name in SINCE})
    _check_cache_format(build, study)
    if options.n_cpu_moe and not any(weights.experts for weights in weights_of(model, study.weight_format).layers):
        raise SpecError("n_cpu_moe", f"{model.name} has no routed experts: leave --n-cpu-moe out")
    devices = options.devices or (study.device,) * options.tp
    shares = options.tensor_split or tuple(Fraction(visible_bytes(device)[0]) for device in devices)
    if len(shares) != len(devices):
        raise SpecError("tensor_split", f"--tensor-split has {len(shares)} shares for {len(devices)} devices")
    return Layout(
        study=study,
        options=options,
        build=build,
        devices=devices,
        weights=weights_of(model, study.weight_format),
        placement=placed(
            model.n_layers,
            shares,
            n_gpu_layers=options.n_gpu_layers,
            host_experts=options.n_cpu_moe,
            cache_on_host=options.kv_on_host,
        ),
        cached=kept_by_layer(model, build),
    )


def _check_cache_format(build: int, study: Study) -> None:
    keys, values = study.kv_format.pair or (study.kv_format, study.kv_format)
    if build < QUANTIZED_KEYS and keys.bytes_per_element < 2:
        raise SpecError("kv_format", f"llama.cpp b{build} has no quantized cache: it came with b{QUANTIZED_KEYS}")
    if build < QUANTIZED_VALUES and values.bytes_per_element < 2:
        raise SpecError("kv_format", f"llama.cpp b{build} only quantizes K: V came with b{QUANTIZED_VALUES}")
