"""A dry run: true sizes, a measured rate, nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from stjepa_cli.cache.build import BuildRequest, build
from stjepa_cli.cache.dry_run import dry_run
from stjepa_cli.cache.request import TeacherChoice
from stjepa_cli.core.errors import CacheError
from stjepa_cli.core.types import ClipSpec
from tests.media import write_empty, write_tiny_ssv2

SPEC = ClipSpec(num_frames=4, size_px=32, tubelet=2, patch_px=16)


@pytest.fixture
def request_(tiny_ssv2: Path, tmp_path: Path) -> BuildRequest:
    return BuildRequest.of(tiny_ssv2, tmp_path / "cache", teacher="hog", clip=SPEC, latent_dim=16, views=2)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_the_size_is_what_a_build_then_takes(request_: BuildRequest, dtype: str) -> None:
    request_ = request_.replace(dtype=dtype)
    planned = dry_run(request_, sample=4)
    assert not Path(str(request_.cache)).exists()
    built = build(request_)
    assert (planned.clips, planned.rows, planned.bytes, planned.shards) == (12, 24, built.bytes, built.shards)
    assert (planned.latents, planned.written, planned.skipped) == (built.latents, 0, 0)
    assert dry_run(request_, sample=0).skipped == 24


def test_frames_are_counted_by_those_of_the_sample(request_: BuildRequest) -> None:
    request_ = request_.replace(frames=True)
    planned = dry_run(request_, sample=12)
    assert planned.bytes == pytest.approx(build(request_).bytes, rel=0.1)


def test_the_rate_is_measured_and_the_time_follows_from_it(request_: BuildRequest) -> None:
    found = dry_run(request_, sample=6)
    assert (found.sampled, found.sample_failed, found.measured) == (6, 0, "decoding and teacher")
    assert found.clips_per_second is not None
    assert found.seconds == pytest.approx(24 / found.clips_per_second, abs=0.06)
    nothing = dry_run(request_, sample=0)
    assert (nothing.sampled, nothing.clips_per_second, nothing.seconds) == (0, None, None)


def test_a_teacher_that_is_not_at_hand_leaves_the_time_of_decoding(request_: BuildRequest) -> None:
    found = dry_run(request_.replace(teacher=TeacherChoice("MCG-NJU/videomae-huge-finetuned-kinetics"), limit=2, latent_dim=384), sample=2)
    assert found.measured == "decoding only: the teacher is not at hand"
    assert (found.latents, found.clips_per_second is not None) == ((1568, 384), True)


def test_videos_that_fail_are_counted(request_: BuildRequest, tmp_path: Path) -> None:
    root = write_tiny_ssv2(tmp_path / "ssv2", train=4, validation=1, test=1)
    write_empty(root / "20bn-something-something-v2" / "2.webm")
    assert dry_run(request_.replace(data_root=root), sample=4).sample_failed == 1


def test_another_cache_in_its_place_is_told(request_: BuildRequest) -> None:
    build(request_.replace(limit=3))
    with pytest.raises(CacheError, match="its number of rows differs: got 6, expected 24"):
        dry_run(request_, sample=0)
    assert dry_run(request_.replace(overwrite=True), sample=0).skipped == 0
