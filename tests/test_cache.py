"""Building and verifying: real videos, the real teacher `hog`, broken files among good ones."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stjepa_cli.cache import BuildRequest, build, forecast
from stjepa_cli.errors import CacheError, ConfigError, DatasetError, StjepaError
from stjepa_cli.nouns import ClipSpec
from stjepa_cli.store import LatentStore
from stjepa_cli.teachers.base import open_teacher
from stjepa_cli.verification import verify
from stjepa_cli.video import read_clip
from tests.media import truncate, write_audio_only, write_empty, write_text, write_tiny_ssv2, write_video

SPEC = ClipSpec(num_frames=4, size_px=32, tubelet=2, patch_px=16)
VIDEOS = "20bn-something-something-v2"


@pytest.fixture
def request_(tiny_ssv2: Path, tmp_path: Path) -> BuildRequest:
    return BuildRequest(tiny_ssv2, tmp_path / "cache", teacher="hog", clip=SPEC, latent_dim=16, batch_size=4, workers=2, device="cpu")


def files(cache: Path) -> dict[str, bytes]:
    return {str(path.relative_to(cache)): path.read_bytes() for path in sorted(cache.rglob("*")) if path.is_file()}


def test_rows_are_the_projected_tokens_of_the_listed_videos(request_: BuildRequest, tiny_ssv2: Path) -> None:
    result = build(request_)
    assert (result.clips, result.written, result.skipped, result.failed) == (12, 12, 0, ())
    store, teacher = LatentStore.open(request_.cache), open_teacher("hog", clip=SPEC)
    projection = store.projection()
    for row in (0, 7, 11):
        clip = read_clip(tiny_ssv2 / store.clips[row].video, SPEC).pixels
        wanted = projection(teacher.encode(clip.unsqueeze(0))).half().numpy()
        assert np.allclose(store.read([row]), wanted, atol=2e-3)
    latents = torch.from_numpy(store.read(range(12))).float()
    assert latents.square().mean().item() == pytest.approx(1, abs=0.05)
    assert latents.mean(dim=(0, 1)).abs().max() < 0.05


def test_the_header_says_who_made_it_and_from_what(request_: BuildRequest) -> None:
    build(request_)
    header = LatentStore.open(request_.cache).header
    assert (header.dataset, header.split, header.num_clips, header.latent_dim) == ("ssv2", "train", 12, 16)
    assert (header.teacher.name, header.teacher.clip) == ("hog", SPEC)
    assert header.projection["kind"] == "pca"
    assert len(header.teacher.weights_digest) == 64


def test_two_builds_are_the_same_bytes_whatever_the_workers(request_: BuildRequest, tmp_path: Path) -> None:
    build(request_)
    build(replace(request_, cache=tmp_path / "other", workers=1))
    assert files(request_.cache) == files(tmp_path / "other")


def test_a_build_goes_on_where_one_stopped_and_ends_the_same(request_: BuildRequest) -> None:
    small = replace(request_, rows_per_shard=5)
    build(small)
    whole = files(small.cache)
    (small.cache / "marks" / "1.json").unlink()
    (small.cache / "latents" / "c" / "2" / "0" / "0").unlink()
    (small.cache / "marks" / "2.json").unlink()
    again = build(small)
    assert (again.written, again.skipped) == (7, 5)
    assert files(small.cache) == whole


def test_broken_videos_are_listed_and_the_rest_is_built(request_: BuildRequest, tmp_path: Path) -> None:
    root = write_tiny_ssv2(tmp_path / "broken")
    folder = root / VIDEOS
    (folder / "2.webm").unlink()
    write_empty(folder / "4.webm")
    truncate(folder / "5.webm")
    write_text(folder / "7.webm")
    write_audio_only(folder / "8.webm")
    frames = torch.zeros(1, 3, 48, 64, dtype=torch.uint8)
    write_video(folder / "9.webm", frames)
    result = build(replace(request_, data_root=root))
    reasons = {failure.id: failure.error for failure in result.failed}
    assert reasons.keys() == {"2", "4", "5", "7", "8", "9"}
    assert "no such file" in reasons["2"]
    assert "empty" in reasons["4"]
    assert "cut short" in reasons["5"]
    assert "not a video" in reasons["7"]
    assert "no video stream" in reasons["8"]
    assert "single frame" in reasons["9"]
    assert result.written == 6
    found = verify(request_.cache, level="full")
    assert (found.ok, found.expected, found.present, found.failed) == (True, 12, 6, 6)
    assert len(build(replace(request_, data_root=root)).failed) == 6


def test_when_no_video_can_be_used_nothing_is_left_behind(request_: BuildRequest, tmp_path: Path) -> None:
    root = write_tiny_ssv2(tmp_path / "gone", train=3)
    shutil.rmtree(root / VIDEOS)
    with pytest.raises(CacheError, match=r"none of the 3 videos can be used: got there is no such file"):
        build(replace(request_, data_root=root))
    assert not request_.cache.exists()


def test_overwrite_replaces_a_cache_but_nothing_else(request_: BuildRequest, tmp_path: Path) -> None:
    build(replace(request_, limit=3))
    with pytest.raises(CacheError, match="num_clips differs"):
        build(request_)
    assert build(replace(request_, overwrite=True)).written == 12
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "zarr.json").write_text("{}")
    with pytest.raises(CacheError, match="no cache of stjepa"):
        build(replace(request_, cache=tmp_path / "mine", overwrite=True))
    assert (tmp_path / "mine" / "zarr.json").exists()


def test_another_teacher_is_refused_by_the_field_that_differs(request_: BuildRequest) -> None:
    build(request_)
    with pytest.raises(CacheError, match=r"teacher\.clip\.num_frames differs: got 4, expected 8"):
        build(replace(request_, clip=replace(SPEC, num_frames=8)))
    with pytest.raises(CacheError, match=r"projection\.kind differs: got pca, expected random"):
        build(replace(request_, projection="random"))


def test_the_forecast_is_what_a_build_then_takes(request_: BuildRequest) -> None:
    planned = forecast(request_)
    built = build(request_)
    assert (planned.clips, planned.bytes, planned.shards, planned.latents) == (built.clips, built.bytes, built.shards, built.latents)
    assert forecast(request_).skipped == 12


def test_a_disk_without_room_is_told_before_the_work(request_: BuildRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 100))
    with pytest.raises(StjepaError, match=r"has no room for the cache: got 0\.0 MB free"):
        build(request_)
    assert not request_.cache.exists()


def test_a_damaged_mark_is_reported_and_repair_makes_the_next_build_fill_the_shard(request_: BuildRequest) -> None:
    build(request_)
    whole = files(request_.cache)
    (request_.cache / "marks" / "0.json").write_text("{")
    found = verify(request_.cache)
    assert (found.ok, len(found.corrupt), found.present) == (False, 12, 0)
    assert not verify(request_.cache, repair=True).ok
    assert build(request_).written == 12
    assert files(request_.cache) == whole


def test_a_disk_that_fills_up_ends_in_one_sentence_and_the_next_build_goes_on(request_: BuildRequest, tiny_ssv2: Path) -> None:
    build(replace(request_, rows_per_shard=4))
    whole = files(request_.cache)
    for shard in (1, 2):
        (request_.cache / "marks" / f"{shard}.json").unlink()
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from pathlib import Path; from stjepa_cli.cache import BuildRequest, build; from stjepa_cli.nouns import ClipSpec\n"
        f"request = BuildRequest(Path({str(tiny_ssv2)!r}), Path({str(request_.cache)!r}), teacher='hog', clip={SPEC!r}, latent_dim=16,\n"
        "    batch_size=4, workers=1, device='cpu', rows_per_shard=4)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))\n"
        "build(request)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()})
    assert "StjepaError: cannot write" in done.stderr, done.stderr
    assert "larger than this disk" in done.stderr
    assert build(replace(request_, rows_per_shard=4)).written == 8
    assert files(request_.cache) == whole


def test_verify_counts_what_is_not_built_yet_as_missing(request_: BuildRequest) -> None:
    build(request_)
    (request_.cache / "marks" / "0.json").unlink()
    found = verify(request_.cache)
    assert (found.ok, found.missing, found.present, found.corrupt) == (False, 12, 0, ())
    with pytest.raises(ConfigError, match="expected quick or full"):
        verify(request_.cache, level="deep")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [("train.json", "[]", "is empty"), ("train.json", '[{"id": "1"', "not valid JSON"), ("train.json", '{"a": 1}', "another shape")],
)
def test_a_damaged_list_is_one_sentence(request_: BuildRequest, tmp_path: Path, name: str, text: str, message: str) -> None:
    root = write_tiny_ssv2(tmp_path / "lists", train=1, validation=1, test=1)
    (root / name).write_text(text)
    with pytest.raises(DatasetError, match=message):
        build(replace(request_, data_root=root))
