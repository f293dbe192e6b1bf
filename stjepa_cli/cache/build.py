"""Use case: run the teacher once over a data set and keep its latents."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace

import torch

from stjepa_cli.cache.engines.base import BuildRequest, Job, load_teacher, open_engine
from stjepa_cli.cache.shard_builder import BuildCounts, failures_to_retry
from stjepa_cli.core.errors import CacheError, StjepaError, VideoError
from stjepa_cli.core.locations import is_local
from stjepa_cli.core.prefetch import ordered_map
from stjepa_cli.core.progress import SILENT, Progress, Task
from stjepa_cli.core.types import TeacherCard
from stjepa_cli.data.datasets.base import VideoItem
from stjepa_cli.data.video import read_clip
from stjepa_cli.store.folder import refuse_foreign_folder, work_folder
from stjepa_cli.store.latent_store import FailedClip, LatentStore
from stjepa_cli.store.locks import CREATION, holding
from stjepa_cli.store.projection import Projection, ProjectionFit, default_kind
from stjepa_cli.store.records import CacheHeader, header_difference
from stjepa_cli.teachers.base import Teacher, survey

__all__ = ["BuildRequest", "BuildResult", "build"]

WAIT_FOREVER = float("inf")


@dataclass(frozen=True)
class BuildResult:
    """What a build did.

    Attributes:
        clips: videos of the cache.
        views: rows of each.
        written: rows computed and stored now.
        skipped: rows that were stored already, failed ones among them.
        failed: rows whose videos cannot be used, from now and from earlier builds, in this part and the others.
        bytes: of all shards.
        shards: of the whole cache.
        missing: rows that no build has made yet: other parts.
        part: the share that this build filled.
        cosine: mean over the tokens written between what is stored and what the teacher said; None for float16.
    """

    cache: str
    clips: int
    views: int
    written: int
    skipped: int
    failed: tuple[FailedClip, ...]
    bytes: int
    seconds: float
    shards: int
    missing: int
    part: str
    latents: tuple[int, int]
    dtype: str
    frames: bool
    teacher: str
    licence: str
    cosine: float | None = None


def build(request: BuildRequest, progress: Progress = SILENT) -> BuildResult:
    """Fill a cache with the teacher's latents; what is stored already stays and is not computed again.

    Raises:
        DatasetError: the data set is not there or its lists cannot be read.
        TeacherError: the teacher cannot be loaded.
        CacheError: the cache that is there belongs to something else, or someone else builds this part of it now.
        StjepaError: the disk has no room.
    """
    started = time.monotonic()
    engine = open_engine(request.engine)
    items = request.items()
    if request.overwrite:
        _remove(request)
    finished = _finished(request, items)
    if finished is not None:
        finished.tidy()  # a build may have been killed after its last mark
        progress.note(f"nothing to do: all of part {request.part} is stored")
        return _result(finished, request, BuildCounts(), _rows_in(finished, request.part.shards(finished.header.num_shards)), started)
    shards = request.part.shards(-(-len(items) * request.views // request.rows_per_shard))
    with _held(request, shards, progress):
        store, teacher = _open_or_create(request, items, progress)
        job = Job(request, store, failures_to_retry(store) if request.retry_failed else frozenset(), progress)
        job.teacher = teacher
        del teacher  # an engine may let go of the job's
        todo = _todo(store, shards, job.retry)
        store.sweep(shards, todo)
        counted = _rows_in(store, shards)
        with progress.task("cache", total=_rows_in(store, todo)) as task:
            counter = _Counter(task)
            try:
                tally = engine.run(job, todo, counter)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    progress.note(f"stopped: {counter.done:,} rows of these shards are safe, the batch under way was dropped")
                with suppress(StjepaError):  # what went wrong first is what is told
                    store.write_failures()
                raise
        store.write_failures()
    store.tidy()
    return _result(store, request, tally, counted - tally.written - tally.failed, started)


def _rows_in(store: LatentStore, shards: Iterable[int]) -> int:
    return sum(len(store.rows_of(shard)) for shard in shards)


class _Counter:
    """Tells a progress bar what became safe."""

    def __init__(self, task: Task) -> None:
        self.task, self.done, self.failed = task, 0, 0

    def __call__(self, tally: BuildCounts) -> None:
        self.done += tally.written + tally.failed + tally.kept
        self.failed += tally.failed
        self.task.advance(tally.written + tally.failed + tally.kept, failed=self.failed)


def _remove(request: BuildRequest) -> None:
    """Remove the cache that is there, if nobody is building it."""
    if LatentStore.exists(request.cache):
        with holding(work_folder(request.cache) / "lock", range(CREATION), f"the cache {request.cache}"):
            LatentStore.remove(request.cache)


def _finished(request: BuildRequest, items: Sequence[VideoItem]) -> LatentStore | None:
    """The cache, if all that is asked for is in it: then neither the teacher nor a video is opened.

    Raises:
        CacheError: it belongs to something else.
    """
    if request.retry_failed or not LatentStore.exists(request.cache):
        return None
    store = LatentStore.open(request.cache)
    card = store.header.teacher
    found = survey(request.teacher, clip=request.clip)
    asked = replace(card, name=request.teacher, clip=found.clip or card.clip, kind=card.kind if found.clip is None else found.kind)
    _check_same(store, request.header(request.clips(items), asked, {"kind": request.projection or store.header.projection["kind"]}))
    return None if store.pending(request.part.shards(store.header.num_shards)) else store


@contextmanager
def _held(request: BuildRequest, shards: range, progress: Progress) -> Iterator[None]:
    """Hold the shards of the part; a build that fails before there is a cache leaves nothing behind."""
    refuse_foreign_folder(request.cache) if not LatentStore.exists(request.cache) else None
    work = work_folder(request.cache)
    made = [folder for folder in (work, *work.parents) if not folder.exists()]
    try:
        with holding(work / "lock", shards, f"part {request.part} of {request.cache}") as locked:
            if not locked:
                progress.note("this file system has no locks: make sure yourself that no two builds take the same part")
            yield
    finally:
        if not LatentStore.exists(request.cache):
            with suppress(CacheError), holding(work / "lock", range(CREATION + 1), "the cache"):  # not under another build
                (work / "lock").unlink(missing_ok=True)
                for folder in made:
                    with suppress(OSError):
                        folder.rmdir()


def _todo(store: LatentStore, shards: range, retry: frozenset[int]) -> list[int]:
    """The shards to fill: those without a mark, and those with rows to try again."""
    again = {row // store.header.rows_per_shard for row in retry}
    return sorted({*store.pending(shards), *(shard for shard in shards if shard in again)})


def _open_or_create(request: BuildRequest, items: Sequence[VideoItem], progress: Progress) -> tuple[LatentStore, Teacher]:
    """The cache and the teacher; whoever comes first fits the projection, and the others wait for it."""
    teacher = load_teacher(request, progress)
    clips = request.clips(items)
    kind = request.projection or default_kind(teacher.card.dim, request.latent_dim)
    lock, creation = work_folder(request.cache) / "lock", range(CREATION, CREATION + 1)
    with ExitStack() as stack:
        if not LatentStore.exists(request.cache):
            stack.enter_context(holding(lock, creation, "the creation of the cache", wait_s=WAIT_FOREVER))
        if LatentStore.exists(request.cache):
            store = LatentStore.open(request.cache)
            _check_same(store, request.header(clips, teacher.card, {"kind": kind}))
            return store, teacher
        _check_room(request, teacher.card, len(clips))
        fitted = _fit(items, teacher, kind, request, progress)
        about = {"kind": kind, "digest": fitted.digest, "explained": round(fitted.explained, 6), "num_fit_clips": fitted.num_fit_clips}
        progress.note(
            f"projection {kind}: {teacher.card.dim} to {request.latent_dim} channels, keeps {fitted.explained:.1%} of the variance "
            f"of {fitted.num_fit_clips} clips"
        )
        return LatentStore.create(request.cache, request.header(clips, teacher.card, about), clips, fitted), teacher


def _check_same(store: LatentStore, wanted: CacheHeader) -> None:
    difference = header_difference(store.header, wanted)
    if difference:
        name, found, expected = difference
        raise CacheError(
            f"the cache {store.path} was built from something else: {name} differs",
            got=found,
            expected=expected,
            fix="Choose another --cache, or replace this one with --overwrite.",
        )


def _check_room(request: BuildRequest, card: TeacherCard, num_clips: int) -> None:
    """Refuse before hours of work what cannot fit."""
    if not is_local(request.cache):
        return
    header = request.header([], card, {})
    folder = next(parent for parent in (request.cache.absolute(), *request.cache.absolute().parents) if parent.exists())
    needed, free = replace(header, num_clips=num_clips).planned_bytes(), shutil.disk_usage(folder).free
    if needed > free:
        raise StjepaError(
            f"the disk of {request.cache} has no room for the cache",
            got=f"{free / 1e6:,.1f} MB free",
            expected=f"{needed / 1e6:,.1f} MB",
            fix="Choose another --cache, fewer clips with --limit, or `--dtype int8`.",
        )


def _fit(items: Sequence[VideoItem], teacher: Teacher, kind: str, request: BuildRequest, progress: Progress) -> Projection:
    """Fit the projection on the first clips that can be decoded, centre views."""
    fit = ProjectionFit(teacher.card.dim, teacher.card.token_norm)
    wanted = min(request.fit_clips, len(items))
    reason = "no video"
    batch: list[torch.Tensor] = []
    spec = teacher.card.clip

    def pixels(item: VideoItem) -> torch.Tensor | str:
        try:
            return read_clip(item.path, spec).pixels
        except VideoError as error:
            return error.reason

    with progress.task("fit projection", total=wanted) as task, closing(ordered_map(pixels, items, num_workers=request.workers)) as clips:
        for clip in clips:
            if isinstance(clip, str):
                reason = clip
                continue
            batch.append(clip)
            if len(batch) == min(request.batch_size, wanted - fit.num_clips):
                fit.add(teacher.encode(torch.stack(batch)))
                task.advance(len(batch))
                batch = []
            if fit.num_clips >= wanted:
                break
        if batch:
            fit.add(teacher.encode(torch.stack(batch)))
    if not fit.num_clips:
        raise CacheError(f"none of the {len(items)} videos can be used", got=reason, fix="Type `stjepa download-check --deep`.")
    return fit.finish(kind, request.latent_dim)


def _result(store: LatentStore, request: BuildRequest, tally: BuildCounts, skipped: int, started: float) -> BuildResult:
    header = store.header
    return BuildResult(
        cache=str(store.path),
        clips=header.num_clips,
        views=header.num_views,
        written=tally.written,
        skipped=skipped,
        failed=tuple(store.failures()),
        bytes=store.num_bytes(),
        seconds=round(time.monotonic() - started, 3),
        shards=header.num_shards,
        missing=_rows_in(store, store.pending()),
        part=str(request.part),
        latents=(header.num_tokens, header.latent_dim),
        dtype=header.dtype,
        frames=header.frames,
        teacher=header.teacher.name,
        licence=header.teacher.licence,
        cosine=tally.cosine if header.dtype != "float16" else None,
    )
