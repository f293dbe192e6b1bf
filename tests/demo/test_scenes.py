"""Generated clips: a function of the seed; the label only in the motion, in the twin only in the appearance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stjepa_cli.core.errors import ConfigError
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.demo.motions import REVERSED, SCENES
from stjepa_cli.demo.patterns import FamilyName
from stjepa_cli.demo.scenes import TASKS, ClipBlock, GeneratedClips, draw_clips
from stjepa_cli.teachers.base import open_teacher
from tests.demo.clips import Ridge, quarters, random_frames, ridge_accuracy, silhouettes, three_standard_errors

NUM_CLIPS = 1024
SIZES = {"8": (8, 24), "16": (16, 24), "24": (16, 24)}
FAMILY_NAMES: tuple[FamilyName, ...] = ("train", "unseen")


def _chance(name: str) -> float:
    return 1 / len(SCENES[name].motions)


@pytest.fixture(scope="module", params=[(name, family) for name in SCENES for family in FAMILY_NAMES], ids="-".join)
def moving(request: pytest.FixtureRequest) -> tuple[str, Tensor, Tensor]:
    """Name of the scenes, silhouettes (B, T, 64) and motions (B,)."""
    name, family = request.param
    num_frames, size_px = SIZES[name]
    clips, labels = draw_clips(NUM_CLIPS, 5, family, num_frames=num_frames, size_px=size_px, scenes=name)
    return name, silhouettes(clips), labels


# ------------------------------------------------------------------------------------------------------- motion task


def test_a_frame_at_a_random_time_does_not_tell_the_motion(moving: tuple[str, Tensor, Tensor]) -> None:
    name, frames, labels = moving
    assert ridge_accuracy(random_frames(frames), labels) < _chance(name) + three_standard_errors(_chance(name), NUM_CLIPS)


def test_the_same_classifier_on_differences_of_frames_does(moving: tuple[str, Tensor, Tensor]) -> None:
    name, frames, labels = moving
    parts = quarters(frames)
    assert ridge_accuracy(torch.cat([(parts[:, 1:] - parts[:, :-1]).flatten(1), parts[:, -1] - parts[:, 0]], 1), labels) > 5 * _chance(name)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_pretending_differs_from_doing_in_nothing_but_the_order_of_frames(family: FamilyName) -> None:
    block = GeneratedClips("24", NUM_CLIPS, 2, family, num_frames=16).block(0)
    sideways = torch.tensor([motion.axis == 0 for motion in SCENES["24"].motions])[block.motions]
    x = block.poses[sideways, :, 1, 0]  # the position of the acting object
    ordered, unordered = x - x[:, :1], x.sort(dim=1).values
    assert ((ordered[:, -1].abs() > 0.3) | (x.std(1) > 0.1)).all()
    spacing = unordered[:, 1:] - unordered[:, :-1]
    assert torch.allclose(spacing, spacing[:, :1].expand_as(spacing), atol=1e-5)  # the same even path in all four motions


@pytest.mark.parametrize("name", ["16", "24"])
def test_a_classifier_blind_to_the_order_of_frames_cannot_tell_pretending_from_doing(name: str) -> None:
    clips, labels = draw_clips(2 * NUM_CLIPS, 6, num_frames=16, size_px=24, scenes=name)
    motions = SCENES[name].motions
    pretended = {motion.axis for motion in motions if motion.order == "out_back"}
    chosen = torch.tensor([motion.axis in pretended for motion in motions])[labels]
    pretends = torch.tensor([motion.order in ("out_back", "back_out") for motion in motions])[labels][chosen].long()
    frames = silhouettes(clips[chosen])
    blind = torch.cat([frames.mean(1), frames.std(1), frames.amax(1)], 1)
    in_order = quarters(frames)
    middle_and_ends = torch.cat([(in_order[:, 0] - in_order[:, 3]).abs(), (in_order[:, 0] - in_order[:, 1]).abs()], 1)
    assert ridge_accuracy(blind, pretends) < 0.5 + three_standard_errors(0.5, len(pretends))
    assert ridge_accuracy(middle_and_ends, pretends) > 0.7


def test_clips_played_backwards_are_taken_for_the_reversed_motion() -> None:
    clips, labels = draw_clips(2 * NUM_CLIPS, 7, num_frames=16, size_px=24, scenes="16")
    motions = SCENES["16"].motions
    partner = torch.tensor([
        next(i for i, other in enumerate(motions) if (other.axis, other.order) == (motion.axis, REVERSED[motion.order]))
        for motion in motions
    ])  # fmt: skip
    parts = quarters(silhouettes(clips))
    forwards, backwards = parts.flatten(1), parts.flip(1).flatten(1)
    classifier = Ridge(forwards[:NUM_CLIPS], labels[:NUM_CLIPS])
    answers, wanted = classifier.predict(backwards[NUM_CLIPS:]), partner[labels[NUM_CLIPS:]]
    right = float((classifier.predict(forwards[NUM_CLIPS:]) == labels[NUM_CLIPS:]).float().mean())
    assert right > 5 / 16
    assert float((answers == wanted).float().mean()) == pytest.approx(right, abs=0.06)


# --------------------------------------------------------------------------------------------------- appearance task


def _motion_statistics(block: ClipBlock) -> Tensor:
    """How far each object is from its first pose in every frame, and from the frame before: (R, F)."""
    poses = block.poses.flatten(2)
    return torch.cat([(poses - poses[:, :1]).flatten(1), (poses[:, 1:] - poses[:, :-1]).flatten(1)], 1)


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("name", SCENES)
def test_motion_does_not_tell_the_appearance(name: str, family: FamilyName) -> None:
    clips = GeneratedClips(name, 2048, 8, family, "appearance", num_frames=8)
    blocks = [clips.block(start) for start in clips.blocks]
    labels = torch.cat([block.labels for block in blocks])
    statistics = torch.cat([_motion_statistics(block) for block in blocks])
    statistics = statistics[:, statistics.std(0) > 1e-6]
    chance = 1 / len(clips.classes)
    assert ridge_accuracy(statistics, labels) < chance + three_standard_errors(chance, len(labels))
    assert ridge_accuracy(statistics, torch.cat([block.motions for block in blocks])) > 5 * _chance(name)  # though it tells the motion


@pytest.mark.parametrize(("name", "size_px"), [("8", 32), ("16", 48)])
def test_a_single_frame_tells_the_appearance_and_not_the_motion(name: str, size_px: int) -> None:
    hog = open_teacher("hog", clip=ClipSpec(2, size_px, 2, 8), device=torch.device("cpu"))
    accuracy = {}
    for task in TASKS:
        clips, labels = draw_clips(768, 9, "unseen", num_frames=4, size_px=size_px, scenes=name, task=task)
        still = random_frames(clips)[:, None].expand(-1, 2, -1, -1, -1).contiguous()
        features = torch.cat([hog.encode(part).mean(1) for part in torch.split(still, 128)])
        accuracy[task] = ridge_accuracy(features[:, features.std(0) > 1e-6], labels)
    assert accuracy["motion"] < _chance(name) + three_standard_errors(_chance(name), 768)
    assert accuracy["appearance"] > 2.5 * _chance(name)


# ---------------------------------------------------------------------------------------------------------- the clips


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", SCENES)
def test_the_same_seed_gives_the_same_clips_and_another_seed_others(name: str, task: str) -> None:
    clips, again, other = (GeneratedClips(name, 20, seed, task=task, num_frames=4, size_px=16) for seed in (3, 3, 4))
    block, rows = clips.block(0), slice(None)
    frames = clips.render(block, rows)
    assert (frames.dtype, frames.shape) == (torch.uint8, (20, 4, 3, 16, 16))
    assert torch.equal(frames, again.render(again.block(0), rows))
    assert not torch.equal(frames, other.render(other.block(0), rows))
    assert torch.equal(frames[5:9], clips.render(block, slice(5, 9)))
    assert clips.labels() == block.labels.tolist()


def test_the_eight_motions_of_the_demo_stay_what_they_were() -> None:
    """Labels and mean brightness on 2026-11-21; the whole clips were compared bit by bit when this module was rewritten."""
    clips, labels = draw_clips(8, 3, "unseen", num_frames=8, size_px=32)
    assert labels.tolist() == [2, 4, 3, 5, 1, 0, 6, 7]
    means = torch.tensor([128.3, 132.52, 120.71, 91.84, 128.32, 124.2, 131.94, 119.48])
    assert torch.allclose(clips.float().mean(dim=(1, 2, 3, 4)), means, atol=0.05)


@pytest.mark.parametrize("task", TASKS)
def test_classes_are_equally_frequent_and_named_once(task: str) -> None:
    clips = GeneratedClips("24", 250, 0, task=task, num_frames=2, size_px=8)
    counts = torch.tensor(clips.labels()).bincount(minlength=len(clips.classes))
    assert counts.max() - counts.min() <= 1
    assert len(set(clips.classes)) == len(set(clips.templates)) == len(clips.classes) == len(counts)


def test_each_block_has_a_seed_of_its_own() -> None:
    clips = GeneratedClips("8", 600, 0, num_frames=2, size_px=8)
    first, second, last = (clips.block(start) for start in clips.blocks)
    assert (len(first.labels), len(last.labels)) == (256, 88)
    assert not torch.equal(first.poses, second.poses)


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_frames_of_a_clip_differ_and_its_background_stays(name: str, family: FamilyName) -> None:
    clips, _ = draw_clips(64, 1, family, num_frames=16, size_px=32, scenes=name)
    change = (clips[:, 1:].float() - clips[:, :-1].float()).abs().amax(dim=(1, 2))
    assert (change.flatten(1).amax(1) > 10).float().mean() > 0.95  # two objects may hide one of them
    assert (change == 0).flatten(1).float().mean() > 0.3


def test_wrong_settings_are_one_sentence() -> None:
    with pytest.raises(ConfigError, match="unknown scenes: got '9', expected one of 8, 16, 24"):
        GeneratedClips("9", 4, 0)
    with pytest.raises(ConfigError, match="unknown task"):
        GeneratedClips("8", 4, 0, task="sound")
    with pytest.raises(ConfigError, match="must be at least 1"):
        GeneratedClips("8", 0, 0)


def test_silhouettes_are_where_the_object_is() -> None:
    clips = torch.zeros(1, 1, 3, 16, 16, dtype=torch.uint8)
    clips[..., 8:10, 4:6] = 255
    assert torch.equal(silhouettes(clips).view(8, 8).nonzero(), torch.tensor([[4, 2]]))
