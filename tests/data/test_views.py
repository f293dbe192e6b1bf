"""View 0 is the centre clip; every other view is random, inside the video, and the same on every machine."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from stjepa_cli.core.types import ClipSpec, CropBox
from stjepa_cli.data.video import decode, read_clip
from stjepa_cli.data.views import cut_view
from tests import media

UNIFORM = ClipSpec()
DENSE = ClipSpec(sampling="dense", stride=2)


Plan = tuple[tuple[int, ...], CropBox]

PINNED_UNIFORM: Plan = ((0, 3, 6, 9, 11, 14, 17, 20, 23, 25, 28, 31, 34, 37, 40, 42), CropBox(top=2, left=188, height=170, width=170))
PINNED_DENSE: Plan = (tuple(range(0, 32, 2)), CropBox(top=7, left=43, height=231, width=231))


def plan(
    view: int, *, spec: ClipSpec = UNIFORM, frames: int = 45, size: tuple[int, int] = (240, 427), clip: str = "7", seed: int = 0
) -> Plan:
    return cut_view(spec, num_frames=frames, height=size[0], width=size[1], clip_id=clip, view=view, seed=seed)


def sizes(count: int) -> list[tuple[int, int, int]]:
    """Numbers of frames, heights and widths of videos, tiny ones first."""
    draw = random.Random(0)
    small = [(frames, height, width) for frames in (1, 2, 15, 16, 17) for height, width in ((1, 1), (1, 9), (2, 3))]
    return small + [(draw.randint(1, 300), draw.randint(1, 600), draw.randint(1, 600)) for _ in range(count)]


# ---------------------------------------------------------------------------------------------------------- view 0


@pytest.mark.parametrize("spec", [UNIFORM, DENSE])
def test_view_0_is_the_centre_clip(spec: ClipSpec) -> None:
    for frames, height, width in sizes(50):
        indices, crop = plan(0, spec=spec, frames=frames, size=(height, width), seed=frames)
        side = min(height, width)
        assert indices == spec.frame_indices(frames)
        assert crop == CropBox((height - side) // 2, (width - side) // 2, side, side)


# ----------------------------------------------------------------------------------------------------- random views


def test_pinned_views_never_change() -> None:
    # a cache that stores views holds their digests: whoever changes these numbers makes every such cache unreadable
    assert plan(1) == PINNED_UNIFORM
    assert plan(2, spec=DENSE, clip="v_Übung_g01", seed=5) == PINNED_DENSE


@pytest.mark.parametrize("spec", [UNIFORM, DENSE])
def test_every_view_lies_inside_the_video(spec: ClipSpec) -> None:
    for frames, height, width in sizes(200):
        for view in (1, 2, 3):
            indices, crop = plan(view, spec=spec, frames=frames, size=(height, width))
            assert len(indices) == spec.num_frames
            assert list(indices) == sorted(indices)
            assert indices[0] >= 0
            assert indices[-1] < frames
            assert crop.height == crop.width
            assert 0.66 * min(height, width) <= crop.height <= min(height, width)
            assert crop.top >= 0
            assert crop.left >= 0
            assert crop.top + crop.height <= height
            assert crop.left + crop.width <= width


def test_a_view_is_a_function_of_seed_clip_and_number() -> None:
    assert plan(3, clip="a", seed=1) == plan(3, clip="a", seed=1)
    plans = {plan(view, clip=clip, seed=seed) for view in (1, 2, 3) for clip in ("a", "b", "1 a") for seed in (0, 1, 2)}
    assert len(plans) == 27


def test_uniform_frames_keep_an_even_spacing() -> None:
    for view in range(1, 100):
        indices, _ = plan(view, frames=45)
        assert {later - earlier for earlier, later in pairwise(indices)} <= {2, 3}
        assert all(i * 45 // 16 <= index <= (i + 1) * 45 // 16 for i, index in enumerate(indices))  # one of each segment


def test_dense_frames_keep_their_stride_and_short_videos_are_taken_whole() -> None:
    for view in range(1, 100):
        indices, _ = plan(view, spec=DENSE, frames=45)
        assert indices == tuple(range(indices[0], indices[0] + 32, 2))
    assert {plan(view, spec=DENSE, frames=31)[0] for view in range(9)} == {tuple(range(0, 31, 2))}
    assert plan(1, spec=DENSE, frames=30)[0] == DENSE.frame_indices(30) == replace(DENSE, sampling="uniform").frame_indices(30)


def test_places_are_roughly_even() -> None:
    views = [plan(view) for view in range(1, 3001)]
    sides = torch.tensor([crop.height for _, crop in views])
    assert sides.min() == 159
    assert sides.max() == 240
    assert abs(sides.double().mean() - 199.5) < 2  # 3 standard errors are 1.3
    down = torch.tensor([crop.top / (240 - crop.height) for _, crop in views if crop.height < 200])
    right = torch.tensor([crop.left / (427 - crop.width) for _, crop in views])
    starts = torch.tensor([float(plan(view, spec=DENSE)[0][0]) / 14 for view in range(1, 3001)])
    for share in (down, right, starts):
        counts = torch.histc(share, bins=5, min=0, max=1)
        assert (counts / counts.sum() - 0.2).abs().max() < 0.05
    assert torch.corrcoef(torch.stack([sides[: len(right)].float(), right]))[0, 1].abs() < 0.06


def test_what_is_no_view_is_refused() -> None:
    for view, frames, size in ((-1, 45, (240, 427)), (1, 0, (240, 427)), (1, 45, (0, 427))):
        with pytest.raises(ValueError, match="no view"):
            plan(view, frames=frames, size=size)


# ---------------------------------------------------------------------------------------------------- views of files


def test_a_view_of_a_file_is_cut_as_planned_and_decodes_again(tmp_path: Path) -> None:
    spec = ClipSpec(num_frames=8, size_px=32, tubelet=2, patch_px=8)
    path = media.write_video(tmp_path / "video.webm", media.moving_square(num_frames=40))
    clips = [read_clip(path, spec, clip_id="7", view=view, seed=3) for view in range(4)]
    for view, clip in enumerate(clips):
        expected = cut_view(spec, num_frames=40, height=media.HEIGHT, width=media.WIDTH, clip_id="7", view=view, seed=3)
        assert (clip.ref.frame_indices, clip.ref.crop) == expected
        assert torch.equal(decode(clip.ref), clip.pixels)
    assert len({clip.pixels.numpy().tobytes() for clip in clips}) == 4
    assert torch.equal(clips[0].pixels, read_clip(path, spec).pixels)
