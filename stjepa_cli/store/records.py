"""The records of a cache: its header, its clip list, its columns, and the manifests of its shards. Standard library only."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

from stjepa_cli.core.errors import ConfigError
from stjepa_cli.core.serialization import to_dict
from stjepa_cli.core.types import TeacherCard, digest

SCHEMA = 2
ROWS_PER_SHARD = 64
DTYPES = ("float16", "int8")
CRC_BYTES = 4
INDEX_ENTRY_BYTES = 16


class Chunk(NamedTuple):
    """One stored chunk: its length in bytes without the checksum that follows it, and that checksum (crc32c)."""

    length: int
    crc: int


@dataclass(frozen=True)
class Column:
    """One array of a cache; all columns share their rows, shards and manifests.

    Attributes:
        name: Name of the array.
        row_shape: Shape of one row.
        dtype: Type of its numbers, or `bytes` for rows of variable-length byte strings.
    """

    name: str
    row_shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class CacheHeader:
    """The description of a cache. Two caches are the same if everything but `software` is.

    Attributes:
        dataset: Name of the data set.
        split: Split whose videos are cached.
        num_clips: Number of videos.
        clips_digest: Digest of the clip list in order.
        teacher: The model that made the latents, and how its clips are cut.
        latent_dim: D, stored channels.
        projection: `kind`, `digest`, `explained` and `num_fit_clips` of the map from the teacher's width to D, and how the
            clips that it was fitted on were chosen (`fit_sample`, `fit_seed`; absent means the first ones of the list).
        num_views: K, rows per video, one after the other: row = clip * K + view.
        view_seed: Seed of the views after the first.
        rows_per_shard: Rows in a full shard.
        dtype: `float16`, or `int8` with a float16 scale per token.
        frames: Whether the decoded clip of each row is kept beside its latents.
        schema: Version of this format.
        software: Versions of the packages that wrote the cache, for information.
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
        for name in ("num_clips", "latent_dim", "num_views", "rows_per_shard"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} of a cache must be at least 1", got=getattr(self, name))

    @property
    def num_rows(self) -> int:
        """R = clips * views."""
        return self.num_clips * self.num_views

    @property
    def num_tokens(self) -> int:
        """N, tokens per row."""
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

    def rows_of(self, shard: int) -> range:
        """Return the rows in a shard."""
        return range(shard * self.rows_per_shard, min(self.num_rows, (shard + 1) * self.rows_per_shard))

    def planned_bytes(self, frames_bytes: int = 0) -> int:
        """Return the size of all shards if no clip fails.

        Args:
            frames_bytes: Size of the JPEGs of a clip, which is not known in advance.
        """
        sizes = {"float16": 2, "int8": 1}
        row = sum(
            (frames_bytes if column.dtype == "bytes" else math.prod(column.row_shape) * sizes[column.dtype]) + CRC_BYTES
            for column in self.columns
        )
        return self.num_rows * row + self.num_shards * len(self.columns) * index_size(self.rows_per_shard)

    @cached_property
    def digest(self) -> str:
        """Return the identity of the cache: sha256 over everything but `software` and what is known of the teacher's labels.

        Fields that are None do not count, so that a new optional field leaves the digests of older caches as they are.
        """
        identity = {name: value for name, value in to_dict(self).items() if name != "software"}
        identity["teacher"].pop("saw_labels", None)
        return digest(identity)


@dataclass(frozen=True)
class ClipRow:
    """One video of the list: its id and its path below the data root (or an absolute path or URL, for one that lies elsewhere)."""

    id: str
    video: str


@dataclass(frozen=True)
class RowRecord:
    """The origin of a row, or the reason why it could not be made.

    Attributes:
        id: Id of the clip.
        view: Number of the view; 0 is the centre view.
        source_digest: sha256 of the video file.
        frame_indices: T frames, in presentation order.
        crop: Top, left, height and width in source pixels.
        pixels_crc: crc32c of the uint8 clip that the teacher saw.
        chunks: The stored chunk of each column.
        error: Set instead of all of these when the video could not be used.
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
        """The id of the clip, with the number of the view unless it is the first."""
        return self.id if self.view == 0 else f"{self.id} view {self.view}"


@dataclass(frozen=True)
class FailedClip:
    """A row that could not be made: its clip, its view, its number and the reason."""

    id: str
    view: int
    row: int
    error: str


@dataclass(frozen=True)
class ShardManifest:
    """The content of a finished shard; a shard without a manifest is not finished.

    Attributes:
        cache: Digest of the header of its cache.
        shard: Number of the shard.
        rows: One record per row, in order.
    """

    cache: str
    shard: int
    rows: tuple[RowRecord, ...]

    def lengths(self, column: str) -> list[int | None]:
        """Return the length of the chunk of each row in bytes, None where there is no chunk."""
        return [None if row.error is not None else row.chunks[column].length for row in self.rows]

    @cached_property
    def offsets(self) -> dict[str, list[int]]:
        """Offset of the chunk of each row, by column; a row without a chunk has the offset of the next one."""
        names = next((list(row.chunks) for row in self.rows if row.error is None), [])
        sizes = {name: [0 if n is None else n + CRC_BYTES for n in self.lengths(name)] for name in names}
        return {name: [0, *accumulate(parts[:-1])] for name, parts in sizes.items()}

    def num_bytes(self, header: CacheHeader) -> int:
        """Return the size of the files of the shard."""
        chunks = sum(n + CRC_BYTES for column in header.columns for n in self.lengths(column.name) if n is not None)
        return chunks + len(header.columns) * index_size(header.rows_per_shard)

    def to_json(self) -> bytes:
        """Return the manifest as it is stored."""
        rows = [row_to_json(row) for row in self.rows]
        return json.dumps({"cache": self.cache, "shard": self.shard, "rows": rows}, separators=(",", ":")).encode()

    @staticmethod
    def from_json(data: bytes) -> ShardManifest:
        """Read a stored manifest.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: The data are damaged.
        """
        plain = json.loads(data)
        return ShardManifest(plain["cache"], int(plain["shard"]), tuple(row_from_json(row) for row in plain["rows"]))


def index_size(num_places: int) -> int:
    """Return the size in bytes of the index of a shard with so many places, with its checksum."""
    return INDEX_ENTRY_BYTES * num_places + CRC_BYTES


def row_to_json(row: RowRecord) -> dict[str, Any]:
    """Return a record as JSON-able values, without the fields that are not set."""
    if row.error is not None:
        return {"id": row.id, "view": row.view, "error": row.error}
    return {name: value for name, value in vars(row).items() if value is not None}


def row_from_json(row: dict[str, Any]) -> RowRecord:
    """Return the record that `row_to_json` wrote; spelled out field by field because a large cache has a hundred thousand of them.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: The data are damaged.
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
    """A finding of a check.

    Attributes:
        id: Name of the row, or of the file for a fault that concerns no row.
        kind: `missing`, `corrupt`, `foreign` (intact, but belonging to something else), `unreadable` (there, but the system
            does not let us read it), `extra` (a file that does not belong) or `changed` (it cannot be made again).
        reason: The reason, as a clause.
        shard: Number of the shard, None outside of shards.
        finished: Whether the shard has a manifest, which `--repair` sets aside.
    """

    id: str
    kind: str
    reason: str
    shard: int | None = None
    finished: bool = True


def clips_digest(clips: Iterable[ClipRow]) -> str:
    """Return the identity of a clip list: a digest of its ids and paths in order."""
    return digest([[clip.id, clip.video] for clip in clips])


INFORMATIVE = ("software", "projection", "teacher.saw_labels")
"""Fields of a header, or their beginnings, in which two headers of one cache may differ."""


def header_difference(found: CacheHeader, wanted: CacheHeader) -> tuple[str, Any, Any] | None:
    """Return the first field in which two headers differ as (name, found, wanted), ignoring fitted and informative fields."""
    a, b = _flat(asdict(found)), _flat(asdict(wanted))
    for name in a | b:
        if not name.startswith(INFORMATIVE) and a.get(name) != b.get(name):
            return name, a.get(name), b.get(name)
    kinds = found.projection.get("kind"), wanted.projection.get("kind")
    return ("projection.kind", *kinds) if kinds[0] != kinds[1] else None


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in data.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
