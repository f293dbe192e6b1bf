"""Use case: run the teacher once over a data set and keep its latents."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from stjepa_cli.cache.engines.base import Engine, Job, open_engine
from stjepa_cli.cache.fit import fit_projection
from stjepa_cli.cache.overwrite import Replacement
from stjepa_cli.cache.request import BuildRequest
from stjepa_cli.cache.shard_builder import BuildCounts, failures_to_retry
from stjepa_cli.core.errors import CacheError, StjepaError
from stjepa_cli.core.locations import is_local
from stjepa_cli.core.progress import Task
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.store.folder import refuse_foreign_folder, remove_remote_cache, work_folder
from stjepa_cli.store.latent_store import LatentStore
from stjepa_cli.store.locks import CREATION, holding
from stjepa_cli.store.projection import check_kind, default_kind
from stjepa_cli.store.records import CacheHeader, FailedClip, header_difference
from stjepa_cli.teachers.base import survey

__all__ = ["BuildRequest", "BuildResult", "build"]

WAIT_FOREVER = float("inf")


@dataclass(frozen=True)
class BuildResult:
    """The outcome of a build.

    Attributes:
        cache: The cache.
        clips: Videos of the cache.
        views: Rows per video.
        written: Rows computed and stored by this build.
        skipped: Rows that were stored already, including failed ones.
        failed: Rows whose videos cannot be used, from this build and earlier ones, in this part and the others.
        bytes: Size of all shards.
        seconds: Duration of this build.
        shards: Shards of the whole cache.
        missing: Rows that no build has made yet (those of other parts).
        part: The part that this build filled.
        latents: Tokens and channels of a row.
        dtype: Type of the stored numbers.
        frames: Whether the decoded clips are kept.
        teacher: Name of the teacher.
        licence: Licence of its weights.
        cosine: Mean cosine between the tokens that were written and their stored form; None for float16.
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


def build(request: BuildRequest, runtime: Runtime = Runtime()) -> BuildResult:
    """Fill a cache with the latents of a teacher; rows that are stored already stay and are not computed again.

    Args:
        request: The cache to build.
        runtime: Device, threads, batch size, and the receiver of progress.

    Raises:
        DatasetError: The data set is not there or its lists cannot be read.
        TeacherError: The teacher cannot be loaded.
        CacheError: The cache that is there belongs to something else, or another process is building this part of it.
        StjepaError: The disk has no room.
    """
    if request.overwrite and is_local(request.cache) and Replacement.is_due(request.cache):
        return _build_beside(request, runtime)
    if not (request.overwrite and LatentStore.exists(request.cache)):
        return _build(Job(request, runtime))
    job = Job(request, runtime)
    _check_request(job)  # an object store cannot rename a folder: all that can be checked is checked before the old one goes
    with holding(work_folder(request.cache) / "lock", range(CREATION), f"the cache {request.cache}"):
        remove_remote_cache(request.cache)
    return _build(job)


def _build_beside(request: BuildRequest, runtime: Runtime) -> BuildResult:
    """Build a new cache beside the one that is there, and swap them when the new one is complete."""
    old = Replacement(request.cache)  # type: ignore[arg-type]  # it is local
    runtime.progress.note(f"building the new cache in {old.new}; the old one stays until it is complete")
    result = _build(Job(request.replace(cache=old.new, overwrite=False), runtime))
    if result.missing:
        runtime.progress.note(f"{result.missing:,} rows of other parts are missing: the old cache stays until they are built too")
        return result
    old.swap(runtime.progress)
    return dataclasses.replace(result, cache=str(request.cache))


def _build(job: Job) -> BuildResult:
    started = time.monotonic()
    request, progress = job.request, job.runtime.progress
    engine = open_engine(request.engine)
    if (complete := _complete_store(job)) is not None:
        complete.tidy()  # a build may have been killed after its last manifest
        progress.note(f"nothing to do: all of part {request.part} is stored")
        return _result(complete, job, BuildCounts(), _rows_in(complete, job.shards), started)
    with _held(job):
        store = _open_or_create(job)
        counted = _rows_in(store, job.shards)
        counts = _fill(engine, job, store)
    store.tidy()
    return _result(store, job, counts, counted - counts.written - counts.failed, started)


def _complete_store(job: Job) -> LatentStore | None:
    """Return the cache if it has all that is asked for: then neither the teacher nor a video is opened.

    Raises:
        CacheError: The cache belongs to something else.
    """
    if job.request.retry_failed or not LatentStore.exists(job.request.cache):
        return None
    store, choice = LatentStore.open(job.request.cache), job.request.teacher
    found, card = survey(choice.name, **choice.options), store.header.teacher
    if found.clip is not None:  # nothing is known of a model that is not at hand
        card = dataclasses.replace(card, clip=found.clip, kind=found.kind, layers=found.layers)
    _refuse_difference(store, job.header(dataclasses.replace(card, name=choice.name), _kind(job, store)))
    return None if store.pending(job.shards) else store


def _open_or_create(job: Job) -> LatentStore:
    """Open or create the cache; the first of several processes fits the projection, and the others wait for it."""
    path, card = job.request.cache, job.teacher.card
    with ExitStack() as stack:
        if not LatentStore.exists(path):
            lock, creation = work_folder(path) / "lock", range(CREATION, CREATION + 1)
            stack.enter_context(holding(lock, creation, "the creation of the cache", wait_s=WAIT_FOREVER))
        if not LatentStore.exists(path):
            return _create(job)
    store = LatentStore.open(path)
    _refuse_difference(store, job.header(card, _kind(job, store)))
    return store


def _create(job: Job) -> LatentStore:
    request, card = job.request, job.teacher.card
    kind = _check_request(job)
    fitted = fit_projection(job, kind)
    about = {
        "kind": kind,
        "digest": fitted.digest,
        "explained": round(fitted.explained, 6),
        "num_fit_clips": fitted.num_fit_clips,
        "fit_sample": "spread",
        "fit_seed": request.storage.fit_seed,
    }
    job.runtime.progress.note(
        f"projection {kind}: {card.dim} to {request.storage.latent_dim} channels, keeps {fitted.explained:.1%} of the variance "
        f"of {fitted.num_fit_clips} clips spread over the list"
    )
    return LatentStore.create(request.cache, job.header(card, about), job.clips, fitted)


def _check_request(job: Job) -> str:
    """Load the teacher and check what can be checked before anything is written; return the kind of the projection.

    Raises:
        ConfigError: The projection cannot map these widths.
        StjepaError: The disk has no room for the cache.
    """
    storage, card = job.request.storage, job.teacher.card
    kind = storage.projection or default_kind(card.dim, storage.latent_dim)
    check_kind(kind, card.dim, storage.latent_dim)
    path, header = job.request.cache, job.header(card, {"kind": kind})
    if is_local(path):
        _check_room(header, next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists()))
    return kind


def _check_room(header: CacheHeader, folder: object) -> None:
    needed, free = header.planned_bytes(), shutil.disk_usage(str(folder)).free
    if needed > free:
        raise StjepaError(
            f"the disk of {folder} has no room for the cache",
            got=f"{free / 1e6:,.1f} MB free",
            expected=f"{needed / 1e6:,.1f} MB",
            fix="Choose another --cache, fewer clips with --limit, or `--dtype int8`.",
        )


def _kind(job: Job, store: LatentStore) -> dict[str, object]:
    """Return the kind of projection that is asked for; without a wish, that of the cache."""
    return {"kind": job.request.storage.projection or store.header.projection.get("kind")}


def _refuse_difference(store: LatentStore, wanted: CacheHeader) -> None:
    difference = header_difference(store.header, wanted)
    if difference:
        name, found, expected = difference
        raise CacheError(
            f"the cache {store.path} was built from something else: {name} differs",
            got="none" if found is None else found,
            expected="none" if expected is None else expected,
            fix="Choose another --cache, or replace this one with --overwrite.",
        )


@contextmanager
def _held(job: Job) -> Iterator[None]:
    """Hold the shards of the part; a build that fails before there is a cache leaves nothing behind."""
    path = job.request.cache
    if not LatentStore.exists(path):
        refuse_foreign_folder(path)
    work = work_folder(path)
    made = [folder for folder in (work, *work.parents) if not folder.exists()]
    try:
        with holding(work / "lock", job.shards, f"part {job.request.part} of {path}") as locked:
            if not locked:
                job.runtime.progress.note("this file system has no locks: make sure yourself that no two builds take the same part")
            yield
    finally:
        if not LatentStore.exists(path):
            with suppress(CacheError), holding(work / "lock", range(CREATION + 1), "the cache"):  # not under another build
                (work / "lock").unlink(missing_ok=True)
                for folder in made:
                    with suppress(OSError):
                        folder.rmdir()


def _fill(engine: Engine, job: Job, store: LatentStore) -> BuildCounts:
    """Fill the unfinished shards of the part, and those with rows to try again."""
    retry = failures_to_retry(store) if job.request.retry_failed else frozenset[int]()
    again = {row // store.header.rows_per_shard for row in retry}
    todo = sorted({*store.pending(job.shards), *(shard for shard in job.shards if shard in again)})
    store.sweep(job.shards, todo)
    total = _rows_in(store, job.shards)
    with job.runtime.progress.task("cache", total=total, completed=total - _rows_in(store, todo)) as task:
        safe = _SafeRows(task)
        try:
            counts = engine.run(job, store, todo, safe, retry)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                text = f"stopped: {safe.done:,} rows of these shards are safe, the batch in progress was dropped"
                job.runtime.progress.note(text)
            with suppress(StjepaError):  # report what went wrong first
                store.write_failures()
            raise
    store.write_failures()
    return counts


class _SafeRows:
    """Advances a progress bar by the rows that have become safe."""

    def __init__(self, task: Task) -> None:
        self.task, self.done, self.failed = task, 0, 0

    def __call__(self, counts: BuildCounts) -> None:
        rows = counts.written + counts.failed + counts.kept
        self.done += rows
        self.failed += counts.failed
        self.task.advance(rows, failed=self.failed)


def _rows_in(store: LatentStore, shards: range | list[int]) -> int:
    return sum(len(store.rows_of(shard)) for shard in shards)


def _result(store: LatentStore, job: Job, counts: BuildCounts, skipped: int, started: float) -> BuildResult:
    header = store.header
    return BuildResult(
        cache=str(store.path),
        clips=header.num_clips,
        views=header.num_views,
        written=counts.written,
        skipped=skipped,
        failed=tuple(store.failures()),
        bytes=store.num_bytes(),
        seconds=round(time.monotonic() - started, 3),
        shards=header.num_shards,
        missing=_rows_in(store, store.pending()),
        part=str(job.request.part),
        latents=(header.num_tokens, header.latent_dim),
        dtype=header.dtype,
        frames=header.frames,
        teacher=header.teacher.name,
        licence=header.teacher.licence,
        cosine=counts.cosine if header.dtype != "float16" else None,
    )
