"""A folder of class folders, split or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from stjepa_cli.core.errors import DatasetError
from stjepa_cli.data.datasets.base import open_dataset


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_split_folders_are_used_as_they_are(tmp_path: Path) -> None:
    root = touch(tmp_path, "train/run/a.mp4", "train/jump/b.MOV", "val/jump/a.webm", "train/run/notes.txt", "train/.hidden/x.mp4")
    dataset = open_dataset("folder", root)
    assert (dataset.classes, dataset.remark) == (("jump", "run"), "")
    assert [(item.id, item.label, item.group) for item in dataset.videos("train")] == [("train/jump/b", 0, None), ("train/run/a", 1, None)]
    assert [item.path for item in dataset.videos("test")] == [root / "val/jump/a.webm"]


def test_without_them_a_fifth_of_each_class_is_drawn_and_the_result_says_so(tmp_path: Path) -> None:
    root = touch(tmp_path, *(f"{name}/{i}.mp4" for name in ("a", "b") for i in range(10)), "c/only.mp4")
    dataset = open_dataset("folder", root)
    train, test = dataset.videos("train"), dataset.videos("test")
    assert [sum(item.label == label for item in test) for label in range(3)] == [2, 2, 0]
    assert len(train) == 17
    assert not {item.id for item in train} & {item.id for item in test}
    assert "20 % of each class" in dataset.remark


def test_another_video_moves_hardly_any(tmp_path: Path) -> None:
    before = {item.id for item in open_dataset("folder", touch(tmp_path, *(f"a/{i}.mp4" for i in range(20)))).videos("test")}
    after = {item.id for item in open_dataset("folder", touch(tmp_path, "a/new.mp4")).videos("test")}
    assert len(before - after) <= 1


@pytest.mark.parametrize("names", [(), ("readme.txt", "docs/readme.txt")])
def test_a_folder_without_videos_says_what_it_should_hold(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(DatasetError, match=r"no video in the class folders.*<class>/<video>"):
        open_dataset("folder", touch(tmp_path, *names))
