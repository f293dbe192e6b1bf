"""One build in one process, and what an engine is: a plug-in that fills the shards of a cache, here or elsewhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch

from stjepa_cli.cache.request import BuildRequest
from stjepa_cli.cache.shard_builder import BuildCounts, OnBatch, ShardBuilder
from stjepa_cli.core import plugins
from stjepa_cli.core.locations import absolute
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.core.threads import use_threads
from stjepa_cli.core.types import TeacherCard, software_versions
from stjepa_cli.data.datasets.base import VideoItem
from stjepa_cli.store.latent_store import LatentStore
from stjepa_cli.store.records import CacheHeader, ClipRow, clips_digest
from stjepa_cli.teachers.base import Teacher, open_teacher


class Job:
    """A request in progress in one process; what it needs is read or loaded once, on first use.

    Args:
        request: The cache to build.
        runtime: Device, threads, batch size, and the receiver of progress.
        items: The videos, if they have been listed already.
    """

    def __init__(self, request: BuildRequest, runtime: Runtime, items: Sequence[VideoItem] | None = None) -> None:
        self.request, self.runtime = request, runtime
        if items is not None:
            self.items = tuple(items)

    @cached_property
    def items(self) -> tuple[VideoItem, ...]:
        """The videos, in the order of the rows."""
        return self.request.source.items()

    @cached_property
    def clips(self) -> tuple[ClipRow, ...]:
        """The clip list of the cache: paths below the data root, or whole ones for videos that lie elsewhere."""
        root = self.request.source.data_root
        return tuple(ClipRow(item.id, _below(item, root)) for item in self.items)

    @cached_property
    def teacher(self) -> Teacher:
        """The teacher, on its device."""
        choice, progress = self.request.teacher, self.runtime.progress
        device = self.runtime.torch_device
        teacher = open_teacher(choice.name, **choice.options, device=device, progress=progress)
        card = teacher.card
        layers = f" of layers {', '.join(map(str, card.layers))}" if card.layers else ""
        progress.note(f"teacher {card.name}: {card.clip}, {card.dim} channels{layers}, licence {card.licence}")
        progress.note(str(use_threads(card.dim, self.runtime.workers)))
        return teacher

    def release_teacher(self) -> None:
        """Free the memory of the teacher, which others need; it is loaded again on its next use."""
        vars(self).pop("teacher", None)
        torch.cuda.empty_cache()

    @property
    def shards(self) -> range:
        """The shards of the part that this process fills."""
        storage = self.request.storage
        return self.request.part.shards(-(-len(self.items) * storage.views // storage.rows_per_shard))

    def header(self, card: TeacherCard, projection: dict[str, object]) -> CacheHeader:
        """Return the header of the cache that is asked for."""
        source, storage = self.request.source, self.request.storage
        return CacheHeader(
            dataset=source.dataset,
            split=source.split,
            num_clips=len(self.clips),
            clips_digest=clips_digest(self.clips),
            teacher=card,
            latent_dim=storage.latent_dim,
            projection=projection,
            num_views=storage.views,
            view_seed=storage.view_seed,
            rows_per_shard=storage.rows_per_shard,
            dtype=storage.dtype,
            frames=storage.frames,
            software=software_versions(),
        )

    def builder(self, store: LatentStore, retry: frozenset[int] = frozenset()) -> ShardBuilder:
        """Return what fills shards in this process."""
        return ShardBuilder(store, self.items, self.teacher, self.runtime, retry=retry)


def _below(item: VideoItem, root: object) -> str:
    """Return the path of a video below the data root, or all of it if it lies elsewhere (Kinetics lists may say so)."""
    for base in (root, absolute(root)):  # type: ignore[arg-type]
        try:
            return str(item.path.relative_to(base).as_posix())  # type: ignore[arg-type]
        except ValueError:
            continue
    return str(item.path)


class Engine(ABC):
    """Fills shards. A module of this folder exposes its class as `plugin`."""

    @abstractmethod
    def run(
        self, job: Job, store: LatentStore, shards: Sequence[int], on_batch: OnBatch, retry: frozenset[int] = frozenset()
    ) -> BuildCounts:
        """Fill shards and return what was done.

        Args:
            job: The build.
            store: The cache, which exists.
            shards: The shards to fill.
            on_batch: Called in the caller's thread with the counts of rows that have become safe.
            retry: Rows that were recorded as failed and are to be tried again.

        Raises:
            StjepaError: Anything that the user can put right, in the words of the process that met it.
        """


def open_engine(name: str) -> Engine:
    """Return the engine plug-in `name`.

    Raises:
        ConfigError: There is no such plug-in.
        NotReadyError: It needs a package that is not installed.
    """
    engine: Engine = plugins.load("cache.engines", name)()
    return engine
