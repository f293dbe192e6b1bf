"""Small pictures of the rows of a table for pages: a still frame, or a short loop. A video that is gone has none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.core.errors import StjepaError
from stjepa_cli.core.locations import location
from stjepa_cli.core.prefetch import ordered_map
from stjepa_cli.core.progress import Progress
from stjepa_cli.data.sampling import evenly
from stjepa_cli.data.video import Video
from stjepa_cli.search.records import Row
from stjepa_cli.viz import html
from stjepa_cli.viz.images import encode_animation, encode_picture

LOOP_FRAMES = 8
LOOP_PX = 240  # longer side
FRAME_MS, LAST_MS = 220, 500
THUMBNAIL_PX = 144  # longer side
AROUND_SECONDS = 1.0  # on both sides of a moment, which has no length of its own
MAX_DECODERS = 4  # threads; each holds one whole frame


@dataclass(frozen=True)
class Preview:
    """A picture of a row.

    Attributes:
        picture: Media type and bytes: a loop, or a still frame; None if the video cannot be read.
        still: Media type and bytes of its middle frame; None if the picture is a still frame.
        error: Reason why there is no picture, or an empty string.
    """

    picture: tuple[str, bytes] | None
    still: tuple[str, bytes] | None = None
    error: str = ""


def loops(rows: Iterable[Row], workers: int) -> Iterator[Preview]:
    """Yield a loop of 8 frames of each row, in order; `workers` videos are decoded at the same time."""
    return _mapped(rows, LOOP_FRAMES, LOOP_PX, workers)


def thumbnails(rows: Iterable[Row], workers: int) -> Iterator[Preview]:
    """Yield the middle frame of each row, in order; `workers` videos are decoded at the same time."""
    return _mapped(rows, 1, THUMBNAIL_PX, workers)


def shown_loops(rows: Sequence[Row], workers: int, progress: Progress) -> list[Preview]:
    """Return a loop of each row, with progress."""
    previews = []
    with progress.task("loops", total=len(rows), unit="videos") as task:
        for preview in loops(rows, workers):
            previews.append(preview)
            task.advance()
    return previews


def tile(row: Row, preview: Preview, *words: str) -> html.Tile:
    """Return a row as a picture on a page, with words below it and then its name and times."""
    return html.Tile(preview.picture, f"Frames of {row.uri}", (*words, *described(row)), still=preview.still)


def described(row: Row) -> tuple[str, ...]:
    """Return the name of the file of a row, and its times if it is a part of a video."""
    name = row.uri.rstrip("/").rpartition("/")[2]
    return (name,) if row.end_seconds is None else (name, f"{times_of(row)} s")


def times_of(row: Row) -> str:
    """Return which seconds of a video a row stands for: `all`, `2 to 4`, or `at 3` for a moment."""
    if row.end_seconds is None:
        return "all"
    return f"at {row.start_seconds:g}" if row.end_seconds == row.start_seconds else f"{row.start_seconds:g} to {row.end_seconds:g}"


def folder_of(row: Row) -> str:
    """Return the name of the folder that the file of a row is in; many data sets name it after the class."""
    return row.uri.rstrip("/").rpartition("/")[0].rpartition("/")[2]


def _mapped(rows: Iterable[Row], num_frames: int, side_px: int, workers: int) -> Iterator[Preview]:
    def preview(row: Row) -> Preview:
        try:
            frames = _frames(row, num_frames, side_px)
        except (StjepaError, OSError) as error:  # it could be read when it was embedded
            return Preview(None, error=" ".join(str(error).split()))
        still = ("image/webp", encode_picture(frames[len(frames) // 2], "WEBP"))
        if num_frames == 1:
            return Preview(still)
        return Preview(("image/webp", encode_animation(frames, frame_ms=FRAME_MS, last_ms=LAST_MS)), still)

    decoders = min(workers, MAX_DECODERS)
    return ordered_map(preview, rows, num_workers=decoders, look_ahead=2 * decoders)


def _frames(row: Row, num_frames: int, side_px: int) -> Tensor:
    """Decode frames spread over the time of a row: uint8 (T, 3, h, w), the longer side `side_px` or that of the video if it is smaller."""
    with Video(location(row.uri)) as video:
        first, end = 0, video.num_frames
        if row.fps and row.end_seconds is not None:
            more = AROUND_SECONDS if row.end_seconds == row.start_seconds else 0.0
            first = max(0, min(int((row.start_seconds - more) * row.fps), video.num_frames - 1))
            end = max(first + 1, min(round((row.end_seconds + more) * row.fps), video.num_frames))
        wanted = tuple(evenly(range(first, end), num_frames))
        scale = min(1.0, side_px / max(video.height, video.width))
        size = (max(1, round(video.height * scale)), max(1, round(video.width * scale)))
        small = [F.interpolate(frame, size=size, mode="bilinear", antialias=True, align_corners=False) for frame in video.runs(wanted, 1)]
    return torch.cat(small)
