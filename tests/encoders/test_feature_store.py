"""Kept features: extracted once, found again, checked, and resumed."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stjepa_cli.commands.progress import PlainProgress
from stjepa_cli.core.config import StudentConfig
from stjepa_cli.core.locations import Location
from stjepa_cli.core.progress import SILENT, Progress, Task
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.data.datasets.base import Dataset, VideoItem, open_dataset
from stjepa_cli.data.eval_clips import EvalClips
from stjepa_cli.encoders import feature_store
from stjepa_cli.encoders.extraction import Extraction
from stjepa_cli.encoders.feature_files import HEADER
from stjepa_cli.encoders.feature_store import FeatureStore
from stjepa_cli.encoders.fingerprints import ABSENT, fingerprint
from stjepa_cli.encoders.student_encoder import StudentEncoder
from stjepa_cli.encoders.teacher_encoder import TeacherEncoder
from stjepa_cli.models.student import Student
from stjepa_cli.models.tensor_file import read_metadata, read_tensors, write_tensors
from stjepa_cli.teachers.base import open_teacher
from tests.media import upload, write_empty

CPU = torch.device("cpu")
SPEC = ClipSpec(num_frames=4, size_px=16, tubelet=2, patch_px=8)


class Counting(StudentEncoder):
    """A tiny student that counts the clips that it sees, and can be stopped."""

    def __init__(self, seed: int = 0, stop_after: int | None = None) -> None:
        config = StudentConfig(dim=32, num_factorized=1, num_joint=1, num_heads=2)
        super().__init__(Student(config, SPEC, torch.Generator().manual_seed(seed)), "tiny")
        self.seen, self.stop_after = 0, stop_after

    def encode(self, clips: Tensor) -> Tensor:
        if self.stop_after is not None and self.seen >= self.stop_after:
            raise KeyboardInterrupt
        self.seen += len(clips)
        return super().encode(clips)


class Listening:
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def task(self, name: str, *, total: int | None, unit: str = "clips", completed: int = 0) -> AbstractContextManager[Task]:
        return SILENT.task(name, total=total, unit=unit)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def dataset(tiny_ucf101: Path) -> Dataset:
    return open_dataset("ucf101", tiny_ucf101)


@pytest.fixture
def items(dataset: Dataset, tmp_path: Path) -> list[VideoItem]:
    """Nine videos that a test may damage."""
    root = shutil.copytree(str(dataset.root), tmp_path / "ucf101")
    return list(open_dataset("ucf101", root).videos("train1"))


def store(
    folder: Path | None, encoder: StudentEncoder | None = None, progress: Progress = SILENT, batch_size: int = 8, **options: Any
) -> FeatureStore:
    runtime = Runtime("cpu", batch_size=batch_size, progress=progress)
    return FeatureStore(encoder or Counting(), "ucf101", Extraction(folder=folder, **options), runtime)


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def test_a_second_store_encodes_nothing_and_gives_the_same(items: list[VideoItem], tmp_path: Path) -> None:
    first, _ = store(tmp_path / "f").extract(items)
    again = Counting()
    second, failed = store(tmp_path / "f", again).extract(items)
    assert (again.seen, failed) == (0, ())
    assert torch.equal(first.values, second.values)
    assert (first.ids, first.groups) == (second.ids, second.groups) == (tuple(i.id for i in items), tuple(str(i.group) for i in items))


def test_videos_that_are_known_already_count_as_done(items: list[VideoItem], tmp_path: Path) -> None:
    lines: list[str] = []
    store(tmp_path / "f").extract(items[:4])
    store(tmp_path / "f", progress=PlainProgress(lines.append, 60.0)).extract(items)
    assert lines == [line for line in lines if line.startswith("features: 9/9 videos in ")]


def test_another_list_of_the_same_videos_encodes_only_what_is_new(items: list[VideoItem], tmp_path: Path) -> None:
    store(tmp_path / "f").extract(items[:4])
    encoder = Counting()
    found, _ = store(tmp_path / "f", encoder).extract(items[::-1])
    assert encoder.seen == 5
    assert torch.allclose(found.values, store(None).extract(items[::-1])[0].values, atol=1e-6)


def test_without_a_folder_a_store_still_extracts_once_and_writes_nothing(items: list[VideoItem], tmp_path: Path) -> None:
    encoder = Counting()
    kept = store(None, encoder)
    kept.extract(items)
    kept.extract(items[:3])
    assert encoder.seen == 9
    assert files(tmp_path / "f") == []


def test_an_interrupted_extraction_resumes_where_it_stopped(items: list[VideoItem], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        store(tmp_path / "f", Counting(stop_after=4), batch_size=2).extract(items)
    encoder = Counting()
    found, _ = store(tmp_path / "f", encoder, batch_size=2).extract(items)
    assert encoder.seen == 5
    assert torch.equal(found.values, store(None, batch_size=2).extract(items)[0].values)


def test_shards_are_written_while_extracting(items: list[VideoItem], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_store, "SHARD_VIDEOS", 4)
    store(tmp_path / "f").extract(items)
    assert len(files(tmp_path / "f")) == 3
    header = json.loads(read_metadata(files(tmp_path / "f")[0])[HEADER])
    assert header["spec"]["dataset"] == "ucf101"
    assert header["encoder"] == "tiny"


@pytest.mark.parametrize(
    "options",
    [{"encoder": Counting(seed=1)}, {"pool": "time"}, {"clips": EvalClips(2, 1)}],
    ids=["weights", "pool", "plan"],
)
def test_other_weights_pools_and_clips_have_files_of_their_own(items: list[VideoItem], tmp_path: Path, options: dict[str, Any]) -> None:
    store(tmp_path / "f").extract(items[:2])
    other = store(tmp_path / "f", **options)
    other.extract(items[:2])
    assert len({path.parent for path in files(tmp_path / "f")}) == 2


def test_a_teacher_is_identified_by_its_weights_and_not_by_its_name() -> None:
    digests = [TeacherEncoder(open_teacher("hog", clip=clip, device=CPU)).digest for clip in (SPEC, SPEC, ClipSpec())]
    assert digests[0] == digests[1] != digests[2]


def test_clips_are_kept_and_their_mean_is_the_feature(items: list[VideoItem], tmp_path: Path) -> None:
    kept = store(tmp_path / "f", clips=EvalClips(2, 3))
    found, _ = kept.extract(items[:2])
    assert found.clips is not None
    assert found.clips.shape == (2, 6, 32)
    assert torch.equal(found.clips.mean(dim=1), found.values)
    by_clip = found.by_clip()
    assert torch.equal(by_clip.values, found.clips.view(12, 32))
    assert (by_clip.groups[:6], by_clip.ids[5], by_clip.labels.tolist()) == ((found.groups[0],) * 6, f"{found.ids[0]} 005", [0] * 12)


def test_tokens_that_are_too_many_for_memory_are_the_same_from_a_file(
    items: list[VideoItem], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = store(None, pool="tokens", clips=EvalClips(2, 1)).extract(items)[0].tokens
    monkeypatch.setattr(feature_store, "IN_MEMORY_BYTES", 0)
    kept = store(tmp_path / "f", pool="tokens", clips=EvalClips(2, 1))
    found = kept.extract(items)[0].tokens
    assert found is not None
    assert expected is not None
    assert torch.equal(found, expected)
    assert kept.folder is not None
    assert {path.suffix for path in kept.folder.iterdir()} == {".safetensors"}  # the other one has no name


def test_a_video_that_failed_stays_failed_until_its_file_changes(items: list[VideoItem], tmp_path: Path) -> None:
    good = Path(str(items[0].path)).read_bytes()
    write_empty(Path(str(items[0].path)))
    for seen in (8, 0):
        encoder = Counting()
        found, (failure,) = store(tmp_path / "f", encoder).extract(items)
        assert (encoder.seen, len(found), failure.id) == (seen, 8, items[0].id)
        assert "the file is empty" in failure.error
    Path(str(items[0].path)).write_bytes(good)
    encoder = Counting()
    found, failed = store(tmp_path / "f", encoder).extract(items)
    assert (encoder.seen, len(found), failed) == (1, 9, ())


def test_a_server_that_did_not_answer_is_asked_again(items: list[VideoItem], tmp_path: Path, bucket: Location) -> None:
    item = VideoItem("v", bucket / "v.avi", 0, None)
    assert [failure.id for failure in store(tmp_path / "f").extract([item])[1]] == ["v"]
    upload(items[0].path, bucket / "v.avi")  # type: ignore[arg-type]
    assert store(tmp_path / "f").extract([item])[1] == ()


def test_a_flipped_byte_a_cut_and_a_foreign_file_are_not_used(items: list[VideoItem], tmp_path: Path) -> None:
    expected = store(tmp_path / "f").extract(items)[0].values
    (path,) = files(tmp_path / "f")
    whole = path.read_bytes()
    other = store(tmp_path / "g", Counting(seed=1))
    other.extract(items)
    foreign = files(tmp_path / "g")[0].read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    for damaged, reason in (
        (bytes(flipped), "digest does not match|is not the one that was written"),
        (whole[:-100], "whole|incomplete|Metadata"),
        (foreign, "something else"),
    ):
        path.write_bytes(damaged)
        listener, encoder = Listening(), Counting()
        found, _ = store(tmp_path / "f", encoder, progress=listener).extract(items)
        assert encoder.seen == 9
        assert torch.equal(found.values, expected)
        assert len(listener.notes) == 1
        assert str(path) in listener.notes[0]
        assert re.search(reason, listener.notes[0])
        path.unlink()


def test_a_damaged_file_is_set_aside_and_one_that_cannot_be_read_is_left_alone(items: list[VideoItem], tmp_path: Path) -> None:
    store(tmp_path / "f").extract(items)
    (path,) = files(tmp_path / "f")
    damaged = path.read_bytes()[:-1] + b"x"
    path.write_bytes(damaged)
    for names in ([f"{path.name}.damaged"], [f"{path.name}.1.damaged", f"{path.name}.damaged"]):
        store(tmp_path / "f").extract(items)
        assert sorted(found.name for found in path.parent.glob("*.damaged")) == names
        assert (path.parent / names[0]).read_bytes() == damaged
        path.write_bytes(damaged)
    path.unlink()
    path.mkdir()  # reading it fails for root too
    (path / "mine").touch()
    for seen in (9, 0):
        listener, encoder = Listening(), Counting()
        store(tmp_path / "f", encoder, progress=listener).extract(items)
        assert encoder.seen == seen
        assert "cannot be read and is left as it is" in listener.notes[0]
        assert (path / "mine").exists()


def test_a_header_that_was_edited_is_not_used(items: list[VideoItem], tmp_path: Path) -> None:
    store(tmp_path / "f").extract(items)
    (path,) = files(tmp_path / "f")
    header = json.loads(read_metadata(path)[HEADER])
    header["rows"] = header["rows"][::-1]
    write_tensors(path, read_tensors(path), {HEADER: json.dumps(header)})
    encoder = Counting()
    store(tmp_path / "f", encoder).extract(items)
    assert encoder.seen == 9


def test_videos_with_one_header_and_one_index_are_told_apart(tmp_path: Path) -> None:
    paths = [tmp_path / "a.avi", tmp_path / "b.avi"]
    for path, middle in zip(paths, (b"a", b"b"), strict=True):
        path.write_bytes(bytes(40_000) + middle * 100_000 + bytes(40_000))
    assert fingerprint(paths[0]) != fingerprint(paths[1])


def test_fingerprints_tell_files_apart_and_survive_a_copy(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a" * 300_000)
    (tmp_path / "b").write_bytes(b"a" * 299_999 + b"b")
    shutil.copy(tmp_path / "a", tmp_path / "c")
    found = {name: fingerprint(tmp_path / name) for name in "abcd"}
    assert found["a"] == found["c"] != found["b"]
    assert found["d"] == ABSENT
