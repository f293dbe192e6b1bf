"""The records of a cache: its header, its clip list, its columns, and what each row was made from."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

from stjepa_cli.core.config import to_dict
from stjepa_cli.core.errors import ConfigError
from stjepa_cli.core.types import TeacherCard, digest
from stjepa_cli.store.shard_format import CRC_BYTES, Chunk, index_bytes

SCHEMA = 2
ROWS_PER_SHARD = 64
DTYPES = ("float16", "int8")


@dataclass(frozen=True)
class Column:
    """One array of a cache; all have the same rows, shards and marks.

    Attributes:
        name: of the array.
        row_shape: of one row.
        dtype: of its numbers; `bytes` for rows of variable-length byte strings.
    """

    name: str
    row_shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class CacheHeader:
    """What a cache holds. Two caches are the same if everything but `software` is.

    Attributes:
        dataset: name of the data set.
        split: which of its lists.
        num_clips: videos.
        clips_digest: digest of the clip list in order.
        teacher: who made the latents, from which clips.
        latent_dim: D, stored channels.
        projection: `kind`, `digest`, `explained` and `num_fit_clips` of the map from the teacher's width to D.
        num_views: K, rows of each video, one after the other: row = clip * K + view.
        view_seed: of the views after the first.
        rows_per_shard: rows in a shard.
        dtype: `float16`, or `int8` with a float16 scale for each token.
        frames: whether each row's decoded clip is kept beside its latents.
        software: versions of what wrote it, for information.
    """

    dataset: str
    split: str
    num_clips: int
    clips_digest: str
    teacher: TeacherCard
    latent_dim: int
    projection: dict[str, Any]
    num_views: int = 1
    view_seed: int = 0
    rows_per_shard: int = ROWS_PER_SHARD
    dtype: str = "float16"
    frames: bool = False
    schema: int = SCHEMA
    software: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError("unknown dtype of a cache", got=repr(self.dtype), expected="one of " + ", ".join(DTYPES))

    @property
    def num_rows(self) -> int:
        """R = clips * views."""
        return self.num_clips * self.num_views

    @property
    def num_tokens(self) -> int:
        """N, tokens of a row."""
        return self.teacher.clip.grid.num_tokens

    @property
    def num_shards(self) -> int:
        """Shards of the whole cache, the last of which may be shorter."""
        return -(-self.num_rows // self.rows_per_shard)

    @property
    def columns(self) -> tuple[Column, ...]:
        """The arrays, in the order in which they are written."""
        latents = Column("latents", (self.num_tokens, self.latent_dim), self.dtype)
        scales = (Column("scales", (self.num_tokens,), "float16"),) if self.dtype == "int8" else ()
        frames = (Column("frames", (self.teacher.clip.num_frames,), "bytes"),) if self.frames else ()
        return (latents, *scales, *frames)

    def planned_bytes(self, frames_bytes: int = 0) -> int:
        """Bytes of all shards if no clip fails.

        Args:
            frames_bytes: of a clip's JPEGs, which cannot be known before.
        """
        sizes = {"float16": 2, "int8": 1}
        row = sum(
            (frames_bytes if column.dtype == "bytes" else math.prod(column.row_shape) * sizes[column.dtype]) + CRC_BYTES
            for column in self.columns
        )
        return self.num_rows * row + self.num_shards * len(self.columns) * len(index_bytes([], self.rows_per_shard))

    @cached_property
    def digest(self) -> str:
        """Return the identity of the cache: sha256 over everything but `software`.

        Fields that are None do not count, so that a new optional field leaves the digests of older caches as they are.
        """
        return digest({name: value for name, value in to_dict(self).items() if name != "software"})


@dataclass(frozen=True)
class ClipRow:
    """One video of the list: its id and its path below the data root."""

    id: str
    video: str


@dataclass(frozen=True)
class RowRecord:
    """What a row was made from, or why it was not.

    Attributes:
        view: 0 is the centre view.
        source_digest: sha256 of the video file.
        frame_indices: T frames, in presentation order.
        crop: top, left, height, width in source pixels.
        pixels_crc: crc32c of the uint8 clip that the teacher saw.
        chunks: what is stored of it, by column.
        error: set instead of all of these when the video could not be used.
    """

    id: str
    view: int = 0
    source_digest: str = ""
    frame_indices: tuple[int, ...] = ()
    crop: tuple[int, ...] = ()
    pixels_crc: int = 0
    chunks: dict[str, Chunk] = field(default_factory=dict)
    error: str | None = None

    @property
    def name(self) -> str:
        """The clip's id, with the view where it is not the first."""
        return self.id if self.view == 0 else f"{self.id} view {self.view}"


@dataclass(frozen=True)
class ShardManifest:
    """What says that a shard is whole: the cache that it is of, and its rows.

    Attributes:
        cache: digest of the cache's header.
        shard: its number.
        rows: one for each of its rows, in order.
    """

    cache: str
    shard: int
    rows: tuple[RowRecord, ...]

    def lengths(self, column: str) -> list[int | None]:
        """Bytes of each row's chunk, None where there is none."""
        return [None if row.error is not None else row.chunks[column].length for row in self.rows]

    @cached_property
    def offsets(self) -> dict[str, list[int]]:
        """Where each row's chunk begins, by column; a row without one has the offset of the next."""
        names = next((list(row.chunks) for row in self.rows if row.error is None), [])
        sizes = {name: [0 if n is None else n + CRC_BYTES for n in self.lengths(name)] for name in names}
        return {name: [0, *accumulate(parts[:-1])] for name, parts in sizes.items()}

    def index(self, column: str, num_places: int) -> bytes:
        """The index that the shard of a column ends with."""
        return index_bytes(self.lengths(column), num_places)

    def to_json(self) -> bytes:
        """As it is stored."""
        rows = [row_to_json(row) for row in self.rows]
        return json.dumps({"cache": self.cache, "shard": self.shard, "rows": rows}, separators=(",", ":")).encode()

    @staticmethod
    def from_json(data: bytes) -> ShardManifest:
        """A mark read back.

        Raises:
            ValueError, KeyError, TypeError: damaged.
        """
        plain = json.loads(data)
        return ShardManifest(plain["cache"], int(plain["shard"]), tuple(row_from_json(row) for row in plain["rows"]))


def row_to_json(row: RowRecord) -> dict[str, Any]:
    """A record as JSON-able values, what is not set left out."""
    if row.error is not None:
        return {"id": row.id, "view": row.view, "error": row.error}
    return {name: value for name, value in vars(row).items() if value is not None}


def row_from_json(row: dict[str, Any]) -> RowRecord:
    """A record from `row_to_json`; written out, since a large cache has a hundred thousand of them.

    Raises:
        ValueError, KeyError, TypeError: damaged.
    """
    if "error" in row:
        return RowRecord(str(row["id"]), int(row["view"]), error=str(row["error"]))
    return RowRecord(
        row["id"],
        int(row["view"]),
        row["source_digest"],
        tuple(map(int, row["frame_indices"])),
        tuple(map(int, row["crop"])),
        int(row["pixels_crc"]),
        {name: Chunk(int(length), int(crc)) for name, (length, crc) in row["chunks"].items()},
    )


@dataclass(frozen=True)
class Fault:
    """Something that is not as it should be.

    Attributes:
        id: of the clip, or of the file where it is about no clip.
        kind: `missing`, `corrupt`, `foreign` (whole, but of something else) or `extra` (a file that does not belong).
        reason: as a clause.
        shard: where, None outside of shards.
    """

    id: str
    kind: str
    reason: str
    shard: int | None = None


@dataclass(frozen=True)
class Part:
    """Share `index` (from 1) of `count` equal ranges of whole shards."""

    index: int
    count: int

    @staticmethod
    def parse(text: str) -> Part:
        """`2/8` is the second of eight.

        Raises:
            ConfigError: anything else.
        """
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            raise ConfigError("a part is written i/n", got=repr(text), expected="1/8 to 8/8, say")
        return Part(int(index), int(count))

    def shards(self, num_shards: int) -> range:
        """Its shards; with more parts than shards some are empty."""
        return range((self.index - 1) * num_shards // self.count, self.index * num_shards // self.count)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


WHOLE = Part(1, 1)


def clips_digest(clips: Iterable[ClipRow]) -> str:
    """Identity of a clip list: its ids and paths in order."""
    return digest([[clip.id, clip.video] for clip in clips])


def header_difference(found: CacheHeader, wanted: CacheHeader) -> tuple[str, Any, Any] | None:
    """The first field in which two headers differ, as (name, found, wanted), leaving out what is fitted or informative."""
    a, b = _flat(asdict(found)), _flat(asdict(wanted))
    for name in a | b:
        if not name.startswith(("software", "projection")) and a.get(name) != b.get(name):
            return name, a.get(name), b.get(name)
    kinds = found.projection["kind"], wanted.projection["kind"]
    return ("projection.kind", *kinds) if kinds[0] != kinds[1] else None


def runs_of(numbers: Sequence[int]) -> list[range]:
    """Ascending numbers as ranges without gaps: 1 2 3 7 -> 1-3, 7."""
    runs: list[range] = []
    for number in numbers:
        if runs and runs[-1].stop == number:
            runs[-1] = range(runs[-1].start, number + 1)
        else:
            runs.append(range(number, number + 1))
    return runs


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in data.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
