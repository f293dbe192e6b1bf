"""Files of generated clips: the same bytes however they were written, by however many processes, killed or not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stjepa_cli.core.errors import StjepaError
from stjepa_cli.demo.scenes import GeneratedClips
from stjepa_cli.demo.writing import write_clips

REPOSITORY = Path(__file__).resolve().parents[2]
CLIPS = GeneratedClips("16", 130, 3, num_frames=4, size_px=16)
NAMES = [f"videos/{i % 3}/{i}{'.webm' if i % 2 else '.avi'}" for i in range(CLIPS.num_clips)]


def _files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """All files, written by this process alone."""
    root = tmp_path_factory.mktemp("one")
    assert write_clips(root, CLIPS, NAMES, processes=1) == len(NAMES)
    return _files(root)


def test_all_files_are_there_and_nothing_else(written: dict[str, bytes]) -> None:
    assert sorted(written) == sorted([*NAMES, "generated.json"])
    assert len(set(written.values())) == len(NAMES) + 1


def test_several_processes_write_the_same_bytes(tmp_path: Path, written: dict[str, bytes]) -> None:
    assert write_clips(tmp_path, CLIPS, NAMES, processes=3) == len(NAMES)
    assert _files(tmp_path) == written


def test_what_is_there_is_not_written_again(tmp_path: Path, written: dict[str, bytes]) -> None:
    write_clips(tmp_path, CLIPS, NAMES, processes=1)
    stamps = {name: (tmp_path / name).stat().st_mtime_ns for name in NAMES}
    (tmp_path / NAMES[3]).unlink()
    (tmp_path / NAMES[99]).write_bytes(b"")  # as a power cut may leave it
    assert write_clips(tmp_path, CLIPS, NAMES, processes=1) == 2
    assert _files(tmp_path) == written
    assert [name for name in NAMES if (tmp_path / name).stat().st_mtime_ns != stamps[name]] == [NAMES[3], NAMES[99]]
    assert write_clips(tmp_path, CLIPS, NAMES) == 0


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_and_run_again_it_ends_with_the_same_files(tmp_path: Path, written: dict[str, bytes], processes: int) -> None:
    code = (
        "from pathlib import Path\n"
        "from tests.demo.test_writing import CLIPS, NAMES\n"
        "from stjepa_cli.demo.writing import write_clips\n"
        f"write_clips(Path({str(tmp_path)!r}), CLIPS, NAMES, processes={processes})\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})
    deadline = time.monotonic() + 120
    while len(list(tmp_path.rglob("*.webm"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.005)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    _wait_until_still(tmp_path)
    assert 5 <= len(_files(tmp_path)) < len(written) + 1
    write_clips(tmp_path, CLIPS, NAMES, processes=processes)
    assert _files(tmp_path) == written


def _wait_until_still(root: Path) -> None:
    """Wait until no worker of a killed process writes any more."""
    before = None
    while before != (before := len(_files(root))):
        time.sleep(0.5)


def test_a_folder_of_other_clips_is_refused(tmp_path: Path) -> None:
    other = GeneratedClips("16", 130, 4, num_frames=4, size_px=16)
    write_clips(tmp_path, GeneratedClips("16", 2, 3, num_frames=4, size_px=16), NAMES[:2])
    with pytest.raises(StjepaError, match="holds other clips"):
        write_clips(tmp_path, other, NAMES)
    (tmp_path / "generated.json").write_text("[")
    with pytest.raises(StjepaError, match="holds other clips"):
        write_clips(tmp_path, other, NAMES)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path, processes: int) -> None:
    (tmp_path / "videos").write_text("in the way")
    with pytest.raises(StjepaError, match=r"cannot write .*videos/\d.*: a (part of the path is a file|file is in the way)"):
        write_clips(tmp_path, CLIPS, NAMES, processes=processes)
    assert not (tmp_path / ".partial").exists()
