"""Building and verifying: real videos, the real teacher `hog`, broken files among good ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from stjepa_cli.cache.build import BuildRequest, BuildResult
from stjepa_cli.cache.build import build as build_cache
from stjepa_cli.cache.request import Part, TeacherChoice
from stjepa_cli.cache.verify import Recompute, verify
from stjepa_cli.commands.progress import PlainProgress
from stjepa_cli.core.errors import CacheError, DatasetError, StjepaError, TeacherError
from stjepa_cli.core.locations import Location, is_local
from stjepa_cli.core.progress import SILENT, Progress, Task
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.data.loader import ClipFeed, Request
from stjepa_cli.data.training_clips import CachedClips
from stjepa_cli.data.video import decode, read_clip
from stjepa_cli.store.latent_store import LatentStore
from stjepa_cli.store.shard_format import checksum
from stjepa_cli.teachers.base import open_teacher
from tests.labelled import write_tiny_kinetics
from tests.media import truncate, upload, write_audio_only, write_empty, write_text, write_tiny_ssv2, write_video
from tests.permissions import ordinary_user

SPEC = ClipSpec(num_frames=4, size_px=32, tubelet=2, patch_px=16)
VIDEOS = "20bn-something-something-v2"


@pytest.fixture
def request_(tiny_ssv2: Path, tmp_path: Path) -> BuildRequest:
    return BuildRequest.of(tiny_ssv2, tmp_path / "cache", teacher="hog", clip=SPEC, latent_dim=16)


def build(request: BuildRequest, progress: Progress = SILENT, *, workers: int = 2, batch_size: int = 4) -> BuildResult:
    """Build on two threads, four clips at a time."""
    return build_cache(request, Runtime("cpu", workers, batch_size, progress))


def files(cache: Location) -> dict[str, bytes]:
    assert is_local(cache)
    return {str(path.relative_to(cache)): path.read_bytes() for path in sorted(cache.rglob("*")) if path.is_file()}


class Interrupting:
    """A listener that presses Ctrl-C when so many rows are safe."""

    def __init__(self, after: int) -> None:
        self.after, self.notes = after, list[str]()

    def task(self, name: str, *, total: int | None, unit: str = "clips", completed: int = 0) -> AbstractContextManager[Task]:
        return nullcontext(self) if name == "cache" else SILENT.task(name, total=total, unit=unit)

    def advance(self, count: int = 1, **_: float) -> None:
        self.after -= count
        if self.after <= 0:
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        self.notes.append(text)


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
    build(request_.replace(cache=tmp_path / "other"), workers=1)
    assert files(request_.cache) == files(tmp_path / "other")


def test_a_resumed_build_counts_what_is_stored_already(request_: BuildRequest) -> None:
    small, lines = request_.replace(rows_per_shard=5), list[str]()
    build(small)
    (small.cache / "marks" / "1.json").unlink()
    (small.cache / "latents" / "c" / "1" / "0" / "0").unlink()
    build(small, PlainProgress(lines.append, 0.0))
    counted = [line for line in lines if line.startswith("cache: ")]
    assert int(counted[0].removeprefix("cache: ").split("/")[0]) > 7  # of five that are made again
    assert counted[-1].startswith("cache: 12/12 clips in ")


def test_a_build_goes_on_where_one_stopped_and_ends_the_same(request_: BuildRequest) -> None:
    small = request_.replace(rows_per_shard=5)
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
    result = build(request_.replace(data_root=root))
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
    assert len(build(request_.replace(data_root=root)).failed) == 6


def test_when_no_video_can_be_used_nothing_is_left_behind(request_: BuildRequest, tmp_path: Path) -> None:
    root = write_tiny_ssv2(tmp_path / "gone", train=3)
    shutil.rmtree(root / VIDEOS)
    with pytest.raises(CacheError, match=r"none of the 3 videos can be used: got there is no such file"):
        build(request_.replace(data_root=root))
    assert not request_.cache.exists()


def test_overwrite_replaces_a_cache_but_nothing_else(request_: BuildRequest, tmp_path: Path) -> None:
    build(request_.replace(limit=3))
    with pytest.raises(CacheError, match="num_clips differs"):
        build(request_)
    assert build(request_.replace(overwrite=True)).written == 12
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "zarr.json").write_text("{}")
    with pytest.raises(CacheError, match="is not a cache of stjepa"):
        build(request_.replace(cache=tmp_path / "mine", overwrite=True))
    assert (tmp_path / "mine" / "zarr.json").exists()


@pytest.mark.parametrize(
    ("options", "device", "message"),
    [
        ({"teacher": TeacherChoice("hgo")}, "cpu", "hgo"),
        ({}, "cuda:99", "no such GPU|stjepa runs on"),
        ({"projection": "identity", "latent_dim": 7}, "cpu", "the identity keeps the width"),
        ({"split": "trian"}, "cpu", "unknown split"),
        ({"engine": "spark"}, "cpu", "unknown engine"),
    ],
)
def test_an_overwrite_that_is_refused_leaves_the_old_cache_alone(
    request_: BuildRequest, options: dict[str, Any], device: str, message: str
) -> None:
    build(request_)
    before = files(request_.cache)
    with pytest.raises(StjepaError, match=message):
        build_cache(request_.replace(overwrite=True, **options), Runtime(device))
    assert files(request_.cache) == before
    assert [path.name for path in Path(str(request_.cache)).parent.iterdir()] == ["cache"]


def test_an_overwrite_in_parts_swaps_when_the_last_one_is_done(request_: BuildRequest, tmp_path: Path) -> None:
    small = request_.replace(rows_per_shard=5)
    build(small.replace(view_seed=1))
    before = files(small.cache)
    for part in (1, 3):
        assert build(small.replace(overwrite=True, part=Part(part, 3))).missing > 0
        assert files(small.cache) == before
    assert build(small.replace(overwrite=True, part=Part(2, 3))).cache == str(small.cache)
    build(small.replace(cache=tmp_path / "peer"))
    assert files(small.cache) == files(tmp_path / "peer")
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "peer"}


def test_an_overwrite_that_is_stopped_keeps_the_old_cache_and_resumes(request_: BuildRequest) -> None:
    build(request_)
    before, again = files(request_.cache), request_.replace(overwrite=True, rows_per_shard=4)
    with pytest.raises(KeyboardInterrupt):
        build(again, Interrupting(after=4))
    assert files(request_.cache) == before
    assert build(again).written <= 8
    assert LatentStore.open(request_.cache).header.rows_per_shard == 4


def test_an_overwrite_that_is_killed_between_the_two_renames_is_completed_by_the_same_command(
    request_: BuildRequest, tmp_path: Path
) -> None:
    build(request_.replace(limit=3))
    build(request_.replace(cache=tmp_path / "cache.overwrite"))
    whole = files(tmp_path / "cache.overwrite")
    (tmp_path / "cache").rename(tmp_path / ".cache.replaced.abc")
    assert build(request_.replace(overwrite=True)).written == 0
    assert files(request_.cache) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_an_overwrite_follows_a_symbolic_link_and_leaves_it(request_: BuildRequest, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    build(request_.replace(cache=tmp_path / "disk" / "real", limit=3))
    (tmp_path / "cache").symlink_to(tmp_path / "disk" / "real")
    assert build(request_.replace(overwrite=True)).written == 12
    assert (tmp_path / "cache").is_symlink()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["real"]


@pytest.mark.parametrize("name", ["notes.txt", "latents/thesis.tex", "projection/mine", ".git/config", "work/0/photo.jpg"])
def test_an_overwrite_refuses_a_folder_with_files_of_the_user(request_: BuildRequest, tmp_path: Path, name: str) -> None:
    build(request_)
    (tmp_path / "cache" / name).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / "cache" / name).write_text("mine")
    before = files(request_.cache)
    with pytest.raises(CacheError, match=f"holds files that are no part of it: got {name}. Move them elsewhere first"):
        build(request_.replace(overwrite=True))
    assert files(request_.cache) == before


def test_an_overwrite_replaces_a_cache_whose_header_is_damaged(request_: BuildRequest, tmp_path: Path) -> None:
    build(request_)
    (tmp_path / "cache" / "zarr.json").write_text("[]")
    with pytest.raises(CacheError, match="--overwrite"):
        build(request_)
    assert build(request_.replace(overwrite=True)).written == 12
    assert verify(request_.cache, level="full").ok


def test_an_overwrite_of_a_mount_point_is_refused(request_: BuildRequest, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path / "cache")], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting needs root")
    try:
        build(request_)
        with pytest.raises(CacheError, match="is a mount point, so the cache in it cannot be replaced as a whole"):
            build(request_.replace(overwrite=True))
        assert verify(request_.cache, level="full").ok
    finally:
        subprocess.run(["umount", "-l", str(tmp_path / "cache")], check=True)


def test_what_cannot_be_removed_of_the_old_cache_is_named_and_the_new_one_is_in_place(request_: BuildRequest, tmp_path: Path) -> None:
    build(request_.replace(limit=3))
    listener, locked = Interrupting(after=100), tmp_path / "cache" / "latents" / "c" / "0" / "0"
    locked.chmod(0o500)
    with ordinary_user():
        assert build(request_.replace(overwrite=True), listener).written == 12
    assert "could not be removed entirely (Permission denied)" in listener.notes[-1]
    assert verify(request_.cache, level="full").ok
    for left in tmp_path.glob(".cache.replaced.*/latents/c/0/0"):
        left.chmod(0o700)


def test_another_teacher_is_refused_by_the_field_that_differs(request_: BuildRequest) -> None:
    build(request_)
    with pytest.raises(CacheError, match=r"teacher\.clip\.num_frames differs: got 4, expected 8"):
        build(request_.replace(clip=replace(SPEC, num_frames=8)))
    with pytest.raises(CacheError, match=r"projection\.kind differs: got pca, expected random"):
        build(request_.replace(projection="random"))


def test_a_disk_without_room_is_told_before_the_work(request_: BuildRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(StjepaError, match=r"has no room for the cache: got 0\.0 MB free"):
        build(request_)
    assert not request_.cache.exists()


def test_a_disk_that_fills_up_ends_in_one_sentence_and_the_next_build_goes_on(request_: BuildRequest, tiny_ssv2: Path) -> None:
    build(request_.replace(rows_per_shard=4))
    whole = files(request_.cache)
    for shard in (1, 2):
        (request_.cache / "marks" / f"{shard}.json").unlink()
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from pathlib import Path; from stjepa_cli.cache.build import BuildRequest, build\n"
        "from stjepa_cli.core.runtime import Runtime; from stjepa_cli.core.types import ClipSpec\n"
        f"request = BuildRequest.of(Path({str(tiny_ssv2)!r}), Path({str(request_.cache)!r}), teacher='hog', clip={SPEC!r}, latent_dim=16,\n"
        "    rows_per_shard=4)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))\n"
        "build(request, Runtime('cpu', workers=1, batch_size=4))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()})
    assert "StjepaError: cannot write" in done.stderr, done.stderr
    assert "larger than this disk" in done.stderr
    assert build(request_.replace(rows_per_shard=4)).written == 8
    assert files(request_.cache) == whole


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [("train.json", "[]", "is empty"), ("train.json", '[{"id": "1"', "not valid JSON"), ("train.json", '{"a": 1}', "another shape")],
)
def test_a_damaged_list_is_one_sentence(request_: BuildRequest, tmp_path: Path, name: str, text: str, message: str) -> None:
    root = write_tiny_ssv2(tmp_path / "lists", train=1, validation=1, test=1)
    (root / name).write_text(text)
    with pytest.raises(DatasetError, match=message):
        build(request_.replace(data_root=root))


def test_a_finished_cache_is_left_at_once_without_teacher_or_videos(request_: BuildRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    build(request_)
    before = files(request_.cache)
    for name in (
        "stjepa_cli.cache.engines.base.open_teacher",
        "stjepa_cli.cache.shard_builder.read_clip",
        "stjepa_cli.cache.fit.read_clip",
    ):
        monkeypatch.setattr(name, None)
    again = build(request_)
    assert (again.written, again.skipped, again.missing) == (0, 12, 0)
    assert files(request_.cache) == before
    with pytest.raises(CacheError, match="num_clips differs"):
        build(request_.replace(limit=3))


def test_parts_together_are_the_whole(request_: BuildRequest, tmp_path: Path) -> None:
    small = request_.replace(rows_per_shard=2)
    build(small.replace(cache=tmp_path / "whole"))
    first = build(small.replace(part=Part(1, 4)))
    assert (first.written, first.skipped, first.missing) == (2, 0, 10)
    assert verify(small.cache, parts=4).gaps[0].part == "2/4"
    for i in (3, 2, 4):
        build(small.replace(part=Part(i, 4)))
    assert files(small.cache) == files(tmp_path / "whole")
    assert build(small.replace(part=Part(3, 4))).written == 0


def test_each_view_is_decoded_again_to_the_pixels_that_the_teacher_saw(request_: BuildRequest, tiny_ssv2: Path) -> None:
    result = build(request_.replace(views=3, view_seed=7, rows_per_shard=5))
    assert (result.clips, result.views, result.written) == (12, 3, 36)
    store, teacher = LatentStore.open(request_.cache), open_teacher("hog", clip=SPEC)
    boxes = set()
    for row in (0, 1, 2, 17, 35):
        pixels = decode(store.ref(row, tiny_ssv2))
        assert checksum(pixels.numpy()) == store.record(row).pixels_crc
        latents = store.projection()(teacher.encode(pixels.unsqueeze(0))).half().numpy()
        assert np.allclose(store.read([row]), latents, atol=2e-3)
        boxes.add((store.record(row).crop, store.record(row).frame_indices))
    assert len(boxes) == 5
    centre = read_clip(tiny_ssv2 / store.clip_of(3)[0].video, SPEC)
    assert torch.equal(decode(store.ref(3, tiny_ssv2)), centre.pixels)


def test_the_loader_refuses_a_view_whose_pixels_have_changed(request_: BuildRequest, tmp_path: Path) -> None:
    root = write_tiny_ssv2(tmp_path / "changing", train=3)
    request_ = request_.replace(data_root=root, views=2)
    build(request_)
    shutil.copy(root / VIDEOS / "2.webm", root / VIDEOS / "1.webm")
    feed = ClipFeed(CachedClips(LatentStore.open(request_.cache), root), num_workers=1, memory_bytes=0)
    with pytest.raises(CacheError, match=r"clip 1 view 1 no longer has the pixels that the teacher saw"):
        next(feed.batches([Request([1], 0, 1)]))


def test_kept_frames_train_without_videos_and_without_torchcodec(request_: BuildRequest, tmp_path: Path) -> None:
    root = write_tiny_ssv2(tmp_path / "away", train=6)
    build(request_.replace(data_root=root, frames=True))
    store = LatentStore.open(request_.cache)
    pixels = store.read_frames(range(6)).float()
    wanted = torch.stack([decode(store.ref(row, root)) for row in range(6)]).float()
    assert 10 * torch.log10(255**2 / (pixels - wanted).square().mean()) > 30
    shutil.rmtree(root)
    code = (
        "import sys; sys.modules['torchcodec'] = None\n"
        "from pathlib import Path; from stjepa_cli.core.config import *; from stjepa_cli.training.pretrain import pretrain\n"
        f"run = RunConfig(Path('nowhere'), Path({str(request_.cache)!r}), Path({str(tmp_path / 'run')!r}), epochs=2, batch_size=3,\n"
        "    device='cpu', student=StudentConfig(32, 1, 1, 2), predictor=PredictorConfig(24, 1, 2))\n"
        "print(pretrain(run).steps)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()})
    assert done.stdout.strip() == "4", done.stderr


def test_int8_is_half_the_size_and_nearly_the_same(request_: BuildRequest, tmp_path: Path) -> None:
    whole = build(request_.replace(cache=tmp_path / "float16"))
    half = build(request_.replace(dtype="int8"))
    assert half.cosine is not None
    assert half.cosine > 0.9998
    assert half.bytes < whole.bytes
    a, b = (LatentStore.open(path).read(range(12)).astype(np.float32) for path in (request_.cache, tmp_path / "float16"))
    assert np.abs(a - b).max() < 0.02
    assert whole.cosine is None


def test_failed_clips_are_tried_again_when_asked_and_the_others_stay(request_: BuildRequest, tmp_path: Path) -> None:
    root = write_tiny_ssv2(tmp_path / "mended")
    kept = (root / VIDEOS / "2.webm").read_bytes(), (root / VIDEOS / "9.webm").read_bytes()
    write_empty(root / VIDEOS / "2.webm")
    write_empty(root / VIDEOS / "9.webm")
    broken = request_.replace(data_root=root, rows_per_shard=4, frames=True)
    assert [failure.id for failure in build(broken).failed] == ["2", "9"]
    lines = (tmp_path / "cache" / "failures.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["2", "9"]
    before = LatentStore.open(broken.cache).read([0, 2, 3, 4, 5])
    (root / VIDEOS / "2.webm").write_bytes(kept[0])
    assert build(broken).written == 0  # a plain build leaves them
    again = build(broken.replace(retry_failed=True))
    assert (again.written, [failure.id for failure in again.failed]) == (1, ["9"])
    assert np.array_equal(LatentStore.open(broken.cache).read([0, 2, 3, 4, 5]), before)
    (root / VIDEOS / "9.webm").write_bytes(kept[1])
    assert build(broken.replace(retry_failed=True)).failed == ()
    assert not (tmp_path / "cache" / "failures.jsonl").exists()
    assert verify(broken.cache, level="full").ok
    assert LatentStore.open(broken.cache).usable_rows() == list(range(12))


def test_ctrl_c_keeps_what_is_safe_and_the_same_build_goes_on_to_the_same_bytes(request_: BuildRequest, tmp_path: Path) -> None:
    small = request_.replace(rows_per_shard=8)
    build(small.replace(cache=tmp_path / "whole"), batch_size=2)
    listener = Interrupting(after=4)
    with pytest.raises(KeyboardInterrupt):
        build(small, listener, batch_size=2)
    assert "rows of these shards are safe" in listener.notes[-1]
    assert 1 in LatentStore.open(small.cache).pending()
    again = build(small, batch_size=2)
    assert again.written <= 8
    assert (again.written + again.skipped, again.missing) == (12, 0)
    assert files(small.cache) == files(tmp_path / "whole")


def test_a_cache_and_its_videos_may_lie_elsewhere(request_: BuildRequest, tiny_ssv2: Path, bucket: Location, tmp_path: Path) -> None:
    build(request_)
    upload(tiny_ssv2, bucket / "ssv2")
    remote = request_.replace(data_root=bucket / "ssv2", cache=bucket / "cache", rows_per_shard=5)
    assert build(remote).written == 12
    here, there = LatentStore.open(request_.cache), LatentStore.open(remote.cache)
    assert np.array_equal(here.read(range(12)), there.read(range(12)))
    assert verify(remote.cache, level="full").ok
    assert build(remote).written == 0
    there.manifests.discard(1)
    assert verify(remote.cache).missing == 5
    assert build(remote).written == 5
    assert np.array_equal(here.read(range(12)), LatentStore.open(remote.cache).read(range(12)))
    assert build(remote.replace(overwrite=True)).written == 12


def test_absolute_paths_in_a_list_are_cached_and_decoded_again(request_: BuildRequest, tmp_path: Path) -> None:
    root = write_tiny_kinetics(tmp_path / "kinetics")
    lines = (root / "train.csv").read_text().splitlines()
    shutil.move(root / "videos", tmp_path / "elsewhere")
    moved = [line.replace("videos/", f"{tmp_path}/elsewhere/") if i % 2 else line for i, line in enumerate(lines)]
    (root / "train.csv").write_text("\n".join(moved) + "\n")
    shutil.copytree(tmp_path / "elsewhere", root / "videos")
    result = build(request_.replace(data_root=root, dataset="kinetics"))
    assert (result.failed, result.written) == ((), 6)
    store = LatentStore.open(request_.cache)
    assert sorted({clip.video.startswith("/") for clip in store.clips}) == [False, True]
    for row in range(6):
        assert checksum(decode(store.ref(row, root)).numpy()) == store.record(row).pixels_crc
    assert verify(request_.cache, level="recompute", recompute=Recompute(root), runtime=Runtime("cpu")).ok


def test_layers_of_a_teacher_stand_side_by_side(request_: BuildRequest, tmp_path: Path) -> None:
    teacher = str(files_of_the_demo())
    two = request_.replace(teacher=TeacherChoice(teacher, layers=(1, -1)), latent_dim=24, limit=4)
    build(two)
    header = LatentStore.open(two.cache).header
    depth = open_teacher(teacher).num_layers
    assert header.teacher.layers == (1, depth)
    assert (header.teacher.dim, header.teacher.token_norm) == (2 * open_teacher(teacher).card.dim, "none")
    assert verify(two.cache, level="recompute", recompute=Recompute(two.source.data_root), runtime=Runtime("cpu")).ok
    assert build(two).written == 0
    with pytest.raises(CacheError, match=r"teacher\.layers differs: got \(1, \d+\), expected none"):
        build(two.replace(teacher=TeacherChoice(teacher)))
    with pytest.raises(TeacherError, match=r"has no such layer: got 99, expected 1 to"):
        build(two.replace(teacher=TeacherChoice(teacher, layers=(1, 99)), cache=tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def files_of_the_demo() -> Path:
    """The small VideoMAE that the package ships."""
    return Path(str(resources.files("stjepa_cli") / "demo" / "assets" / "tiny_videomae_motion"))
