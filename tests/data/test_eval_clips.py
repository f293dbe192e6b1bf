"""The clips of a video that an evaluation scores."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stjepa_cli.core.errors import ConfigError
from stjepa_cli.core.types import ClipRef, ClipSpec, CropBox
from stjepa_cli.data.eval_clips import EvalClips, cut_eval_clips, parse_eval_clips
from stjepa_cli.data.video import Video, decode, read_clip, read_clips
from stjepa_cli.data.views import cut_view
from tests.media import frame_numbers, moving_square, write_video, write_xvid

SPEC = ClipSpec(num_frames=4, size_px=16, tubelet=2, patch_px=8)
DENSE = ClipSpec(num_frames=4, size_px=16, tubelet=2, patch_px=8, sampling="dense", stride=2)


def frames(spec: ClipSpec, temporal: int, num_frames: int) -> list[tuple[int, ...]]:
    return [found for found, _ in cut_eval_clips(spec, EvalClips(temporal), num_frames=num_frames, height=8, width=8)]


def crops(spatial: int, height: int, width: int) -> list[tuple[int, int, int]]:
    planned = cut_eval_clips(SPEC, EvalClips(1, spatial), num_frames=9, height=height, width=width)
    assert all(crop.height == crop.width for _, crop in planned)
    return [(crop.top, crop.left, crop.height) for _, crop in planned]


def test_plans_are_read_with_and_without_frames() -> None:
    assert parse_eval_clips("16x5x3") == EvalClips(5, 3, 16)
    assert parse_eval_clips(" 2X3 ") == EvalClips(2, 3)
    assert (parse_eval_clips("16x5x3").num_clips, str(parse_eval_clips("16x5x3")), str(EvalClips())) == (15, "16x5x3", "1x1")


@pytest.mark.parametrize("text", ["", "5", "16x5x3x1", "ax1", "0x1", "1x0", "-1x1", "999999999x1", "1x1001", "9" * 5000 + "x1"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"clip.*expected .*16x5x3"):
        parse_eval_clips(text)


def test_an_encoder_takes_its_own_frames_only() -> None:
    assert EvalClips(5, 3).fit(SPEC) == EvalClips(5, 3, 4) == EvalClips(5, 3, 4).fit(SPEC)
    with pytest.raises(ConfigError, match=r"another length: got 16, expected 4. Type `--clips 5x3`"):
        EvalClips(5, 3, 16).fit(SPEC)


@pytest.mark.parametrize("spec", [SPEC, DENSE])
@pytest.mark.parametrize("num_frames", [1, 3, 9, 50])
def test_one_clip_is_the_centre_view(spec: ClipSpec, num_frames: int) -> None:
    for height, width in ((48, 64), (65, 48), (48, 48)):
        (only,) = cut_eval_clips(spec, EvalClips(), num_frames=num_frames, height=height, width=width)
        assert only == cut_view(spec, num_frames=num_frames, height=height, width=width, clip_id="", view=0, seed=0)


def test_uniform_clips_all_span_the_video_and_share_no_frame() -> None:
    assert frames(SPEC, 2, 16) == [(1, 5, 9, 13), (3, 7, 11, 15)]
    assert sorted(i for clip in frames(SPEC, 4, 16) for i in clip) == list(range(16))


def test_dense_clips_go_from_the_start_to_the_end() -> None:
    assert frames(DENSE, 3, 21) == [(0, 2, 4, 6), (7, 9, 11, 13), (14, 16, 18, 20)]


def test_short_videos_repeat_frames_and_stay_inside() -> None:
    for spec in (SPEC, DENSE):
        for num_frames in range(1, 30):
            for clip in frames(spec, 5, num_frames):
                assert len(clip) == 4
                assert list(clip) == sorted(clip)
                assert 0 <= clip[0] <= clip[-1] < num_frames


def test_crops_lie_along_the_long_side() -> None:
    assert crops(3, 48, 65) == [(0, 0, 48), (0, 8, 48), (0, 17, 48)]
    assert crops(3, 65, 48) == [(0, 0, 48), (8, 0, 48), (17, 0, 48)]
    assert crops(1, 48, 65) == [(0, 8, 48)]
    assert crops(3, 48, 48) == [(0, 0, 48)] * 3


def test_clips_are_ordered_by_moment_and_then_by_place() -> None:
    planned = cut_eval_clips(SPEC, EvalClips(2, 3), num_frames=16, height=4, width=8)
    assert [(found[0], crop.left) for found, crop in planned] == [(1, 0), (1, 2), (1, 4), (3, 0), (3, 2), (3, 4)]
    assert planned[0][1] == CropBox(0, 0, 4, 4)


@pytest.mark.parametrize("spec", [SPEC, DENSE])
def test_clips_read_at_one_opening_are_those_read_one_by_one(tmp_path: Path, spec: ClipSpec) -> None:
    path = write_video(tmp_path / "v.mp4", moving_square(num_frames=30))
    found = read_clips(path, spec, EvalClips(3, 3))
    planned = cut_eval_clips(spec, EvalClips(3, 3), num_frames=30, height=48, width=64)
    alone = torch.stack([decode(ClipRef(path, *part, spec.size_px)) for part in planned])
    assert torch.equal(found, alone)
    assert torch.equal(read_clips(path, spec, EvalClips())[0], read_clip(path, spec).pixels)


def test_the_frames_are_the_planned_ones_in_files_without_time_stamps_too(tmp_path: Path) -> None:
    spec = ClipSpec(num_frames=4, size_px=48, tubelet=2, patch_px=8)
    path = write_xvid(tmp_path / "v.avi", moving_square(num_frames=30))
    with Video(path) as video:
        planned = frames(spec, 2, video.num_frames)
    assert [frame_numbers(clip) for clip in read_clips(path, spec, EvalClips(2, 1))] == [list(found) for found in planned]


def test_a_plan_can_ask_for_another_sampling_than_the_encoders() -> None:
    dense = EvalClips(3, sampling="dense", stride=2)
    assert dense.fit(SPEC).cut(SPEC) == DENSE
    assert EvalClips().cut(DENSE) == DENSE
    planned = cut_eval_clips(SPEC, dense, num_frames=16, height=8, width=8)
    assert planned == cut_eval_clips(DENSE, EvalClips(3), num_frames=16, height=8, width=8)
    with pytest.raises(ConfigError, match="unknown sampling: got 'sparse'"):
        EvalClips(sampling="sparse").cut(SPEC)
