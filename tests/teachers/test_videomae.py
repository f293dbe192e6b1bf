"""VideoMAE teachers against transformers itself, on tiny models saved to a folder, and every way in which files can be bad."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import VideoMAEForPreTraining, VideoMAEForVideoClassification, VideoMAEModel

from stjepa_cli.core.errors import TeacherError
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.teachers._weights import load_weights
from stjepa_cli.teachers.base import open_teacher, survey
from tests.teachers import tiny
from tests.teachers.contract import IMAGENET_MEAN, IMAGENET_STD, noise_clips, normalised

CLIP = ClipSpec(num_frames=4, size_px=32, tubelet=2, patch_px=8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny fine-tuned model; to read, not to change."""
    return tiny.write_videomae(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to spoil."""
    return shutil.copytree(saved, tmp_path / "tiny")


def _expected(model: torch.nn.Module, clips: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    pixels = normalised(clips, mean, std)
    with torch.no_grad():
        tokens: torch.Tensor = model.eval()(pixel_values=pixels).last_hidden_state
    return tokens


def test_tokens_equal_those_of_transformers(saved: Path) -> None:
    teacher = open_teacher(str(saved))
    clips = noise_clips(teacher, 2)
    assert torch.equal(teacher.encode(clips), _expected(VideoMAEModel.from_pretrained(saved), clips, IMAGENET_MEAN, IMAGENET_STD))


def test_layers_equal_the_hidden_states_of_transformers(saved: Path) -> None:
    teacher = open_teacher(str(saved))
    clips = noise_clips(teacher, 2)
    pixels = normalised(clips)
    with torch.no_grad():
        hidden = VideoMAEModel.from_pretrained(saved).eval()(pixel_values=pixels, output_hidden_states=True).hidden_states
    assert len(hidden) == teacher.num_layers + 1  # the first is the embedding
    expected = [torch.nn.functional.layer_norm(hidden[layer], (48,)) for layer in (2, 1)]
    assert torch.equal(teacher.encode(clips, (2, 1)), torch.cat(expected, dim=-1))


@pytest.mark.parametrize(
    ("labels", "sampling"),
    [(None, "uniform"), (["Pushing something"], "uniform"), (["abseiling", "air drumming"], "dense"), (["MoveLeft"], "uniform")],
)
def test_the_default_sampling_is_that_of_the_training(folder: Path, labels: list[str] | None, sampling: str) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"id2label": labels and dict(enumerate(labels))}
    (folder / "config.json").write_text(json.dumps(config))
    own = replace(CLIP, sampling=sampling, stride=4)
    assert open_teacher(str(folder)).card.clip == survey(str(folder)).clip == own
    asked = replace(CLIP, sampling="uniform")
    assert open_teacher(str(folder), clip=asked).card.clip == asked


@pytest.mark.parametrize("cls", [VideoMAEModel, VideoMAEForVideoClassification, VideoMAEForPreTraining])
@pytest.mark.parametrize("mean_pooling", [True, False])
def test_every_kind_of_checkpoint_gives_its_encoder(cls: type, mean_pooling: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = cls(tiny.videomae_config(mean_pooling=mean_pooling))
    model.save_pretrained(tmp_path)
    teacher = open_teacher(str(tmp_path))
    clips = noise_clips(teacher, 1)
    encoder = model if cls is VideoMAEModel else model.videomae
    torch.testing.assert_close(teacher.encode(clips), _expected(encoder, clips, IMAGENET_MEAN, IMAGENET_STD), atol=1e-6, rtol=1e-6)


def test_biases_under_their_old_names_are_read(folder: Path) -> None:
    expected = open_teacher(str(folder))
    clips = noise_clips(expected, 1)
    tokens = expected.encode(clips)
    file = folder / "model.safetensors"
    old = {"query.bias": "q_bias", "value.bias": "v_bias"}
    renamed = {}
    for name, tensor in load_file(file).items():
        new = name
        for key, value in old.items():
            new = new.replace(f"attention.attention.{key}", f"attention.attention.{value}")
        renamed[new] = tensor
    assert any(name.endswith("q_bias") for name in renamed)
    save_file(renamed, file, {"format": "pt"})
    assert torch.equal(open_teacher(str(folder)).encode(clips), tokens)


def test_weights_in_half_precision_run_in_float32(folder: Path) -> None:
    VideoMAEForVideoClassification.from_pretrained(folder).half().save_pretrained(folder)
    teacher = open_teacher(str(folder))
    assert isinstance(teacher.encode(noise_clips(teacher, 1)), torch.Tensor)
    assert teacher.encode(noise_clips(teacher, 1)).dtype == torch.float32


@pytest.mark.parametrize("name", ["preprocessor_config.json", "video_preprocessor_config.json"])
def test_colours_are_normalised_as_the_preprocessor_says(folder: Path, name: str) -> None:
    (folder / name).write_text(json.dumps({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7]}))
    teacher = open_teacher(str(folder))
    clips = noise_clips(teacher, 1)
    expected = _expected(VideoMAEModel.from_pretrained(folder), clips, (0.5, 0.4, 0.3), (0.5, 0.6, 0.7))
    torch.testing.assert_close(teacher.encode(clips), expected, atol=1e-6, rtol=1e-6)


def test_the_card_says_what_it_is(folder: Path) -> None:
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: mit  # really\n---\n# Model\nlicense: gpl\n")
    card = open_teacher(str(folder)).card
    weights = (folder / "model.safetensors").read_bytes()
    assert (card.name, card.kind, card.revision, card.licence) == (str(folder), "videomae", "local", "mit")
    assert (card.dim, card.clip, card.token_norm) == (48, CLIP, "layernorm")
    assert card.weights_digest == hashlib.sha256(weights).hexdigest()
    found = survey(str(folder))
    assert (found.kind, found.at_hand, found.licence, found.dim, found.clip) == ("videomae", True, "mit", 48, CLIP)


def test_weights_in_several_files_are_all_digested(folder: Path) -> None:
    model = VideoMAEForVideoClassification.from_pretrained(folder)
    whole = open_teacher(str(folder))
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="50KB")
    teacher = open_teacher(str(folder))
    files = sorted(folder.glob("model-*.safetensors"))
    assert len(files) > 1
    assert teacher.card.weights_digest == hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    clips = noise_clips(whole, 1)
    assert torch.equal(teacher.encode(clips), whole.encode(clips))
    files[0].unlink()
    with pytest.raises(TeacherError, match="weights are missing"):
        open_teacher(str(folder))


def test_sampling_is_free_and_geometry_is_not(saved: Path) -> None:
    dense = ClipSpec(4, 32, 2, 8, sampling="dense", stride=3)
    assert open_teacher(str(saved), clip=dense).card.clip == dense
    for wrong, field in (
        (ClipSpec(8, 32, 2, 8), "num_frames"),
        (ClipSpec(4, 64, 2, 8), "size_px"),
        (ClipSpec(4, 32, 2, 16), "patch_px"),
    ):
        for ask in (open_teacher, survey):
            with pytest.raises(TeacherError, match=f"one geometry and {field} is another: got .*, expected "):
                ask(str(saved), clip=wrong)


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def _drop_tensor(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors.pop("videomae.encoder.layer.1.output.dense.weight")
    save_file(tensors, file, {"format": "pt"})


def _edit(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def _pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "holds no model: got no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json is of the wrong kind: got list"),
        (lambda f: _edit(f, model_type="bert"), "no teacher plug-in runs .*got model_type 'bert', expected one of .*videomae"),
        (lambda f: _edit(f, model_type=None), "no teacher plug-in runs"),
        (lambda f: _edit(f, image_size=[32, 64]), "image_size does not suit"),
        (lambda f: _edit(f, image_size=33), "multiple"),
        (lambda f: _edit(f, num_channels=1), "sees colour"),
        (lambda f: _edit(f, hidden_size=96), "cannot be loaded|not all there"),
        (lambda f: _edit(f, num_hidden_layers=3), "not all there: got .* first encoder.layer.2"),
        (
            lambda f: _edit(f, num_hidden_layers=1),
            r"more than its config.json describes: got \d+ tensors too many, first videomae.encoder.layer.1",
        ),
        (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "weights are empty"),
        (_cut, "the weights in .* cannot be loaded"),
        (_drop_tensor, "not all there: got 1 tensors missing, first encoder.layer.1.output.dense.weight"),
        (_pointer, "Git LFS pointer.*lfs pull"),
        (lambda f: (f / "preprocessor_config.json").write_text('{"image_std": [0, 0, 0]}'), "image_std does not suit"),
    ],
)
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


def test_parameters_that_some_versions_of_transformers_lack_may_be_missing_and_are_zero(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    dropped = next(name for name in tensors if name.endswith("layernorm_before.bias"))
    del tensors[dropped]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(TeacherError, match="not all there"):
        load_weights("VideoMAEModel", folder)
    model = load_weights("VideoMAEModel", folder, zeros="layernorm_before.bias")
    assert not model.get_parameter(dropped.removeprefix("videomae.")).any()
