"""Reads the parts of videos that have not been embedded yet, in threads, as clips for an encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from stjepa_cli.core.errors import VideoError
from stjepa_cli.core.locations import Location, is_local, location, remote_version
from stjepa_cli.core.prefetch import ordered_map
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.core.types import ClipRef, ClipSpec, CropBox, digest
from stjepa_cli.data.containers import reading
from stjepa_cli.data.video import Video, cut_clips
from stjepa_cli.encoders.fingerprints import ABSENT, fingerprint
from stjepa_cli.search.parts import ALL, WHOLE, Framing, Part, frames_of
from stjepa_cli.search.records import Known, row_id

WHOLE_BYTES = 64 << 20
"""Files up to this size are hashed as a whole, which takes a fraction of the time of decoding them."""

PARTS_AT_ONCE = 8
"""Parts of a video that are in memory together; a file of many parts is opened once for each such group."""


@dataclass(frozen=True)
class Item:
    """A video to embed.

    Attributes:
        uri: Absolute path or URL.
        center_seconds: The moment that a window is around, or None for the middle.
    """

    uri: str
    center_seconds: float | None = None


@dataclass(frozen=True)
class Reading:
    """What has been read of a video.

    Attributes:
        item: The video.
        digest: Fingerprint of its content, or an empty string if it could not be read.
        parts: Parts that were read, or that could not be read.
        clips: uint8 (P, T, 3, S, S), one clip per part; None if they could not be read, or if there was nothing to do.
        error: Reason why they could not be read.
        skipped: Number of parts that are known already.
        facts: `duration_seconds`, `fps`, `width` and `height`, as far as they are known.
        last: True for the last group of parts of a video.
    """

    item: Item
    digest: str
    parts: tuple[Part, ...] = ()
    clips: Tensor | None = None
    error: str | None = None
    skipped: int = 0
    facts: Mapping[str, float | int | None] = field(default_factory=dict)
    last: bool = True


@dataclass(frozen=True)
class Reader:
    """Reads videos as an encoder takes them.

    Attributes:
        spec: The clips of the encoder.
        framing: Choice of parts and frames.
        known: Rows that are done, by id.
        block_bytes: Bytes per request to a remote file, or None for the driver's own number.
    """

    spec: ClipSpec
    framing: Framing = ALL
    known: Mapping[str, Known] = field(default_factory=dict)
    block_bytes: int | None = None

    def read_all(self, items: Iterable[Item], runtime: Runtime) -> Iterator[Reading]:
        """Read videos in threads and yield what was read in their order; nothing that happens to one of them ends it.

        Args:
            items: The videos; consumed a few ahead of what is yielded.
            runtime: Its workers and its batch size decide how many wait in memory.
        """
        look_ahead = runtime.batch_size + 2 * runtime.workers
        if self.framing.stride_seconds is None:
            whole = lambda item: self.read(item, self.framing.parts(None, item.center_seconds))  # noqa: E731
            yield from ordered_map(whole, items, num_workers=runtime.workers, look_ahead=look_ahead)
            return
        planned = ordered_map(self._plan, items, num_workers=runtime.workers, look_ahead=2 * runtime.workers)
        groups = ((item, *group) for item, parts in planned for group in _grouped(parts))
        look_ahead = -(-runtime.batch_size // PARTS_AT_ONCE) + 2 * runtime.workers
        yield from ordered_map(lambda each: self.read(*each), groups, num_workers=runtime.workers, look_ahead=look_ahead)

    def read(self, item: Item, parts: tuple[Part, ...] = (WHOLE,), last: bool = True) -> Reading:
        """Read those of some parts of a video that are not known yet."""
        version, todo, facts = "", parts, dict[str, float | int | None]()
        try:
            place = location(item.uri)
            version = _version(place)
            todo = tuple(part for part in parts if not self._is_done(item, part, version))
            if not todo:
                return Reading(item, version, skipped=len(parts), last=last)
            with Video(place, self.block_bytes) as video:
                facts |= _facts(video)
                clips = self._cut(video, todo)
            if _version(place) != version:
                raise VideoError(item.uri, "it has changed while it was read")
        except VideoError as error:
            return Reading(item, version, todo, error=error.reason, skipped=len(parts) - len(todo), facts=facts, last=last)
        return Reading(item, version, todo, clips, skipped=len(parts) - len(todo), facts=facts, last=last)

    def _cut(self, video: Video, parts: tuple[Part, ...]) -> Tensor:
        """Decode a clip per part, uint8 (P, T, 3, S, S)."""
        side = min(video.height, video.width)
        crop = CropBox((video.height - side) // 2, (video.width - side) // 2, side, side)
        try:
            chosen = [frames_of(part, self.spec, self.framing, num_frames=video.num_frames, fps=video.fps) for part in parts]
        except ValueError as error:
            raise VideoError(video.path, str(error)) from error
        return cut_clips(video, [ClipRef(video.path, frames, crop, self.spec.size_px) for frames in chosen])

    def _plan(self, item: Item) -> tuple[Item, tuple[Part, ...]]:
        """Return the parts of a video; one that cannot be read is a whole that cannot be read."""
        found = self.known.get(row_id(item.uri))
        try:
            place = location(item.uri)
            if found is not None and found.digest == _version(place):
                return item, self.framing.parts(found.duration_seconds)
            with Video(place, self.block_bytes) as video:
                return item, self.framing.parts(video.duration_seconds)
        except VideoError:
            return item, (WHOLE,)

    def _is_done(self, item: Item, part: Part, version: str) -> bool:
        found = self.known.get(row_id(item.uri, part.start_seconds, part.end_seconds))
        return found is not None and found.digest == version


def _facts(video: Video) -> dict[str, float | int | None]:
    return {"duration_seconds": video.duration_seconds, "fps": video.fps or None, "width": video.width, "height": video.height}


def _version(place: Location) -> str:
    """Return a fingerprint of a file's content, 16 hex digits.

    It is the sha256 of a local file of up to `WHOLE_BYTES`, covers the size, both ends and the middle of a larger one, and what the
    store says of a remote one.

    Raises:
        VideoError: There is no such file, or it cannot be read.
    """
    with reading(place):
        if not is_local(place):
            return digest(remote_version(place))[:16]
        if place.is_file() and place.stat().st_size <= WHOLE_BYTES:
            return hashlib.sha256(place.read_bytes()).hexdigest()[:16]
    found = fingerprint(place)
    if found == ABSENT:
        Video(place)  # says what is wrong with it
        raise VideoError(place, "there is no such file")
    return found


def _grouped(parts: tuple[Part, ...]) -> Iterator[tuple[tuple[Part, ...], bool]]:
    """Yield groups of parts, each with True if it is the last."""
    for start in range(0, len(parts), PARTS_AT_ONCE):
        yield parts[start : start + PARTS_AT_ONCE], start + PARTS_AT_ONCE >= len(parts)
