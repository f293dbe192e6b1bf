"""Mixing, erasing and drop path: worked by hand where that can be done, and their expectation where it cannot."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch

from stjepa_cli.core.config import StudentConfig
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.models.student import Student
from stjepa_cli.training.augmentation import DropPath, cut_box, erase, erased_box, mix, smooth_targets

SPEC = ClipSpec(num_frames=4, size_px=16, tubelet=2, patch_px=8)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors of a few hundred numbers: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Scripted(random.Random):
    """Draws what it is told."""

    def __init__(self, coin: float, weight: float, middle: tuple[int, int] = (0, 0)) -> None:
        super().__init__(0)
        self.coin, self.weight, self.middle = coin, weight, list(middle)

    def random(self) -> float:
        return self.coin

    def betavariate(self, alpha: float, beta: float) -> float:
        return self.weight

    def randrange(self, *_: object) -> int:
        return self.middle.pop(0)


def clips(num_clips: int, *, size_px: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (num_clips, 4, 3, size_px, size_px), generator=generator, dtype=torch.uint8)


def student(num_factorized: int = 1, num_joint: int = 2) -> Student:
    return Student(StudentConfig(dim=16, num_factorized=num_factorized, num_joint=num_joint, num_heads=2), SPEC, torch.Generator())


def blocks_of(model: Student) -> list[torch.nn.Module]:
    return [*model.factorized, *model.joint]


# ------------------------------------------------------------------------------------------------------------ targets


def test_smooth_targets_are_those_worked_by_hand() -> None:
    found = smooth_targets(torch.tensor([1, 0]), 4, 0.2)
    assert torch.allclose(found, torch.tensor([[0.05, 0.85, 0.05, 0.05], [0.85, 0.05, 0.05, 0.05]]))
    assert torch.equal(smooth_targets(torch.tensor([2]), 3, 0.0), torch.tensor([[0.0, 0.0, 1.0]]))


def test_mixed_targets_sum_to_one_and_pixels_stay_in_range() -> None:
    pixels, targets = clips(5), smooth_targets(torch.tensor([0, 1, 2, 0, 1]), 3, 0.1)
    for seed in range(40):
        mixed, shares = mix(pixels, targets, mixup=0.8, cutmix=1.0, rng=random.Random(seed))
        assert torch.allclose(shares.sum(dim=1), torch.ones(5))
        assert mixed.dtype == torch.float32
        assert 0 <= float(mixed.min()) <= float(mixed.max()) <= 255
        assert torch.allclose(mixed[2], pixels[2].float())  # the middle one is mixed with itself


def test_mixup_is_that_worked_by_hand() -> None:
    pixels = torch.stack([torch.full((4, 3, 2, 2), 10, dtype=torch.uint8), torch.full((4, 3, 2, 2), 110, dtype=torch.uint8)])
    mixed, targets = mix(pixels, torch.eye(2), mixup=0.8, cutmix=0.0, rng=Scripted(0.0, 0.75))
    assert torch.allclose(mixed[0], torch.full((4, 3, 2, 2), 35.0))
    assert torch.allclose(mixed[1], torch.full((4, 3, 2, 2), 85.0))
    assert torch.allclose(targets, torch.tensor([[0.75, 0.25], [0.25, 0.75]]))
    assert {int(value) for value in pixels.flatten()} == {10, 110}


def test_cutmix_is_that_worked_by_hand() -> None:
    pixels = torch.stack([torch.zeros(4, 3, 4, 4), torch.ones(4, 3, 4, 4)]).to(torch.uint8)
    # a share of 1/4 of 4 x 4 pixels is 2 x 2 of them, around pixel (1, 0): of columns -1 and 0 only 0 is in the frame
    mixed, targets = mix(pixels, torch.eye(2), mixup=0.8, cutmix=1.0, rng=Scripted(0.4, 0.75, (1, 0)))
    expected = torch.zeros(4, 4)
    expected[0:2, 0:1] = 1
    assert torch.equal(mixed[0], expected.expand(4, 3, 4, 4))
    assert torch.equal(mixed[1], 1 - expected.expand(4, 3, 4, 4))
    assert torch.allclose(targets, torch.tensor([[14 / 16, 2 / 16], [2 / 16, 14 / 16]]))


def test_either_is_taken_half_of_the_time_and_neither_if_both_are_off() -> None:
    pixels = torch.stack([torch.zeros(4, 3, 16, 16), torch.full((4, 3, 16, 16), 255)]).to(torch.uint8)
    cut = sum(
        bool(((mixed == 0) | (mixed == 255)).all())
        for mixed, _ in (mix(pixels, torch.eye(2), mixup=0.8, cutmix=1.0, rng=random.Random(seed)) for seed in range(200))
    )
    assert 70 < cut < 130
    same, targets = mix(pixels, torch.eye(2), mixup=0.0, cutmix=0.0, rng=random.Random(0))
    assert torch.equal(same, pixels.float())
    assert torch.equal(targets, torch.eye(2))


def test_boxes_lie_inside_the_frame_and_have_the_shares_asked_for() -> None:
    for seed in range(200):
        draw = random.Random(seed)
        for top, left, height, width in (cut_box(draw.random(), 20, 30, draw), erased_box(20, 30, draw)):
            assert top >= 0
            assert left >= 0
            assert 0 <= height <= 20 - top
            assert 0 <= width <= 30 - left
    boxes = [erased_box(100, 100, random.Random(seed)) for seed in range(200)]
    assert all(0.015 < height * width / 1e4 < 0.35 for _, _, height, width in boxes)


def test_erasing_fills_the_same_rectangle_of_every_frame_and_leaves_what_was_given() -> None:
    pixels = torch.full((40, 4, 3, 16, 16), 7, dtype=torch.uint8)
    erased = erase(pixels, 0.25, random.Random(0))
    assert (pixels == 7).all()
    changed = (erased != 7).flatten(1).any(dim=1)
    assert 3 <= int(changed.sum()) <= 17
    touched = (erased[changed] != 7).any(dim=2)  # (clips, T, S, S), almost all of the noise
    assert touched.float().mean(dim=(2, 3)).std(dim=1).max() < 0.03
    assert torch.equal(erase(pixels, 0.25, random.Random(0)), erased)
    assert erase(pixels, 0.0, random.Random(0)) is pixels


# ---------------------------------------------------------------------------------------------------------- drop path


def test_the_share_left_out_rises_linearly_over_depth() -> None:
    with DropPath(blocks_of(student(1, 2)), 0.4) as paths:
        # time, space and MLP of the first block; attention and MLP of the others
        assert paths.drop_rates.flatten().tolist() == pytest.approx([0, 0, 0, 0.2, 0.2, 0.4, 0.4])
        scales = paths.draw(20_000, torch.Generator().manual_seed(0))
    assert torch.allclose(scales.mean(dim=1), torch.ones(7), atol=0.03)  # the expectation stays
    assert torch.allclose((scales == 0).float().mean(dim=1), paths.drop_rates.flatten(), atol=0.02)
    assert torch.equal(scales[5], (scales[5] > 0) / (1 - paths.drop_rates[5]))


def test_a_branch_left_out_is_left_out_for_its_clip_alone() -> None:
    model, pixels = student().train(), clips(3)
    whole = model(pixels)
    with DropPath(blocks_of(model), 0.5) as paths:
        scales = torch.ones(len(paths.drop_rates), 3)
        scales[:, 1] = 0
        paths.use(scales)
        found = model(pixels)
    assert torch.equal(found[[0, 2]], whole[[0, 2]])
    assert torch.equal(found[1], model.norm(model.embed_tokens(pixels, None))[1])


def test_nothing_is_left_out_in_eval_nor_afterwards_and_names_stay() -> None:
    model, pixels = student(), clips(2)
    names, whole = list(model.state_dict()), model(pixels)
    with DropPath(blocks_of(model), 0.5) as paths:
        paths.use(torch.zeros(len(paths.drop_rates), 2))
        assert not torch.equal(model.train()(pixels), whole)
        assert torch.equal(model.eval()(pixels), whole)
        assert list(model.state_dict()) == names
    assert torch.equal(model.train()(pixels), whole)


def test_what_is_computed_again_leaves_out_the_same() -> None:
    gradients = []
    for recompute in (False, True):
        model = student().train()
        model.load_state_dict({name: value.clone() for name, value in START.items()})
        model.activation_checkpointing = recompute
        with DropPath(blocks_of(model), 0.5) as paths:
            paths.use(paths.draw(4, torch.Generator().manual_seed(1)))
            model(clips(4)).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True) if a is not None and b is not None)


START = student().state_dict()
