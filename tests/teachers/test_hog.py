"""The built-in teacher: its histograms, and that motion is in them."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from stjepa_cli.core.errors import TeacherError
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.teachers.base import open_teacher, survey
from stjepa_cli.teachers.hog import NUM_FLOW_BINS, NUM_STATIC_BINS, Hog
from tests.teachers.contract import noise_clips

SMALL = ClipSpec(num_frames=8, size_px=32, tubelet=2, patch_px=8)


def _hog(clip: ClipSpec = SMALL) -> Hog:
    teacher = open_teacher("hog", clip=clip)
    assert isinstance(teacher, Hog)
    return teacher


def test_it_has_one_layer() -> None:
    for ask in (open_teacher, survey):
        with pytest.raises(TeacherError, match=r"^hog has no such layer: got 2, expected 1 or -1, its only layer$"):
            ask("hog", layers=[1, 2])


def _waves(dx: float, dy: float, *, spec: ClipSpec = SMALL, offset: int = 0) -> Tensor:
    """A smooth plaid that moves by (dx, dy) pixels a frame: uint8 (1, T, 3, S, S)."""
    t = torch.arange(spec.num_frames)[:, None, None]
    y, x = torch.meshgrid(torch.arange(spec.size_px), torch.arange(spec.size_px), indexing="ij")
    values = 100 + 40 * torch.sin((x - dx * t) * 2 * math.pi / 16) + 40 * torch.sin((y - dy * t) * 2 * math.pi / 16)
    return (values.round() + offset).to(torch.uint8)[None, :, None].expand(-1, -1, 3, -1, -1).contiguous()


def _flow(teacher: Hog, clips: Tensor) -> Tensor:
    """Flow histograms of the finest scale, (tokens and cells, 8)."""
    return (
        teacher.encode(clips)[0, :, teacher.channels["flow"]].reshape(-1, teacher.scales, 4, NUM_FLOW_BINS)[:, 0].reshape(-1, NUM_FLOW_BINS)
    )


def _backwards(tokens: Tensor, spec: ClipSpec) -> Tensor:
    """The same tokens in reversed order of time."""
    return tokens.reshape(len(tokens), spec.grid.t, -1, tokens.shape[2]).flip(1).flatten(1, 2)


def test_the_default_geometry_has_more_channels_than_are_stored() -> None:
    outline = Hog.outline({}, None)
    assert (outline.clip, outline.dim) == (ClipSpec(), 420)


@pytest.mark.parametrize(
    "clip", [ClipSpec(1, 12, 1, 4), ClipSpec(3, 14, 3, 7), ClipSpec(4, 6, 1, 2), ClipSpec(4, 42, 2, 14), ClipSpec(2, 3, 2, 1)]
)
def test_any_geometry(clip: ClipSpec) -> None:
    teacher = _hog(clip)
    tokens = teacher.encode(noise_clips(teacher, 2))
    assert tokens.shape == (2, clip.grid.num_tokens, teacher.card.dim)
    assert tokens.isfinite().all()


@pytest.mark.parametrize(("dx", "dy"), [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1)])
def test_flow_points_where_things_move(dx: int, dy: int) -> None:
    teacher = _hog()
    votes = _flow(teacher, _waves(dx, dy)).mean(0)
    angles = torch.arange(NUM_FLOW_BINS) * 2 * math.pi / NUM_FLOW_BINS
    mean = torch.stack([votes @ angles.cos(), votes @ angles.sin()])
    assert torch.cosine_similarity(mean, torch.tensor([float(dx), float(dy)]), dim=0) > 0.99


def test_the_faster_the_more_flow_and_none_where_nothing_moves() -> None:
    teacher = _hog()
    still, slow, fast = (_flow(teacher, _waves(speed, 0)).norm(dim=1).mean() for speed in (0, 0.05, 1))
    assert still == 0
    assert slow < 0.9 * fast


def test_playing_backwards_changes_motion_and_nothing_else() -> None:
    teacher = _hog()
    clips = _waves(1, 0.5)
    forth, back = teacher.encode(clips), _backwards(teacher.encode(clips.flip(1)), SMALL)
    channels = teacher.channels
    torch.testing.assert_close(back[..., channels["static"]], forth[..., channels["static"]])
    cosine = torch.cosine_similarity(forth[..., channels["flow"]], back[..., channels["flow"]], dim=-1)
    assert cosine.mean() < 0.1


def test_playing_backwards_swaps_opposite_directions() -> None:
    teacher = _hog()
    clips = noise_clips(teacher, 1)
    forth = teacher.encode(clips)[..., teacher.channels["flow"]].reshape(-1, NUM_FLOW_BINS)
    back = _backwards(teacher.encode(clips.flip(1)), SMALL)[..., teacher.channels["flow"]].reshape(-1, NUM_FLOW_BINS)
    torch.testing.assert_close(back.roll(NUM_FLOW_BINS // 2, -1), forth, atol=1e-5, rtol=1e-4)


def test_static_channels_tell_orientation() -> None:
    teacher = _hog()
    stripes = torch.arange(32)[None, :].expand(32, 32) * 4
    across = stripes.to(torch.uint8).expand(1, 8, 3, 32, 32)

    def bins(clips: Tensor) -> Tensor:
        return teacher.encode(clips)[0, :, teacher.channels["static"]].reshape(-1, NUM_STATIC_BINS).mean(0)

    assert bins(across).argmax() == 0  # gradient along x
    assert bins(across.transpose(3, 4)).argmax() in (4, 5)  # along y, 90 degrees: between the bins of 80 and 100


@pytest.mark.parametrize("offset", [-15, 60])
def test_brightness_does_not_matter(offset: int) -> None:
    teacher = _hog()
    torch.testing.assert_close(teacher.encode(_waves(1, 0, offset=offset)), teacher.encode(_waves(1, 0)), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("value", [0, 127, 255])
def test_flat_clips_give_zeros(value: int) -> None:
    teacher = _hog()
    assert teacher.encode(torch.full((1, 8, 3, 32, 32), value, dtype=torch.uint8)).count_nonzero() == 0


@pytest.mark.parametrize(("kind", "longest"), [("static", 0.7), ("flow", 1.0)])
def test_norms_are_bounded(kind: str, longest: float) -> None:
    teacher = _hog()
    norms = teacher.encode(noise_clips(teacher, 2))[..., teacher.channels[kind]].norm(dim=-1)
    assert norms.max() <= longest + 1e-5
    assert norms.mean() > 0.8 * longest


def test_it_runs_without_transformers() -> None:
    program = """
import sys
for name in ("transformers", "huggingface_hub"):
    sys.modules[name] = None
import torch
import stjepa_cli.teachers.hog
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.teachers.base import open_teacher, survey
teacher = open_teacher("hog", clip=ClipSpec(4, 16, 2, 8))
assert survey("hog").at_hand
print(tuple(teacher.encode(torch.zeros(1, 4, 3, 16, 16, dtype=torch.uint8)).shape))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "(1, 8, 280)"), done.stderr
