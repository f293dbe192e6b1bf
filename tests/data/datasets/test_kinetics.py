"""Kinetics-style lists: the ways in which people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from stjepa_cli.core.errors import DatasetError
from stjepa_cli.data.datasets.base import Dataset, open_dataset


def listed(root: Path, train: str, val: str | None = None) -> Dataset:
    (root / "train.csv").write_text(train)
    if val is not None:
        (root / "val.csv").write_text(val)
    return open_dataset("kinetics", root)


def found(dataset: Dataset, split: str = "train") -> list[tuple[str, str, int | None]]:
    return [(item.id, item.path.relative_to(dataset.root).as_posix(), item.label) for item in dataset.videos(split)]  # type: ignore[arg-type]


def test_numbers_after_a_space(tmp_path: Path) -> None:
    dataset = listed(tmp_path, "air drumming/a b.mp4 1\nc.mp4 0\n", "d.mp4 3\n")
    assert dataset.classes == ("0", "1", "2", "3")
    assert found(dataset) == [("air drumming/a b", "air drumming/a b.mp4", 1), ("c", "c.mp4", 0)]
    assert found(dataset, "val") == [("d", "d.mp4", 3)]


def test_names_after_a_comma_with_a_header(tmp_path: Path) -> None:
    dataset = listed(tmp_path, 'path,label\na.mp4,playing guitar\n"b.mp4","air drumming"\n')
    assert dataset.classes == ("air drumming", "playing guitar")
    assert [label for *_, label in found(dataset)] == [1, 0]


@pytest.mark.parametrize("header", ["path,label", "video_path,label_id", "path,label_name", "File Name,Class"])
def test_quoted_commas_and_any_header_are_understood(tmp_path: Path, header: str) -> None:
    dataset = listed(tmp_path, f'{header}\na.mp4,"playing, loud"\n"b, c.mp4",air drumming\nd, e.mp4,air drumming\n')
    assert dataset.classes == ("air drumming", "playing, loud")
    assert found(dataset) == [("a", "a.mp4", 1), ("b, c", "b, c.mp4", 0), ("d, e", "d, e.mp4", 0)]


def test_what_looks_like_a_list_and_is_none_says_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"got 'a.mp4 air drumming', expected a comma before a label of several words"):
        listed(tmp_path, "a.mp4 air drumming\n")
    with pytest.raises(DatasetError, match=r"got the official annotations, which name no files, expected a line like"):
        listed(tmp_path, "label,youtube_id,time_start,time_end,split\nabseiling,0347,95,105,train\n")


def test_absolute_paths_stay_and_minus_one_is_no_label(tmp_path: Path) -> None:
    (item, other) = listed(tmp_path, "/data/a.mp4 -1\nb.mp4 0\n").videos("train")
    assert (item.path, item.label, other.label) == (Path("/data/a.mp4"), None, 0)


@pytest.mark.parametrize("line", ["a.mp4", "a.mp4,", ",3"])
def test_a_line_without_both_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(DatasetError, match=r"train.csv has another shape.*expected a line like"):
        listed(tmp_path, line + "\n")


def test_a_list_that_is_not_there_is_named_only_when_it_is_needed(tmp_path: Path) -> None:
    dataset = listed(tmp_path, "a.mp4 0\n")
    with pytest.raises(DatasetError, match=r"there is no .*val.csv"):
        dataset.videos("val")
