"""DINOv3 as a teacher of video, against transformers itself, on a tiny model saved to a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import DINOv3ViTModel

from stjepa_cli.core.errors import TeacherError
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.teachers.base import open_teacher, survey
from tests.teachers import tiny
from tests.teachers.contract import SMALL, noise_clips, normalised


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of patches of 10 px; to read, not to change."""
    return tiny.write_dinov3(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to spoil."""
    return shutil.copytree(saved, tmp_path / "tiny")


def test_tokens_and_layers_equal_those_of_transformers(saved: Path) -> None:
    teacher = open_teacher(str(saved), clip=SMALL)
    clips = noise_clips(teacher, 2)
    images = F.interpolate(clips.flatten(0, 1).float(), (40, 40), mode="bicubic", antialias=True).clamp(0, 255)
    with torch.no_grad():
        output = DINOv3ViTModel.from_pretrained(saved).eval()(normalised(images), output_hidden_states=True)

    def tubelets(tokens: torch.Tensor) -> torch.Tensor:
        return tokens[:, 1 + tiny.DINOV3_REGISTERS :].reshape(2, 2, 2, 16, 24).mean(2).flatten(1, 2)

    torch.testing.assert_close(teacher.encode(clips), tubelets(output.last_hidden_state), atol=1e-5, rtol=1e-5)
    expected = torch.cat([F.layer_norm(tubelets(output.hidden_states[layer]), (24,)) for layer in (2, 1)], dim=-1)
    torch.testing.assert_close(teacher.encode(clips, (2, 1)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("clip", [ClipSpec(num_frames=2), ClipSpec(num_frames=3, size_px=64, tubelet=3, patch_px=32)])
def test_clips_of_any_geometry_are_taken(saved: Path, clip: ClipSpec) -> None:
    teacher = open_teacher(str(saved), clip=clip)
    assert teacher.encode(noise_clips(teacher, 1)).shape == (1, clip.grid.num_tokens, 24)


def test_the_card_and_the_survey_agree(saved: Path) -> None:
    card, found = open_teacher(str(saved)).card, survey(str(saved))
    assert (card.kind, card.dim, card.clip) == (found.kind, found.dim, found.clip) == ("dinov3", 24, ClipSpec())
    public = survey("facebook/dinov3-vits16-pretrain-lvd1689m")
    assert (public.kind, public.dim, public.licence) == ("dinov3", 384, "dinov3-license")


def test_weights_that_are_not_those_of_the_configuration_are_refused(folder: Path) -> None:
    stages = {"out_features": None, "out_indices": None, "stage_names": None}  # they would contradict a changed depth first
    config = json.loads((folder / "config.json").read_text()) | stages
    for depth, message in ((1, r"more than its config.json describes: got \d+ tensors too many"), (3, "not all there")):
        (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": depth}))
        with pytest.raises(TeacherError, match=message):
            open_teacher(str(folder))
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if "register" not in name}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(TeacherError, match=r"not all there: got 1 tensors missing, first embeddings.register_tokens"):
        open_teacher(str(folder))
