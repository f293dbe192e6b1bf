"""The records of a cache: its header, its clip list, and what each row was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from stjepa_cli.nouns import TeacherCard, digest
from stjepa_cli.shards import ShardLayout

SCHEMA = 1
ROWS_PER_SHARD = 64


@dataclass(frozen=True)
class CacheHeader:
    """What a cache holds. Two caches are the same if everything but `software` is.

    Attributes:
        dataset: name of the data set.
        split: which of its lists.
        num_clips: R, rows.
        clips_digest: digest of the clip ids in row order.
        teacher: who made the latents, from which clips.
        latent_dim: D, stored channels.
        projection: `kind`, `digest`, `explained` and `num_fit_clips` of the map from the teacher's width to D.
        rows_per_shard: clips in a shard.
        software: versions of what wrote it, for information.
    """

    dataset: str
    split: str
    num_clips: int
    clips_digest: str
    teacher: TeacherCard
    latent_dim: int
    projection: dict[str, Any]
    rows_per_shard: int = ROWS_PER_SHARD
    row_kind: str = "latents"
    dtype: str = "float16"
    schema: int = SCHEMA
    software: dict[str, str] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """N, tokens of a row."""
        return self.teacher.clip.grid.num_tokens

    @property
    def layout(self) -> ShardLayout:
        """How rows lie in a shard."""
        return ShardLayout(self.rows_per_shard, (self.num_tokens, self.latent_dim))

    @property
    def num_shards(self) -> int:
        """Shards of the whole cache, the last of which may be shorter."""
        return -(-self.num_clips // self.rows_per_shard)

    @property
    def digest(self) -> str:
        """Identity of the cache: sha256 over everything but `software`."""
        return digest({name: value for name, value in asdict(self).items() if name != "software"})


@dataclass(frozen=True)
class ClipRow:
    """One row's clip: its id and its video's path below the data root."""

    id: str
    video: str


@dataclass(frozen=True)
class RowRecord:
    """What a row was made from, or why it was not.

    Attributes:
        source_digest: sha256 of the video file.
        frame_indices: T frames, in presentation order.
        crop: top, left, height, width in source pixels.
        pixels_crc: crc32c of the uint8 clip that the teacher saw.
        latents_crc: crc32c of the stored row.
        error: set instead of all of these when the video could not be used.
    """

    id: str
    source_digest: str = ""
    frame_indices: tuple[int, ...] = ()
    crop: tuple[int, ...] = ()
    pixels_crc: int = 0
    latents_crc: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Fault:
    """One row that is not as it should be: `kind` is `missing` or `corrupt`."""

    id: str
    kind: str
    reason: str


def clips_digest(clips: Sequence[ClipRow]) -> str:
    """Identity of a clip list: its ids in order."""
    return digest([clip.id for clip in clips])


def header_difference(found: CacheHeader, wanted: CacheHeader) -> tuple[str, Any, Any] | None:
    """The first field in which two headers differ, as (name, found, wanted), leaving out what is fitted or informative."""
    a, b = _flat(asdict(found)), _flat(asdict(wanted))
    for name in a | b:
        if not name.startswith(("software", "projection")) and a.get(name) != b.get(name):
            return name, a.get(name), b.get(name)
    kinds = found.projection["kind"], wanted.projection["kind"]
    return ("projection.kind", *kinds) if kinds[0] != kinds[1] else None


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in data.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
