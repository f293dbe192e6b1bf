"""HMDB-51: which lines of its lists belong to which side, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from stjepa_cli.core.errors import DatasetError
from stjepa_cli.data.datasets.base import open_dataset
from stjepa_cli.evaluation.leaks import refuse_leaks
from tests.labelled import HMDB_CLASSES, write_tiny_hmdb51


def write_lists(root: Path, *lines: str) -> Path:
    root.mkdir(exist_ok=True)
    for name in HMDB_CLASSES:
        (root / f"{name}_test_split1.txt").write_text("".join(f"{line}\n" for line in lines))
    return root


def test_ones_train_twos_test_and_noughts_do_neither(tiny_hmdb51: Path) -> None:
    dataset = open_dataset("hmdb51", tiny_hmdb51)
    assert dataset.classes == HMDB_CLASSES
    sides = {split: [item.id for item in dataset.videos(split) if item.label == 1] for split in dataset.splits}
    assert sides["test1"] == ["cartwheel/#0 clip_cartwheel_f_nm"]
    assert sides["train1"] == ["cartwheel/#1 clip_cartwheel_f_nm", "cartwheel/#2 clip_cartwheel_f_nm"]
    assert sides["test2"] == ["cartwheel/#1 clip_cartwheel_f_nm"]


def test_groups_are_the_films_that_clips_were_cut_from(tmp_path: Path) -> None:
    names = ["April_09_brush_hair_u_nm_np1_ba_goo_0.avi", "April_09_brush_hair_u_nm_np1_ba_goo_1.avi", "other.avi"]
    root = write_lists(tmp_path, f"{names[0]} 1", f"{names[1]} 2", f"{names[2]} 1")
    dataset = open_dataset("hmdb51", root)
    of_brush_hair = [item.group for item in dataset.videos("train1") if item.label == 0]
    assert of_brush_hair == ["April_09", None]
    assert [item.group for item in dataset.videos("test1") if item.label == 0] == ["April_09"]
    refuse_leaks(dataset.videos("train1"), dataset.videos("test1"), groups=dataset.groups_are_apart)


def test_lists_and_videos_may_lie_in_the_root(tmp_path: Path) -> None:
    dataset = open_dataset("hmdb51", write_tiny_hmdb51(tmp_path, lists="splits", videos=""))
    assert all(item.path.is_file() for item in dataset.videos("train3"))


@pytest.mark.parametrize("line", ["name.avi", "name.avi 3", "name.avi one", " 1", "a/b.avi 1"])
def test_a_line_of_another_shape_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(DatasetError, match=r"brush_hair_test_split1.txt has another shape.*name_brush_hair.avi 1"):
        open_dataset("hmdb51", write_lists(tmp_path, line)).videos("train1")


def test_a_missing_list_of_one_class_is_named(tmp_path: Path) -> None:
    root = write_lists(tmp_path, "a.avi 1")
    with pytest.raises(DatasetError, match=r"there is no .*brush_hair_test_split2.txt"):
        open_dataset("hmdb51", root).videos("test2")
