"""A file is written whole or not at all, wherever it lies, and has one digest."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stjepa_cli.core.errors import StjepaError
from stjepa_cli.core.files import file_digest, remove_leftovers, replacing, write_atomic
from stjepa_cli.core.locations import Location, is_local

DATA = bytes(range(256)) * 1000


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_what_is_written_is_read_with_its_digest(kind: str, tmp_path: Path, bucket: Location) -> None:
    path = (tmp_path if kind == "local" else bucket) / "deep" / "folder" / "file"
    write_atomic(path, b"old")
    write_atomic(path, DATA)
    assert path.read_bytes() == DATA
    assert [file.name for file in path.parent.iterdir()] == ["file"]
    assert file_digest(path) == hashlib.sha256(DATA).hexdigest()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fail() -> None:
        with replacing(path) as part:
            part.write_bytes(b"new")
            raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def start_writer(path: Path) -> subprocess.Popen[str]:
    """Start a process that is about to write a file."""
    code = (
        "import sys, time; from pathlib import Path; from stjepa_cli.core.files import new_folder, replacing\n"
        "path = Path(sys.argv[1])\n"
        "with (new_folder if path.suffix == '.d' else replacing)(path) as part:\n"
        "    (part / 'file' if part.is_dir() else part).write_text('half'); print('writing', flush=True); time.sleep(60)"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout
    assert writer.stdout.readline() == "writing\n"
    return writer


@pytest.mark.parametrize("name", ["file", "folder.d"])
def test_leftovers_of_dead_writers_are_removed_and_files_of_living_ones_stay(tmp_path: Path, name: str) -> None:
    writers = [start_writer(tmp_path / name) for _ in range(2)]
    parts = set(tmp_path.iterdir())
    assert len(parts) == 2
    assert remove_leftovers(tmp_path) == []
    writers[0].kill()
    writers[0].communicate()
    assert len(remove_leftovers(tmp_path)) == 1
    assert len(list(tmp_path.iterdir())) == 1
    writers[1].kill()
    writers[1].communicate()
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_other_hidden_files_and_fresh_ones_of_earlier_versions_stay(tmp_path: Path) -> None:
    names = [".bashrc", ".config.7.bak", ".file.stjepa-xyz", ".file.1234", "file.stjepa-0123abcd", ".out.99"]
    for name in names[:-1]:
        (tmp_path / name).write_text("mine")
    (tmp_path / names[-1]).mkdir()
    (tmp_path / names[-1] / "half").write_text("")
    assert remove_leftovers(tmp_path) == []
    for name in (".file.1234", ".out.99"):
        os.utime(tmp_path / name, (0, 0))
    assert {path.name for path in remove_leftovers(tmp_path)} == {".file.1234", ".out.99"}
    assert remove_leftovers(tmp_path / "nowhere") == []


def test_names_of_255_bytes_can_be_written_and_longer_ones_are_one_sentence(tmp_path: Path) -> None:
    longest = tmp_path / ("ä" * 127 + "x")
    write_atomic(longest, DATA)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [DATA]
    with pytest.raises(StjepaError, match="the name is too long"):
        write_atomic(tmp_path / ("x" * 256), DATA)


def test_a_file_in_the_way_of_a_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StjepaError, match=r"cannot write .*: a"):
        write_atomic(tmp_path / "file" / "below", b"data")


def test_a_server_that_refuses_a_write_is_one_sentence(bucket: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError("Access Denied")

    assert not is_local(bucket)
    monkeypatch.setattr(bucket.fs, "open", refuse)
    with pytest.raises(StjepaError, match=r"cannot write memory://.*/file: got Access Denied\. Check the address and the credentials"):
        write_atomic(bucket / "file", DATA)
