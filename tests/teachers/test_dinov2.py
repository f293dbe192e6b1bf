"""DINOv2 as a teacher of video, against transformers itself, on tiny models saved to a folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
)

from stjepa_cli.core.errors import TeacherError
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.teachers.base import Teacher, open_teacher, survey
from tests.teachers import tiny
from tests.teachers.contract import SMALL, TeacherContract, noise_clips, normalised


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of 6 x 6 positions, patches of 7 px; to read, not to change."""
    return tiny.write_dinov2(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to spoil."""
    return shutil.copytree(saved, tmp_path / "tiny")


class TestDinov2WithoutAttention(TeacherContract):
    """Attention gives 0, so that a token sees its own pixels and the edges of its neighbours: the contract checks its place."""

    local = True

    @pytest.fixture
    def place(self, tmp_path: Path) -> str:
        model = tiny.filled(Dinov2Model(Dinov2Config(**tiny.dinov2_sizes())))
        for layer in model.encoder.layer:
            torch.nn.init.zeros_(layer.layer_scale1.lambda1)
        model.save_pretrained(tmp_path / "local")
        return str(tmp_path / "local")


def frames_as_images(clips: Tensor, *, side: int, mode: str) -> Tensor:
    """Return the frames of clips uint8 (B, T, 3, S, S) as images (B * T, 3, side, side), 0 to 255."""
    return F.interpolate(clips.flatten(0, 1).float(), (side, side), mode=mode, antialias=True).clamp(0, 255)


def expected_tokens(model: torch.nn.Module, clips: Tensor, *, num_prefix: int = 1, mode: str = "bicubic", patch_px: int = 7) -> Tensor:
    """The tokens of an image model, written out: image by image, then the mean of each tubelet."""
    images = normalised(frames_as_images(clips, side=SMALL.grid.h * patch_px, mode=mode))
    with torch.no_grad():
        tokens = torch.stack([model.eval()(pixel_values=image[None]).last_hidden_state[0, num_prefix:] for image in images])
    pairs = tokens.reshape(len(clips), SMALL.grid.t, SMALL.tubelet, SMALL.grid.num_positions, -1)
    return ((pairs[:, :, 0] + pairs[:, :, 1]) / 2).flatten(1, 2)


def test_tokens_equal_those_of_transformers(saved: Path) -> None:
    teacher = open_teacher(str(saved), clip=SMALL)
    clips = noise_clips(teacher, 2)
    torch.testing.assert_close(teacher.encode(clips), expected_tokens(Dinov2Model.from_pretrained(saved), clips), atol=1e-5, rtol=1e-5)


def test_registers_are_dropped(tmp_path: Path) -> None:
    model = tiny.filled(Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**tiny.dinov2_sizes(), num_register_tokens=3)))
    model.save_pretrained(tmp_path)
    teacher = open_teacher(str(tmp_path), clip=SMALL)
    clips = noise_clips(teacher, 2)
    torch.testing.assert_close(teacher.encode(clips), expected_tokens(model, clips, num_prefix=4), atol=1e-5, rtol=1e-5)


def test_the_backbone_of_a_classifier_is_the_same_backbone(saved: Path, tmp_path: Path) -> None:
    classifier = tiny.filled(Dinov2ForImageClassification(Dinov2Config(**tiny.dinov2_sizes(), num_labels=5)))
    classifier.dinov2.load_state_dict(Dinov2Model.from_pretrained(saved).state_dict())
    classifier.save_pretrained(tmp_path)
    teacher = open_teacher(str(tmp_path), clip=SMALL)
    clips = noise_clips(teacher, 1)
    assert torch.equal(teacher.encode(clips), open_teacher(str(saved), clip=SMALL).encode(clips))


def test_layers_equal_the_hidden_states_of_transformers(saved: Path) -> None:
    teacher = open_teacher(str(saved), clip=SMALL)
    clips = noise_clips(teacher, 1)
    images = normalised(frames_as_images(clips, side=28, mode="bicubic"))
    with torch.no_grad():
        hidden = Dinov2Model.from_pretrained(saved).eval()(images, output_hidden_states=True).hidden_states
    means = [hidden[layer][:, 1:].reshape(1, 2, 2, 16, 24).mean(2).flatten(1, 2) for layer in (1, 2)]
    expected = torch.cat([F.layer_norm(mean, (24,)) for mean in means], dim=-1)
    torch.testing.assert_close(teacher.encode(clips, (1, 2)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "clip", [ClipSpec(), replace(SMALL, num_frames=6), replace(SMALL, tubelet=1), replace(SMALL, size_px=64), replace(SMALL, patch_px=16)]
)
def test_clips_of_any_geometry_are_taken(saved: Path, clip: ClipSpec) -> None:
    teacher = open_teacher(str(saved), clip=clip)
    assert teacher.card.clip == survey(str(saved), clip=clip).clip == clip
    assert teacher.encode(noise_clips(teacher, 1)).shape == (1, clip.grid.num_tokens, 24)


def test_clips_of_the_models_own_size_are_not_resized(saved: Path) -> None:
    own = ClipSpec(num_frames=2, size_px=42, tubelet=1, patch_px=7)
    teacher = open_teacher(str(saved), clip=own)
    clips = noise_clips(teacher, 1)
    pixels = (clips[0].float() / 255 - teacher.mean) / teacher.std  # type: ignore[attr-defined]
    with torch.no_grad():
        tokens = Dinov2Model.from_pretrained(saved).eval()(pixels).last_hidden_state[:, 1:]
    torch.testing.assert_close(teacher.encode(clips)[0], tokens.flatten(0, 1))


def test_the_preprocessor_decides_colours_and_filter(folder: Path) -> None:
    plain = open_teacher(str(folder), clip=SMALL).card
    settings = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7], "resample": 2, "size": {"shortest_edge": 256}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    teacher = open_teacher(str(folder), clip=SMALL)
    clips = noise_clips(teacher, 1)
    images = normalised(frames_as_images(clips, side=28, mode="bilinear"), (0.5, 0.4, 0.3), (0.5, 0.6, 0.7))
    with torch.no_grad():
        tokens = Dinov2Model.from_pretrained(folder).eval()(images).last_hidden_state[:, 1:]
    torch.testing.assert_close(teacher.encode(clips)[0], tokens.reshape(2, 2, 16, 24).mean(1).flatten(0, 1), atol=1e-5, rtol=1e-5)
    assert teacher.card.settings_digest != plain.settings_digest
    (folder / "preprocessor_config.json").write_text(json.dumps({"resample": 5}))
    with pytest.raises(TeacherError, match=r"resample names no filter that is known here: got 5, expected 2 \(bilinear\) or 3"):
        open_teacher(str(folder), clip=SMALL)


def test_the_card_and_the_survey_agree(saved: Path) -> None:
    card, found = open_teacher(str(saved)).card, survey(str(saved))
    assert (card.kind, card.dim, card.clip, card.token_norm) == ("dinov2", 24, ClipSpec(), "layernorm")
    assert (found.kind, found.at_hand, found.dim, found.clip) == (card.kind, True, card.dim, card.clip)


def test_public_models_are_known_before_they_are_fetched() -> None:
    found = survey("facebook/dinov2-with-registers-large", layers=[8, 16, 24])
    assert (found.kind, found.dim, found.licence, found.layers) == ("dinov2", 3 * 1024, "apache-2.0", (8, 16, 24))


def _edit(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


NO_STAGES = {"out_features": None, "out_indices": None, "stage_names": None}
"""Settings of dense backbones, which would contradict a changed depth first."""


def _drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("encoder.layer.1.mlp.fc1.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_drop_tensor, r"not all there: got 1 tensors missing, first encoder\.layer\.1\.mlp\.fc1\.weight, expected"),
        (lambda f: _edit(f, num_hidden_layers=1, **NO_STAGES), r"more than its config.json describes: got \d+ tensors too many"),
        (lambda f: _edit(f, patch_size=14), r"not all there: got 2 tensors of another shape"),
        (lambda f: _edit(f, num_channels=1), "a DINOv2 teacher sees colour: got num_channels 1, expected 3"),
        (lambda f: _edit(f, patch_size=0), "patch_size does not suit a DINOv2 teacher"),
    ],
)
def test_bad_files_are_told_in_one_line(folder: Path, spoil: Any, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    spoil(folder)
    with pytest.raises(TeacherError, match=message) as caught:
        open_teacher(str(folder))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_the_residual_stream_stays_float32_under_bfloat16(saved: Path) -> None:
    teacher: Teacher = open_teacher(str(saved), clip=SMALL)
    seen: list[torch.dtype] = []
    for layer in teacher.model.encoder.layer:  # type: ignore[attr-defined]
        layer.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        teacher.model(pixel_values=torch.rand(1, 3, 28, 28))  # type: ignore[attr-defined]
    assert set(seen) == {torch.float32}
