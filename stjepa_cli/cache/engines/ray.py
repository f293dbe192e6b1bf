"""Fills shards on the machines of a Ray cluster, one worker per GPU; the next shard goes to whichever worker is free.

```text
driver: holds the part, hands out shards        worker (one per GPU): store, videos, teacher opened once
   shard 7  ----------------------------------->   ShardBuilder.run([7])
   counts   <-----------------------------------   the rows of shard 7 are safe
   worker lost: shard 7 goes to the next free one, and a new worker starts wherever the cluster has room
```
Rows do not travel: workers read the videos and write the cache themselves, on file systems that all machines share. The rows
of a shard that a lost worker had stored are in the journal of the shard, and the next worker resumes from there.
"""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from typing import Any

from stjepa_cli.cache.engines._workers import Worker, WorkerPlan, plan_workers
from stjepa_cli.cache.engines.base import Engine, Job
from stjepa_cli.cache.shard_builder import BuildCounts, OnBatch
from stjepa_cli.core.cluster import connected, reason
from stjepa_cli.core.errors import CacheError, NotReadyError, StjepaError, how_to_install
from stjepa_cli.store.latent_store import LatentStore

ATTEMPTS = 3
WAIT_NOTE_S = 60.0


class Ray(Engine):
    """One worker per GPU, on one machine or on many; without a GPU, one per `Runtime.workers` processors.

    Raises:
        NotReadyError: ray is not installed.
    """

    def __init__(self) -> None:
        try:
            import ray  # noqa: F401
        except ImportError as error:
            raise NotReadyError("--engine ray needs Ray, which is not installed", fix=how_to_install(extra="ray")) from error

    def run(
        self, job: Job, store: LatentStore, shards: Sequence[int], on_batch: OnBatch, retry: frozenset[int] = frozenset()
    ) -> BuildCounts:
        if not shards:
            return BuildCounts()
        job.release_teacher()
        # Ray reports lost workers on stdout, which is for results
        with redirect_stdout(sys.stderr), connected(job.request.engine_address):
            return _WorkerPool(job, plan_workers(job.request, job.runtime, machines()), shards, on_batch, retry).run()


class _WorkerPool:
    """The workers of one build and the shard that each is filling.

    Args:
        job: The build.
        plan: Their number and their needs.
        shards: The shards to fill.
        on_batch: Called with the counts of each finished shard.
        retry: Rows to try again.
    """

    def __init__(self, job: Job, plan: WorkerPlan, shards: Sequence[int], on_batch: OnBatch, retry: frozenset[int]) -> None:
        self.progress, self.plan, self.on_batch, self.retry = job.runtime.progress, plan, on_batch, retry
        self.todo, self.losses = deque(shards), Counter[int | None]()
        self.names: dict[Any, str] = {}
        self.starting: dict[Any, Any] = {}
        self.filling: dict[Any, tuple[Any, int]] = {}
        self.idle: list[Any] = []

    def run(self) -> BuildCounts:
        """Fill all shards.

        Raises:
            StjepaError: The error of a worker, or a shard has cost several workers.
        """
        total = BuildCounts()
        try:
            for _ in range(min(self.plan.count, len(self.todo))):
                self._start_worker()
            while self.todo or self.filling:
                while self.todo and self.idle:
                    self._hand_out(self.idle.pop(), self.todo.popleft())
                for counts in self._next():
                    total.add(counts)
                    self.on_batch(counts)
        finally:
            for worker in (*self.idle, *self.starting.values(), *(worker for worker, _ in self.filling.values())):
                _kill(worker)
        return total

    def _start_worker(self) -> None:
        """Ask for one more worker; it may take long to start, or never start."""
        import ray

        worker = ray.remote(Worker).options(**self.plan.needs).remote(self.plan.request, self.plan.runtime, self.retry)
        self.starting[worker.open.remote()] = worker

    def _hand_out(self, worker: Any, shard: int) -> None:
        self.filling[worker.fill.remote(shard)] = worker, shard

    def _next(self) -> Iterator[BuildCounts]:
        """Wait for the next answer of a worker and handle it; yield the counts of a finished shard."""
        import ray

        done, _ = ray.wait([*self.filling, *self.starting], num_returns=1, timeout=WAIT_NOTE_S)
        if not done and not self.filling:
            self.progress.note("waiting for Ray to start a worker: the cluster has no room, or the machine is slow")
        for pending in done:
            try:
                answer = ray.get(pending)
            except ray.exceptions.RayError as error:
                answer = error
            if pending in self.starting:
                self._started(self.starting.pop(pending), answer)
            else:
                yield from self._filled(*self.filling.pop(pending), answer)

    def _started(self, worker: Any, answer: Any) -> None:
        if isinstance(answer, StjepaError):
            _kill(worker)
            raise answer
        if isinstance(answer, Exception):
            self._lost(worker, None, answer)
            return
        self.losses[None] = 0  # only consecutive failed starts end the build
        self.names[worker] = answer
        self.idle.append(worker)

    def _filled(self, worker: Any, shard: int, answer: Any) -> Iterator[BuildCounts]:
        if isinstance(answer, CacheError) and 0 < self.losses[shard] < ATTEMPTS - 1:
            # network file systems keep the lock of a lost machine for a while, by default 90 s: longer than a writer waits
            self.losses[shard] += 1
            self.todo.append(shard)
            self.idle.append(worker)
        elif isinstance(answer, StjepaError):
            _kill(worker)
            raise answer
        elif isinstance(answer, Exception):
            self._lost(worker, shard, answer)
        else:
            self.idle.append(worker)
            yield answer

    def _lost(self, worker: Any, shard: int | None, error: Exception) -> None:
        """Replace a worker that has died or failed, and make sure that its shard is tried again."""
        import ray

        _kill(worker)
        self.losses[shard] += 1
        what = "a worker that was starting" if shard is None else f"{self.names.pop(worker, 'a worker')} at shard {shard}"
        if self.losses[shard] == ATTEMPTS:
            if isinstance(error, ray.exceptions.RayTaskError):
                raise error  # a bug, with the traceback of the worker
            task = "workers are lost while they start" if shard is None else f"shard {shard} has cost {ATTEMPTS} workers"
            fix = "Look for the cause in Ray's logs (mostly memory), then run the same command again; --engine local shows more."
            raise StjepaError(task, got=reason(error), fix=fix) from error
        self.progress.note(f"lost {what} ({reason(error)}); trying again elsewhere")
        if shard is not None:
            self.todo.append(shard)
        self._start_worker()


def machines() -> list[tuple[int, int]]:
    """Return the numbers of processors and GPUs of each machine of the cluster."""
    import ray

    return [(int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0))) for node in ray.nodes() if node["Alive"]]


def _kill(worker: Any) -> None:
    """End a worker at once; the journal of its shard keeps the rows that were safe."""
    import ray

    ray.kill(worker, no_restart=True)


plugin = Ray
