"""The contract of a teacher, as a class; `test_base.py` runs it for every plug-in of the folder."""

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

from stjepa_cli.core import plugins
from stjepa_cli.core.errors import TeacherError
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.teachers.base import Teacher, kind_of, open_teacher, survey

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL = ClipSpec(num_frames=4, size_px=32, tubelet=2, patch_px=8)
GEOMETRY = {"num_frames", "size_px", "tubelet", "patch_px"}


def noise_clips(teacher: Teacher, num_clips: int, seed: int = 0) -> Tensor:
    """Return random clips uint8 (B, T, 3, S, S) of a teacher's geometry."""
    spec = teacher.card.clip
    shape = (num_clips, spec.num_frames, 3, spec.size_px, spec.size_px)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def normalised(pixels: Tensor, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD) -> Tensor:
    """Normalise the colours of uint8 (..., 3, S, S)."""
    return (pixels.float() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


class TeacherContract:
    """Inherit it and name the teacher. One that takes clips of any geometry is given small ones."""

    local: bool | None = None
    """A change of pixels changes the token at their place most: expected of built-ins, not where attention mixes tokens."""

    @pytest.fixture
    @abstractmethod
    def place(self) -> str:
        """Return the name that the teacher is opened by."""

    @pytest.fixture
    def plugin(self, place: str) -> type[Teacher]:
        """Return the plug-in that runs the teacher."""
        found: type[Teacher] = plugins.load("teachers", survey(place).kind)
        return found

    @pytest.fixture
    def clip(self, plugin: type[Teacher]) -> ClipSpec | None:
        """Return the clips to ask for."""
        return SMALL if plugin.built_in or set(plugin.flexible) >= GEOMETRY else None

    @pytest.fixture
    def teacher(self, place: str, clip: ClipSpec | None) -> Teacher:
        """Open the teacher."""
        return open_teacher(place, clip=clip)

    def test_it_gives_finite_float32_tokens_of_its_grid_and_width(self, teacher: Teacher) -> None:
        tokens = teacher.encode(noise_clips(teacher, 2))
        assert tokens.shape == (2, teacher.card.clip.grid.num_tokens, teacher.card.dim)
        assert tokens.dtype == torch.float32
        assert tokens.isfinite().all()
        assert not tokens.requires_grad

    def test_it_tells_clips_apart(self, teacher: Teacher) -> None:
        first, second = teacher.encode(noise_clips(teacher, 2))
        assert not torch.allclose(first, second)

    def test_same_clips_same_tokens(self, teacher: Teacher, place: str, clip: ClipSpec | None) -> None:
        clips = noise_clips(teacher, 2)
        assert torch.equal(teacher.encode(clips), teacher.encode(clips))
        assert torch.equal(teacher.encode(clips), open_teacher(place, clip=clip).encode(clips))

    def test_it_leaves_the_clips_alone(self, teacher: Teacher) -> None:
        clips = noise_clips(teacher, 1)
        before = clips.clone()
        teacher.encode(clips)
        assert torch.equal(clips, before)

    def test_a_clip_does_not_depend_on_its_batch(self, teacher: Teacher) -> None:
        clips = noise_clips(teacher, 5)
        alone = torch.cat([teacher.encode(clip[None]) for clip in clips])
        torch.testing.assert_close(teacher.encode(clips), alone, atol=1e-4, rtol=1e-4)

    def test_the_card_is_whole_and_stable(self, teacher: Teacher, plugin: type[Teacher], place: str, clip: ClipSpec | None) -> None:
        card = teacher.card
        assert card == open_teacher(place, clip=clip).card
        assert (card.name, card.kind) == (place, kind_of(plugin))
        assert len(card.weights_digest) == 64
        assert card.token_norm in ("layernorm", "none")
        assert all((card.revision, card.licence))
        assert card.layers is None

    def test_its_survey_agrees_with_its_card(self, teacher: Teacher, place: str, clip: ClipSpec | None) -> None:
        found, card = survey(place, clip=clip), teacher.card
        assert found.at_hand
        assert (found.kind, found.licence, found.dim, found.clip) == (card.kind, card.licence, card.dim, card.clip)

    def test_sampling_is_free(self, place: str, clip: ClipSpec | None, teacher: Teacher) -> None:
        own = teacher.card.clip
        for sampling, stride in (("dense", 3), ("dense", None), ("uniform", None)):
            wanted = replace(own, sampling=sampling, stride=stride or own.stride)
            assert open_teacher(place, clip=clip, sampling=sampling, stride=stride).card.clip == wanted
            assert survey(place, clip=clip, sampling=sampling, stride=stride).clip == wanted
        with pytest.raises(TeacherError, match=r"a stride is for dense sampling: got stride 2\. Type `--sampling dense`\."):
            open_teacher(place, clip=clip, sampling="uniform", stride=2)

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

    def test_it_is_opened_with_the_layers_of_its_card(self, teacher: Teacher, place: str, clip: ClipSpec | None) -> None:
        asked = [-1, 1][: teacher.num_layers]
        deep, found = open_teacher(place, clip=clip, layers=asked), survey(place, clip=clip, layers=asked)
        numbers = (teacher.num_layers, 1)[: teacher.num_layers]
        assert deep.card == replace(teacher.card, layers=numbers, dim=len(asked) * teacher.card.dim, token_norm="none")
        assert (found.layers, found.dim, found.clip) == (numbers, deep.card.dim, deep.card.clip)
        clips = noise_clips(teacher, 1)
        assert torch.equal(deep.encode(clips), teacher.encode(clips, numbers))

    def test_layers_are_checked_before_weights_are_read(self, place: str, tmp_path: Path) -> None:
        name = place
        if Path(place).is_dir():
            name = str(shutil.copytree(place, tmp_path / "copy"))
            (tmp_path / "copy" / "model.safetensors").write_bytes(b"no weights")
        for ask in (open_teacher, survey):
            with pytest.raises(TeacherError, match=r"has no such layer: got 99, expected 1"):
                ask(name, layers=[1, 99])

    def test_tokens_are_in_time_height_width_order(self, teacher: Teacher, plugin: type[Teacher]) -> None:
        if not (plugin.built_in if self.local is None else self.local):
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

    def test_a_plugin_says_what_it_is(self, plugin: type[Teacher]) -> None:
        assert plugin.built_in != bool(plugin.model_types)
        assert plugin.__doc__
        assert plugin.__doc__ != Teacher.__doc__

    def test_no_other_plugin_runs_its_kind_of_model(self, plugin: type[Teacher]) -> None:
        others: list[Any] = [plugins.load("teachers", name) for name in plugins.names("teachers") if name != kind_of(plugin)]
        assert not {model_type for other in others for model_type in other.model_types} & set(plugin.model_types)
