"""What to build: the videos, the teacher, the form in which latents are stored, and where. Light enough for `--help`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, fields
from typing import Any

from stjepa_cli.core.config import DEFAULT_TEACHER, LATENT_DIM, MAX_COUNT, MAX_DIM, check_between
from stjepa_cli.core.errors import CacheError, ConfigError, UnreadableError
from stjepa_cli.core.locations import Location
from stjepa_cli.core.places import DEFAULT_CACHE, cache_name, caches_in
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.data.datasets.base import VideoItem, open_dataset
from stjepa_cli.store.records import DTYPES, ROWS_PER_SHARD

MAX_VIEWS = 2**16
"""Most views of a clip that are taken for meant."""


@dataclass(frozen=True)
class Part:
    """Part `index` (from 1) of `count` nearly equal ranges of whole shards."""

    index: int
    count: int

    @staticmethod
    def parse(text: str) -> Part:
        """Read a part from text: `2/8` is the second of eight.

        Raises:
            ConfigError: The text is anything else.
        """
        index, slash, count = text.partition("/")
        valid = slash and all(number.isascii() and number.isdecimal() and len(number) < 10 for number in (index, count))
        if not (valid and 1 <= int(index) <= int(count)):
            raise ConfigError("a part is written i/n", got=repr(text), expected="something like 1/8 or 8/8")
        return Part(int(index), int(count))

    @staticmethod
    def holding(shard: int, num_shards: int, count: int) -> Part:
        """Return the one of `count` parts that a shard belongs to."""
        return Part(-(-(shard + 1) * count // num_shards), count)

    def shards(self, num_shards: int) -> range:
        """Return the shards of this part; with more parts than shards some parts are empty."""
        return range((self.index - 1) * num_shards // self.count, self.index * num_shards // self.count)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


WHOLE = Part(1, 1)


@dataclass(frozen=True)
class Source:
    """The videos to cache.

    Attributes:
        data_root: Folder or URL of the data set.
        dataset: Name of its layout, a plug-in of `data/datasets`.
        split: The list to read.
        limit: Take only the first clips of the list, None for all.
    """

    data_root: Location
    dataset: str = "ssv2"
    split: str = "train"
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None:
            check_between(self.limit, "limit", 1, MAX_COUNT)

    def items(self) -> tuple[VideoItem, ...]:
        """Read the list; its order is that of the rows.

        Raises:
            DatasetError: The data set is not there or its lists cannot be read.
        """
        items = open_dataset(self.dataset, self.data_root).videos(self.split)[: self.limit]
        if not items:
            raise ConfigError(f"split {self.split} of {self.dataset} lists no video")
        return items


@dataclass(frozen=True)
class TeacherChoice:
    """The teacher to run.

    Attributes:
        name: Hugging Face id, local folder or built-in name.
        clip: Geometry of the clips, for a teacher that takes any; None for the teacher's own.
        layers: Numbers of the blocks whose tokens stand side by side, 1 the first, -1 the last; None for the output of the model.
        sampling: `uniform` or `dense`, None for the teacher's own.
        stride: Distance of two frames of a dense clip, None for the teacher's own.
    """

    name: str = DEFAULT_TEACHER
    clip: ClipSpec | None = None
    layers: tuple[int, ...] | None = None
    sampling: str | None = None
    stride: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Return the choice as arguments of `open_teacher` and `survey`."""
        return {"clip": self.clip, "layers": self.layers, "sampling": self.sampling, "stride": self.stride}


def parse_layers(text: str | None) -> tuple[int, ...] | None:
    """Read numbers of layers from text: `8,16,24,-1`.

    Raises:
        ConfigError: The text is anything else.
    """
    if text is None:
        return None
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError as error:
        raise ConfigError("layers are numbers separated by commas", got=repr(text), expected="something like 8,16,24,32") from error


@dataclass(frozen=True)
class Storage:
    """The form in which latents are stored.

    Attributes:
        latent_dim: D, stored channels.
        projection: Kind of the map from the teacher's width to D; None chooses by the widths.
        fit_clips: Clips that the projection is fitted on, a random sample spread over the whole list.
        fit_seed: Seed of that sample.
        views: K, rows per video; the first is the centre view.
        view_seed: Seed of the other views.
        dtype: `float16` or `int8`.
        frames: Keep the decoded clips too.
        rows_per_shard: Rows per file.
    """

    latent_dim: int = LATENT_DIM
    projection: str | None = None
    fit_clips: int = 256
    fit_seed: int = 0
    views: int = 1
    view_seed: int = 0
    dtype: str = "float16"
    frames: bool = False
    rows_per_shard: int = ROWS_PER_SHARD

    def __post_init__(self) -> None:
        for name, most in (("latent_dim", MAX_DIM), ("fit_clips", MAX_COUNT), ("views", MAX_VIEWS), ("rows_per_shard", MAX_COUNT)):
            check_between(getattr(self, name), name, 1, most)
        if self.dtype not in DTYPES:
            raise ConfigError("unknown dtype", got=repr(self.dtype), expected="one of " + ", ".join(DTYPES))


@dataclass(frozen=True)
class BuildRequest:
    """A cache to build, or a part of one.

    Attributes:
        cache: Folder or URL of the cache.
        source: The videos.
        teacher: The teacher to run over them.
        storage: The form in which its latents are stored.
        part: The part of the shards that this process fills.
        engine: The plug-in of `cache/engines` that fills them.
        engine_address: Address of a cluster, for an engine that uses one.
        retry_failed: Retry the clips that could not be used.
        overwrite: Replace the cache that is there, once the new one is complete.
    """

    cache: Location
    source: Source
    teacher: TeacherChoice = TeacherChoice()
    storage: Storage = Storage()
    part: Part = WHOLE
    engine: str = "local"
    engine_address: str | None = None
    retry_failed: bool = False
    overwrite: bool = False

    @classmethod
    def of(cls, data_root: Location, cache: Location, *, teacher: str | TeacherChoice = TeacherChoice(), **options: Any) -> BuildRequest:
        """Return a request from flat options, each of which goes to the group that has a field of its name.

        Raises:
            TypeError: No group has such a field.
        """
        name = teacher if isinstance(teacher, TeacherChoice) else TeacherChoice(teacher)
        return cls(cache, Source(data_root), name).replace(**options)

    @classmethod
    def option_names(cls) -> set[str]:
        """Return the names that `of` takes as options."""
        groups = (cls, Source, TeacherChoice, Storage)
        return {f.name for group in groups for f in fields(group)} - {"source", "teacher", "storage", "name", "cache", "data_root"}

    def replace(self, **options: Any) -> BuildRequest:
        """Return the same request with other options: fields of the request itself, or of one of its groups."""
        own = {name: options.pop(name) for name in [f.name for f in fields(self)] if name in options}
        for group in ("source", "teacher", "storage"):
            value = own.get(group, getattr(self, group))
            inner = {f.name: options.pop(f.name) for f in fields(value) if f.name in options}
            own[group] = dataclasses.replace(value, **inner)
        if options:
            raise TypeError(f"a build has no option {', '.join(options)}")
        return dataclasses.replace(self, **own)


def default_cache(root: Location, teacher: str, latent_dim: int) -> Location:
    """Return where the cache of a teacher lies by default: below the data set, under the name of the teacher.

    Until 0.1 every teacher's cache had the name of the default teacher's. One that is there, and of this teacher, is gone on with.

    Args:
        root: Root of the data set.
        teacher: Name of the teacher, as it is asked for.
        latent_dim: Stored channels.
    """
    from stjepa_cli.store.folder import read_header

    new, old = root / cache_name(teacher, latent_dim), root / DEFAULT_CACHE
    if new.name == old.name or new.name in caches_in(root):
        return new
    try:
        header = read_header(old)
    except (CacheError, UnreadableError):
        return new
    return old if (header.teacher.name, header.latent_dim) == (teacher, latent_dim) else new
