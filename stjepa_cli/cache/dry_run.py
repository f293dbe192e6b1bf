"""Use case: report the size and the duration of a build before hours of GPU time are spent on it."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import torch

from stjepa_cli.cache.engines.base import Job
from stjepa_cli.cache.request import BuildRequest
from stjepa_cli.cache.shard_builder import Loaded, load
from stjepa_cli.core.errors import CacheError, TeacherError
from stjepa_cli.core.prefetch import ordered_map
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.core.types import TeacherCard
from stjepa_cli.store.latent_store import LatentStore
from stjepa_cli.store.records import CacheHeader
from stjepa_cli.teachers.base import Teacher, TeacherSurvey, survey


@dataclass(frozen=True)
class DryRun:
    """The plan of a build.

    Attributes:
        cache: The cache.
        clips: Videos.
        views: Rows per video.
        rows: Clips times views.
        shards: Shards of the whole cache.
        bytes: Size of all shards; kept frames are estimated from the JPEGs of the sample.
        skipped: Rows that are in the cache already.
        latents: Tokens and channels of a row.
        dtype: Type of the stored numbers.
        frames: Whether the decoded clips are kept.
        teacher: Name of the teacher.
        licence: Licence of its weights.
        sampled: Clips that were decoded, and encoded if the teacher is at hand, to measure the speed.
        sample_failed: Clips of the sample that could not be used.
        clips_per_second: Speed on the sample, None if nothing could be measured.
        seconds: Time that the remaining rows would take at that speed.
        measured: What the speed covers.
        written: Always 0, as in a build that found nothing to do.
        dry_run: Always true.
    """

    cache: str
    clips: int
    views: int
    rows: int
    shards: int
    bytes: int
    skipped: int
    latents: tuple[int, int]
    dtype: str
    frames: bool
    teacher: str
    licence: str
    sampled: int
    sample_failed: int
    clips_per_second: float | None
    seconds: float | None
    measured: str
    written: int = 0
    dry_run: bool = True


def dry_run(request: BuildRequest, runtime: Runtime = Runtime(), *, sample: int = 16) -> DryRun:
    """Report what `build` would do; nothing is written and nothing is fetched.

    Args:
        request: The cache to build.
        runtime: Device, threads, batch size, and the receiver of progress.
        sample: Clips to time, spread over the list; 0 for none.

    Raises:
        DatasetError: The data set is not there or its lists cannot be read.
        TeacherError: The geometry of the teacher is not known.
        CacheError: Another cache, or a damaged one, is in the place of this one.
    """
    job = Job(request, runtime)
    choice = request.teacher
    found = survey(choice.name, **choice.options)
    teacher = job.teacher if found.at_hand and sample else None
    header = job.header(teacher.card if teacher else _partial_card(request, found), {})
    stored = _stored_rows(request, header)
    timed = _time_sample(job, header, teacher, sample)
    rate = timed.rows / timed.seconds if timed.rows and timed.seconds > 0 else None
    left = header.num_rows - stored
    return DryRun(
        cache=str(request.cache),
        clips=header.num_clips,
        views=header.num_views,
        rows=header.num_rows,
        shards=header.num_shards,
        bytes=header.planned_bytes(timed.frames_bytes),
        skipped=stored,
        latents=(header.num_tokens, header.latent_dim),
        dtype=header.dtype,
        frames=header.frames,
        teacher=request.teacher.name,
        licence=found.licence,
        sampled=timed.sampled,
        sample_failed=timed.failed,
        clips_per_second=round(rate, 2) if rate else None,
        seconds=round(left / rate, 1) if rate else None,
        measured="decoding and teacher" if teacher else "decoding only: the teacher is not at hand",
    )


@dataclass(frozen=True)
class _Timed:
    """The timing of a sample.

    Attributes:
        sampled: Clips taken.
        failed: Clips that could not be used.
        rows: Rows that were timed.
        seconds: Duration of those.
        frames_bytes: Mean size of the JPEGs of a clip.
    """

    sampled: int
    failed: int
    rows: int
    seconds: float
    frames_bytes: int


def _time_sample(job: Job, header: CacheHeader, teacher: Teacher | None, sample: int) -> _Timed:
    """Make a few rows and discard them; the first batch, which warms up, is not timed if there are others."""
    runtime, items = job.runtime, job.items
    chosen = items[:: max(1, len(items) // sample)][:sample] if sample else ()
    size = max(1, min(runtime.batch_size, len(chosen) // 2))
    done: list[Loaded] = []
    started, untimed = time.monotonic(), 0
    loads = ordered_map(lambda item: load(item, header, 0), chosen, num_workers=runtime.workers)
    with runtime.progress.task("timed sample", total=len(chosen)) as task, closing(loads):
        while batch := list(islice(loads, size)):
            pixels = [entry.pixels for entry in batch if entry.pixels is not None]
            if teacher is not None and pixels:
                teacher.encode(torch.stack(pixels)).half().cpu()
            done += batch
            task.advance(len(batch))
            if untimed == 0 and len(chosen) > size:
                started, untimed = time.monotonic(), len(done)
    made = [len(entry.data["frames"]) for entry in done if "frames" in entry.data]
    failed = sum(entry.record.error is not None for entry in done)
    return _Timed(len(done), failed, len(done) - untimed, time.monotonic() - started, sum(made) // max(1, len(made)))


def _partial_card(request: BuildRequest, found: TeacherSurvey) -> TeacherCard:
    """Return as much of the card of a teacher as is known without its weights."""
    name = request.teacher.name
    if found.clip is None:
        raise TeacherError(f"the geometry of {name} is not known here", got=found.detail, fix="Name a local folder, or `hog`.")
    return TeacherCard(name, found.kind, "unknown", "", found.licence, found.dim or 0, found.clip, layers=found.layers)


def _stored_rows(request: BuildRequest, header: CacheHeader) -> int:
    """Return the number of rows that are in the cache already."""
    if request.overwrite or not LatentStore.exists(request.cache):
        return 0
    store = LatentStore.open(request.cache)
    if store.header.num_rows != header.num_rows:
        raise CacheError(
            f"the cache {request.cache} was built from something else: its number of rows differs",
            got=store.header.num_rows,
            expected=header.num_rows,
            fix="Choose another --cache, or replace this one with --overwrite.",
        )
    return store.header.num_rows - sum(len(store.rows_of(shard)) for shard in store.pending())
