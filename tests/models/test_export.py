"""Exports say what the student says, load without what they need not have, and are whole or not there."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from stjepa_cli.core.config import RunConfig, StudentConfig
from stjepa_cli.core.errors import CheckpointError, ConfigError, NotReadyError, StjepaError
from stjepa_cli.core.files import new_folder
from stjepa_cli.core.types import ClipSpec, TeacherCard
from stjepa_cli.models import formats
from stjepa_cli.models.checkpoint import CheckpointHeader, checkpoint_path, write_checkpoint
from stjepa_cli.models.export import export, write_finetuned
from stjepa_cli.models.formats import FORMATS
from stjepa_cli.models.release import Tuning, read_config
from stjepa_cli.models.student import Student, load_student
from stjepa_cli.models.tensor_file import list_tensors, read_tensors, write_tensors

SPEC = ClipSpec(num_frames=4, size_px=16, tubelet=2, patch_px=8)
CONFIG = StudentConfig(dim=16, num_factorized=1, num_joint=1, num_heads=2)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = checkpoint_path(tmp_path_factory.mktemp("exporting"), 12)
    student = Student(CONFIG, SPEC, torch.Generator().manual_seed(0))
    header = CheckpointHeader(
        step=12,
        epoch=1,
        run=RunConfig(Path("/home/someone/videos"), Path("/home/someone/cache"), student=CONFIG),
        clip=SPEC,
        latent_dim=12,
        teacher=TeacherCard("someone/teacher", "videomae", COMMIT, "0" * 64, "CC-BY-NC-4.0", 12, SPEC),
        cache_digest="1" * 64,
        dataset="ssv2/train",
        software={"torch": "2"},
    )
    tensors = {f"student.{name}": tensor for name, tensor in student.state_dict().items()}
    write_checkpoint(path, header, tensors | {"predictor.out.bias": torch.zeros(3)}, {})
    return path


@pytest.fixture(scope="module")
def release(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(checkpoint, tmp_path_factory.mktemp("release") / "hf").out


@pytest.fixture
def copy(release: Path, tmp_path: Path) -> Path:
    """A release to spoil."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in release.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def clips(batch_size: int, seed: int = 1) -> torch.Tensor:
    shape = (batch_size, SPEC.num_frames, 3, SPEC.size_px, SPEC.size_px)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def original(checkpoint: Path) -> Student:
    return load_student(checkpoint, torch.device("cpu"))[0]


def change_config(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    data = json.loads((folder / "config.json").read_text())
    change(data)
    (folder / "config.json").write_text(json.dumps(data))


# --------------------------------------------------------------------------------------------------------------- hf


def test_a_release_gives_the_same_tokens_and_holds_the_encoder_only(checkpoint: Path, release: Path) -> None:
    student = Student.from_pretrained(release)
    assert torch.equal(student(clips(3)), original(checkpoint)(clips(3)))
    assert not student.training
    assert not any(parameter.requires_grad for parameter in student.parameters())
    assert {path.name for path in release.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert {tensor.name for tensor in list_tensors(release / "model.safetensors")} == student.state_dict().keys()


def test_a_release_says_where_it_comes_from_and_not_from_which_folders(release: Path) -> None:
    config = read_config(release)
    assert (config.student, config.clip, config.provenance.step) == (CONFIG, SPEC, 12)
    card, data = (release / "README.md").read_text(), (release / "config.json").read_text()
    for text in (card, data):
        assert "someone/teacher" in text
        assert "CC-BY-NC-4.0" in text
        assert "ssv2/train" in text
        assert "1" * 64 in text
        assert "/home/someone" not in text
    assert "license: cc-by-nc-4.0" in card.split("---")[1]
    assert json.loads(data)["model_type"] == "stjepa"


def test_the_newest_checkpoint_of_a_folder_is_exported_and_counted(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    result = export(checkpoint.parent, tmp_path / "out", "hf")
    assert (result.checkpoint, result.files) == (checkpoint, ("README.md", "config.json", "model.safetensors"))
    assert (result.max_difference, result.parameters) == (0.0, sum(p.numel() for p in original(checkpoint).parameters()))
    assert result.bytes == sum(path.stat().st_size for path in result.out.iterdir())


def forget_digests(folder: Path) -> None:
    """Make the weights those of an earlier version, which knew nothing of their configuration."""
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors", {"format": "pt"})


def test_pixels_are_normalised_as_the_release_says(copy: Path) -> None:
    before = Student.from_pretrained(copy)(clips(1))
    forget_digests(copy)
    assert torch.equal(Student.from_pretrained(copy)(clips(1)), before)
    change_config(copy, lambda data: data.update(pixel_mean=[0.5, 0.5, 0.5]))
    assert not torch.allclose(Student.from_pretrained(copy)(clips(1)), before)


def test_a_configuration_that_was_edited_is_told_and_one_that_was_only_formatted_is_not(copy: Path) -> None:
    before = Student.from_pretrained(copy)(clips(1))
    change_config(copy, lambda data: None)  # on one line now
    assert torch.equal(Student.from_pretrained(copy)(clips(1)), before)
    change_config(copy, lambda data: data.update(pixel_mean=[0.5, 0.5, 0.5]))
    with pytest.raises(CheckpointError, match=r"config\.json is not the one that model\.safetensors was exported with\. Export it again"):
        Student.from_pretrained(copy)


def test_a_flipped_bit_in_the_configuration_is_told(copy: Path) -> None:
    data = (copy / "config.json").read_bytes()
    for place in range(0, len(data), 7):
        (copy / "config.json").write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(StjepaError):
            Student.from_pretrained(copy)


def test_a_release_of_a_newer_version_is_refused(copy: Path) -> None:
    change_config(copy, lambda data: data.update(schema=2, new_field={}))
    with pytest.raises(StjepaError, match=r"was written by a newer version of stjepa: got schema 2, expected at most 1\. Update stjepa\."):
        Student.from_pretrained(copy)


def test_a_hugging_face_id_is_loaded_from_the_local_cache(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--someone--student"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / COMMIT).symlink_to(release)
    wanted = Student.from_pretrained(release)(clips(1))
    for revision in (None, COMMIT):
        assert torch.equal(Student.from_pretrained("someone/student", revision)(clips(1)), wanted)
    with pytest.raises(CheckpointError, match="neither a folder nor in the local Hugging Face cache, and cannot be fetched"):
        Student.from_pretrained("someone/other")


def test_what_is_no_release_is_told_in_one_sentence(checkpoint: Path, release: Path, tmp_path: Path) -> None:
    for name, revision, message in (
        ("nothing", None, "there is no such student: got 'nothing', expected a folder that exists or a Hugging Face id"),
        ("", None, "there is no such student"),
        (release, "main", "only a Hugging Face id has revisions"),
        (tmp_path, None, r"holds no student: got no config\.json"),
        (checkpoint, None, "a folder, not a file: got .* loaded with `load_student`"),
    ):
        with pytest.raises(CheckpointError, match=message):
            Student.from_pretrained(name, revision)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(model_type="videomae"), "another kind of model: got model_type 'videomae', expected model_type 'stjepa'"),
        (lambda data: data.pop("model_type"), "another kind of model: got model_type None"),
        (lambda data: data.update(colour="red"), "unknown key: got colour"),
        (lambda data: data.pop("clip"), "is incomplete"),
        (lambda data: data.update(pixel_std=[1.0]), "pixel_std needs one value per colour channel"),
        (lambda data: data["student"].update(dim=32), r"another student than config\.json describes: embed\.bias: got \(16,\), exp"),
        (lambda data: data["student"].update(dim=4096), "another student than is described with it: got [0-9,]+ numbers, exp"),
        (lambda data: data["student"].update(num_joint=2), r"joint\.1\.\S+: got none, expected \("),
        (lambda data: data["student"].update(num_joint=0), r"joint\.0\.\S+: got \(.*\), expected none"),
    ],
)  # fmt: skip
def test_a_configuration_that_is_not_that_of_the_weights_is_told(
    copy: Path, change: Callable[[dict[str, object]], object], message: str
) -> None:
    forget_digests(copy)
    change_config(copy, change)
    with pytest.raises(CheckpointError, match=message):
        Student.from_pretrained(copy)


def test_damaged_files_of_a_release_are_told(copy: Path) -> None:
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[:-4])
    with pytest.raises(CheckpointError, match=r"not a whole safetensors file.*Export it again"):
        Student.from_pretrained(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no weights: got no model\.safetensors"):
        Student.from_pretrained(copy)
    (copy / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="cannot be read: got list, expected a JSON object"):
        Student.from_pretrained(copy)
    (copy / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="expected a JSON object"):
        Student.from_pretrained(copy)


# --------------------------------------------------------------------------------------------------------- fine-tuned


TUNING = Tuning("ucf101/train1", 9537, "2" * 64, {"lr": 1e-3, "epochs": 50.0}, {"torch": "2"})


def tuned(student: Student) -> Student:
    """A student whose every weight has moved, and that takes dense clips."""
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    student.spec = replace(SPEC, sampling="dense", stride=2)
    return student


def test_a_fine_tuned_student_is_a_release_that_gives_the_same_bits_and_says_what_it_saw(checkpoint: Path, tmp_path: Path) -> None:
    student = tuned(original(checkpoint)).train().requires_grad_(True)
    result = write_finetuned(student, checkpoint.parent, TUNING, tmp_path / "out")
    assert (result.format, result.max_difference, result.files) == ("hf", 0.0, ("README.md", "config.json", "model.safetensors"))
    found = Student.from_pretrained(tmp_path / "out")
    assert torch.equal(found(clips(3)), student(clips(3)))
    assert not torch.equal(found(clips(3)), original(checkpoint)(clips(3)))
    assert found.spec == student.spec
    assert student.training
    config, card = read_config(tmp_path / "out"), (tmp_path / "out" / "README.md").read_text()
    assert config.provenance.tuning == TUNING
    assert (config.provenance.dataset, config.provenance.step) == ("ssv2/train", 12)
    assert "saw no labels" not in card
    assert "fine-tuned with the labels of 9,537 videos of ucf101/train1" in card
    assert "| recipe | lr 0.001, epochs 50 |" in card


def test_a_release_may_be_fine_tuned_and_only_its_own_student_is_written(release: Path, tmp_path: Path) -> None:
    student = tuned(Student.from_pretrained(release))
    student.pixel_mean.fill_(0.5)
    change = tmp_path / "release"
    change.mkdir()
    for file in release.iterdir():
        (change / file.name).write_bytes(file.read_bytes())
    change_config(change, lambda data: data.update(pixel_mean=[0.5, 0.5, 0.5]))
    write_finetuned(student, change, TUNING, tmp_path / "out")
    assert torch.equal(Student.from_pretrained(tmp_path / "out")(clips(2)), student(clips(2)))
    other = Student(replace(CONFIG, num_joint=2), SPEC, torch.Generator().manual_seed(0))
    with pytest.raises(ConfigError, match="this student did not start from"):
        write_finetuned(other, release, TUNING, tmp_path / "other")
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        write_finetuned(student, tmp_path, TUNING, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_plain_release_says_nothing_of_fine_tuning(release: Path) -> None:
    assert "tuning" not in json.loads((release / "config.json").read_text())["provenance"]
    assert "It saw no labels" in (release / "README.md").read_text()


# ---------------------------------------------------------------------------------------------- torchscript and onnx


def test_torchscript_gives_the_same_tokens_where_this_package_is_not(checkpoint: Path, tmp_path: Path) -> None:
    export(checkpoint, tmp_path / "out", "torchscript")
    for batch_size in (1, 2, 5):
        torch.save((clips(batch_size), original(checkpoint)(clips(batch_size))), tmp_path / f"{batch_size}.pt")
    code = (
        "import sys; sys.modules['stjepa_cli'] = None\n"
        "import torch\n"
        "student = torch.jit.load('out/student.pt')\n"
        "for size in (1, 2, 5):\n"
        "    clips, tokens = torch.load(f'{size}.pt')\n"
        "    found = student(clips)\n"
        "    assert found.dtype == torch.float32 and found.shape == tokens.shape, found.shape\n"
        "    assert torch.allclose(found, tokens, atol=1e-5), size\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_config(tmp_path / "out").clip == SPEC


def test_a_damaged_torchscript_export_is_told_by_us_and_by_sha256sum(checkpoint: Path, tmp_path: Path) -> None:
    folder = export(checkpoint, tmp_path / "out", "torchscript").out
    assert subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True).returncode == 0
    whole = (folder / "student.pt").read_bytes()
    for place in (len(whole) // 3, len(whole) - 10):
        (folder / "student.pt").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CheckpointError, match=r"student\.pt is damaged"):
            FORMATS["torchscript"].load(folder)
    (folder / "student.pt").unlink()
    with pytest.raises(CheckpointError, match="a file is missing"):
        FORMATS["torchscript"].load(folder)
    (folder / "student.pt").write_bytes(whole)
    (folder / "SHA256SUMS").unlink()  # as an earlier version wrote it
    assert FORMATS["torchscript"].load(folder)(clips(1)).shape[0] == 1


def test_onnx_gives_the_same_tokens_at_any_batch_size(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    result = export(checkpoint, tmp_path / "out", "onnx")
    assert result.files == ("README.md", "SHA256SUMS", "config.json", "student.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "student.onnx"), providers=["CPUExecutionProvider"])
    for batch_size in (1, 2, 5):
        (tokens,) = session.run(["tokens"], {"clips": clips(batch_size).numpy()})
        assert torch.allclose(torch.from_numpy(tokens), original(checkpoint)(clips(batch_size)), atol=1e-4)


def test_onnx_without_its_libraries_names_the_extra(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(NotReadyError, match=r"the format onnx needs .*onnxscript.*`pip install 'stjepa\[onnx\]'`"):
        export(checkpoint, tmp_path / "out", "onnx")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------------ faults


def test_an_export_that_says_something_else_is_an_error_and_leaves_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def off(folder: Path) -> formats.Encode:
        student = Student.from_pretrained(folder)
        return lambda clips: student(clips) + 0.01

    monkeypatch.setitem(FORMATS, "hf", replace(FORMATS["hf"], load=off))
    with pytest.raises(StjepaError, match=r"was not kept: got a largest difference of 0\.01, expected at most 1e-05"):
        export(checkpoint, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_not_exported(checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / checkpoint.name
    tensors = read_tensors(checkpoint)
    tensors["student.norm.weight"] = torch.full_like(tensors["student.norm.weight"], torch.nan)
    write_tensors(broken, tensors, header_of(checkpoint))
    with pytest.raises(StjepaError, match="got a largest difference of nan"):
        export(broken, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [broken]


def header_of(checkpoint: Path) -> dict[str, str]:
    size = int.from_bytes(checkpoint.read_bytes()[:8], "little")
    metadata: dict[str, str] = json.loads(checkpoint.read_bytes()[8 : 8 + size])["__metadata__"]
    return metadata


def test_what_is_in_the_way_is_kept(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ConfigError, match="already exists: expected an empty folder, or none"):
            export(checkpoint, out)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_what_a_killed_export_left_is_removed_by_the_next_one(checkpoint: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from stjepa_cli.models import export, formats\n"
        "formats.FORMATS['hf'].load.__globals__['Student'].from_pretrained = lambda folder: os.kill(os.getpid(), signal.SIGKILL)\n"
        "export.export(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(checkpoint), str(tmp_path / "killed")], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    with new_folder(tmp_path / "at work") as part:
        export(checkpoint, tmp_path / "out")
        assert {path.name for path in tmp_path.iterdir()} == {"out", part.name}


def test_an_unknown_format_lists_those_that_there_are(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown format: got 'tensorflow', expected one of hf, torchscript, onnx"):
        export(checkpoint, tmp_path / "out", "tensorflow")
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        export(tmp_path / "none.safetensors", tmp_path / "out")


def test_the_command_prints_one_json_object(checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stjepa_cli", "export", str(checkpoint), "--out", str(tmp_path / "out"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {"out", "format", "files", "parameters", "max_difference"} <= found.keys()
    assert (found["out"], found["format"], found["max_difference"]) == (str(tmp_path / "out"), "hf", 0.0)
