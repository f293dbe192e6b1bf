"""Which parts of a video become rows, and which frames stand for a part. Standard library and integers only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from stjepa_cli.core.errors import ConfigError
from stjepa_cli.core.types import ClipSpec

STRATEGIES = ("full", "centered", "window")
_CLOSE = 1e-6


@dataclass(frozen=True)
class Part:
    """A stretch of a video.

    Attributes:
        start_seconds: Its start.
        end_seconds: Its end, None for the end of the video; the start again for a moment.
    """

    start_seconds: float = 0.0
    end_seconds: float | None = None


WHOLE = Part()


@dataclass(frozen=True)
class Framing:
    """How frames are chosen, and where a video is cut into parts.

    Attributes:
        strategy: `full` spreads the frames over the part; `centered` takes consecutive ones around its middle, with the stride of the
            model; `window` does so around a moment of the video.
        stride_seconds: Distance between the starts of parts, or None for the whole video alone.
        length_seconds: Length of a part; the stride if None.

    Raises:
        ConfigError: There is no such strategy, a time is not positive, or a window is asked for in parts.
    """

    strategy: str = "full"
    stride_seconds: float | None = None
    length_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ConfigError("unknown strategy", got=repr(self.strategy), expected="one of " + ", ".join(STRATEGIES))
        for name, value in (("stride", self.stride_seconds), ("length", self.length_seconds)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"the {name} of parts must be a positive number of seconds", got=value)
        if self.length_seconds is not None and self.stride_seconds is None:
            raise ConfigError("a length of parts needs their distance", fix="Add `--stride SECONDS`.")
        if self.strategy == "window" and self.stride_seconds is not None:
            raise ConfigError("a window is one moment of a video, which cannot be cut into parts", fix="Leave out --stride.")

    def parts(self, duration_seconds: float | None, center_seconds: float | None = None) -> tuple[Part, ...]:
        """Return the whole video and its parts; for windows the moment alone, a part that ends where it starts.

        ```text
        8 s, stride 3, length 4    0...........8    0....4    3....7    6..8     the last one ends with the video
        ```

        Args:
            duration_seconds: Length of the video, or None if it is not known.
            center_seconds: The moment of a window.
        """
        if self.strategy == "window" and center_seconds is not None:
            return (Part(center_seconds, center_seconds),)
        return (WHOLE, *self._cut(duration_seconds))

    def _cut(self, duration_seconds: float | None) -> Iterator[Part]:
        if self.stride_seconds is None or duration_seconds is None:
            return
        length = self.length_seconds or self.stride_seconds
        if length >= duration_seconds - _CLOSE:
            return
        for i in range(math.ceil(duration_seconds / self.stride_seconds)):
            start = i * self.stride_seconds
            end = start + length
            yield Part(round(start, 6), round(min(end, duration_seconds), 6))
            if end >= duration_seconds - _CLOSE:
                return


ALL = Framing()
"""Frames spread over the whole video."""


def frames_of(part: Part, spec: ClipSpec, framing: Framing, *, num_frames: int, fps: float) -> tuple[int, ...]:
    """Choose the frames that stand for a part.

    Args:
        part: The part.
        spec: The clips of the encoder.
        framing: The strategy.
        num_frames: Number of frames of the video, at least 1.
        fps: Frames per second, 0 if it is not known.

    Returns:
        T frame indices in ascending order, which repeat where the part is short.

    Raises:
        ValueError: The moment lies outside the video, or times mean nothing in a video that does not say how fast it is shown.
    """
    if part.end_seconds == part.start_seconds:
        return _around(_moment(part.start_seconds, num_frames, fps), spec, num_frames)
    first, last = _range(part, num_frames, fps)
    sampling = "uniform" if framing.strategy == "full" else "dense"
    return tuple(first + i for i in replace(spec, sampling=sampling).frame_indices(last - first))


def _range(part: Part, num_frames: int, fps: float) -> tuple[int, int]:
    """Return the first frame of a part and the one behind its last; at least one lies between."""
    if part.start_seconds == 0 and part.end_seconds is None:
        return 0, num_frames
    if fps <= 0:
        raise ValueError("it does not say how fast its frames are shown, so it cannot be cut into parts")
    first = min(num_frames - 1, round(part.start_seconds * fps))
    last = num_frames if part.end_seconds is None else round(part.end_seconds * fps)
    return first, max(first + 1, min(num_frames, last))


def _moment(center_seconds: float, num_frames: int, fps: float) -> int:
    if fps <= 0:
        raise ValueError("it does not say how fast its frames are shown, so no moment of it can be found")
    frame = math.floor(center_seconds * fps) if math.isfinite(center_seconds) else -1
    if not 0 <= frame <= num_frames:
        raise ValueError(f"the window is around {center_seconds:g} s, and the video is {num_frames / fps:g} s long")
    return min(frame, num_frames - 1)


def _around(center: int, spec: ClipSpec, num_frames: int) -> tuple[int, ...]:
    """Choose frames around one, moved inwards at the ends of the video; all of a video that is too short, as `dense` does."""
    span = (spec.num_frames - 1) * spec.stride + 1
    if span > num_frames:
        return replace(spec, sampling="uniform").frame_indices(num_frames)
    first = min(max(0, center - span // 2), num_frames - span)
    return tuple(first + i * spec.stride for i in range(spec.num_frames))
