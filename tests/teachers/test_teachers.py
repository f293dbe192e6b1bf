"""How names become teachers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from transformers import VideoMAEConfig, VideoMAEModel

from stjepa_cli.core.config import DEFAULT_TEACHER
from stjepa_cli.core.errors import TeacherError
from stjepa_cli.core.serialization import from_dict, to_dict
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.encoders.teacher_encoder import TeacherEncoder
from stjepa_cli.store.records import CacheHeader
from stjepa_cli.teachers.base import open_teacher, survey

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


@pytest.fixture
def snapshot(hub: Path) -> Path:
    """The snapshot of `someone/tiny` in the cache, laid out as the hub's client does it."""
    repository = hub / "models--someone--tiny"
    folder = repository / "snapshots" / COMMIT
    config = VideoMAEConfig(
        num_frames=2, image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=9
    )
    VideoMAEModel(config).save_pretrained(folder)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return folder


@pytest.mark.parametrize("name", ["nothing", "videomae", "/no/such/folder", "./gone", "a/b/c", ""])
def test_a_name_that_is_nothing_is_refused(name: str, hub: Path) -> None:
    for ask in (open_teacher, survey):
        with pytest.raises(TeacherError, match=r"there is no such teacher: got .*, expected a folder that exists, a Hugging Face id"):
            ask(name)


def test_a_file_is_no_teacher(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(TeacherError, match="a folder, not a file"):
        open_teacher(str(tmp_path / "model.safetensors"))


def test_only_ids_have_revisions(tmp_path: Path) -> None:
    for name in ("hog", str(tmp_path)):
        with pytest.raises(TeacherError, match="only a Hugging Face id has revisions"):
            open_teacher(name, revision="main")


def test_an_id_in_the_cache_is_opened_without_network(snapshot: Path) -> None:
    teacher = open_teacher("someone/tiny")
    assert (teacher.card.name, teacher.card.revision, teacher.card.licence) == ("someone/tiny", COMMIT, "unknown")
    assert teacher.encode(torch.zeros(1, 2, 3, 16, 16, dtype=torch.uint8)).shape == (1, 4, 16)
    found = survey("someone/tiny")
    assert (found.kind, found.at_hand, found.dim, found.clip) == ("videomae", True, 16, ClipSpec(2, 16, 2, 8))


def test_an_id_with_its_configuration_only_is_not_at_hand(snapshot: Path) -> None:
    (snapshot / "model.safetensors").unlink()
    found = survey("someone/tiny")
    assert (found.kind, found.at_hand, found.dim) == ("videomae", False, 16)
    assert "but not its weights" in found.detail
    with pytest.raises(TeacherError, match="cannot be fetched"):
        open_teacher("someone/tiny")


def test_what_is_known_of_the_default_teacher_before_it_is_fetched(hub: Path) -> None:
    found = survey(DEFAULT_TEACHER)
    assert (found.kind, found.at_hand, found.licence) == ("videomae", False, "CC-BY-NC-4.0")
    assert (found.dim, found.clip) == (1280, ClipSpec(sampling="dense", stride=4))
    assert survey("someone/else").kind == "unknown"
    assert survey("someone/else").clip is None


def test_the_default_teachers_licence_is_known_without_its_card(snapshot: Path, hub: Path) -> None:
    shutil.copytree(hub / "models--someone--tiny", hub / ("models--" + DEFAULT_TEACHER.replace("/", "--")))
    assert open_teacher(DEFAULT_TEACHER).card.licence == survey(DEFAULT_TEACHER).licence == "CC-BY-NC-4.0"


def test_an_id_that_cannot_be_fetched_is_told_in_one_sentence(tmp_path: Path) -> None:
    program = f"""
from stjepa_cli.core.errors import TeacherError
from stjepa_cli.teachers.base import open_teacher
try:
    open_teacher({DEFAULT_TEACHER!r})
except TeacherError as error:
    print(error)
"""
    environment = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    expected = (
        f"the weights of {DEFAULT_TEACHER} are neither in a folder of that name nor in the local Hugging Face cache, "
        "and cannot be fetched (HF_HUB_OFFLINE is set): name a local folder of a model, or `hog`, which needs no weights\n"
    )
    assert (done.stdout, done.stderr) == (expected, "")


def test_layers_are_part_of_what_a_cache_and_an_encoder_are() -> None:
    def header(layers: tuple[int, ...] | None) -> CacheHeader:
        card = replace(open_teacher("hog").card, layers=layers)
        return CacheHeader("ssv2", "train", 1, "", card, 384, {})

    plain, deep = header(None), header((1, 2))
    assert "layers" not in to_dict(plain)["teacher"]  # as older versions wrote it: their digests stay
    assert plain.digest != deep.digest
    for made in (plain, deep):
        assert from_dict(CacheHeader, json.loads(json.dumps(to_dict(made))), where="the header") == made
    assert TeacherEncoder(open_teacher("hog")).digest != TeacherEncoder(open_teacher("hog", layers=[1])).digest
