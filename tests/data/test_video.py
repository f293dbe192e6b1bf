"""Frame i is frame i, in every container; a clip's reference decodes the same pixels; what is broken is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
import torch
import torch.nn.functional as F

from stjepa_cli.core.errors import VideoError
from stjepa_cli.core.locations import Location, RemoteFile
from stjepa_cli.core.types import ClipRef, ClipSpec, CropBox
from stjepa_cli.data.video import Video, decode, encode_video, ffmpeg_version, read_clip
from tests import media

SPEC = ClipSpec(num_frames=8, size_px=32, tubelet=2, patch_px=8)
SUFFIXES = (".webm", ".avi", ".mp4")


def pyav_frames(path: Path) -> torch.Tensor:
    """All frames of a file by PyAV, read from the start: uint8 (T, 3, H, W)."""
    with av.open(str(path)) as container:
        frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    return torch.stack(frames).permute(0, 3, 1, 2)


def assert_same_pictures(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Equal but for rounding: two builds of FFmpeg need not convert colours with the same arithmetic."""
    difference = (ours.float() - theirs.float()).abs()
    assert difference.mean() < 2
    assert media.frame_numbers(ours) == media.frame_numbers(theirs)


@pytest.fixture(scope="module")
def squares() -> torch.Tensor:
    return media.moving_square(num_frames=40)


@pytest.fixture(scope="module", params=SUFFIXES)
def video_file(request: pytest.FixtureRequest, squares: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return media.write_video(tmp_path_factory.mktemp("video") / f"squares{request.param}", squares)


# ------------------------------------------------------------------------------------------------------ which frame


def test_frame_i_is_frame_i(video_file: Path, squares: torch.Tensor) -> None:
    video = Video(video_file)
    assert (video.num_frames, video.height, video.width) == (len(squares), media.HEIGHT, media.WIDTH)
    assert media.frame_numbers(video.frames(tuple(range(40)))) == list(range(40))
    assert media.frame_numbers(video.frames((39, 0, 17, 17))) == [39, 0, 17, 17]


def test_frames_are_those_of_pyav(video_file: Path) -> None:
    assert_same_pictures(Video(video_file).frames(tuple(range(40))), pyav_frames(video_file))


def test_frame_i_is_frame_i_in_an_avi_with_b_frames(tmp_path: Path, squares: torch.Tensor) -> None:
    path = media.write_xvid(tmp_path / "xvid.avi", squares)
    video, reference = Video(path), pyav_frames(path)
    # torchcodec never hands out the last frame or two of such a file: a documented loss
    assert len(reference) - 2 <= video.num_frames <= len(reference)
    assert_same_pictures(video.frames(tuple(range(video.num_frames))), reference[: video.num_frames])
    assert media.frame_numbers(video.frames((30, 3, 11))) == [30, 3, 11]


def test_frames_of_variable_rate_keep_their_numbers(tmp_path: Path, squares: torch.Tensor) -> None:
    path = tmp_path / "uneven.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = media.WIDTH, media.HEIGHT, "yuv420p", 2_000_000
        for i, picture in enumerate(squares.permute(0, 2, 3, 1).contiguous().numpy()):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i + 7 * (i // 10), Fraction(1, 12)  # a pause of seven frames after every ten
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    video = Video(path)
    assert video.num_frames == 40
    assert media.frame_numbers(video.frames(tuple(range(40)))) == list(range(40))


def test_a_clip_takes_the_middle_of_equal_segments(video_file: Path) -> None:
    clip = read_clip(video_file, SPEC)
    assert clip.ref.frame_indices == (2, 7, 12, 17, 22, 27, 32, 37)
    assert media.frame_numbers(clip.pixels) == [2, 7, 12, 17, 22, 27, 32, 37]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_short_video_repeats_frames(tmp_path: Path, suffix: str) -> None:
    path = media.write_video(tmp_path / f"short{suffix}", media.moving_square(num_frames=3))
    clip = read_clip(path, SPEC)
    assert clip.pixels.shape == (8, 3, 32, 32)
    assert media.frame_numbers(clip.pixels) == [0, 0, 0, 1, 1, 2, 2, 2]


# ----------------------------------------------------------------------------------------------------- which pixels


def test_decoding_a_reference_repeats_the_clip_bit_for_bit(video_file: Path) -> None:
    clip = read_clip(video_file, SPEC)
    assert clip.pixels.dtype == torch.uint8
    assert torch.equal(decode(clip.ref), clip.pixels)
    assert torch.equal(decode(clip.ref), decode(clip.ref))


def test_decoding_a_reference_repeats_the_clip_with_b_frames(tmp_path: Path, squares: torch.Tensor) -> None:
    clip = read_clip(media.write_xvid(tmp_path / "xvid.avi", squares), SPEC)
    assert torch.equal(decode(clip.ref), clip.pixels)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (48, 48), (46, 82)])
def test_the_crop_is_the_centre_square(tmp_path: Path, height: int, width: int) -> None:
    path = media.write_video(tmp_path / "video.mp4", media.moving_square(height=height, width=width))
    crop = read_clip(path, SPEC).ref.crop
    side = min(height, width)
    assert crop == CropBox((height - side) // 2, (width - side) // 2, side, side)


@pytest.mark.parametrize("size_px", [16, 32, 48, 64])
def test_resizing_is_antialiased_as_torch_does_it(video_file: Path, size_px: int) -> None:
    ref = ClipRef(video_file, (0, 5), CropBox(0, 8, 48, 48), size_px)
    crop = Video(video_file).frames((0, 5))[:, :, :, 8:56]
    exact = F.interpolate(crop.double(), size=(size_px, size_px), mode="bilinear", antialias=True, align_corners=False)
    pixels = decode(ref)
    assert pixels.shape == (2, 3, size_px, size_px)
    assert pixels.is_contiguous()
    assert (pixels.double() - exact).abs().max() <= 1  # arithmetic of 8 bits against 64


def test_a_portrait_video_is_read_as_it_is_shown(tmp_path: Path) -> None:
    path = media.write_video(tmp_path / "portrait.mp4")
    lying = Video(path).frames((0, 9))
    video = Video(media.turn_upright(path))
    assert (video.height, video.width) == (media.WIDTH, media.HEIGHT)
    assert torch.equal(video.frames((0, 9)), lying.rot90(-1, dims=(2, 3)))
    assert read_clip(path, SPEC).ref.crop == CropBox(8, 0, 48, 48)


# ------------------------------------------------------------------------------------------------------ broken files


def cut(path: Path, fraction: float) -> Path:
    return media.truncate(media.write_video(path, media.moving_square(num_frames=40)), fraction)


BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing.webm": (lambda path: path, "there is no such file"),
    "empty.webm": (media.write_empty, "the file is empty"),
    "text.webm": (media.write_text, "not a video"),
    "text.avi": (media.write_text, "not a video"),
    "sound.webm": (media.write_audio_only, "it has no video stream"),
    "sound.mp4": (media.write_audio_only, "it has no video stream"),
    "one.webm": (lambda path: media.write_video(path, media.moving_square(num_frames=1)), "it has a single frame"),
    "one.avi": (lambda path: media.write_video(path, media.moving_square(num_frames=1)), "it has a single frame"),
    "head.webm": (lambda path: cut(path, 0.05), "it is cut short"),
    "half.webm": (lambda path: cut(path, 0.5), "it is cut short"),
    "most.webm": (lambda path: cut(path, 0.95), "it is cut short"),
    "head.avi": (lambda path: cut(path, 0.05), "it is cut short"),
    "half.avi": (lambda path: cut(path, 0.5), "it is cut short"),
    "most.avi": (lambda path: cut(path, 0.9), "it is cut short"),
    "half.mp4": (lambda path: cut(path, 0.5), "it is cut short"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_by_name_and_reason(tmp_path: Path, name: str) -> None:
    make, reason = BROKEN[name]
    path = make(tmp_path / name)
    with pytest.raises(VideoError) as caught:
        read_clip(path, SPEC)
    assert caught.value.path == path
    assert reason in caught.value.reason
    assert str(caught.value).count(str(path)) == 1
    assert "\n" not in str(caught.value)


def test_a_truncated_avi_with_b_frames_is_refused(tmp_path: Path, squares: torch.Tensor) -> None:
    path = media.truncate(media.write_xvid(tmp_path / "xvid.avi", squares), 0.7)
    with pytest.raises(VideoError, match="cut short"):
        read_clip(path, SPEC)


def test_a_damaged_packet_is_refused(tmp_path: Path, squares: torch.Tensor) -> None:
    path = media.write_video(tmp_path / "damaged.mp4", squares)
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 300] = bytes(300)
    path.write_bytes(data)
    with pytest.raises(VideoError, match="cannot be decoded"):
        Video(path).frames(tuple(range(40)))


def test_a_reference_is_refused_when_the_file_has_become_another(tmp_path: Path) -> None:
    path = media.write_video(tmp_path / "video.mp4")
    ref = read_clip(path, SPEC).ref
    media.write_video(path, media.moving_square(num_frames=4))
    with pytest.raises(VideoError, match="it has 4 frames, expected more than 13"):
        decode(ref)
    media.write_video(path, media.moving_square(height=32, width=32))
    with pytest.raises(VideoError, match="32x32 px"):
        decode(ref)


# -------------------------------------------------------------------------------------------------------- the rest


def test_the_version_names_both_libraries() -> None:
    assert "torchcodec" in ffmpeg_version()
    assert "FFmpeg" in ffmpeg_version()


def test_encoding_keeps_number_and_size_of_frames(tmp_path: Path) -> None:
    frames = media.moving_square(num_frames=5, height=32, width=50)
    encode_video(tmp_path / "video.webm", frames, fps=12.0)
    assert Video(tmp_path / "video.webm").frames((0, 1, 2, 3, 4)).shape == frames.shape


# ------------------------------------------------------------------------------------------------------ remote files


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".xvid.avi"])
def test_a_remote_video_gives_the_pixels_of_the_local_one(tmp_path: Path, bucket: Location, squares: torch.Tensor, suffix: str) -> None:
    write = media.write_xvid if suffix == ".xvid.avi" else media.write_video
    path = write(tmp_path / f"video{suffix}", squares)
    local, remote = read_clip(path, SPEC), read_clip(media.upload(path, bucket / path.name), SPEC)
    assert remote.ref == replace(local.ref, path=bucket / path.name)
    assert torch.equal(remote.pixels, local.pixels)
    assert torch.equal(decode(remote.ref), local.pixels)
    with Video(path) as here, Video(bucket / path.name) as there:
        assert there.num_frames == here.num_frames
        assert torch.equal(there.frames((30, 3, 11)), here.frames((30, 3, 11)))


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_remote_file_is_refused_for_the_same_reason(tmp_path: Path, bucket: Location, name: str) -> None:
    make, reason = BROKEN[name]
    path = make(tmp_path / name)
    if path.exists():
        media.upload(path, bucket / name)
    with pytest.raises(VideoError) as caught:
        read_clip(bucket / name, SPEC)
    assert caught.value.path == bucket / name
    assert reason in caught.value.reason
    assert str(caught.value).startswith(f"{bucket}/{name}: ")
    assert "\n" not in str(caught.value)


def test_remote_files_are_closed_whether_they_are_used_or_refused(
    tmp_path: Path, bucket: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[RemoteFile] = []

    class Watched(RemoteFile):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            opened.append(self)

    monkeypatch.setattr("stjepa_cli.data.video.RemoteFile", Watched)
    read_clip(media.upload(media.write_video(tmp_path / "good.webm"), bucket / "good.webm"), SPEC)
    with pytest.raises(VideoError, match="not a video"):
        read_clip(media.upload(media.write_text(tmp_path / "bad.webm"), bucket / "bad.webm"), SPEC)
    assert [file.closed for file in opened] == [True, True]


@pytest.mark.parametrize("suffix", [".webm", ".xvid.avi"])
def test_a_connection_lost_at_any_read_is_refused_by_name(tmp_path: Path, bucket: Location, squares: torch.Tensor, suffix: str) -> None:
    write = media.write_xvid if suffix == ".xvid.avi" else media.write_video
    path = write(tmp_path / f"video{suffix}", squares)
    media.upload(path, bucket / path.name)
    total = reads_of(bucket / path.name)
    assert total > 2
    for working in range(total):
        with pytest.raises(VideoError, match="connection lost"):
            reads_of(bucket / path.name, working)


def reads_of(path: Location, working: int = 10**6) -> int:
    """How many reads it takes to cut a clip; after so many working ones the connection is lost."""
    original, count = RemoteFile.readinto, 0

    def readinto(self: RemoteFile, buffer: Any) -> int:
        nonlocal count
        count += 1
        if count > working:
            raise ConnectionError("connection lost")
        return original(self, buffer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RemoteFile, "readinto", readinto)
        read_clip(path, SPEC)
    return count
