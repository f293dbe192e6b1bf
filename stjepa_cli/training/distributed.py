"""Several processes that train one student: who they are, and what they must agree on. One process is the usual case."""

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
    """One process among those that train together: this one.

    Attributes:
        rank: 0 to size - 1; rank 0 writes.
        size: processes.
        device: of this process.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes checkpoints and metrics."""
        return self.rank == 0

    def share(self, total: int, count: int = 1) -> list[range]:
        """The places of a step's clips that are this process's, split into `count` micro-batches.

        Raises:
            ConfigError: there are fewer clips than that takes.
        """
        parts = self.size * count
        if total < parts:
            raise ConfigError(
                "a step has too few clips",
                got=f"{total} clips for {self.size} processes x {count} micro-batches",
                fix="Raise --batch-size, or lower --accumulate.",
            )
        return [range(i * total // parts, (i + 1) * total // parts) for i in range(self.rank * count, (self.rank + 1) * count)]

    def any(self, here: bool) -> bool:
        """Whether it is so in any process; all must ask."""
        if self.size == 1:
            return here
        flag = torch.tensor([int(here)])
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def mean(self, figures: Mapping[str, Tensor | float]) -> dict[str, float]:
        """The mean of each figure over all processes."""
        values = torch.tensor([float(value) for value in figures.values()], dtype=torch.float64)
        dist.all_reduce(values)
        return dict(zip(figures, (values / self.size).tolist(), strict=True))

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            self.any(False)


@contextmanager
def joined(device: str) -> Iterator[World]:
    """Join the processes that `torchrun` started, if it did.

    Raises:
        StjepaError: another process failed.
        ConfigError: no such device.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(0, 1, pick_device(device))
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(f"WORLD_SIZE is {size} but {', '.join(missing)} is not set", fix="Start it with torchrun, or unset WORLD_SIZE.")
    mine = pick_device(device)
    if mine.type == "cuda":
        mine = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(mine)
    backend = "cpu:gloo,cuda:nccl" if mine.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=_store(), rank=int(os.environ["RANK"]), world_size=size)
    try:
        yield World(dist.get_rank(), size, mine)
    except (RuntimeError, dist.DistError) as error:
        if isinstance(error, StjepaError) or not _is_of_peers(error):
            raise
        raise StjepaError("another process of this run has failed or left", fix="Its own error is in its output.") from error
    # only after success: leaving in good order waits for the others, who may be waiting for this one
    dist.destroy_process_group()


def _store() -> Any:
    """Where the processes find each other, with names of its own for every restart.

    After a restart torchrun hands out the same store, in which the addresses of the processes that are gone still stand: gloo
    then waits for them, or is refused (seen in 5 of 8 restarts with torch 2.13).
    """
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun's agent serves it, else the first process does
    store = dist.TCPStore(*place, is_master=not agent and os.environ["RANK"] == "0")  # type: ignore[attr-defined]
    return dist.PrefixStore(f"stjepa/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)  # type: ignore[attr-defined]


def _is_of_peers(error: BaseException) -> bool:
    """Whether an error comes from the connection between processes."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in ("gloo", "nccl", "connection closed by peer", "socket"))
