"""How the work of a build is divided among workers in other processes, and what such a worker does."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from stjepa_cli.cache.engines.base import Job
from stjepa_cli.cache.request import BuildRequest
from stjepa_cli.cache.shard_builder import BuildCounts
from stjepa_cli.core.errors import CacheError, ConfigError, StjepaError
from stjepa_cli.core.locations import absolute
from stjepa_cli.core.progress import SILENT
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.store.latent_store import LatentStore
from stjepa_cli.store.records import header_difference

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class WorkerPlan:
    """The work of each worker and the number of workers.

    Attributes:
        request: The request with places that are valid on every machine.
        runtime: The device as each worker sees it, and its threads.
        needs: Resources that Ray reserves for each worker.
        count: Workers that the cluster has room for.
    """

    request: BuildRequest
    runtime: Runtime
    needs: dict[str, float]
    count: int


def plan_workers(request: BuildRequest, runtime: Runtime, machines: Sequence[tuple[int, int]]) -> WorkerPlan:
    """Divide a cluster into workers.

    Args:
        request: The request as the user gave it.
        runtime: The runtime as the user gave it.
        machines: Processors and GPUs of each machine.

    Raises:
        ConfigError: GPUs are asked for and the cluster has none, or it has no processors.
    """
    with_gpu = [(cpus, gpus) for cpus, gpus in machines if gpus] if runtime.device != "cpu" else []
    if runtime.device.startswith("cuda") and not with_gpu:
        fix = "Use `--device auto`, or look at `ray status`."
        raise ConfigError("the Ray cluster has no GPU", got=f"--device {runtime.device}", fix=fix)
    name = request.teacher.name
    teacher = replace(request.teacher, name=str(Path(name).absolute()) if Path(name).is_dir() else name)
    places = {"data_root": absolute(request.source.data_root), "cache": absolute(request.cache)}
    request, quiet = request.replace(teacher=teacher, **places), replace(runtime, progress=SILENT)
    if with_gpu:  # each worker sees its own GPU only, as the first
        cpus = min(runtime.workers, *(cpus // gpus for cpus, gpus in with_gpu))
        needs: dict[str, float] = {"num_gpus": 1, "num_cpus": cpus}
        return WorkerPlan(request, replace(quiet, device="cuda"), needs, sum(gpus for _, gpus in with_gpu))
    room = [cpus for cpus, _ in machines if cpus]
    if not room:
        raise ConfigError("the Ray cluster has no processors", fix="Type `ray status` to see what it has.")
    count = sum(max(1, cpus // runtime.workers) for cpus in room)
    return WorkerPlan(request, replace(quiet, device="cpu"), {"num_cpus": min(runtime.workers, *room)}, count)


class Worker:
    """Fills shards in a process of the cluster.

    Errors of this library are returned, not raised, because Ray would wrap them in its own.

    Args:
        request: The cache to build, with places that are valid on this machine.
        runtime: Device and threads of this worker.
        retry: Rows that were recorded as failed and are to be tried again.
    """

    def __init__(self, request: BuildRequest, runtime: Runtime, retry: frozenset[int]) -> None:
        self.request, self.runtime, self.retry = request, runtime, retry

    def open(self) -> str | StjepaError:
        """Open the cache, the videos and the teacher; return the name of this process."""
        return _returned(self._open)

    def fill(self, shard: int) -> BuildCounts | StjepaError:
        """Fill one shard."""
        return _returned(lambda: self._builder.run([shard], lambda _: None))

    def _open(self) -> str:
        host = socket.gethostname()
        store = LatentStore.open(self.request.cache)
        job = Job(self.request, self.runtime)
        self._builder = job.builder(store, self.retry)
        if difference := header_difference(store.header, job.header(job.teacher.card, store.header.projection)):
            name, expected, found = difference
            fix = "Put the same data set and the same teacher on every machine."
            raise CacheError(f"{host} would build another cache: {name} differs", got=found, expected=expected, fix=fix)
        return f"process {os.getpid()} on {host}"


def _returned(work: Callable[[], Answer]) -> Answer | StjepaError:
    try:
        return work()
    except StjepaError as error:
        return error
