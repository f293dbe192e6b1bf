"""A student as a teacher: a checkpoint, a folder of them and an export are one teacher, which gives the student's own tokens."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from stjepa_cli.cache.build import BuildRequest, build
from stjepa_cli.core.errors import CheckpointError, TeacherError
from stjepa_cli.models.export import export
from stjepa_cli.models.student import Student, load_student
from stjepa_cli.store.latent_store import LatentStore
from stjepa_cli.teachers.base import open_teacher, survey
from tests.teachers import tiny
from tests.teachers.contract import noise_clips


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint; to read, not to change."""
    return tiny.write_student(tmp_path_factory.mktemp("run"), 12)


def test_tokens_are_those_of_the_student(saved: Path) -> None:
    teacher = open_teacher(str(saved))
    clips = noise_clips(teacher, 2)
    with torch.no_grad():
        assert torch.equal(teacher.encode(clips), load_student(saved, torch.device("cpu"))[0](clips))


def test_layers_are_those_of_the_students_blocks(saved: Path) -> None:
    teacher = open_teacher(str(saved))
    clips, student = noise_clips(teacher, 2), load_student(saved, torch.device("cpu"))[0]
    with torch.no_grad():
        tokens = student.embed_tokens(clips, None)
        first = student.factorized[0](tokens.view(2, tiny.STUDENT_SPEC.grid.t, -1, 16)).reshape(2, -1, 16)
        third = student.joint[1](student.joint[0](first))
    assert torch.equal(teacher.encode(clips, (1, 3)), torch.cat([F.layer_norm(part, (16,)) for part in (first, third)], dim=-1))


def test_checkpoint_folder_and_export_are_one_teacher(saved: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(saved, run)
    tiny.write_student(run, 5)
    exported = export(saved, tmp_path / "exported").out
    cards = [open_teacher(str(place)).card for place in (saved, run, exported)]
    assert len({replace(card, name="") for card in cards}) == 1
    found = [survey(str(place)) for place in (saved, run, exported)]
    assert {(one.kind, one.at_hand, one.licence, one.dim, one.clip) for one in found} == {
        ("student", True, "CC-BY-NC-4.0", 16, tiny.STUDENT_SPEC)
    }
    assert found[0].detail == found[1].detail == "the student in checkpoint_step12.safetensors"


def test_a_renamed_checkpoint_is_known_by_its_header(saved: Path, tmp_path: Path) -> None:
    shutil.copy(saved, tmp_path / "best.safetensors")
    assert replace(open_teacher(str(tmp_path / "best.safetensors")).card, name=str(saved)) == open_teacher(str(saved)).card


def test_the_moving_average_is_the_teacher_where_there_is_one(tmp_path: Path) -> None:
    teacher = open_teacher(str(tiny.write_student(tmp_path, 3, ema=True)))
    clips = noise_clips(teacher, 1)
    average = Student(tiny.STUDENT_CONFIG, tiny.STUDENT_SPEC, torch.Generator().manual_seed(1003)).eval()
    with torch.no_grad():
        assert torch.equal(teacher.encode(clips), average(clips))


def test_another_geometry_is_one_sentence(saved: Path) -> None:
    for ask in (open_teacher, survey):
        with pytest.raises(TeacherError, match=r"takes clips of one geometry and size_px is another: got 32, expected 16\. Leave"):
            ask(str(saved), clip=replace(tiny.STUDENT_SPEC, size_px=32))
    dense = replace(tiny.STUDENT_SPEC, sampling="dense", stride=2)
    assert open_teacher(str(saved), clip=dense).card.clip == dense


def test_a_damaged_checkpoint_is_named(saved: Path, tmp_path: Path) -> None:
    (tmp_path / saved.name).write_bytes(saved.read_bytes()[:-100])
    for name in (tmp_path, tmp_path / saved.name):
        with pytest.raises(CheckpointError, match=r"checkpoint_step12\.safetensors is not a whole safetensors file") as caught:
            open_teacher(str(name))
        assert "\n" not in str(caught.value)


def test_a_cache_is_built_from_a_student(saved: Path, tiny_ssv2: Path, tmp_path: Path) -> None:
    request = BuildRequest.of(tiny_ssv2, tmp_path / "cache", teacher=str(saved), latent_dim=16, limit=4)
    assert build(request).written == 4
    header = LatentStore.open(tmp_path / "cache").header
    assert (header.teacher.kind, header.teacher.clip, header.projection["kind"]) == ("student", tiny.STUDENT_SPEC, "identity")
