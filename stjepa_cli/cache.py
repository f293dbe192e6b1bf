"""Use case: run the teacher once over a data set and keep its latents."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stjepa_cli.config import DEFAULT_TEACHER, LATENT_DIM
from stjepa_cli.datasets.base import VideoItem, open_dataset
from stjepa_cli.devices import pick_device
from stjepa_cli.errors import CacheError, ConfigError, StjepaError, TeacherError, VideoError
from stjepa_cli.files import file_digest
from stjepa_cli.nouns import ClipSpec, TeacherCard, software_versions
from stjepa_cli.prefetch import ordered_map
from stjepa_cli.progress import SILENT, Progress
from stjepa_cli.projection import Projection, ProjectionFit, default_kind
from stjepa_cli.records import ROWS_PER_SHARD, CacheHeader, ClipRow, RowRecord, clips_digest, header_difference
from stjepa_cli.shards import Latents, ShardLayout, checksum
from stjepa_cli.store import LatentStore
from stjepa_cli.teachers.base import Teacher, open_teacher, survey
from stjepa_cli.video import Clip, read_clip


@dataclass(frozen=True)
class BuildRequest:
    """What to build.

    Attributes:
        limit: only the first clips of the list.
        clip: geometry, for a teacher that takes any; None for the teacher's own.
        projection: `pca`, `random` or `identity`; None decides by the widths.
        fit_clips: clips that the projection is fitted on.
        batch_size: clips that the teacher sees at once.
        workers: threads that decode.
        overwrite: remove a cache that is there.
        rows_per_shard: clips in one file.
    """

    data_root: Path
    cache: Path
    dataset: str = "ssv2"
    split: str = "train"
    limit: int | None = None
    teacher: str = DEFAULT_TEACHER
    clip: ClipSpec | None = None
    latent_dim: int = LATENT_DIM
    projection: str | None = None
    fit_clips: int = 256
    batch_size: int = 8
    workers: int = 4
    device: str = "auto"
    overwrite: bool = False
    rows_per_shard: int = ROWS_PER_SHARD

    def __post_init__(self) -> None:
        for name in ("latent_dim", "fit_clips", "batch_size", "workers", "rows_per_shard"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1", got=getattr(self, name))
        if self.limit is not None and self.limit < 1:
            raise ConfigError("limit must be at least 1", got=self.limit)


@dataclass(frozen=True)
class FailedClip:
    """A clip that has no row: its id and why."""

    id: str
    error: str


@dataclass(frozen=True)
class BuildResult:
    """What a build did.

    Attributes:
        clips: rows of the cache.
        written: clips computed and stored now.
        skipped: clips that were stored already.
        failed: clips whose videos cannot be used, from now and from earlier builds.
        bytes: of all shards; the forecast in a dry run.
        shards: of the whole cache.
    """

    cache: str
    clips: int
    written: int
    skipped: int
    failed: tuple[FailedClip, ...]
    bytes: int
    seconds: float
    shards: int
    latents: tuple[int, int]
    teacher: str
    licence: str
    dry_run: bool = False


@dataclass(frozen=True)
class _Loaded:
    """A row on its way: its clip, or a record that says why there is none."""

    record: RowRecord
    clip: Clip | None


def build(request: BuildRequest, progress: Progress = SILENT) -> BuildResult:
    """Fill a cache with the teacher's latents; what is stored already stays and is not computed again.

    Raises:
        DatasetError: the data set is not there or its lists cannot be read.
        TeacherError: the teacher cannot be loaded.
        CacheError: the cache that is there belongs to something else.
        StjepaError: the disk has no room.
    """
    started = time.monotonic()
    items = _items(request)
    teacher = open_teacher(request.teacher, clip=request.clip, device=pick_device(request.device), progress=progress)
    progress.note(f"teacher {teacher.card.name}: {teacher.card.clip}, {teacher.card.dim} channels, licence {teacher.card.licence}")
    if request.overwrite and (request.cache / "zarr.json").exists():
        LatentStore.remove(request.cache)
    store = _open_or_create(request, items, teacher, progress)
    skipped = store.header.num_clips - sum(len(store.rows_of(shard)) for shard in store.pending())
    written = _fill(store, items, teacher, request, progress)
    return BuildResult(
        cache=str(store.path),
        clips=store.header.num_clips,
        written=written,
        skipped=skipped,
        failed=tuple(FailedClip(record.id, record.error or "") for record in store.failures()),
        bytes=store.num_bytes(),
        seconds=round(time.monotonic() - started, 3),
        shards=store.header.num_shards,
        latents=store.header.layout.row_shape,
        teacher=teacher.card.name,
        licence=teacher.card.licence,
    )


def forecast(request: BuildRequest) -> BuildResult:
    """What `build` would do, from the lists and the teacher's configuration alone: nothing is decoded or written."""
    started = time.monotonic()
    items = _items(request)
    found = survey(request.teacher)
    clip = request.clip or found.clip
    if clip is None:
        raise TeacherError(f"the geometry of {request.teacher} is not known here", got=found.detail, fix="Name a local folder, or `hog`.")
    layout = ShardLayout(request.rows_per_shard, (clip.grid.num_tokens, request.latent_dim))
    shards = -(-len(items) // layout.num_places)
    done = 0
    if (request.cache / "zarr.json").exists() and not request.overwrite:
        store = LatentStore.open(request.cache)
        done = store.header.num_clips - sum(len(store.rows_of(shard)) for shard in store.pending())
    return BuildResult(
        cache=str(request.cache),
        clips=len(items),
        written=0,
        skipped=done,
        failed=(),
        bytes=len(items) * layout.chunk_bytes + shards * len(layout.index([])),
        seconds=round(time.monotonic() - started, 3),
        shards=shards,
        latents=layout.row_shape,
        teacher=request.teacher,
        licence=found.licence,
        dry_run=True,
    )


def _items(request: BuildRequest) -> tuple[VideoItem, ...]:
    items = open_dataset(request.dataset, request.data_root).videos(request.split)[: request.limit]
    if not items:
        raise ConfigError(f"split {request.split} of {request.dataset} lists no video")
    return items


def _open_or_create(request: BuildRequest, items: Sequence[VideoItem], teacher: Teacher, progress: Progress) -> LatentStore:
    clips = [ClipRow(item.id, _below(item.path, request.data_root)) for item in items]
    kind = request.projection or default_kind(teacher.card.dim, request.latent_dim)
    if (request.cache / "zarr.json").exists():
        store = LatentStore.open(request.cache)
        _check_same(store, _header(request, clips, teacher.card, {"kind": kind}))
        return store
    _check_room(request.cache, len(clips), ShardLayout(request.rows_per_shard, (teacher.card.clip.grid.num_tokens, request.latent_dim)))
    fitted = _fit(items, teacher, kind, request, progress)
    about = {"kind": kind, "digest": fitted.digest, "explained": round(fitted.explained, 6), "num_fit_clips": fitted.num_fit_clips}
    progress.note(
        f"projection {kind}: {teacher.card.dim} to {request.latent_dim} channels, keeps {fitted.explained:.1%} of the variance "
        f"of {fitted.num_fit_clips} clips"
    )
    return LatentStore.create(request.cache, _header(request, clips, teacher.card, about), clips, fitted)


def _header(request: BuildRequest, clips: Sequence[ClipRow], card: TeacherCard, projection: dict[str, object]) -> CacheHeader:
    return CacheHeader(
        dataset=request.dataset,
        split=request.split,
        num_clips=len(clips),
        clips_digest=clips_digest(clips),
        teacher=card,
        latent_dim=request.latent_dim,
        projection=projection,
        rows_per_shard=request.rows_per_shard,
        software=software_versions(),
    )


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


def _check_room(path: Path, num_clips: int, layout: ShardLayout) -> None:
    """Refuse before hours of work what cannot fit."""
    folder = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    needed, free = num_clips * layout.chunk_bytes, shutil.disk_usage(folder).free
    if needed > free:
        raise StjepaError(
            f"the disk of {path} has no room for the cache",
            got=f"{free / 1e6:,.1f} MB free",
            expected=f"{needed / 1e6:,.1f} MB",
            fix="Choose another --cache, or fewer clips with --limit.",
        )


def _fit(items: Sequence[VideoItem], teacher: Teacher, kind: str, request: BuildRequest, progress: Progress) -> Projection:
    """Fit the projection on the first clips that can be decoded."""
    fit = ProjectionFit(teacher.card.dim, teacher.card.token_norm)
    wanted = min(request.fit_clips, len(items))
    error = "no video"
    with progress.task("fit projection", total=wanted) as task:
        loaded = ordered_map(lambda item: _load(item, teacher.card.clip), items, num_workers=request.workers)
        for group in _groups(loaded, request.batch_size):
            clips = [entry.clip.pixels for entry in group if entry.clip]
            error = next((entry.record.error for entry in group if entry.record.error), error)
            if clips:
                fit.add(_encode(teacher, clips))
                task.advance(len(clips))
            if fit.num_clips >= wanted:
                break
    if not fit.num_clips:
        raise CacheError(f"none of the {len(items)} videos can be used", got=error, fix="Type `stjepa download-check --deep`.")
    return fit.finish(kind, request.latent_dim)


def _fill(store: LatentStore, items: Sequence[VideoItem], teacher: Teacher, request: BuildRequest, progress: Progress) -> int:
    """Compute and write the shards that are not done; returns the clips written."""
    pending = store.pending()
    projection = store.projection()
    rows = [row for shard in pending for row in store.rows_of(shard)]
    loaded = ordered_map(lambda row: _load(items[row], teacher.card.clip), rows, num_workers=request.workers)
    written = failed = 0
    with progress.task("cache", total=len(rows)) as task:
        for shard in pending:
            entries = [next(loaded) for _ in store.rows_of(shard)]
            store.write(shard, [entry.record for entry in entries], _latents(entries, teacher, projection, request.batch_size))
            failed += sum(entry.clip is None for entry in entries)
            written += sum(entry.clip is not None for entry in entries)
            task.advance(len(entries), failed=failed)
    return written


def _load(item: VideoItem, spec: ClipSpec) -> _Loaded:
    try:
        clip = read_clip(item.path, spec)
    except VideoError as error:
        return _Loaded(RowRecord(item.id, error=error.reason), None)
    record = RowRecord(
        id=item.id,
        source_digest=file_digest(item.path),
        frame_indices=clip.ref.frame_indices,
        crop=(clip.ref.crop.top, clip.ref.crop.left, clip.ref.crop.height, clip.ref.crop.width),
        pixels_crc=checksum(clip.pixels.numpy()),
    )
    return _Loaded(record, clip)


def _latents(entries: Sequence[_Loaded], teacher: Teacher, projection: Projection, batch_size: int) -> list[Latents | None]:
    """Latents of a shard's clips in order, None for those that failed.

    Batches never cross a shard, so that a build that was stopped and went on gives the same numbers as one that was not.
    """
    clips = [entry.clip.pixels for entry in entries if entry.clip]
    rows: list[Latents] = []
    for start in range(0, len(clips), batch_size):
        latents = projection(_encode(teacher, clips[start : start + batch_size])).half().cpu()
        if not torch.isfinite(latents).all():
            raise TeacherError(f"{teacher.card.name} gives latents that are not finite", fix="Try `--device cpu`, or another teacher.")
        rows += list(latents.numpy())
    done = iter(rows)
    return [next(done) if entry.clip else None for entry in entries]


def _encode(teacher: Teacher, clips: Sequence[Tensor]) -> Tensor:
    return teacher.encode(torch.stack(list(clips)))


def _groups(entries: Iterable[_Loaded], size: int) -> Iterator[list[_Loaded]]:
    group: list[_Loaded] = []
    for entry in entries:
        group.append(entry)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
