"""The clips of a video that an evaluation scores: `frames x temporal x spatial`. Standard library and integers only."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from stjepa_cli.core.errors import ConfigError
from stjepa_cli.core.types import ClipSpec, CropBox

_TEXT = re.compile(r"(?:(\d{1,9})x)?(\d{1,9})x(\d{1,9})")
_EXPECTED = "temporal x spatial, or frames x temporal x spatial, such as 1x1 or 16x5x3"


MAX_CLIPS = 1000
"""Most clips of a video that are taken for meant."""


@dataclass(frozen=True)
class EvalClips:
    """The clips of a video that are encoded.

    Attributes:
        temporal: Number of clips along time.
        spatial: Number of crops along the long side of the frame.
        num_frames: Number of frames in a clip, None for the encoder's own.
        sampling: `uniform` or `dense`, None for the encoder's own.
        stride: Distance of two frames of a `dense` clip, None for the encoder's own.
    """

    temporal: int = 1
    spatial: int = 1
    num_frames: int | None = None
    sampling: str | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        if min(self.temporal, self.spatial) < 1:
            raise ConfigError(
                "an evaluation needs at least one clip of each video", got=f"{self.temporal}x{self.spatial}", expected=_EXPECTED
            )

        if self.num_clips > MAX_CLIPS:
            expected = f"at most {MAX_CLIPS:,}; 16x5x3 has 15"
            raise ConfigError("too many clips of each video", got=f"{self.temporal}x{self.spatial}", expected=expected)

    @property
    def num_clips(self) -> int:
        """Return C, the number of clips of a video."""
        return self.temporal * self.spatial

    def fit(self, spec: ClipSpec) -> EvalClips:
        """Return the same clips with the number of frames that an encoder takes.

        Raises:
            ConfigError: Another number of frames is asked for.
        """
        if self.num_frames not in (None, spec.num_frames):
            fix = f"Type `--clips {self.temporal}x{self.spatial}` for the encoder's own."
            raise ConfigError("the encoder takes clips of another length", got=self.num_frames, expected=spec.num_frames, fix=fix)
        return replace(self, num_frames=spec.num_frames)

    def cut(self, spec: ClipSpec) -> ClipSpec:
        """Return how a clip is cut, for an encoder whose own clips are cut by `spec`.

        Raises:
            ConfigError: There is no such sampling, the stride is below 1, or it is given for clips that are not dense.
        """
        clip = replace(spec, sampling=self.sampling or spec.sampling, stride=spec.stride if self.stride is None else self.stride)
        if self.stride is not None and clip.sampling == "uniform":
            raise ConfigError("a stride is for dense sampling", got=f"stride {self.stride}", fix="Type `--sampling dense`.")
        return clip

    def __str__(self) -> str:
        return "x".join(str(size) for size in (self.num_frames, self.temporal, self.spatial) if size is not None)


ONE_CLIP = EvalClips()
"""One centre clip with the encoder's own frames."""


def parse_eval_clips(text: str) -> EvalClips:
    """Parse `16x5x3` or, for the encoder's own number of frames, `5x3`.

    Raises:
        ConfigError: The text has neither form.
    """
    match = _TEXT.fullmatch(text.strip().lower())
    if match is None:
        raise ConfigError("cannot tell which clips to score", got=repr(text), expected=_EXPECTED)
    frames, temporal, spatial = match.groups()
    return EvalClips(int(temporal), int(spatial), None if frames is None else int(frames))


def cut_eval_clips(
    spec: ClipSpec, eval_clips: EvalClips, *, num_frames: int, height: int, width: int
) -> tuple[tuple[tuple[int, ...], CropBox], ...]:
    """Choose the frames and the crop of each clip of a video: all crops of the first moment, then those of the next.

    Args:
        spec: How the encoder's own clips are cut.
        eval_clips: Number of clips, and how they are cut where that differs.
        num_frames: Number of frames of the video, at least 1.
        height: Height of its frames as shown, in pixels.
        width: Width of its frames as shown, in pixels.

    Returns:
        C pairs of T ascending frame indices and a square as large as the short side; 1x1 is the centre view of `views`.
    """
    spec, crops = eval_clips.cut(spec), _crops(eval_clips.spatial, height, width)
    moments = [_frames(spec, k, eval_clips.temporal, num_frames) for k in range(eval_clips.temporal)]
    return tuple((frames, crop) for frames in moments for crop in crops)


def _frames(spec: ClipSpec, clip: int, num_clips: int, num_frames: int) -> tuple[int, ...]:
    """Choose the frames of one of several clips along time.

    ```text
    uniform, 2 clips of 3 of 12    a . a b  a . a b ...     every clip spans the video, each at its own place in the segments
    dense, 3 clips                 a a a . b b b . c c c    the first at the start, the last at the end
    ```
    """
    if num_clips == 1:
        return spec.frame_indices(num_frames)
    if spec.sampling == "uniform":  # the middle of the clip's part of each of the T segments (TSN's test, arXiv 1608.00859)
        parts = 2 * num_clips
        return tuple((parts * i + 2 * clip + 1) * num_frames // (parts * spec.num_frames) for i in range(spec.num_frames))
    span = (spec.num_frames - 1) * spec.stride + 1
    if span > num_frames:
        return spec.frame_indices(num_frames)
    first = clip * (num_frames - span) // (num_clips - 1)
    return tuple(first + i * spec.stride for i in range(spec.num_frames))


def _crops(count: int, height: int, width: int) -> tuple[CropBox, ...]:
    """Return squares of the short side, evenly along the long one: one is the centre, three are left, centre and right."""
    side, room = min(height, width), abs(height - width)
    offsets = [room // 2] if count == 1 else [i * room // (count - 1) for i in range(count)]
    return tuple(CropBox(at, 0, side, side) if height > width else CropBox(0, at, side, side) for at in offsets)
