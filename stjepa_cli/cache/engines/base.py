"""What is to be built, and what an engine is: something that fills shards of a cache with one function, here or elsewhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from stjepa_cli.cache.shard_builder import BuildCounts, OnBatch, ShardBuilder
from stjepa_cli.core import plugins
from stjepa_cli.core.config import DEFAULT_TEACHER, LATENT_DIM
from stjepa_cli.core.devices import pick_device
from stjepa_cli.core.errors import ConfigError
from stjepa_cli.core.locations import Location
from stjepa_cli.core.progress import SILENT, Progress
from stjepa_cli.core.types import ClipSpec, TeacherCard, software_versions
from stjepa_cli.data.datasets.base import VideoItem, open_dataset
from stjepa_cli.store.latent_store import LatentStore
from stjepa_cli.store.records import DTYPES, ROWS_PER_SHARD, WHOLE, CacheHeader, ClipRow, Part, clips_digest
from stjepa_cli.teachers.base import Teacher, open_teacher


@dataclass(frozen=True)
class BuildRequest:
    """What to build.

    Attributes:
        limit: only the first clips of the list.
        clip: geometry, for a teacher that takes any; None for the teacher's own.
        projection: `pca`, `random` or `identity`; None decides by the widths.
        fit_clips: clips that the projection is fitted on.
        views: K, rows of each video; the first is the centre view.
        view_seed: of the other views.
        dtype: `float16` or `int8`.
        frames: keep the decoded clips too.
        batch_size: clips that the teacher sees at once.
        workers: threads that decode.
        part: the share of the shards that this process fills.
        engine: the plug-in that fills them.
        engine_address: of the cluster, for an engine that has one.
        retry_failed: try the clips again that could not be used.
        overwrite: remove a cache that is there.
        rows_per_shard: rows in one file.
    """

    data_root: Location
    cache: Location
    dataset: str = "ssv2"
    split: str = "train"
    limit: int | None = None
    teacher: str = DEFAULT_TEACHER
    clip: ClipSpec | None = None
    latent_dim: int = LATENT_DIM
    projection: str | None = None
    fit_clips: int = 256
    views: int = 1
    view_seed: int = 0
    dtype: str = "float16"
    frames: bool = False
    batch_size: int = 8
    workers: int = 4
    device: str = "auto"
    part: Part = WHOLE
    engine: str = "local"
    engine_address: str | None = None
    retry_failed: bool = False
    overwrite: bool = False
    rows_per_shard: int = ROWS_PER_SHARD

    def __post_init__(self) -> None:
        for name in ("latent_dim", "fit_clips", "views", "batch_size", "workers", "rows_per_shard"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1", got=getattr(self, name))
        if self.limit is not None and self.limit < 1:
            raise ConfigError("limit must be at least 1", got=self.limit)
        if self.dtype not in DTYPES:
            raise ConfigError("unknown dtype", got=repr(self.dtype), expected="one of " + ", ".join(DTYPES))

    def items(self) -> tuple[VideoItem, ...]:
        """The videos, in the order of the rows.

        Raises:
            DatasetError: the data set is not there or its lists cannot be read.
        """
        items = open_dataset(self.dataset, self.data_root).videos(self.split)[: self.limit]
        if not items:
            raise ConfigError(f"split {self.split} of {self.dataset} lists no video")
        return items

    def clips(self, items: Sequence[VideoItem]) -> list[ClipRow]:
        """The clip list of the cache."""
        return [ClipRow(item.id, item.path.relative_to(self.data_root).as_posix()) for item in items]  # type: ignore[arg-type]

    def header(self, clips: Sequence[ClipRow], card: TeacherCard, projection: dict[str, object]) -> CacheHeader:
        """The header of the cache that this request is for."""
        return CacheHeader(
            dataset=self.dataset,
            split=self.split,
            num_clips=len(clips),
            clips_digest=clips_digest(clips),
            teacher=card,
            latent_dim=self.latent_dim,
            projection=projection,
            num_views=self.views,
            view_seed=self.view_seed,
            rows_per_shard=self.rows_per_shard,
            dtype=self.dtype,
            frames=self.frames,
            software=software_versions(),
        )


class Job:
    """A request under way in one process: what it needs is opened when it is needed.

    Args:
        request: what to build.
        store: the cache, which exists.
        retry: rows that were recorded as failed and are to be tried again.
        progress: is told when a teacher is loaded.
    """

    def __init__(self, request: BuildRequest, store: LatentStore, retry: frozenset[int], progress: Progress = SILENT) -> None:
        self.request, self.store, self.retry, self.progress = request, store, retry, progress

    @cached_property
    def teacher(self) -> Teacher:
        """The teacher, on the request's device."""
        return load_teacher(self.request, self.progress)

    def release(self) -> None:
        """Let go of the teacher, whose memory others need; it is loaded again when it is asked for."""
        vars(self).pop("teacher", None)
        torch.cuda.empty_cache()

    def builder(self) -> ShardBuilder:
        """What fills shards in this process."""
        request = self.request
        return ShardBuilder(
            self.store, request.items(), self.teacher, batch_size=request.batch_size, workers=request.workers, retry=self.retry
        )


class Engine(ABC):
    """Fills shards. A module of this folder exposes its class as `plugin`."""

    @abstractmethod
    def run(self, job: Job, shards: Sequence[int], on_batch: OnBatch) -> BuildCounts:
        """Fill shards and return what was done.

        Args:
            job: what to build.
            shards: those that are to be filled.
            on_batch: called, in the caller's thread, with what became safe.
        """


def open_engine(name: str) -> Engine:
    """The engine plug-in `name`.

    Raises:
        ConfigError: there is no such plug-in.
        NotReadyError: it needs a package that is not installed.
    """
    engine: Engine = plugins.load("cache.engines", name)()
    return engine


def load_teacher(request: BuildRequest, progress: Progress) -> Teacher:
    """The teacher of a request.

    Raises:
        TeacherError: it cannot be loaded.
    """
    teacher = open_teacher(request.teacher, clip=request.clip, device=pick_device(request.device), progress=progress)
    progress.note(f"teacher {teacher.card.name}: {teacher.card.clip}, {teacher.card.dim} channels, licence {teacher.card.licence}")
    return teacher
