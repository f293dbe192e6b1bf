"""Embeds videos on the machines of a Ray cluster, one worker per GPU, or per few processors where there are no GPUs.

```text
driver: hands out chunks of videos, writes the table     worker: loads the encoder once
   32 videos and what is known of them  ---------------->   embed_items
   rows with their vectors              <----------------
```
Only the driver writes, and it starts Ray before LanceDB is opened, which bears a fork badly. A worker that dies ends the run; the
same command goes on where it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from stjepa_cli.core.cluster import connected
from stjepa_cli.core.errors import ConfigError, StjepaError
from stjepa_cli.core.progress import SILENT
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.search.embedding import Embedded, Recipe, embed_items
from stjepa_cli.search.encoder import Encoder
from stjepa_cli.search.engines.base import Engine, Job
from stjepa_cli.search.reading import Item
from stjepa_cli.search.records import Column, Known, row_id

CHUNK = 32
"""Videos per task of a worker."""
AHEAD = 2
"""Tasks per worker that are under way, so that no worker waits for the driver."""


class Worker:
    """Embeds chunks of videos in a process of the cluster. Errors of this library are returned, since Ray would wrap them.

    Args:
        model: Name of the encoder, as it is understood on every machine.
        num_frames: Number of frames in a clip, or None.
        column: The column that is filled.
        recipe: What vectors to make.
        runtime: Device and threads of this worker.
    """

    def __init__(self, model: str, num_frames: int | None, column: Column, recipe: Recipe, runtime: Runtime) -> None:
        self.model, self.num_frames, self.column, self.recipe, self.runtime = model, num_frames, column, recipe, runtime
        self._encoder: Encoder | None = None

    def embed(self, items: Sequence[Item], known: Mapping[str, Known]) -> list[Embedded] | StjepaError:
        """Embed a chunk of videos."""
        try:
            if self._encoder is None:
                self._encoder = Encoder.load(self.model, self.runtime, self.num_frames)
                self.column.check_same(self.recipe.column_of(self._encoder, self.model), "the table")
            return list(embed_items(self._encoder, self.column, self.recipe, items, known))
        except StjepaError as error:
            return error


class Ray(Engine):
    """The machines of a Ray cluster, or a local instance of Ray that ends with the run."""

    def ready(self) -> AbstractContextManager[None]:
        """Connect to the cluster; a program that is connected already stays so."""
        return connected(self.address)

    def run(self, job: Job) -> Iterator[Embedded]:
        import ray
        from ray.util import ActorPool

        name = str(Path(job.model).absolute()) if Path(job.model).exists() else job.model
        runtime = job.encoder.runtime
        count, needs, device = _plan(runtime)
        mine = replace(runtime, device=device, progress=SILENT)
        chunks = [job.items[start : start + CHUNK] for start in range(0, len(job.items), CHUNK)]
        worker = ray.remote(Worker).options(**needs)
        actors = [worker.remote(name, job.num_frames, job.column, job.recipe, mine) for _ in range(min(count, len(chunks)))]
        pool, waiting = ActorPool(actors), iter(chunks)
        try:
            for _ in range(AHEAD * len(actors)):
                _submit(pool, waiting, job)
            while pool.has_next():
                answer = pool.get_next()
                _submit(pool, waiting, job)
                if isinstance(answer, StjepaError):
                    raise answer
                yield from answer
        except ray.exceptions.RayActorError as error:
            raise StjepaError("a worker of the Ray cluster was lost", fix="Run the same command again: it goes on where it was.") from error


def _submit(pool: Any, waiting: Iterator[Sequence[Item]], job: Job) -> None:
    """Hand out the next chunk, with what is known of its videos."""
    chunk = next(waiting, None)
    if chunk is None:
        return
    mine: dict[str, Known] = {}
    for item in chunk:
        whole = job.known.get(row_id(item.uri))
        parts = job.recipe.framing.parts(None if whole is None else whole.duration_seconds, item.center_seconds)
        ids = (row_id(item.uri, part.start_seconds, part.end_seconds) for part in parts)
        mine |= {each: job.known[each] for each in ids if each in job.known}
    pool.submit(lambda actor, value: actor.embed.remote(*value), (chunk, mine))


def _plan(runtime: Runtime) -> tuple[int, dict[str, float], str]:
    """Return the number of workers, what each of them needs, and its device."""
    import ray

    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    if gpus and runtime.device != "cpu":
        return gpus, {"num_gpus": 1, "num_cpus": max(1, min(runtime.workers, cpus // gpus))}, "cuda"
    if runtime.device.startswith("cuda"):
        fix = "Use `--device auto`, or look at `ray status`."
        raise ConfigError("the Ray cluster has no GPU", got=f"--device {runtime.device}", fix=fix)
    each = max(1, min(runtime.workers, cpus))
    return max(1, cpus // each), {"num_cpus": each}, "cpu"


plugin = Ray
