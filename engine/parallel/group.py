"""The ranks of one model as a group: four timed collectives. An error says which rank is lost."""

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store

from engine.errors import EngineFailure
from engine.model.devices import synchronize

T = TypeVar("T")
_POLL_S = 0.02
TIMEOUT = timedelta(minutes=30)
"""How long the other ranks wait for a slow one, for example while it loads a large model from a slow disk."""


class RankLost(EngineFailure):
    """Another rank ended or cannot be reached."""


class Group:
    """Ranks 0 to size - 1. `communication_ns` is the time this rank has spent in collectives."""

    def __init__(self, rank: int, size: int, device: torch.device, *, lost: Callable[[], str] | None = None) -> None:
        self.rank = rank
        self.size = size
        self.device = device
        self.communication_ns = 0
        self._lost = lost

    @classmethod
    def join(
        cls, rank: int, size: int, device: torch.device, store: Store, *, lost: Callable[[], str] | None = None
    ) -> "Group":
        """Join the group through `store`. Raises RankLost if another rank does not join."""
        backend = "nccl" if device.type == "cuda" else "gloo"
        try:
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
        except RuntimeError as error:
            raise RankLost(f"the {size} tensor-parallel ranks could not connect: {_first_line(error)}") from None
        return cls(rank, size, device, lost=lost)

    def leave(self) -> None:
        """Leave the group. The other ranks notice."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def all_reduce(self, tensor: Tensor, *, meanwhile: Callable[[], None] | None = None) -> Tensor:
        """The sum over all ranks, in place. ``meanwhile`` is called while this rank waits; it may raise."""

        def patiently(check: Callable[[], None]) -> None:
            work = dist.all_reduce(tensor, async_op=True)
            while not work.is_completed():
                check()
                time.sleep(_POLL_S)
            work.wait()

        self._timed(lambda: dist.all_reduce(tensor) if meanwhile is None else patiently(meanwhile))
        return tensor

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Copy the values of rank 0 to every rank, in place."""
        self._timed(lambda: dist.broadcast(tensor, 0))
        return tensor

    def gather(self, tensor: Tensor) -> Sequence[Tensor] | None:
        """The tensors of all ranks, on rank 0; None on the others."""
        parts = [torch.empty_like(tensor) for _ in range(self.size)] if self.rank == 0 else None
        self._timed(lambda: dist.gather(tensor.contiguous(), parts, 0))
        return parts

    def _timed(self, call: Callable[[], T]) -> T:
        synchronize(self.device)  # else the time would include earlier work queued on the GPU
        start = time.perf_counter_ns()
        try:
            result = call()
            synchronize(self.device)
            return result
        except RuntimeError as error:
            said = self._lost() if self._lost is not None else ""
            raise RankLost(said or f"a tensor-parallel rank cannot be reached: {_first_line(error)}") from None
        finally:
            self.communication_ns += time.perf_counter_ns() - start


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0][:200]
