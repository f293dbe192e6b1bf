"""V-JEPA 2 teachers against transformers itself, on tiny models saved to a folder: tokens, their order, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import VJEPA2ForVideoClassification, VJEPA2Model

from stjepa_cli.core.errors import TeacherError
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.encoders.teacher_encoder import TeacherEncoder
from stjepa_cli.teachers.base import open_teacher, survey
from tests.teachers import tiny
from tests.teachers.contract import IMAGENET_MEAN, IMAGENET_STD, TeacherContract, noise_clips, normalised

CLIP = ClipSpec(num_frames=6, size_px=32, tubelet=2, patch_px=8)


def _model(cls: type, **values: object) -> Any:
    return tiny.filled(cls(tiny.vjepa2_config(**values)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pretrained model; to read, not to change."""
    return tiny.write_vjepa2(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to spoil."""
    return shutil.copytree(saved, tmp_path / "tiny")


class TestVJepa2WithoutAttention(TeacherContract):
    """Attention gives 0, so that a token sees its own pixels only: the contract then checks its place."""

    local = True

    @pytest.fixture
    def place(self, tmp_path: Path) -> str:
        return str(_without_attention(tmp_path / "local"))


def _without_attention(folder: Path) -> Path:
    model = _model(VJEPA2Model)
    for layer in model.encoder.layer:
        for parameter in layer.attention.proj.parameters():
            torch.nn.init.zeros_(parameter)
    model.save_pretrained(folder)
    return folder


def _expected(
    model: Any, clips: torch.Tensor, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD
) -> torch.Tensor:
    pixels = normalised(clips, mean, std)
    with torch.no_grad():
        tokens: torch.Tensor = model.eval().get_vision_features(pixels)
    return tokens


def test_tokens_equal_those_of_transformers(saved: Path) -> None:
    teacher = open_teacher(str(saved))
    clips = noise_clips(teacher, 2)
    assert torch.equal(teacher.encode(clips), _expected(VJEPA2Model.from_pretrained(saved), clips))


def test_layers_equal_the_hidden_states_of_transformers(saved: Path) -> None:
    teacher = open_teacher(str(saved))
    clips = noise_clips(teacher, 2)
    pixels = normalised(clips)
    with torch.no_grad():
        hidden = VJEPA2Model.from_pretrained(saved).eval()(pixels, skip_predictor=True, output_hidden_states=True).hidden_states
    expected = [torch.nn.functional.layer_norm(hidden[layer], (48,)) for layer in (2, 1)]
    assert torch.equal(teacher.encode(clips, (-1, 1)), torch.cat(expected, dim=-1))
    assert not torch.allclose(expected[0], torch.nn.functional.layer_norm(teacher.encode(clips), (48,)))  # its final norm has affine


def test_the_encoder_of_a_classifier_is_the_same_encoder(saved: Path, tmp_path: Path) -> None:
    classifier = _model(VJEPA2ForVideoClassification, num_labels=5)
    classifier.vjepa2.load_state_dict(VJEPA2Model.from_pretrained(saved).state_dict())
    classifier.save_pretrained(tmp_path)
    assert any(name.startswith("vjepa2.encoder.") for name in load_file(tmp_path / "model.safetensors"))
    teacher = open_teacher(str(tmp_path))
    clips = noise_clips(teacher, 2)
    assert torch.equal(teacher.encode(clips), open_teacher(str(saved)).encode(clips))


def test_every_token_answers_to_its_own_pixels_and_there_is_no_other_token(tmp_path: Path) -> None:
    teacher = open_teacher(str(_without_attention(tmp_path)))
    clip, spec, grid = noise_clips(teacher, 1), teacher.card.clip, teacher.card.clip.grid
    before = teacher.encode(clip)[0]
    changed = clip.repeat(grid.num_tokens, 1, 1, 1, 1)
    for i in range(grid.num_tokens):
        t, h, w = i // (grid.h * grid.w) * spec.tubelet, i // grid.w % grid.h * spec.patch_px, i % grid.w * spec.patch_px
        changed[i, t : t + spec.tubelet, :, h : h + spec.patch_px, w : w + spec.patch_px] ^= 255
    moved = (teacher.encode(changed) - before).norm(dim=-1) > 1e-3
    assert before.shape[0] == grid.num_tokens
    assert torch.equal(moved, torch.eye(grid.num_tokens, dtype=torch.bool))


def test_predictor_pooler_and_classifier_stay_in_the_file(tmp_path: Path) -> None:
    _model(VJEPA2ForVideoClassification).save_pretrained(tmp_path)
    held = open_teacher(str(tmp_path)).model  # type: ignore[attr-defined]
    assert not [name for name, _ in held.named_parameters() if not name.startswith(("embeddings.", "layer.", "layernorm."))]


@pytest.mark.parametrize("lost", ["predictor.", "encoder."])
def test_only_the_encoder_has_to_be_there(folder: Path, lost: str) -> None:
    clips = noise_clips(open_teacher(str(folder)), 1)
    tokens = open_teacher(str(folder)).encode(clips)
    file = folder / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if not name.startswith(lost)}, file, {"format": "pt"})
    if lost == "predictor.":
        assert torch.equal(open_teacher(str(folder)).encode(clips), tokens)
    else:
        with pytest.raises(TeacherError, match=r"not all there: got \d+ tensors missing"):
            open_teacher(str(folder))


def test_a_predictor_of_another_width_than_the_configuration_says_does_not_matter(folder: Path) -> None:
    clips = noise_clips(open_teacher(str(folder)), 1)
    tokens = open_teacher(str(folder)).encode(clips)
    config = json.loads((folder / "config.json").read_text())
    kept = {name: value for name, value in config.items() if not name.startswith(("pred_", "num_pooler"))}
    (folder / "config.json").write_text(json.dumps(kept))
    assert torch.equal(open_teacher(str(folder)).encode(clips), tokens)


@pytest.mark.parametrize("asked", [replace(CLIP, num_frames=2), replace(CLIP, num_frames=10), replace(CLIP, size_px=16)])
@pytest.mark.parametrize("sampling", ["uniform", "dense"])
def test_clips_of_any_length_and_size_are_taken(saved: Path, asked: ClipSpec, sampling: str) -> None:
    asked = replace(asked, sampling=sampling, stride=2)
    teacher = open_teacher(str(saved), clip=asked)
    assert teacher.card.clip == survey(str(saved), clip=asked).clip == asked
    model = VJEPA2Model(tiny.vjepa2_config(frames_per_clip=asked.num_frames, crop_size=asked.size_px))
    model.load_state_dict(VJEPA2Model.from_pretrained(saved).state_dict())
    clips = noise_clips(teacher, 1)
    tokens = teacher.encode(clips)
    assert torch.equal(tokens, _expected(model, clips))
    if asked.size_px != CLIP.size_px:  # transformers as it is takes them too, with rows and columns in the wrong places
        assert not torch.allclose(tokens, _expected(VJEPA2Model.from_pretrained(saved), clips), atol=1e-3)


def test_tubelet_and_patch_are_the_models(saved: Path) -> None:
    for wrong, field in ((replace(CLIP, tubelet=1), "tubelet"), (replace(CLIP, patch_px=16), "patch_px")):
        for ask in (open_teacher, survey):
            with pytest.raises(TeacherError, match=f"one geometry and {field} is another: got .*, expected "):
                ask(str(saved), clip=wrong)


def test_weights_in_half_precision_run_in_float32(folder: Path) -> None:
    VJEPA2Model.from_pretrained(folder).half().save_pretrained(folder)
    teacher = open_teacher(str(folder))
    clips = noise_clips(teacher, 1)
    assert torch.equal(teacher.encode(clips), _expected(VJEPA2Model.from_pretrained(folder, dtype=torch.float32), clips))


def test_the_residual_stream_stays_float32_under_bfloat16(saved: Path) -> None:
    teacher = open_teacher(str(saved))
    seen: list[torch.dtype] = []
    for layer in teacher.model.layer:  # type: ignore[attr-defined]
        layer.register_forward_hook(lambda module, args, output: seen.append(output[0].dtype))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        teacher.model(pixel_values_videos=torch.rand(1, 6, 3, 32, 32))  # type: ignore[attr-defined]
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("name", ["preprocessor_config.json", "video_preprocessor_config.json"])
def test_colours_are_normalised_as_the_preprocessor_says(folder: Path, name: str) -> None:
    (folder / name).write_text(json.dumps({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7]}))
    teacher = open_teacher(str(folder))
    clips = noise_clips(teacher, 1)
    expected = _expected(VJEPA2Model.from_pretrained(folder), clips, (0.5, 0.4, 0.3), (0.5, 0.6, 0.7))
    torch.testing.assert_close(teacher.encode(clips), expected, atol=1e-6, rtol=1e-6)


def test_equal_weights_that_are_applied_otherwise_are_another_encoder(folder: Path) -> None:
    def digest() -> str:
        return TeacherEncoder(open_teacher(str(folder), device=torch.device("cpu"))).digest

    seen = [digest()]
    _edit(folder, transformers_version="9.9", id2label={"0": "cut"})
    assert digest() == seen[0]
    _edit(folder, num_attention_heads=1)
    seen.append(digest())
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.1] * 3}))
    seen.append(digest())
    assert len(set(seen)) == 3


def test_the_card_says_what_it_is(folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nlibrary_name: transformers\n---\n# V-JEPA 2\n")
    card = open_teacher(str(folder)).card
    assert (card.name, card.kind, card.revision, card.licence) == (str(folder), "vjepa2", "local", "apache-2.0")
    assert (card.dim, card.clip, card.token_norm) == (48, CLIP, "layernorm")
    assert card.weights_digest == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    found = survey(str(folder))
    assert (found.kind, found.at_hand, found.licence, found.dim, found.clip) == ("vjepa2", True, "apache-2.0", 48, CLIP)


def test_a_licence_that_no_card_states_is_unknown(saved: Path) -> None:
    assert open_teacher(str(saved)).card.licence == survey(str(saved)).licence == "unknown"


def _drop_tensor(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors.pop("encoder.layer.1.mlp.fc1.weight")
    save_file(tensors, file, {"format": "pt"})


def _edit(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_drop_tensor, r"not all there: got 1 tensors missing, first encoder\.layer\.1\.mlp\.fc1\.weight, expected"),
        (lambda f: _edit(f, num_hidden_layers=3), r"not all there: got \d+ tensors missing, first encoder\.layer\.2\."),
        (lambda f: _edit(f, num_hidden_layers=1), r"more than its config.json describes: got 16 tensors too many, first encoder\.layer\.1"),
        (lambda f: _edit(f, mlp_ratio=3.0), r"not all there: got 6 tensors of another shape, first .*fc1.bias, \(96,\) for \(144,\)"),
        (lambda f: _edit(f, patch_size=16), r"not all there: got 1 tensors of another shape, first encoder\.embeddings\."),
        (lambda f: _edit(f, hidden_size=50), "the weights in .* cannot be loaded: got .*not a multiple"),
        (lambda f: _edit(f, crop_size=33), "multiple"),
        (lambda f: _edit(f, frames_per_clip=0), "frames_per_clip does not suit a V-JEPA 2 teacher"),
        (lambda f: _edit(f, in_chans=1), "a V-JEPA 2 teacher sees colour: got in_chans 1, expected 3"),
        (lambda f: _edit(f, model_type="vjepa9"), "no teacher plug-in runs .*got model_type 'vjepa9', expected one of .*vjepa2"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
    ],
)  # fmt: skip
def test_bad_files_are_told_in_one_line(folder: Path, spoil: object, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert callable(spoil)
    spoil(folder)
    with pytest.raises(TeacherError, match=message) as caught:
        open_teacher(str(folder))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_opening_prints_nothing(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    open_teacher(str(saved))
    assert capfd.readouterr() == ("", "")
