"""Which layer goes to which device: the upper layers to devices, in order, by ``--n-gpu-layers`` and the split.

llama-model.cpp (load_tensors, get_layer_buft_list). The output counts as an additional last layer. A device takes the
layers whose position among those on devices is below the sum of the shares up to that device.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate

HOST = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """`of_layer`: the device of each layer, bottom first, and of the output (the last); HOST is not a device.

    The experts of the lowest `host_experts` layers are on the host, and with `cache_on_host` every cache is too.
    """

    of_layer: tuple[int, ...]
    n_devices: int
    host_experts: int = 0
    cache_on_host: bool = False

    @property
    def on_devices(self) -> int:
        """Layers on devices, including the output."""
        return sum(place != HOST for place in self.of_layer)

    def experts_of(self, layer: int) -> int:
        """Where the experts of `layer` are."""
        return HOST if layer < self.host_experts else self.of_layer[layer]

    def cache_of(self, layer: int) -> int:
        """Where the cache of `layer` is."""
        return HOST if self.cache_on_host else self.of_layer[layer]


def placed(
    n_layers: int,
    shares: Sequence[int | Fraction],
    *,
    n_gpu_layers: int | None = None,
    host_experts: int = 0,
    cache_on_host: bool = False,
) -> Placement:
    """The placement of `n_layers` layers and the output on devices with these `shares`; None means all layers.

    >>> placed(4, [1, 1]).of_layer, placed(4, [3, 1], n_gpu_layers=4).of_layer
    ((0, 0, 0, 1, 1), (-1, 0, 0, 0, 1))
    """
    slots = n_layers + 1
    taken = slots if n_gpu_layers is None else min(n_gpu_layers, slots)
    ends = [Fraction(end, sum(shares)) for end in accumulate(shares)]
    upper = [bisect_right(ends, Fraction(i, taken)) for i in range(taken)]
    return Placement(
        of_layer=(*[HOST] * (slots - taken), *upper),
        n_devices=len(shares),
        host_experts=min(host_experts, n_layers),
        cache_on_host=cache_on_host,
    )
