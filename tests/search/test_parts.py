"""Parts of videos, and the frames that stand for them."""

from __future__ import annotations

import pytest

from stjepa_cli.core.errors import ConfigError
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.search.parts import ALL, WHOLE, Framing, Part, frames_of

SPEC = ClipSpec(num_frames=4, size_px=32, tubelet=2, sampling="dense", stride=2)


def frames(part: Part, framing: Framing = ALL, num_frames: int = 40, fps: float = 10.0, spec: ClipSpec = SPEC) -> tuple[int, ...]:
    return frames_of(part, spec, framing, num_frames=num_frames, fps=fps)


@pytest.mark.parametrize(
    ("duration", "stride", "length", "expected"),
    [
        (8, 3, 4, [(0, 4), (3, 7), (6, 8)]),
        (8, 4, None, [(0, 4), (4, 8)]),
        (8, 4, 6, [(0, 6), (4, 8)]),
        (8, 5, 2, [(0, 2), (5, 7)]),
        (8, 4, 8, []),
        (8, 4, 9, []),
        (None, 4, 2, []),
    ],
)
def test_parts_cover_a_video_and_the_last_one_ends_with_it(
    duration: float | None, stride: float, length: float | None, expected: list[tuple[float, float]]
) -> None:
    assert Framing("full", stride, length).parts(duration) == (WHOLE, *(Part(*each) for each in expected))


def test_without_a_stride_a_video_is_one_part_and_a_window_is_its_moment() -> None:
    assert ALL.parts(100) == (WHOLE,)
    assert Framing("window").parts(None, 12.5) == (Part(12.5, 12.5),)


def test_full_spreads_the_frames_over_the_part_whatever_the_sampling_of_the_model() -> None:
    assert frames(WHOLE) == (5, 15, 25, 35)
    assert frames(Part(1.0, 3.0)) == (12, 17, 22, 27)


def test_centered_takes_frames_around_the_middle_of_the_part() -> None:
    assert frames(WHOLE, Framing("centered")) == (16, 18, 20, 22)
    assert frames(Part(1.0, 3.0), Framing("centered", 1, 2)) == (16, 18, 20, 22)
    assert frames(WHOLE, Framing("centered"), num_frames=6) == (0, 2, 3, 5)


@pytest.mark.parametrize(
    ("moment", "expected"), [(2.0, (17, 19, 21, 23)), (0.0, (0, 2, 4, 6)), (3.95, (33, 35, 37, 39)), (4.0, (33, 35, 37, 39))]
)
def test_a_window_is_around_its_moment_and_moves_inwards_at_the_ends(moment: float, expected: tuple[int, ...]) -> None:
    assert frames(Part(moment, moment), Framing("window")) == expected


def test_a_short_video_repeats_frames() -> None:
    assert frames(WHOLE, num_frames=2) == (0, 0, 1, 1)
    assert frames(Part(0.0, 0.1)) == (0, 0, 0, 0)
    assert frames(Part(0.1, 0.1), Framing("window"), num_frames=3) == (0, 1, 1, 2)


@pytest.mark.parametrize("moment", [4.2, -1.0, float("inf")])
def test_a_moment_outside_the_video_is_refused(moment: float) -> None:
    with pytest.raises(ValueError, match="the video is 4 s long"):
        frames(Part(moment, moment), Framing("window"))


def test_times_need_a_video_that_says_how_fast_it_is() -> None:
    assert frames(WHOLE, fps=0.0) == (5, 15, 25, 35)
    with pytest.raises(ValueError, match="how fast"):
        frames(Part(1.0, 2.0), fps=0.0)
    with pytest.raises(ValueError, match="how fast"):
        frames(Part(1.0, 1.0), fps=0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("middle",), "unknown strategy"),
        (("full", 0.0), "the stride of parts must be a positive"),
        (("full", 1.0, float("inf")), "the length of parts must be a positive"),
        (("full", None, 2.0), "needs their distance"),
        (("window", 1.0), "cannot be cut into parts"),
    ],
)
def test_a_framing_that_makes_no_sense_is_refused(arguments: tuple[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Framing(*arguments)
