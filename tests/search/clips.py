"""Tiny videos and a tiny encoder for the tests of this room."""

from __future__ import annotations

from pathlib import Path

from stjepa_cli.demo import assets
from tests.media import moving_square, write_video

MODEL = str(Path(assets.__file__).parent / "tiny_videomae_motion")
"""8 frames of 32 px, 4 time steps of 16 tokens, 96 channels; takes milliseconds."""
DIM, STEPS, NUM_TOKENS = 96, 4, 64


def write_clips(folder: Path, count: int, *, num_frames: int = 14, suffix: str = ".mp4") -> list[Path]:
    """Write `count` different videos of 12 frames per second."""
    return [
        write_video(folder / f"{number:03d}{suffix}", moving_square(num_frames=num_frames, direction=number % 3, seed=number))
        for number in range(count)
    ]
