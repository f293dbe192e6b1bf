"""Generated clips as files in both official layouts, read back by the program's own data sets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stjepa_cli.data.datasets.base import open_dataset
from stjepa_cli.data.video import Video
from stjepa_cli.demo.layouts import write_ssv2, write_ucf101
from stjepa_cli.demo.motions import SCENES
from stjepa_cli.demo.scenes import TASKS, GeneratedClips

MOTIONS = tuple(motion.name for motion in SCENES["8"].motions)


def test_ssv2_files_are_as_the_official_ones(tmp_path: Path) -> None:
    write_ssv2(tmp_path, GeneratedClips("8", 24, 0), num_validation=8)
    classes = json.loads((tmp_path / "labels.json").read_text())
    train, validation = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("train", "validation"))
    assert (len(train), len(validation)) == (16, 8)
    assert sorted(map(int, classes.values())) == list(range(8))
    for entry in train + validation:
        assert entry["template"].replace("[", "").replace("]", "") in classes
        assert Video(tmp_path / "20bn-something-something-v2" / f"{entry['id']}.webm").num_frames == 16
    assert len({entry["id"] for entry in train + validation}) == 24
    dataset = open_dataset("ssv2", tmp_path)
    assert [item.label for split in ("train", "validation") for item in dataset.videos(split)] == GeneratedClips("8", 24, 0).labels()


@pytest.fixture(scope="module")
def ucf101(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 clips, 5 groups of 4 in each class."""
    root = tmp_path_factory.mktemp("ucf101")
    write_ucf101(root, GeneratedClips("8", 160, 0, "unseen"), test_fraction=0.4)
    return root


def _groups(lines: list[str]) -> set[str]:
    """`<Class>_gNN` of each listed file."""
    return {line.split()[0].rsplit("_", 1)[0] for line in lines}


def _listed(root: Path, name: str) -> list[str]:
    return (root / "ucfTrainTestlist" / name).read_bytes().decode().split("\r\n")[:-1]


def test_ucf101_lists_have_crlf_ends_and_name_each_file_once(ucf101: Path) -> None:
    assert _listed(ucf101, "classInd.txt") == [f"{i + 1} {name}" for i, name in enumerate(MOTIONS)]
    on_disk = {str(path.relative_to(ucf101 / "UCF-101")) for path in (ucf101 / "UCF-101").rglob("*.avi")}
    for split in (1, 2, 3):
        train, test = _listed(ucf101, f"trainlist0{split}.txt"), _listed(ucf101, f"testlist0{split}.txt")
        assert sorted([line.split()[0] for line in train] + test) == sorted(on_disk)
        assert all(MOTIONS[int(line.split()[1]) - 1] == line.split("/")[0] for line in train)


def test_no_ucf101_group_is_on_both_sides_and_the_splits_differ(ucf101: Path) -> None:
    tests = [_groups(_listed(ucf101, f"testlist0{split}.txt")) for split in (1, 2, 3)]
    for split, test in enumerate(tests, start=1):
        assert not test & _groups(_listed(ucf101, f"trainlist0{split}.txt"))
    assert len({frozenset(test) for test in tests}) == 3


def test_ucf101_files_hold_the_generated_frames(ucf101: Path) -> None:
    line = _listed(ucf101, "testlist01.txt")[0]
    frames = Video(ucf101 / "UCF-101" / line).frames(tuple(range(16)))
    assert frames.shape == (16, 3, 48, 48)
    assert frames.float().std() > 5


@pytest.mark.parametrize("task", TASKS)
def test_both_tasks_are_a_ucf101_with_the_classes_of_the_task(tmp_path: Path, task: str) -> None:
    clips = GeneratedClips("16", 128, 1, "unseen", task, num_frames=2, size_px=16)
    write_ucf101(tmp_path, clips, test_fraction=0.5)
    dataset = open_dataset("ucf101", tmp_path)
    assert dataset.classes == clips.classes
    assert {item.label for item in dataset.videos("test1")} == set(range(16))


def test_too_few_clips_for_two_groups_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 group per class"):
        write_ucf101(tmp_path, GeneratedClips("8", 16, 0, num_frames=2, size_px=16), test_fraction=0.5)
