"""Text becomes the place that it names, local or remote; a folder says the same of itself wherever it lies."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from stjepa_cli.core.errors import ConfigError, NotReadyError
from stjepa_cli.core.locations import (
    Location,
    RemoteFile,
    absolute,
    file_sizes,
    is_folder,
    is_local,
    is_location,
    location,
    names,
    total_bytes,
)
from tests import media


def remote_file(place: Location) -> RemoteFile:
    assert not is_local(place)
    return RemoteFile(place)


# ------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("text", ["data", "/data/v2", "../up", "a:b", "C:/x", "s3:/one-slash"])
def test_text_without_a_protocol_is_a_path(text: str) -> None:
    assert location(text) == Path(text)
    assert location(Path(text)) == Path(text)


def test_a_file_url_is_the_plain_path(tmp_path: Path) -> None:
    for protocol in ("file", "FILE", "local"):
        place = location(f"{protocol}://{tmp_path}/a b")
        assert place == tmp_path / "a b"
        assert is_local(place)


def test_a_url_is_remote_and_keeps_its_slashes() -> None:
    place = location("memory://bucket/root")
    assert not is_local(place)
    assert not isinstance(place, Path)
    assert str(place / "a" / "b.webm") == "memory://bucket/root/a/b.webm"
    assert location(str(place)) == location(place) == place


def test_locations_are_told_from_text() -> None:
    assert is_location(Path("a"))
    assert is_location(location("memory://a"))
    assert not is_location("memory://a")
    assert not is_location(None)


def test_only_paths_depend_on_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute(Path("a")) == tmp_path / "a"
    assert absolute(location("memory://a/b")) == location("memory://a/b")


def test_an_unknown_protocol_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"unknown protocol: got foo://bucket/x, expected .* s3://bucket/folder") as caught:
        location("foo://bucket/x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("url", "package"), [("s3://b/k", "'stjepa[s3]'"), ("gs://b/k", "gcsfs"), ("abfs://b/k", "adlfs")])
def test_a_missing_driver_says_what_to_install(url: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for driver in ("s3fs", "gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, driver, None)  # as if it were not installed
    with pytest.raises(NotReadyError, match=r"no driver for .* is installed") as caught:
        location(url)
    assert str(caught.value).endswith(f"Type `pip install {package}`.")
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------------------- folders


@pytest.fixture(params=["local", "remote"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, bucket: Location) -> Location:
    """`a` of 1 byte, `b` of 2, `folder/a` of 3, in a folder named `folder`."""
    source = tmp_path / "folder"
    (source / "folder").mkdir(parents=True)
    for name, size in {"a": 1, "b": 2, "folder/a": 3}.items():
        (source / name).write_bytes(bytes(size))
    return source if request.param == "local" else media.upload(source, bucket / "folder")


def test_a_folder_lists_its_own_entries_only(folder: Location) -> None:
    assert sorted(names(folder)) == ["a", "b", "folder"]
    assert list(names(folder / "folder")) == ["a"]


def test_sizes_are_those_of_the_files_that_are_wanted(folder: Location) -> None:
    assert dict(file_sizes(folder, {"a", "folder", "c"})) == {"a": 1}
    assert dict(file_sizes(folder, {"a", "b"})) == {"a": 1, "b": 2}


def test_total_bytes_count_all_below(folder: Location) -> None:
    assert total_bytes(folder) == 6
    assert total_bytes(folder / "nowhere") == 0


def test_what_is_no_folder_is_said_so(folder: Location) -> None:
    assert is_folder(folder)
    assert not is_folder(folder / "a")
    assert not is_folder(folder / "nowhere")
    with pytest.raises(FileNotFoundError):
        list(names(folder / "nowhere"))
    with pytest.raises(NotADirectoryError):
        list(names(folder / "a"))


# ------------------------------------------------------------------------------------------------------------- files


def test_a_remote_file_is_read_from_anywhere(bucket: Location) -> None:
    (bucket / "file").write_bytes(b"0123456789")
    with remote_file(bucket / "file") as file:
        assert file.read(4) == b"0123"
        assert file.seek(-3, 2) == 7
        assert file.read() == b"789"
        assert file.seek(2) == 2
        assert file.read(1) == b"2"
    assert file.closed


def test_a_remote_file_that_is_not_there_is_an_os_error(bucket: Location) -> None:
    with pytest.raises(FileNotFoundError):
        remote_file(bucket / "none")


def test_what_a_driver_raises_is_an_os_error(bucket: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoCredentialsError(Exception):
        pass

    def refuse(*_: Any, **__: Any) -> Any:
        raise NoCredentialsError("unable to locate credentials")

    assert not is_local(bucket)
    for name in ("open", "ls", "info"):
        monkeypatch.setattr(bucket.fs, name, refuse)
    with pytest.raises(OSError, match="NoCredentialsError: unable to locate credentials"):
        list(names(bucket))
    with pytest.raises(OSError, match="NoCredentialsError"):
        remote_file(bucket / "file")
