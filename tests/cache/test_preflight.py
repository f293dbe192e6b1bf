"""The readiness check finds what is there, missing, empty and undecodable, and names the next step for each."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from stjepa_cli.cache.preflight import Check, PreflightReport, check_gpu, preflight
from stjepa_cli.core.locations import Location
from stjepa_cli.data.datasets.base import open_dataset
from tests.media import truncate, upload, write_audio_only, write_empty

NAMES = ("ffmpeg", "gpu", "ssv2", "ssv2-decode", "ucf101", "ucf101-decode", "disk", "teacher")


@pytest.fixture
def ssv2(tiny_ssv2: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(tiny_ssv2, tmp_path / "ssv2"))


def check(ssv2: Path, ucf101: Path, *, cache: Path | None = None, teacher: str = "hog", deep: bool = False) -> PreflightReport:
    return preflight(ssv2, ucf101, cache or ssv2 / "cache", teacher, deep=deep)


def webm(ssv2: Path, video: int) -> Path:
    return ssv2 / "20bn-something-something-v2" / f"{video}.webm"


def by_name(ready: PreflightReport) -> dict[str, Check]:
    assert tuple(item.name for item in ready.checks) == NAMES
    assert ready.ok == all(item.ok for item in ready.checks)
    for item in ready.checks:
        assert item.ok == (not item.fix), f"a next step, and only where something is wrong: {item}"
        assert item.detail
        assert "\n" not in item.detail + item.fix
    return {item.name: item for item in ready.checks}


@pytest.mark.parametrize("deep", [False, True])
def test_a_machine_with_everything_is_ready(tiny_ssv2: Path, tiny_ucf101: Path, deep: bool) -> None:
    ready = check(tiny_ssv2, tiny_ucf101, deep=deep)
    found = by_name(ready)
    assert ready.ok
    assert "train: 12 listed, 12 present; validation: 4 listed, 4 present; test: 2 listed, 2 present" in found["ssv2"].detail
    assert "train1: 9 listed, 9 present; test1: 3 listed, 3 present" in found["ucf101"].detail
    assert ("18 of 18" if deep else "8 of 18") in found["ssv2-decode"].detail
    assert ("12 of 12" if deep else "8 of 12") in found["ucf101-decode"].detail


def test_data_sets_and_cache_may_be_urls(ssv2: Path, tiny_ucf101: Path, bucket: Location) -> None:
    truncate(webm(ssv2, 11))
    write_empty(webm(ssv2, 8))
    (bucket / "cache" / "shards" / "0").write_bytes(bytes(200_000))
    ready = preflight(upload(ssv2, bucket / "ssv2"), upload(tiny_ucf101, bucket / "ucf101"), bucket / "cache", "hog", deep=True)
    found = by_name(ready)
    assert "train: 12 listed, 11 present, 1 empty (8.webm); validation: 4 listed, 4 present" in found["ssv2"].detail
    assert f"{bucket}/ssv2/20bn-something-something-v2/11.webm: it is cut short" in found["ssv2-decode"].detail
    assert "train1: 9 listed, 9 present; test1: 3 listed, 3 present" in found["ucf101"].detail
    assert "12 of 12 videos tried, all decode" in found["ucf101-decode"].detail
    assert found["disk"].detail.startswith(f"the free space of {bucket}/cache is not known; a cache of 12 train clips")
    assert found["disk"].detail.endswith("takes 14.5 MB, of which 0.2 MB are there")


def test_nothing_is_changed(tiny_ssv2: Path, tiny_ucf101: Path, tmp_path: Path) -> None:
    check(tiny_ssv2, tiny_ucf101, cache=tmp_path / "deep" / "cache")
    assert not list(tmp_path.iterdir())


def test_missing_and_empty_videos_are_counted_and_named(ssv2: Path, tiny_ucf101: Path) -> None:
    videos = open_dataset("ssv2", ssv2).videos("train")
    for item in videos[:5]:
        item.path.unlink()
    write_empty(webm(ssv2, 8))
    found = by_name(check(ssv2, tiny_ucf101))["ssv2"]
    assert not found.ok
    assert "train: 12 listed, 6 present, 5 missing (1.webm, 2.webm, 3.webm, ...), 1 empty (8.webm)" in found.detail
    assert str(ssv2 / "20bn-something-something-v2") in found.fix


def test_deep_names_every_video_that_cannot_be_decoded(ssv2: Path, tiny_ucf101: Path) -> None:
    videos = open_dataset("ssv2", ssv2).videos("train")
    truncate(webm(ssv2, 11))
    write_audio_only(webm(ssv2, 12))
    found = by_name(check(ssv2, tiny_ucf101, deep=True))
    assert found["ssv2"].ok
    assert not found["ssv2-decode"].ok
    assert "2 cannot be decoded" in found["ssv2-decode"].detail
    assert f"{videos[10].path}: it is cut short" in found["ssv2-decode"].detail
    assert f"{videos[11].path}: it has no video stream" in found["ssv2-decode"].detail


def test_a_data_set_that_is_not_there_names_its_official_page(tmp_path: Path, tiny_ucf101: Path) -> None:
    found = by_name(check(tmp_path / "nowhere", tiny_ucf101))
    assert not found["ssv2"].ok
    assert "https://www.qualcomm.com/developer/software/something-something-v2-dataset" in found["ssv2"].fix
    assert not found["ssv2-decode"].ok
    assert found["ucf101"].ok
    found = by_name(check(tmp_path / "nowhere", tmp_path / "nowhere"))
    assert "https://www.crcv.ucf.edu/data/UCF101.php" in found["ucf101"].fix


def test_lists_without_videos_are_not_ready(ssv2: Path, tiny_ucf101: Path) -> None:
    shutil.rmtree(ssv2 / "20bn-something-something-v2")
    found = by_name(check(ssv2, tiny_ucf101))
    assert found["ssv2"].detail.startswith("no videos")
    assert "qualcomm.com" in found["ssv2"].fix
    assert not found["ssv2-decode"].ok


def test_the_list_of_test_videos_may_be_absent(ssv2: Path, tiny_ucf101: Path) -> None:
    (ssv2 / "test.json").unlink()
    found = by_name(check(ssv2, tiny_ucf101))["ssv2"]
    assert found.ok
    assert "test: no list (optional)" in found.detail
    (ssv2 / "validation.json").unlink()
    assert "validation.json" in by_name(check(ssv2, tiny_ucf101))["ssv2"].detail


def test_a_relative_root_is_read(tiny_ssv2: Path, tiny_ucf101: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_ssv2 / "20bn-something-something-v2")
    assert check(Path("..") / ".." / "ssv2", tiny_ucf101).ok
    monkeypatch.chdir(tiny_ssv2)
    assert check(Path("."), tiny_ucf101).ok


def test_the_disk_must_hold_the_cache_of_all_train_clips(
    tiny_ssv2: Path, tiny_ucf101: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    needed = 12 * 1568 * 384 * 2
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=needed - 1))
    cache = tmp_path / "cache"
    found = by_name(check(tiny_ssv2, tiny_ucf101, cache=cache))["disk"]
    assert not found.ok
    assert "takes 14.5 MB" in found.detail
    assert "--cache" in found.fix
    cache.mkdir()
    (cache / "shard").write_bytes(b"x")  # what is written already need not fit again
    assert by_name(check(tiny_ssv2, tiny_ucf101, cache=cache))["disk"].ok


def test_a_teacher_that_is_not_at_hand_is_not_fetched(tiny_ssv2: Path, tiny_ucf101: Path, tmp_path: Path) -> None:
    found = by_name(check(tiny_ssv2, tiny_ucf101, teacher="nobody/no-such-model"))["teacher"]
    assert not found.ok
    assert "hog" in found.fix
    assert not by_name(check(tiny_ssv2, tiny_ucf101, teacher=str(tmp_path / "no-folder")))["teacher"].ok


def test_no_gpu_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = check_gpu()
    assert found.ok
    assert "CPU" in found.detail


@pytest.mark.cuda
def test_a_gpu_is_named_with_its_memory() -> None:
    found = check_gpu()
    assert found.ok
    assert torch.cuda.get_device_name(0) in found.detail
    assert "GB" in found.detail
