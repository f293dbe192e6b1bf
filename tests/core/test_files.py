"""A file is written whole or not at all, wherever it lies, and has one digest."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from stjepa_cli.core.errors import StjepaError
from stjepa_cli.core.files import file_digest, replacing, write_atomic
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
