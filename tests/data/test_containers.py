"""Files that are cut short, playlists, and names that FFmpeg would take for something else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stjepa_cli.core.errors import VideoError
from stjepa_cli.core.locations import Location
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.data.containers import announced_bytes
from stjepa_cli.data.video import Video, encode_video, read_clip
from tests import media

SPEC = ClipSpec(num_frames=4, size_px=48, tubelet=2, patch_px=8)
OTHER = media.moving_square(num_frames=20, seed=5)


def write_mp4(path: Path, *options: str) -> Path:
    """An mp4 of 40 frames, written anew by the ffmpeg program with options of its muxer."""
    source = media.write_video(path.with_name("source.mp4"), media.moving_square(num_frames=40))
    media.ffmpeg("-i", source, "-c", "copy", *options, path)
    source.unlink()
    return path


LAYOUTS = {"index last": (), "index first": ("-movflags", "+faststart"), "fragments": ("-movflags", "frag_keyframe+empty_moov")}


@pytest.mark.parametrize("suffix", [".webm", ".avi", ".mp4"])
def test_a_whole_file_is_as_long_as_it_announces(tmp_path: Path, suffix: str) -> None:
    path = media.write_video(tmp_path / f"video{suffix}")
    assert announced_bytes(path) == path.stat().st_size


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_mp4_of_any_layout_is_read(tmp_path: Path, layout: str) -> None:
    path = write_mp4(tmp_path / "whole.mp4", *LAYOUTS[layout])
    assert announced_bytes(path) == path.stat().st_size
    assert Video(path).num_frames == 40


@pytest.mark.parametrize("fraction", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_mp4_that_is_cut_short_is_refused(tmp_path: Path, layout: str, fraction: float) -> None:
    path = media.truncate(write_mp4(tmp_path / "cut.mp4", *LAYOUTS[layout]), fraction)
    with pytest.raises(VideoError, match=r"it is cut short: [\d,]+ bytes, its header announces [\d,]+$"):
        read_clip(path, SPEC)


def test_the_last_bytes_of_an_mp4_count(tmp_path: Path) -> None:
    path = write_mp4(tmp_path / "cut.mp4", "-movflags", "+faststart")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(VideoError, match="it is cut short"):
        read_clip(path, SPEC)


def test_a_remote_mp4_that_is_cut_short_is_refused(tmp_path: Path, bucket: Location) -> None:
    path = media.truncate(write_mp4(tmp_path / "cut.mp4", "-movflags", "+faststart"), 0.6)
    with pytest.raises(VideoError, match="it is cut short"):
        read_clip(media.upload(path, bucket / "cut.mp4"), SPEC)


def test_an_mp4_with_a_long_size_is_measured(tmp_path: Path) -> None:
    path = media.write_video(tmp_path / "video.mp4")
    data = path.read_bytes()
    head = int.from_bytes(data[:4], "big")
    path.write_bytes(data[:head] + b"\0\0\0\1mdat" + (16 + 50).to_bytes(8, "big") + bytes(50))
    assert announced_bytes(path) == path.stat().st_size
    path.write_bytes(path.read_bytes()[:-20])
    assert announced_bytes(path) == path.stat().st_size + 20


NAMES = ("12:30.mp4", "concat:other.mp4", "file:other.mp4", "pipe:0.mp4", "subfile,,start,0,end,0,,:other.mp4", "a%03d'\".mp4", "-i.mp4")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_only_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    media.write_video(tmp_path / "other.mp4", OTHER)
    monkeypatch.chdir(tmp_path)
    encode_video(Path(name), media.moving_square(), fps=12.0)
    assert Path(name).is_file()
    for path in (Path(name), tmp_path / name):
        assert Video(path).num_frames == media.NUM_FRAMES
        assert read_clip(path, SPEC).ref.path == path


PLAYLISTS = {
    "concat": "ffconcat version 1.0\nfile other.mp4\n",
    "concat with a zero byte": "ffconcat version 1.0\nfile other.mp4\n#\0\n",
    "concat after a mark": "\ufeffffconcat version 1.0\nfile other.mp4\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\nother.mp4\n#EXT-X-ENDLIST\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("suffix", [".webm", ".mp4", ".m3u8"])
def test_a_playlist_under_a_videos_name_opens_no_other_file(tmp_path: Path, kind: str, suffix: str) -> None:
    media.write_video(tmp_path / "other.mp4", OTHER)
    path = tmp_path / f"list{suffix}"
    path.write_text(PLAYLISTS[kind])
    with pytest.raises(VideoError, match=r"not a video \(it is text\)$"):
        Video(path)


def test_frames_of_grey_text_are_no_text(tmp_path: Path) -> None:
    frames = torch.full((8, 3, 48, 64), 0x41, dtype=torch.uint8)
    for suffix in (".webm", ".avi", ".mp4"):
        assert Video(media.write_video(tmp_path / f"grey{suffix}", frames)).num_frames == 8
