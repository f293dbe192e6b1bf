"""Write generated clips as video files, in several processes; files that are there already are not written again.

A file gets its name only when it is whole, so a writer that was killed leaves nothing but files in `.partial`, which the next
one removes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from stjepa_cli.core.errors import StjepaError, storage_errors
from stjepa_cli.core.files import write_atomic
from stjepa_cli.core.progress import SILENT, Progress
from stjepa_cli.core.serialization import from_dict, to_dict
from stjepa_cli.data.video import video_bytes
from stjepa_cli.demo.processes import Job, Say, in_processes, num_cores
from stjepa_cli.demo.scenes import CLIPS_PER_BLOCK, GeneratedClips
from stjepa_cli.demo.synthetic import FPS

CLIPS_AT_ONCE = 32
SETTINGS_FILE = "generated.json"

Piece = tuple[int, int]
"""First clip, and first clip of the next piece; a piece lies in one block."""


def write_clips(root: Path, clips: GeneratedClips, names: Sequence[str], *, processes: int = 0, progress: Progress = SILENT) -> int:
    """Write every clip that is not there yet.

    Args:
        root: Folder to write into.
        clips: The clips.
        names: Path of each clip below `root`; the suffix names the format.
        processes: Number of processes, 0 for one per available core.
        progress: Receives progress.

    Returns:
        Number of files written now.

    Raises:
        StjepaError: The folder holds other clips, the disk is full or read-only, or a process was killed.
    """
    _claim(root, clips)
    todo = [piece for piece in _pieces(clips) if not all(_is_there(root / names[i]) for i in range(*piece))]
    missing = sum(not _is_there(root / names[i]) for piece in todo for i in range(*piece))
    if not todo:
        return 0
    with _partial_folder(root), progress.task(f"generate {root.name}", total=missing) as task:
        processes = min(processes or num_cores(), len(todo))
        if processes == 1:
            for piece in todo:
                task.advance(_write_piece(root, clips, names, piece))
        else:
            shared = {"root": str(root.absolute()), "clips": to_dict(clips), "names": list(names)}
            jobs = [shared | {"pieces": todo[i::processes]} for i in range(processes)]
            for _, line in in_processes("stjepa_cli.demo.writing:write_pieces", jobs):
                task.advance(int(line["written"]))
    return missing


def _claim(root: Path, clips: GeneratedClips) -> None:
    """Say in the folder which clips it holds, or refuse it if it holds others."""
    path, wanted = root / SETTINGS_FILE, to_dict(clips)
    with storage_errors(path):
        if not path.exists():
            write_atomic(path, (json.dumps(wanted, indent=1) + "\n").encode())
            return
        try:
            found = json.loads(path.read_text())
        except ValueError:
            found = None
    if found != wanted:
        raise StjepaError(f"{root} holds other clips", got=found, expected=wanted, fix="Choose another folder.")


@contextmanager
def _partial_folder(root: Path) -> Iterator[None]:
    """Provide an empty folder `.partial`, which is gone in the end."""
    folder = root / ".partial"
    try:
        with storage_errors(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _pieces(clips: GeneratedClips) -> Iterator[Piece]:
    for start in clips.blocks:
        end = min(start + CLIPS_PER_BLOCK, clips.num_clips)
        for first in range(start, end, CLIPS_AT_ONCE):
            yield first, min(first + CLIPS_AT_ONCE, end)


def _is_there(path: Path) -> bool:
    """Return whether a file is there; an empty one, as a power cut may leave, does not count."""
    return path.is_file() and path.stat().st_size > 0


def _write_piece(root: Path, clips: GeneratedClips, names: Sequence[str], piece: Piece) -> int:
    """Write the missing files of a piece and return their number."""
    first, end = piece
    start = first // CLIPS_PER_BLOCK * CLIPS_PER_BLOCK
    frames = clips.render(clips.block(start), slice(first - start, end - start))
    written = 0
    for number, clip in zip(range(first, end), frames, strict=True):
        path = root / names[number]
        if _is_there(path):
            continue
        data, part = video_bytes(clip, path.suffix, fps=FPS), root / ".partial" / f"{number}{path.suffix}"
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(data)
            part.replace(path)
        written += 1
    return written


def write_pieces(job: Job, say: Say) -> None:
    """Write the pieces of a job in a process of its own; say how many files each piece had to get."""
    torch.set_num_threads(1)
    clips = from_dict(GeneratedClips, job["clips"], where="the job")
    for first, end in job["pieces"]:
        say({"written": _write_piece(Path(job["root"]), clips, job["names"], (first, end))})
