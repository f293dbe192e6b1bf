"""What can be named as a source of videos."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from stjepa_cli.core.errors import ConfigError, NotReadyError, StjepaError
from stjepa_cli.core.locations import Location
from stjepa_cli.search.reading import Item
from stjepa_cli.search.sources import list_items


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.mp4", "a.webm", "deep/er/c.AVI", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"video")
    return tmp_path


def uris(*sources: object, **options: object) -> list[str]:
    return [item.uri for item in list_items([str(source) for source in sources], **options)]  # type: ignore[arg-type]


def write_csv(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_folder_is_searched_below_too_and_in_order(folder: Path) -> None:
    assert uris(folder) == [str(folder / name) for name in ("a.webm", "b.mp4", "deep/er/c.AVI")]


def test_a_file_is_taken_whatever_its_name(folder: Path) -> None:
    assert uris(folder / "notes.txt") == [str(folder / "notes.txt")]


def test_a_glob_takes_videos_only(folder: Path) -> None:
    assert uris(folder / "*") == [str(folder / "a.webm"), str(folder / "b.mp4")]
    assert uris(folder / "**/*.AVI") == [str(folder / "deep/er/c.AVI")]


def test_a_relative_path_becomes_absolute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert uris("b.mp4") == [str(folder / "b.mp4")]


def test_what_is_named_twice_is_taken_once_and_the_limit_counts_videos(folder: Path) -> None:
    assert len(uris(folder, folder / "b.mp4", folder)) == 3
    assert uris(folder / "b.mp4", folder, limit=2) == [str(folder / "b.mp4"), str(folder / "a.webm")]


def test_a_bucket_is_listed_and_globbed(bucket: Location) -> None:
    for name in ("b.mp4", "deep/a.webm", "notes.txt"):
        (bucket / name).write_bytes(b"video")
    assert uris(bucket) == [str(bucket / "b.mp4"), str(bucket / "deep/a.webm")]
    assert uris(bucket / "*.mp4") == [str(bucket / "b.mp4")]
    assert uris(bucket / "deep/a.webm") == [str(bucket / "deep/a.webm")]


def test_a_csv_names_videos_relative_to_itself(folder: Path) -> None:
    table = write_csv(folder / "list.csv", [{"uri": "a.webm"}, {"uri": "/else/where.mp4"}, {"uri": "memory://x/y.mp4"}, {"uri": ""}])
    assert uris(table) == [str(folder / "a.webm"), "/else/where.mp4", "memory://x/y.mp4"]


def test_moments_of_windows_come_from_a_number_or_a_column(folder: Path) -> None:
    table = write_csv(folder / "list.csv", [{"video": "a.webm", "at": 1.5}, {"video": "a.webm", "at": 3}])
    expected = [Item(str(folder / "a.webm"), 1.5), Item(str(folder / "a.webm"), 3.0)]
    assert list_items([str(table)], uri_column="video", center="at") == expected
    assert list_items([str(folder / "b.mp4")], center="2.5") == [Item(str(folder / "b.mp4"), 2.5)]


def test_parquet_and_lance_tables_name_videos(folder: Path) -> None:
    pyarrow, lancedb = pytest.importorskip("pyarrow"), pytest.importorskip("lancedb")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"path": ["a.webm", "b.mp4"], "at": [0.5, 1.0], "other": [1, 2]})
    parquet.write_table(table, folder / "list.parquet")
    lancedb.connect(str(folder)).create_table("list", table)
    for name in ("list.parquet", "list.lance"):
        found = list_items([str(folder / name)], uri_column="path", center="at")
        assert found == [Item(str(folder / "a.webm"), 0.5), Item(str(folder / "b.mp4"), 1.0)]
        with pytest.raises(ConfigError, match=f"{name} has no such column: got uri, expected one of path, at, other"):
            list_items([str(folder / name)])


@pytest.mark.parametrize("name", ["missing.mp4", "missing", "missing/*.mp4", "missing.csv", "missing.parquet", "missing.lance"])
def test_a_source_that_is_not_there_is_refused_by_name(folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"there (is no|are no).*got .*missing"):
        uris(folder / name)


def test_an_empty_folder_is_refused_with_what_a_video_is_called(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no videos at this place: got .*, expected files that end in \.mp4, "):
        uris(tmp_path)


def test_a_column_that_a_table_lacks_is_refused_with_those_that_it_has(folder: Path) -> None:
    table = write_csv(folder / "list.csv", [{"path": "a.webm", "at": "soon"}])
    with pytest.raises(ConfigError, match=r"no such column: got uri, expected one of path, at\. Name it with `--uri-column`"):
        uris(table)
    with pytest.raises(ConfigError, match="row 1: column at is no number of seconds: got 'soon'"):
        uris(table, uri_column="path", center="at")
    with pytest.raises(ConfigError, match="a number of seconds, or a column of a table: got at"):
        uris(folder, center="at")


@pytest.mark.parametrize("name", ["bad.parquet", "bad.csv"])
def test_a_table_that_is_none_is_refused_in_one_sentence(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"\xff\xfe\0\0 nothing")
    with pytest.raises(StjepaError, match=f"{name} (cannot be read|has no such column)"):
        uris(folder / name)


def test_a_url_whose_driver_is_missing_says_what_to_install() -> None:
    with pytest.raises((NotReadyError, ConfigError), match="gs://"):
        uris("gs://bucket/videos")
