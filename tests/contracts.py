"""What every implementation of a noun must do, as base classes that the tests of the implementations inherit."""

from __future__ import annotations

import shutil
from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.core.errors import TeacherError
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.teachers.base import Teacher, open_teacher, survey

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def noise_clips(teacher: Teacher, num_clips: int, seed: int = 0) -> Tensor:
    """Random clips uint8 (B, T, 3, S, S) of a teacher's geometry."""
    spec = teacher.card.clip
    shape = (num_clips, spec.num_frames, 3, spec.size_px, spec.size_px)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def filled(model: Any) -> Any:
    """Give every parameter of a model random values, biases and norms too, so that each of them matters."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.eval()


def frames_as_images(
    clips: Tensor, *, side: int, mode: str, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD
) -> Tensor:
    """Return the frames of clips uint8 (B, T, 3, S, S) as normalised images (B * T, 3, side, side)."""
    images = F.interpolate(clips.flatten(0, 1).float() / 255, (side, side), mode=mode, antialias=True).clamp(0, 1)
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


class TeacherContract:
    """Inherit it and say how the teacher is opened."""

    local = True
    """A change of pixels changes the tokens there most: not so where attention may move it anywhere."""

    @pytest.fixture
    @abstractmethod
    def teacher(self) -> Teacher:
        """The teacher under test, of a small geometry."""

    @abstractmethod
    def reopened(self, teacher: Teacher) -> Teacher:
        """The same teacher, opened once more."""

    def test_it_gives_finite_float32_tokens_of_its_grid_and_width(self, teacher: Teacher) -> None:
        tokens = teacher.encode(noise_clips(teacher, 2))
        assert tokens.shape == (2, teacher.card.clip.grid.num_tokens, teacher.card.dim)
        assert tokens.dtype == torch.float32
        assert tokens.isfinite().all()
        assert not tokens.requires_grad

    def test_it_tells_clips_apart(self, teacher: Teacher) -> None:
        first, second = teacher.encode(noise_clips(teacher, 2))
        assert not torch.allclose(first, second)

    def test_same_clips_same_tokens(self, teacher: Teacher) -> None:
        clips = noise_clips(teacher, 2)
        assert torch.equal(teacher.encode(clips), teacher.encode(clips))
        assert torch.equal(teacher.encode(clips), self.reopened(teacher).encode(clips))

    def test_it_leaves_the_clips_alone(self, teacher: Teacher) -> None:
        clips = noise_clips(teacher, 1)
        before = clips.clone()
        teacher.encode(clips)
        assert torch.equal(clips, before)

    def test_a_clip_does_not_depend_on_its_batch(self, teacher: Teacher) -> None:
        clips = noise_clips(teacher, 5)
        alone = torch.cat([teacher.encode(clip[None]) for clip in clips])
        torch.testing.assert_close(teacher.encode(clips), alone, atol=1e-4, rtol=1e-4)

    def test_the_card_is_whole_and_stable(self, teacher: Teacher) -> None:
        card = teacher.card
        assert card == self.reopened(teacher).card
        assert len(card.weights_digest) == 64
        assert card.token_norm in ("layernorm", "none")
        assert all((card.name, card.kind, card.revision, card.licence))

    @pytest.mark.parametrize("wrong", ["float", "frames", "size", "no batch"])
    def test_clips_that_do_not_fit_are_refused_in_one_line(self, teacher: Teacher, wrong: str) -> None:
        clips = noise_clips(teacher, 1)
        bad = {"float": clips.float(), "frames": clips[:, 1:], "size": clips[..., 1:], "no batch": clips[0]}[wrong]
        with pytest.raises(TeacherError, match=r"cannot take these clips.*expected torch.uint8") as caught:
            teacher.encode(bad)
        assert "\n" not in str(caught.value)

    def test_layers_stand_side_by_side_each_normalised_on_its_own(self, teacher: Teacher) -> None:
        clips, depth, dim = noise_clips(teacher, 2), teacher.num_layers, teacher.card.dim
        asked = list(range(1, depth + 1))
        tokens = teacher.encode(clips, asked)
        assert tokens.shape == (2, teacher.card.clip.grid.num_tokens, depth * dim)
        for layer, part in zip(asked, torch.split(tokens, dim, dim=-1), strict=True):
            assert torch.equal(part, teacher.encode(clips, [layer]))
            assert torch.equal(part, teacher.encode(clips, [layer - depth - 1]))
            torch.testing.assert_close(part, F.layer_norm(part, (dim,)), atol=1e-2, rtol=1e-2)

    @pytest.mark.parametrize("wrong", [[], [0], [1, 1], [999], [-999]])
    def test_layers_that_it_does_not_have_are_refused_in_one_line(self, teacher: Teacher, wrong: list[int]) -> None:
        with pytest.raises(TeacherError, match=r"has no such layer: got .*, expected 1 |a layer is asked for twice: got 1, 1") as caught:
            teacher.encode(noise_clips(teacher, 1), wrong)
        assert "\n" not in str(caught.value)

    def test_tokens_are_in_time_height_width_order(self, teacher: Teacher) -> None:
        if not self.local:
            pytest.skip("attention mixes all tokens")
        spec, grid = teacher.card.clip, teacher.card.clip.grid
        clips = noise_clips(teacher, 1)
        changed = clips.clone()
        t, h, w = grid.t - 1, 0, grid.w - 1
        frames = slice(t * spec.tubelet, (t + 1) * spec.tubelet)
        rows, columns = slice(h * spec.patch_px, (h + 1) * spec.patch_px), slice(w * spec.patch_px, (w + 1) * spec.patch_px)
        changed[:, frames, :, rows, columns] = 255 - changed[:, : spec.tubelet, :, rows, columns]
        moved = (teacher.encode(clips) - teacher.encode(changed)).norm(dim=-1)[0]
        assert moved.argmax() == (t * grid.h + h) * grid.w + w


class PretrainedContract(TeacherContract):
    """The contract of a teacher that is opened from a place on the disk, the fixture `saved` of its tests."""

    local = False

    clip: ClipSpec | None = None
    """Clips to ask for, of a teacher that takes any; small ones, to save time."""

    @pytest.fixture
    def teacher(self, saved: Path) -> Teacher:
        return open_teacher(str(saved), clip=self.clip)

    def reopened(self, teacher: Teacher) -> Teacher:
        return open_teacher(teacher.card.name, clip=self.clip)

    def test_a_teacher_is_opened_with_the_layers_of_its_card(self, saved: Path) -> None:
        plain, deep = (open_teacher(str(saved), clip=self.clip, layers=layers) for layers in (None, [-1, 1]))
        clips = noise_clips(plain, 1)
        assert plain.card.layers is None
        assert deep.card == replace(plain.card, layers=(plain.num_layers, 1), dim=2 * plain.card.dim, token_norm="none")
        assert torch.equal(deep.encode(clips), plain.encode(clips, [plain.num_layers, 1]))
        found = survey(str(saved), clip=self.clip, layers=[-1, 1])
        assert (found.layers, found.dim, found.clip) == (deep.card.layers, deep.card.dim, deep.card.clip)

    def test_layers_are_checked_before_weights_are_read(self, saved: Path, tmp_path: Path) -> None:
        place = saved
        if saved.is_dir():
            place = Path(shutil.copytree(saved, tmp_path / "copy"))
            (place / "model.safetensors").write_bytes(b"no weights")
        for ask in (open_teacher, survey):
            with pytest.raises(TeacherError, match=r"has no such layer: got 99, expected 1 to \d+, or -\d+ to -1$"):
                ask(str(place), layers=[1, 99])
