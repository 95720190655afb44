"""Start and end the ranks of one model: processes on this machine, or those that torchrun has started."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

from engine.apart import apart
from engine.errors import EngineError, EngineFailure
from engine.model.config import ModelConfig
from engine.model.decoder import Decoder
from engine.model.devices import check_devices, pick_device, rank_device
from engine.parallel.decoder import LeaderDecoder, RankDecoder, follow, shard_of
from engine.parallel.group import TIMEOUT, Group, RankLost
from engine.parallel.shard import Shard, check_tp, cut
from engine.weights.checkpoint import BUNDLED, LoadedModel, load_checkpoint
from engine.weights.hub import locate
from engine.weights.loading import Watch

_PATIENCE_S = 10.0
_POLL_S = 0.02
_GRACE_S = 1.0
"""How long to wait for a rank whose connection broke to end, so that its error can be shown."""


class Ranks:
    """The processes of ranks 1 to tp - 1."""

    def __init__(self) -> None:
        self._processes: list[tuple[int, subprocess.Popen[bytes], IO[bytes]]] = []

    def start(self, rank: int, arguments: list[str], environment: Mapping[str, str]) -> None:
        """Start a rank. Its stdin stays open while this process lives; its end tells the rank to stop."""
        errors = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process)
        process = subprocess.Popen(
            [sys.executable, "-m", "engine.parallel", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env={**os.environ, **environment, "RANK": str(rank)},
            **apart(),
        )
        self._processes.append((rank, process, errors))

    def lost(self) -> str:
        """A sentence about a rank that has ended, or ends within a moment; empty if all are running."""
        return self.ended(_GRACE_S)

    def ended(self, grace_s: float = 0.0) -> str:
        """A sentence about a rank that has ended; empty if all are running."""
        for rank, process, errors in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace_s)
            if process.returncode is not None:
                reason = _last_line(errors)
                how = f"signal {-process.returncode}" if process.returncode < 0 else f"code {process.returncode}"
                n = len(self._processes) + 1
                return f"rank {rank} of {n} ended ({how}){': ' + reason if reason else ''}; the run is over"
        return ""

    def end(self, patience_s: float = _PATIENCE_S) -> None:
        """End all ranks. ``patience_s``: time to exit by themselves before they are killed."""
        for _, process, _ in self._processes:
            if process.stdin is not None:
                with contextlib.suppress(OSError):
                    process.stdin.close()
        for _, process, errors in self._processes:
            try:
                process.wait(patience_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            errors.close()
        self._processes.clear()


def _last_line(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = errors.read()[-4000:].decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else ""


def load_parallel(
    path: Path | str | None,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    tp: int,
    threads: int | None = None,
    watch: Watch | None = None,
) -> LoadedModel:
    """The model on `tp` ranks; its decoder is rank 0, a `LeaderDecoder` (close it when done).

    Under torchrun the other ranks already exist and run `follow_torchrun`. Raises OptionError for a TP degree that does
    not fit the model, RankLost when a rank ends, and what `load_checkpoint` raises. ``watch`` counts
    the bytes that rank 0 takes.
    """
    watch = watch or Watch()
    if under_torchrun():
        return _load(path, dtype=dtype, group=_join_torchrun(device), ranks=Ranks(), watch=watch)
    if path is not None and str(path) != BUNDLED:
        path = locate(str(path), watch)  # downloaded once, not by every rank
    check_devices(pick_device(device), tp)
    check_tp(load_config(path, dtype=dtype), tp)
    return _start(path, dtype=dtype, device=device, tp=tp, threads=threads, watch=watch)


def load_config(path: Path | str | None, *, dtype: str) -> ModelConfig:
    """The config alone: the weight file is mapped, and no weight is converted."""
    return load_checkpoint(path, dtype=dtype, make=_no_decoder).config


def _no_decoder(config: ModelConfig, weights: Mapping[str, Tensor]) -> Decoder:
    return object.__new__(Decoder)


def _start(
    path: Path | str | None, *, dtype: str, device: str, tp: int, threads: int | None, watch: Watch
) -> LoadedModel:
    ranks = Ranks()
    store = TCPStore("127.0.0.1", 0, tp, is_master=True, wait_for_workers=False, timeout=TIMEOUT)
    _use_loopback()
    environment = {"WORLD_SIZE": str(tp), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    words = [str(path) if path is not None else BUNDLED, dtype, device, str(threads or 0)]
    try:
        for rank in range(1, tp):
            ranks.start(rank, words, environment)
        _await_ranks(store, tp, ranks, watch)
        group = Group.join(0, tp, rank_device(device, 0), store, lost=ranks.lost)
        return _load(path, dtype=dtype, group=group, ranks=ranks, watch=watch)
    except BaseException:
        ranks.end(patience_s=0)  # before the group, which would wait for their pending operations
        if dist.is_initialized():
            dist.destroy_process_group()
        raise


def _await_ranks(store: TCPStore, tp: int, ranks: Ranks, watch: Watch) -> None:
    """Return when all ranks have imported torch, which takes seconds. Raises RankLost, Stopped."""
    names = [_here(rank) for rank in range(1, tp)]
    while not store.check(names):
        if lost := ranks.ended():
            raise RankLost(lost)
        watch.check()
        time.sleep(_POLL_S)


def _here(rank: int) -> str:
    """The key that a rank sets in the store when it is ready."""
    return f"here/{rank}"


def _use_loopback() -> None:
    """Tell gloo the loopback interface; else it looks up this machine's address by name."""
    names = [name for _, name in socket.if_nameindex()]
    for name in ("lo", "lo0"):
        if name in names:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def _load(path: Path | str | None, *, dtype: str, group: Group, ranks: Ranks, watch: Watch) -> LoadedModel:
    def end() -> None:
        group.leave()
        ranks.end()

    def make(config: ModelConfig, weights: Mapping[str, Tensor]) -> Decoder:
        return LeaderDecoder(config, weights, group, end=end)

    select = partial(_own, shard_of(group))
    model = load_checkpoint(path, dtype=dtype, device=group.device, make=make, select=select, watch=watch)
    n_ready = int(group.all_reduce(torch.ones(1, dtype=torch.int64, device=group.device), meanwhile=watch.check))
    if n_ready < group.size:
        end()
        raise EngineFailure(f"{group.size - n_ready} of {group.size} ranks could not load the model")
    return replace(model, name=model.name)


def _own(shard: Shard, name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    return cut(name, tensor, config, shard)


def run_rank(path: str, dtype: str, device: str, threads: int) -> int:
    """Run a rank that `load_parallel` has started: load its share, then follow rank 0. Returns the exit code."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(threads or max(1, torch.get_num_threads() // size))
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), size, is_master=False, timeout=TIMEOUT)
    _use_loopback()
    try:
        own = rank_device(device, rank)
        store.set(_here(rank), "")
        _follow(None if path == BUNDLED else path, dtype, Group.join(rank, size, own, store))
    except EngineError as error:
        print(error.message, file=sys.stderr)
        return error.exit_code
    return 0


def _follow(path: str | None, dtype: str, group: Group) -> None:
    def make(config: ModelConfig, weights: Mapping[str, Tensor]) -> Decoder:
        return RankDecoder(config, weights, group)

    ready = torch.ones(1, dtype=torch.int64, device=group.device)
    try:
        select = partial(_own, shard_of(group))
        model = load_checkpoint(path, dtype=dtype, device=group.device, make=make, select=select)
    except EngineError:
        group.all_reduce(ready.zero_())
        raise
    group.all_reduce(ready)
    assert isinstance(model.decoder, RankDecoder)
    try:
        follow(model.decoder)
    finally:
        group.leave()


def _end_with_parent() -> None:
    """End this process when its stdin ends: the parent is gone, or wants this rank to stop."""
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    os._exit(0)


# --- torchrun ---------------------------------------------------------------------------------------------


def under_torchrun() -> bool:
    """Whether torchrun has started this process as one rank of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def follower_of_torchrun() -> bool:
    """Whether this process is a rank above 0, which only follows."""
    return under_torchrun() and int(os.environ["RANK"]) > 0


def follow_torchrun(path: str | None, dtype: str, device: str = "cpu") -> int:
    """Run a rank above 0 under torchrun. Returns the exit code."""
    group = _join_torchrun(device)
    try:
        _follow(path, dtype, group)
    except RankLost:
        return 0  # rank 0 reports the error
    return 0


def _join_torchrun(name: str) -> Group:
    device = rank_device(name, int(os.environ.get("LOCAL_RANK", "0")))
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise RankLost(f"the ranks of torchrun could not connect: {str(error).splitlines()[0][:200]}") from None
    return Group(dist.get_rank(), dist.get_world_size(), device)
