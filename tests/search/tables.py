"""A small table of real videos, embedded with histograms of gradients, which need no weights."""

from __future__ import annotations

from pathlib import Path

from stjepa_cli.core.runtime import Runtime
from stjepa_cli.search.embed import EmbedRequest, embed
from stjepa_cli.search.embedding import Recipe
from tests.media import moving_square, write_text, write_video

RUNTIME = Runtime("cpu", workers=2)
FOLDERS = ("right", "left", "down")


def write_videos(folder: Path, copies: int = 2) -> list[Path]:
    """Write squares that move in three directions, a folder for each direction, and a file that is no video."""
    files = [
        write_video(folder / name / f"{i}.mp4", moving_square(direction=direction, seed=10 * direction + i))
        for direction, name in enumerate(FOLDERS)
        for i in range(copies)
    ]
    write_text(folder / "broken.mp4")
    return files


def embed_folder(folder: Path, place: str, column: str = "video_embedding", output: str = "clip", pool: str = "mean") -> None:
    """Embed all videos below a folder into a table."""
    embed(EmbedRequest((str(folder),), "hog", place, Recipe(column, output, pool), num_frames=4), RUNTIME)
