"""Distributed training: the processes that train one student, and what they agree on. A single process is the usual case."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from stjepa_cli.core.devices import pick_device
from stjepa_cli.core.errors import ConfigError, StjepaError


@dataclass(frozen=True)
class World:
    """Rank of this process among those that train together.

    Attributes:
        rank: Rank of this process, 0 to size - 1; rank 0 writes.
        size: Number of processes.
        device: Device of this process.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """True for the process that writes checkpoints and metrics."""
        return self.rank == 0

    def share(self, total: int, count: int = 1) -> list[range]:
        """Return this process's share of the clips of a step.

        Args:
            total: Number of clips in the step, over all processes.
            count: Number of micro-batches per process.

        Returns:
            For each micro-batch the positions of its clips among those of the step.

        Raises:
            ConfigError: There are fewer clips than micro-batches.
        """
        parts = self.size * count
        if total < parts:
            raise ConfigError(
                "the batch has too few clips",
                got=f"{total} clips for {self.size} processes x {count} micro-batches",
                fix="Raise --batch-size, or lower --accumulate.",
            )
        return [range(i * total // parts, (i + 1) * total // parts) for i in range(self.rank * count, (self.rank + 1) * count)]

    def any(self, here: bool) -> bool:
        """Return True if `here` is true in any process. This is a collective call: every process must make it."""
        if self.size == 1:
            return here
        flag = torch.tensor([int(here)])
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def mean(self, metrics: Mapping[str, Tensor | float]) -> dict[str, float]:
        """Return the mean of each metric over all processes. This is a collective call."""
        values = torch.tensor([float(value) for value in metrics.values()], dtype=torch.float64)
        dist.all_reduce(values)
        return dict(zip(metrics, (values / self.size).tolist(), strict=True))

    def wait(self) -> None:
        """Wait until every process has made this call."""
        if self.size > 1:
            self.any(False)


@contextmanager
def joined(device: str) -> Iterator[World]:
    """Join the other processes if `torchrun` started this one; otherwise yield a world of one process.

    Raises:
        StjepaError: Another process failed.
        ConfigError: The machine has no such device, or the environment that torchrun sets is incomplete.
    """
    size = _number("WORLD_SIZE", "1")
    if size <= 1:
        yield World(0, 1, pick_device(device))
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(f"WORLD_SIZE is {size} but {', '.join(missing)} is not set", fix="Start it with torchrun, or unset WORLD_SIZE.")
    mine = pick_device(device)
    if mine.type == "cuda":
        mine = torch.device("cuda", _number("LOCAL_RANK", "0"))
        torch.cuda.set_device(mine)
    backend = "cpu:gloo,cuda:nccl" if mine.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=_store(), rank=_number("RANK"), world_size=size)
    try:
        yield World(dist.get_rank(), size, mine)
    except (RuntimeError, dist.DistError) as error:
        if isinstance(error, StjepaError) or not _is_of_peers(error):
            raise
        raise StjepaError("another process of this run has failed or exited", fix="Its output shows its error.") from error
    # only after success: destroying the group waits for the other processes, which may be waiting for this one
    dist.destroy_process_group()


def _number(variable: str, default: str = "") -> int:
    """Return the number in an environment variable that torchrun sets.

    Raises:
        ConfigError: It is not a number.
    """
    text = os.environ.get(variable) or default
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise ConfigError(f"the environment variable {variable} is not a number", got=repr(text), fix="Start with torchrun, or unset it.")
    return int(text)


def _store() -> Any:
    """Return the store through which the processes find each other, with a prefix of its own for every restart.

    After a restart torchrun hands out the same store, which still holds the addresses of the processes that are gone: gloo then waits
    for them, or is refused (seen in 5 of 8 restarts with torch 2.13).
    """
    place = os.environ["MASTER_ADDR"], _number("MASTER_PORT")
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # then torchrun's agent serves it, otherwise rank 0 does
    store = dist.TCPStore(*place, is_master=not agent and os.environ["RANK"] == "0")  # type: ignore[attr-defined]
    return dist.PrefixStore(f"stjepa/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)  # type: ignore[attr-defined]


def _is_of_peers(error: BaseException) -> bool:
    """Return True if an error comes from the connection between processes."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in ("gloo", "nccl", "connection closed by peer", "socket"))
