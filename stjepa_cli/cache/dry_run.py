"""Use case: say what a cache would take, before hours of GPU time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import torch

from stjepa_cli.cache.engines.base import BuildRequest, load_teacher
from stjepa_cli.cache.shard_builder import Loaded, load
from stjepa_cli.core.errors import CacheError, TeacherError
from stjepa_cli.core.prefetch import ordered_map
from stjepa_cli.core.progress import SILENT, Progress
from stjepa_cli.core.types import TeacherCard
from stjepa_cli.data.datasets.base import VideoItem
from stjepa_cli.store.latent_store import LatentStore
from stjepa_cli.store.records import CacheHeader
from stjepa_cli.teachers.base import Teacher, TeacherSurvey, survey


@dataclass(frozen=True)
class DryRun:
    """What a build would do.

    Attributes:
        clips: videos.
        rows: clips times views.
        bytes: of all shards; with frames, by the JPEGs of the sample.
        skipped: rows that are in the cache already.
        written: 0, as in a build that found nothing to do.
        sampled: clips that were decoded, and encoded if the teacher is at hand, to measure the speed.
        sample_failed: of them, those that could not be used.
        clips_per_second: of the sample, None if nothing could be measured.
        seconds: that the rows which are not stored would take at that speed.
        measured: what was timed.
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


def dry_run(request: BuildRequest, *, sample: int = 16, progress: Progress = SILENT) -> DryRun:
    """What `cache.build` would do; nothing is written and nothing is fetched.

    Args:
        request: what to build.
        sample: clips to time, spread over the list; 0 for none.
        progress: is told of them.

    Raises:
        DatasetError: the data set is not there or its lists cannot be read.
        TeacherError: nothing is known of the teacher's geometry.
        CacheError: what is at the cache's place is another cache or a damaged one.
    """
    items = request.items()
    found = survey(request.teacher, clip=request.clip)
    teacher = load_teacher(request, progress) if found.at_hand and sample else None
    header = request.header(request.clips(items), teacher.card if teacher else _card(request, found), {})
    stored = _stored(request, header)
    timed = _time(items, header, teacher, request, sample, progress)
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
        teacher=request.teacher,
        licence=found.licence,
        sampled=timed.sampled,
        sample_failed=timed.failed,
        clips_per_second=round(rate, 2) if rate else None,
        seconds=round(left / rate, 1) if rate else None,
        measured="decoding and teacher" if teacher else "decoding only: the teacher is not at hand",
    )


@dataclass(frozen=True)
class _Timed:
    """A sample that was made: clips taken, clips that failed, rows and seconds that were timed, mean bytes of JPEGs."""

    sampled: int
    failed: int
    rows: int
    seconds: float
    frames_bytes: int


def _time(
    items: Sequence[VideoItem], header: CacheHeader, teacher: Teacher | None, request: BuildRequest, sample: int, progress: Progress
) -> _Timed:
    """Make a few rows and throw them away; the first batch, which warms up, is not timed if there are others."""
    chosen = items[:: max(1, len(items) // sample)][:sample] if sample else ()
    size = max(1, min(request.batch_size, len(chosen) // 2))
    done: list[Loaded] = []
    started, untimed = time.monotonic(), 0
    loads = ordered_map(lambda item: load(item, header, 0), chosen, num_workers=request.workers)
    with progress.task("timed sample", total=len(chosen)) as task, closing(loads):
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


def _card(request: BuildRequest, found: TeacherSurvey) -> TeacherCard:
    """As much of a teacher's card as can be known without its weights."""
    if found.clip is None:
        raise TeacherError(f"the geometry of {request.teacher} is not known here", got=found.detail, fix="Name a local folder, or `hog`.")
    return TeacherCard(request.teacher, found.kind, "unknown", "", found.licence, found.dim or 0, found.clip)


def _stored(request: BuildRequest, header: CacheHeader) -> int:
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
