"""Write generated clips as video files, in several processes; files that are there already are not written again.

A file gets its name only when it is whole, so a writer that was killed leaves nothing but files in `.partial`, which the next
one removes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch

from stjepa_cli.core.errors import StjepaError, storage_errors
from stjepa_cli.core.files import write_atomic
from stjepa_cli.core.progress import SILENT, Progress
from stjepa_cli.core.serialization import from_dict, to_dict
from stjepa_cli.data.video import video_bytes
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
        processes = min(processes or len(os.sched_getaffinity(0)), len(todo))
        if processes == 1:
            for piece in todo:
                task.advance(_write_piece(root, clips, names, piece))
        else:
            for count in _in_processes(root, clips, names, todo, processes):
                task.advance(count)
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


# --------------------------------------------------------------------------------------------------------- processes


def _in_processes(root: Path, clips: GeneratedClips, names: Sequence[str], todo: Sequence[Piece], processes: int) -> Iterator[int]:
    """Yield the number of files written by each piece, as it is done; the processes end with this one, whatever ends it."""
    lines: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
    workers: list[subprocess.Popen[str]] = []
    try:
        for i in range(processes):
            job = {"root": str(root.absolute()), "clips": to_dict(clips), "pieces": todo[i::processes], "names": list(names)}
            workers.append(_start(job))
        for worker in workers:
            Thread(target=_forward, args=(worker, lines), daemon=True).start()
        running = len(workers)
        while running:
            line = lines.get()
            if line is None:
                running -= 1
            elif "error" in line:
                raise StjepaError(line["error"])
            else:
                yield int(line["written"])
        failed = [worker.returncode for worker in workers if worker.wait()]
        if failed:
            raise StjepaError("a process that writes clips has ended early", got=_ending(failed[0]), fix="Run the same command again.")
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def _start(job: dict[str, Any]) -> subprocess.Popen[str]:
    """Start a worker in a session of its own, which Ctrl-C does not reach, and hand it its job."""
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    worker = subprocess.Popen(
        [sys.executable, "-c", "from stjepa_cli.demo.writing import work; work()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    assert worker.stdin is not None
    with worker.stdin as pipe:
        json.dump(job, pipe)
    return worker


def _forward(worker: subprocess.Popen[str], lines: SimpleQueue[dict[str, Any] | None]) -> None:
    """Put what a worker says into the queue, then None when it has ended."""
    assert worker.stdout is not None
    with worker.stdout as pipe:
        for line in pipe:
            lines.put(json.loads(line))
    lines.put(None)


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def work() -> None:
    """Write the pieces of the job on stdin and say so on stdout; this is what a worker process runs."""
    job = json.load(sys.stdin)
    torch.set_num_threads(1)
    clips = from_dict(GeneratedClips, job["clips"], where="the job")
    try:
        for first, end in job["pieces"]:
            _say(written=_write_piece(Path(job["root"]), clips, job["names"], (first, end)))
    except StjepaError as error:
        _say(error=error.sentence())
    except BrokenPipeError:  # whoever asked for the files is gone
        os._exit(1)


def _say(**line: object) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
