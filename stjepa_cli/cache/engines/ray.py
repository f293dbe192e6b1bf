"""Fill shards on the machines of a Ray cluster: one worker a GPU, each shard handed to whoever is free. The one user of ray.

```text
driver: holds the part, hands out shards        worker (one a GPU): store, videos, teacher opened once
   shard 7  ----------------------------------->   ShardBuilder.run([7])
   tally    <-----------------------------------   rows of shard 7 are safe
   worker lost: shard 7 to the next one that is free, and a new worker wherever the cluster has room
```
Rows do not travel: workers read the videos and write the cache themselves, on file systems that all machines share. What a
lost worker had stored of its shard is in the shard's journal, and the next one goes on from there.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from stjepa_cli.cache.engines.base import BuildRequest, Engine, Job
from stjepa_cli.cache.shard_builder import BuildCounts, OnBatch
from stjepa_cli.core.errors import CacheError, ConfigError, NotReadyError, StjepaError
from stjepa_cli.core.locations import absolute
from stjepa_cli.store.latent_store import LatentStore
from stjepa_cli.store.records import header_difference

ATTEMPTS = 3
PATIENCE_S = 60.0
KNOCK_S = 10.0
OBJECT_STORE_BYTES = 100_000_000  # a local instance's: only tallies go through it, and Ray's default is a third of the memory

Answer = TypeVar("Answer")


class Ray(Engine):
    """One worker a GPU, on one machine or on many; without a GPU, one for as many processors as it decodes with.

    Raises:
        NotReadyError: ray is not installed.
    """

    def __init__(self) -> None:
        try:
            import ray  # noqa: F401
        except ImportError as error:
            raise NotReadyError("--engine ray needs Ray, which is not installed", fix="Type `pip install 'stjepa[ray]'`.") from error

    def run(self, job: Job, shards: Sequence[int], on_batch: OnBatch) -> BuildCounts:
        if not shards:
            return BuildCounts()
        job.release()
        # Ray tells of lost workers on stdout, which is for results
        with redirect_stdout(sys.stderr), _cluster(job.request.engine_address):
            return _Crew(job, shards, on_batch).run()


class Worker:
    """Fills shards in a process of the cluster.

    What the library has to say of a failure is returned, not raised: Ray would put it in other words.

    Args:
        request: what to build, with places and devices that are right on this machine.
        retry: rows that were recorded as failed and are to be tried again.
    """

    def __init__(self, request: BuildRequest, retry: frozenset[int]) -> None:
        self.request, self.retry = request, retry

    def open(self) -> str | StjepaError:
        """Open the cache, the videos and the teacher; returns who this is."""
        return _said(self._open)

    def fill(self, shard: int) -> BuildCounts | StjepaError:
        """Fill one shard."""
        return _said(lambda: self._builder.run([shard], lambda _: None))

    def _open(self) -> str:
        where = socket.gethostname()
        store = LatentStore.open(self.request.cache)
        job = Job(self.request, store, self.retry)
        self._builder = job.builder()
        mine = self.request.header(self.request.clips(self._builder.items), job.teacher.card, store.header.projection)
        if difference := header_difference(store.header, mine):
            name, expected, found = difference
            fix = "Put the same data set and the same teacher on every machine."
            raise CacheError(f"{where} would build another cache: {name} differs", got=found, expected=expected, fix=fix)
        return f"process {os.getpid()} on {where}"


def _said(work: Callable[[], Answer]) -> Answer | StjepaError:
    try:
        return work()
    except StjepaError as error:
        return error


class _Crew:
    """The workers of one build, and what each has in hand.

    Args:
        job: what to build.
        shards: those that are to be filled.
        on_batch: called with the tally of each shard.
    """

    def __init__(self, job: Job, shards: Sequence[int], on_batch: OnBatch) -> None:
        self.job, self.on_batch = job, on_batch
        self.todo, self.losses = deque(shards), Counter[int | None]()
        self.names: dict[Any, str] = {}
        self.starting: dict[Any, Any] = {}
        self.filling: dict[Any, tuple[Any, int]] = {}
        self.idle: list[Any] = []

    def run(self) -> BuildCounts:
        """Fill all shards.

        Raises:
            StjepaError: what a worker says, or that a shard has cost several workers.
        """
        total = BuildCounts()
        self.request, self.needs, count = _share(self.job.request, _machines())
        try:
            for _ in range(min(count, len(self.todo))):
                self._hire()
            while self.todo or self.filling:
                while self.todo and self.idle:
                    self._hand_out(self.idle.pop(), self.todo.popleft())
                for tally in self._next():
                    total.add(tally)
                    self.on_batch(tally)
        finally:
            for worker in (*self.idle, *self.starting.values(), *(worker for worker, _ in self.filling.values())):
                _end(worker)
        return total

    def _hire(self) -> None:
        """Ask for one more worker; it may take long to come, or never come."""
        import ray

        worker = ray.remote(Worker).options(**self.needs).remote(self.request, self.job.retry)
        self.starting[worker.open.remote()] = worker

    def _hand_out(self, worker: Any, shard: int) -> None:
        self.filling[worker.fill.remote(shard)] = worker, shard

    def _next(self) -> Iterator[BuildCounts]:
        """Wait until a worker says something, and see to it; yields the tally of a finished shard."""
        import ray

        done, _ = ray.wait([*self.filling, *self.starting], num_returns=1, timeout=PATIENCE_S)
        if not done and not self.filling:
            self.job.progress.note("waiting for Ray to start a worker: the cluster has no room, or the machine is slow")
        for answer in done:
            try:
                said = ray.get(answer)
            except ray.exceptions.RayError as error:
                said = error
            if answer in self.starting:
                self._started(self.starting.pop(answer), said)
            else:
                yield from self._filled(*self.filling.pop(answer), said)

    def _started(self, worker: Any, said: Any) -> None:
        if isinstance(said, StjepaError):
            _end(worker)
            raise said
        if isinstance(said, Exception):
            self._lost(worker, None, said)
            return
        self.losses[None] = 0  # only starts that fail one after the other end the build
        self.names[worker] = said
        self.idle.append(worker)

    def _filled(self, worker: Any, shard: int, said: Any) -> Iterator[BuildCounts]:
        if isinstance(said, CacheError) and 0 < self.losses[shard] < ATTEMPTS - 1:
            # network file systems keep the lock of a lost machine for a while, by default 90 s: longer than a writer waits
            self.losses[shard] += 1
            self.todo.append(shard)
            self.idle.append(worker)
        elif isinstance(said, StjepaError):
            _end(worker)
            raise said
        elif isinstance(said, Exception):
            self._lost(worker, shard, said)
        else:
            self.idle.append(worker)
            yield said

    def _lost(self, worker: Any, shard: int | None, error: Exception) -> None:
        """Replace a worker that has died or failed, and see that its shard is tried again."""
        import ray

        _end(worker)
        self.losses[shard] += 1
        what = "a worker that was starting" if shard is None else f"{self.names.pop(worker, 'a worker')} at shard {shard}"
        if self.losses[shard] == ATTEMPTS:
            if isinstance(error, ray.exceptions.RayTaskError):
                raise error  # a bug, with the worker's traceback
            task = "workers are lost while they start" if shard is None else f"shard {shard} has cost {ATTEMPTS} workers"
            fix = "Look for their end in Ray's logs (memory, mostly), then run the same command again; --engine local shows more."
            raise StjepaError(task, got=_reason(error), fix=fix) from error
        self.job.progress.note(f"lost {what} ({_reason(error)}); trying again elsewhere")
        if shard is not None:
            self.todo.append(shard)
        self._hire()


def _share(request: BuildRequest, machines: Sequence[tuple[int, int]]) -> tuple[BuildRequest, dict[str, float], int]:
    """What each worker is asked to do, what it needs of its machine, and how many workers there is room for.

    Args:
        request: as the user gave it.
        machines: processors and GPUs of each.

    Raises:
        ConfigError: GPUs are asked for and the cluster has none.
    """
    wants_gpu = request.device.startswith("cuda")
    with_gpu = [(cpus, gpus) for cpus, gpus in machines if gpus] if request.device != "cpu" else []
    if wants_gpu and not with_gpu:
        raise ConfigError("the Ray cluster has no GPU", got=f"--device {request.device}", fix="Use `--device auto`, or `ray status`.")
    teacher = str(Path(request.teacher).absolute()) if Path(request.teacher).is_dir() else request.teacher
    request = replace(request, data_root=absolute(request.data_root), cache=absolute(request.cache), teacher=teacher)
    if with_gpu:  # each sees its own GPU only, as the first
        cpus = min(request.workers, *(cpus // gpus for cpus, gpus in with_gpu))
        return replace(request, device="cuda"), {"num_gpus": 1, "num_cpus": cpus}, sum(gpus for _, gpus in with_gpu)
    room = [cpus for cpus, _ in machines if cpus]
    if not room:
        raise ConfigError("the Ray cluster has no processors", fix="Type `ray status` to see what it has.")
    return replace(request, device="cpu"), {"num_cpus": min(request.workers, *room)}, sum(max(1, cpus // request.workers) for cpus in room)


def _machines() -> list[tuple[int, int]]:
    """Processors and GPUs of each machine of the cluster."""
    import ray

    return [(int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0))) for node in ray.nodes() if node["Alive"]]


@contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    """Be connected to the cluster at `address` while the block runs, or to a local instance that ends with it.

    A program that is connected already, to whatever it chose, stays so.

    Raises:
        NotReadyError: there is no cluster at the address, or one of other versions.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    local = {} if address else {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        _knock(address or "local")
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
    except (OSError, RuntimeError, ValueError) as error:
        what = f"the Ray cluster at {address} cannot be used" if address else "Ray does not start on this machine"
        raise NotReadyError(what, got=_reason(error), fix="Type `ray status --address HOST:6379` to see what is there.") from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """See whether anybody listens at HOST:PORT: Ray itself gives up after many minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=KNOCK_S).close()


def _end(worker: Any) -> None:
    """End a worker at once, or what is left of it: what it was writing goes on from its journal."""
    import ray

    ray.kill(worker, no_restart=True)


def _reason(error: Exception) -> str:
    """What happened, without Ray's indented details."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith(("\t", " "))]
    return (lines[-1] if lines else type(error).__name__)[:200]


plugin = Ray
