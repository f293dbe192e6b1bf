"""Videos as they are found: each gives the clip that it should, or is refused by name; none gives another clip in silence."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch
from torch import Tensor

from stjepa_cli.core.errors import VideoError
from stjepa_cli.core.files import file_digest
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.data.video import Video, decode, read_clip
from tests import media

SPEC = ClipSpec(num_frames=16, size_px=48, tubelet=2, patch_px=8)
NUM_FRAMES = 40


@pytest.fixture(scope="module")
def squares() -> Tensor:
    return media.moving_square(num_frames=NUM_FRAMES)


def pyav_frames(path: Path) -> Tensor:
    """All frames by PyAV, read from the start: uint8 (T, 3, H, W)."""
    with av.open(str(path)) as container:
        frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    return torch.stack(frames).permute(0, 3, 1, 2)


def assert_same_pictures(ours: Tensor, theirs: Tensor) -> None:
    """Equal but for rounding: two builds of FFmpeg need not convert colours with the same arithmetic."""
    assert (ours.float() - theirs.float()).abs().mean() < 2
    assert media.frame_numbers(ours) == media.frame_numbers(theirs)


def write_uneven(path: Path, frames: Tensor, *, codec: str, times: Sequence[int]) -> Path:
    """Frames shown at `times`, in milliseconds and ascending."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=1000)
        stream.width, stream.height, stream.pix_fmt = frames.shape[3], frames.shape[2], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.options = {"cpu-used": "8", "deadline": "realtime"} if codec == "libvpx-vp9" else {"bf": "3"}
        for time, picture in zip(times, frames.permute(0, 2, 3, 1).contiguous().numpy(), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


# -------------------------------------------------------------------------------------------------------- cut short


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("suffix", [".webm", ".avi"])
def test_a_truncated_file_is_refused(tmp_path: Path, squares: Tensor, suffix: str, fraction: float) -> None:
    path = media.write_video(tmp_path / f"cut{suffix}", squares)
    read_clip(path, SPEC)
    with pytest.raises(VideoError, match="it is cut short") as caught:
        read_clip(media.truncate(path, fraction), SPEC)
    assert caught.value.path == path


def test_what_lost_its_last_bytes_is_refused_or_the_same_clip(tmp_path: Path, squares: Tensor) -> None:
    path = media.write_video(tmp_path / "cut.webm", squares)
    with pytest.raises(VideoError, match="it is cut short"):
        read_clip(media.truncate(path, 0.99), SPEC)
    path = media.write_video(tmp_path / "cut.avi", squares)  # its end is an index of frames that are all still there
    whole = read_clip(path, SPEC)
    assert torch.equal(read_clip(media.truncate(path, 0.99), SPEC).pixels, whole.pixels)


def test_a_single_frame_is_refused(tmp_path: Path) -> None:
    for suffix in (".webm", ".avi", ".mp4"):
        path = media.write_video(tmp_path / f"one{suffix}", media.moving_square(num_frames=1))
        with pytest.raises(VideoError, match="single frame"):
            read_clip(path, SPEC)


# ------------------------------------------------------------------------------------------------- frame i is frame i


@pytest.mark.parametrize("num_b_frames", [1, 2, 4])
@pytest.mark.parametrize("group", [5, 12, 100])
def test_frame_i_of_an_xvid_file_is_frame_i(tmp_path: Path, squares: Tensor, num_b_frames: int, group: int) -> None:
    source, path = media.write_video(tmp_path / "source.mp4", squares, fps=25.0), tmp_path / "xvid.avi"
    media.ffmpeg("-i", source, "-c:v", "mpeg4", "-bf", num_b_frames, "-g", group, "-vtag", "XVID", "-b:v", "2M", path)
    video, reference = Video(path), pyav_frames(path)
    # torchcodec never hands out the last frame or two of such a file: a documented loss
    assert len(reference) - 2 <= video.num_frames <= len(reference)
    assert_same_pictures(video.frames(tuple(range(video.num_frames))), reference[: video.num_frames])
    clip = read_clip(path, SPEC)
    assert media.frame_numbers(clip.pixels) == list(SPEC.frame_indices(video.num_frames))
    assert torch.equal(decode(clip.ref), clip.pixels)


UNEVEN = {
    "a pause after every ten": [80 * i + 600 * (i // 10) for i in range(NUM_FRAMES)],
    "slower and slower": [20 * i + i * i * 3 for i in range(NUM_FRAMES)],
    "pairs": [100 * (i // 2) + 9 * (i % 2) for i in range(NUM_FRAMES)],
    "a late start": [3000 + 80 * i for i in range(NUM_FRAMES)],
}


@pytest.mark.parametrize("times", UNEVEN.values(), ids=UNEVEN)
@pytest.mark.parametrize(("suffix", "codec"), [(".webm", "libvpx-vp9"), (".mp4", "mpeg4"), (".mp4", "libx264")])
def test_frames_of_uneven_times_keep_their_numbers(tmp_path: Path, squares: Tensor, suffix: str, codec: str, times: list[int]) -> None:
    path = write_uneven(tmp_path / f"uneven{suffix}", squares, codec=codec, times=times)
    video, reference = Video(path), pyav_frames(path)
    assert video.num_frames == len(reference) == NUM_FRAMES
    frames = video.frames(tuple(range(NUM_FRAMES)))
    assert media.frame_numbers(frames) == list(range(NUM_FRAMES))
    assert_same_pictures(frames, reference)
    clip = read_clip(path, SPEC)
    assert media.frame_numbers(clip.pixels) == list(SPEC.frame_indices(NUM_FRAMES))
    assert torch.equal(decode(clip.ref), clip.pixels)


@pytest.mark.parametrize("suffix", [".webm", ".avi", ".mp4"])
def test_sixteen_frames_of_nine_repeat_some_in_order(tmp_path: Path, suffix: str) -> None:
    path = media.write_video(tmp_path / f"nine{suffix}", media.moving_square(num_frames=9))
    expected = [0, 0, 1, 1, 2, 3, 3, 4, 4, 5, 5, 6, 7, 7, 8, 8]
    clip = read_clip(path, SPEC)
    assert list(clip.ref.frame_indices) == expected
    assert media.frame_numbers(clip.pixels) == expected
    assert torch.equal(clip.pixels[0], clip.pixels[1])
    assert torch.equal(decode(clip.ref), clip.pixels)
    for view in (1, 2, 3):
        indices = read_clip(path, SPEC, view=view).ref.frame_indices
        assert list(indices) == sorted(indices)
        assert set(indices) == set(range(9))


# ---------------------------------------------------------------------------------------------------- turned, damaged


def test_a_turned_video_is_cut_as_it_is_shown(tmp_path: Path) -> None:
    tall = media.moving_square(num_frames=20, height=64, width=48)
    path = media.write_video(tmp_path / "turned.mp4", tall.rot90(1, dims=(2, 3)).contiguous())
    video = Video(media.turn_upright(path))
    assert (video.height, video.width) == (64, 48)
    clip = read_clip(path, SPEC)
    assert (clip.ref.crop.top, clip.ref.crop.left, clip.ref.crop.height) == (8, 0, 48)
    assert media.frame_numbers(clip.pixels) == list(SPEC.frame_indices(20))
    assert torch.equal(decode(clip.ref), clip.pixels)


@pytest.mark.parametrize("suffix", [".webm", ".avi", ".mp4"])
@pytest.mark.parametrize("place", [0.3, 0.5, 0.8])
def test_a_damaged_middle_is_refused_or_decoded_and_shows_in_the_digest(tmp_path: Path, squares: Tensor, suffix: str, place: float) -> None:
    path = media.write_video(tmp_path / f"damaged{suffix}", squares)
    whole, digest = read_clip(path, SPEC), file_digest(path)
    data = bytearray(path.read_bytes())
    start = int(len(data) * place)
    data[start : start + 64] = bytes(255 - byte for byte in data[start : start + 64])
    path.write_bytes(data)
    assert file_digest(path) != digest  # no decoder is sure to notice: only this does
    try:
        pixels = read_clip(path, SPEC).pixels
    except VideoError as error:
        refused = str(error)
    else:
        refused = ""
        assert pixels.shape == whole.pixels.shape
    assert not refused or (refused.startswith(str(path)) and "\n" not in refused)
