"""Generated clips: a function of the seed, the label only in the motion, files in both official layouts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.data.video import Video
from stjepa_cli.demo.layouts import write_ssv2, write_ucf101
from stjepa_cli.demo.synthetic import FAMILIES, MOTIONS, TEMPLATES, FamilyName, draw_clips

CHANCE = 1 / len(MOTIONS)
NUM_CLIPS = 800


@pytest.fixture(scope="module", params=["train", "unseen"])
def silhouettes(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    """Where the object is, (B, T, 64) on an 8x8 lattice, and the labels (B,)."""
    clips, labels = draw_clips(NUM_CLIPS, 0, request.param, num_frames=8, size_px=24)
    still = clips.flatten(3).median(dim=-1, keepdim=True).values[..., None]
    distance = (clips.float() - still.float()).abs().sum(2) / 255
    return F.adaptive_avg_pool2d(distance, 8).flatten(2), labels


def _ridge_accuracy(features: Tensor, labels: Tensor) -> float:
    """Share of right answers on the second half of ridge regression onto the labels of the first."""
    half = len(features) // 2
    x = (features - features[:half].mean(0)) / (features[:half].std(0) + 1e-4)
    wanted = F.one_hot(labels, len(MOTIONS)).float() - CHANCE
    weights = torch.linalg.solve(x[:half].T @ x[:half] + 100 * torch.eye(x.shape[1]), x[:half].T @ wanted[:half])
    return float(((x[half:] @ weights).argmax(1) == labels[half:]).float().mean())


def test_a_frame_at_a_random_time_does_not_tell_the_class(silhouettes: tuple[Tensor, Tensor]) -> None:
    lattice, labels = silhouettes
    moments = torch.randint(lattice.shape[1], (NUM_CLIPS,), generator=torch.Generator().manual_seed(0))
    frames = lattice[torch.arange(NUM_CLIPS), moments]
    # Three standard errors of a guesser over 400 clips are 0.05.
    assert _ridge_accuracy(frames, labels) < CHANCE + 0.05


def test_the_same_classifier_on_frame_differences_does(silhouettes: tuple[Tensor, Tensor]) -> None:
    lattice, labels = silhouettes
    halves = lattice[:, 4:].mean(1) - lattice[:, :4].mean(1)
    assert _ridge_accuracy(torch.cat([halves, lattice[:, -1] - lattice[:, 0]], dim=1), labels) > 0.45


def test_the_same_seed_gives_the_same_clips_and_another_seed_others() -> None:
    clips, labels = draw_clips(40, 3)
    again, labels_again = draw_clips(40, 3)
    other, _ = draw_clips(40, 4)
    assert (clips.dtype, labels.dtype) == (torch.uint8, torch.int64)
    assert clips.shape == (40, 16, 3, 48, 48)
    assert torch.equal(clips, again)
    assert torch.equal(labels, labels_again)
    assert not torch.equal(clips, other)


def test_classes_are_equally_frequent() -> None:
    _, labels = draw_clips(83, 0, num_frames=2, size_px=8)
    counts = labels.bincount(minlength=len(MOTIONS))
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("family", ["train", "unseen"])
def test_frames_of_a_clip_differ_and_its_background_stays(family: FamilyName) -> None:
    clips, _ = draw_clips(64, 1, family)
    change = (clips[:, 1:].float() - clips[:, :-1].float()).abs().amax(dim=(1, 2))
    assert (change.flatten(1).amax(1) > 10).all()
    assert (change == 0).flatten(1).float().mean() > 0.3


def test_families_share_no_shape_no_texture_and_no_speed() -> None:
    train, unseen = FAMILIES["train"], FAMILIES["unseen"]
    assert not set(train.shapes) & set(unseen.shapes)
    assert not set(train.textures) & set(unseen.textures)
    assert train.speeds[1] <= unseen.speeds[0]


def test_ssv2_files_are_as_the_official_ones(tmp_path: Path) -> None:
    write_ssv2(tmp_path, 16, 8, 0)
    classes = json.loads((tmp_path / "labels.json").read_text())
    train, validation = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("train", "validation"))
    assert (len(train), len(validation)) == (16, 8)
    assert sorted(map(int, classes.values())) == list(range(len(TEMPLATES)))
    for entry in train + validation:
        assert entry["template"].replace("[", "").replace("]", "") in classes
        assert Video(tmp_path / "20bn-something-something-v2" / f"{entry['id']}.webm").num_frames == 16
    assert len({entry["id"] for entry in train + validation}) == 24


@pytest.fixture(scope="module")
def ucf101(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 clips, 5 groups of 4 in each class."""
    root = tmp_path_factory.mktemp("ucf101")
    write_ucf101(root, 96, 64, 0)
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


def test_ucf101_files_hold_the_drawn_frames(ucf101: Path) -> None:
    line = _listed(ucf101, "testlist01.txt")[0]
    frames = Video(ucf101 / "UCF-101" / line).frames(tuple(range(16)))
    assert frames.shape == (16, 3, 48, 48)
    assert frames.float().std() > 5
