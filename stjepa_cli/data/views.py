"""The frames and the crop of each view of a training clip. Standard library and integers only: the same on every machine."""

from __future__ import annotations

import hashlib

from stjepa_cli.core.types import ClipSpec, CropBox

MIN_SIDE_PERCENT = 66
"""Smallest side of a random crop, in percent of the short side of the frame: the smallest scale of TSN (arXiv 1608.00859)."""

_BITS = 64


def cut_view(
    spec: ClipSpec, *, num_frames: int, height: int, width: int, clip_id: str, view: int, seed: int
) -> tuple[tuple[int, ...], CropBox]:
    """Choose the frames and the crop of one view of a video.

    View 0 is the centre view: the frames of `spec.frame_indices` and the centred square of the short side. Every other view is
    random, but a function of (seed, clip_id, view) and the video's sizes alone: multi-scale cropping of TSN (arXiv 1608.00859)
    with a side anywhere between 0.66 and 1.0 of the short side, at any place. It is never mirrored: left and right are classes.

    Args:
        spec: How clips are cut.
        num_frames: Number of frames of the video, at least 1.
        height: Height of its frames as shown, in pixels.
        width: Width of its frames as shown, in pixels.
        clip_id: Name of the clip, any string.
        view: Number of the view, at least 0.
        seed: Seed of the whole cache.

    Returns:
        T frame indices below `num_frames`, ascending, and a square inside the frame.

    Raises:
        ValueError: There are no frames, they have no size, or the view is negative.
    """
    if min(num_frames, height, width) < 1 or view < 0:
        raise ValueError(f"no view {view} of {num_frames} frames of {width}x{height} px")
    if view == 0:
        side = min(height, width)
        return spec.frame_indices(num_frames), CropBox((height - side) // 2, (width - side) // 2, side, side)
    moment, scale, down, right = _random_numbers(f"{seed} {view} {clip_id}")
    shortest, longest = -(-MIN_SIDE_PERCENT * min(height, width) // 100), min(height, width)
    side = shortest + _below(longest - shortest + 1, scale)
    crop = CropBox(_below(height - side + 1, down), _below(width - side + 1, right), side, side)
    return _frames(spec, num_frames, moment), crop


def _frames(spec: ClipSpec, num_frames: int, moment: int) -> tuple[int, ...]:
    """Choose the frames of a random view.

    ```text
    uniform, 4 of 12, u = 0.7    . . 2  . . 5  . . 8  . . 11     one offset u for all segments: the spacing stays even
    dense                        a random start among those at which the whole clip fits
    ```
    """
    if spec.sampling == "uniform":
        return tuple(((i << _BITS) + moment) * num_frames // (spec.num_frames << _BITS) for i in range(spec.num_frames))
    span = (spec.num_frames - 1) * spec.stride + 1
    if span > num_frames:
        return spec.frame_indices(num_frames)
    first = _below(num_frames - span + 1, moment)
    return tuple(first + i * spec.stride for i in range(spec.num_frames))


def _random_numbers(text: str) -> tuple[int, int, int, int]:
    """Return four independent integers below 2^64 that depend on `text` alone."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
    first, second, third, fourth = (int.from_bytes(digest[i : i + 8], "little") for i in range(0, 32, 8))
    return first, second, third, fourth


def _below(count: int, number: int) -> int:
    """Map a random 64-bit number evenly to 0 ... count - 1."""
    return count * number >> _BITS
