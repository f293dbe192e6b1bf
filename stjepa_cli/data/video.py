"""Video files to clips and back: the one place that knows torchcodec.

A frame's number is its place in presentation order, counted from 0. Two clips cut by the same `ClipRef` have the same
pixels, whoever cuts them: teacher, student and evaluator all come here.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.core.errors import NotReadyError, VideoError, storage_errors
from stjepa_cli.core.locations import Location, RemoteFile, is_local
from stjepa_cli.core.types import ClipRef, ClipSpec, CropBox
from stjepa_cli.data.eval_clips import EvalClips, cut_eval_clips
from stjepa_cli.data.views import plan_view

if TYPE_CHECKING:
    from torchcodec.decoders import VideoDecoder

INSTALL_FFMPEG = "Install FFmpeg's libraries: `apt-get install ffmpeg` (Debian, Ubuntu) or `conda install ffmpeg`."

_CODEC_ERRORS = (RuntimeError, ValueError, IndexError)
_ENCODINGS: dict[str, dict[str, object]] = {
    ".webm": {"codec": "libvpx-vp9", "pixel_format": "yuv420p", "crf": 24, "extra_options": {"deadline": 1, "cpu-used": 8}},
    ".avi": {"codec": "mpeg4", "pixel_format": "yuv420p", "extra_options": {"b": 2_000_000}},
    ".mp4": {"codec": "libx264", "pixel_format": "yuv420p"},
}
_TRACK_UID = b"\x73\xc5\x88"  # EBML id, and a length of 8 bytes


@dataclass(frozen=True)
class Clip:
    """A decoded clip.

    Attributes:
        pixels: uint8 (T, 3, S, S), RGB.
        ref: what decodes it again.
    """

    pixels: Tensor
    ref: ClipRef


Source = Path | RemoteFile
"""What a decoder reads."""


class Video:
    """An open video file; in a `with` block, or when it is collected, a remote one is closed.

    Attributes:
        num_frames: frames that can really be decoded, counted, never taken from the header.
        height: of a frame, in pixels, as shown.
        width: likewise.

    Raises:
        VideoError: missing, empty, truncated, without a video stream, or a single frame.
        NotReadyError: FFmpeg's libraries are missing.
    """

    def __init__(self, path: Location) -> None:
        self.path = path
        with ExitStack() as opened, _reading(path):
            self._source: Source = path if is_local(path) else opened.enter_context(RemoteFile(path))
            self._inspect(path)
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def _inspect(self, path: Location) -> None:
        _check_file(path, self._source)
        self._decoder = _open(path, self._source)
        metadata = self._decoder.metadata
        self.num_frames = len(self._decoder)
        _check_whole(path, self._source, metadata.num_frames_from_header, self.num_frames)
        self.height, self.width = metadata.height or 0, metadata.width or 0
        self._sequential = path.suffix.lower() == ".avi" and self._starts_late()
        if self._sequential:
            self.num_frames = self._count_frames()
        if self.num_frames < 2:
            raise VideoError(path, "it has a single frame, expected 2 or more")
        if not self.height or not self.width:
            raise VideoError(path, "its frames have no size")

    def frames(self, indices: tuple[int, ...]) -> Tensor:
        """The frames at `indices`, in that order: uint8 (T, 3, height, width)."""
        wanted = sorted(set(indices))
        try:
            if self._sequential:
                kept = {i: frame for i, frame in self._walk(wanted[-1] + 1) if i in wanted}
                return torch.stack([kept[i] for i in indices])
            decoded: Tensor = self._decoder.get_frames_at(wanted).data
        except (*_CODEC_ERRORS, KeyError, OSError) as error:
            raise VideoError(self.path, f"a frame cannot be decoded ({_first_line(error)})") from error
        return decoded if indices == tuple(wanted) else decoded[[wanted.index(i) for i in indices]]  # whole frames: 5 MB to copy

    def runs(self, indices: tuple[int, ...], length: int) -> Iterator[Tensor]:
        """The frames at ascending `indices`, at most `length` at a time; all at once where each jump would start over."""
        step = len(indices) if self._sequential else length
        for start in range(0, len(indices), step):
            yield self.frames(indices[start : start + step])

    def _starts_late(self) -> bool:
        """Whether the first frame shown is stamped later than the stream starts.

        So it is in avi files with B-frames (XviD): their packets carry no presentation times, torchcodec numbers frames by
        decoding times, and a jump to frame i lands one or two frames off. Reading from the start gives the right order;
        only the last frames, which torchcodec never hands out, are lost.
        """
        try:
            first: float = self._decoder.get_frame_at(0).pts_seconds
        except _CODEC_ERRORS as error:
            raise VideoError(self.path, f"its first frame cannot be decoded ({_first_line(error)})") from error
        return first > (self._decoder.metadata.begin_stream_seconds or 0) + 1e-6

    def _walk(self, stop: int) -> Iterator[tuple[int, Tensor]]:
        self._decoder = _open(self.path, self._source)
        for i in range(stop):
            yield i, self._decoder.get_frame_at(i).data

    def _count_frames(self) -> int:
        self._decoder = _open(self.path, self._source)
        for i in range(self.num_frames):
            try:
                self._decoder.get_frame_at(i)
            except _CODEC_ERRORS:
                return i
        return self.num_frames


def read_clip(path: Location, spec: ClipSpec, *, clip_id: str = "", view: int = 0, seed: int = 0) -> Clip:
    """Cut a clip from a video: the centre clip, or a random view of `views.plan_view`.

    Raises:
        VideoError: the file cannot be used; the message names it and says why.
    """
    with Video(path) as video:
        frame_indices, crop = plan_view(
            spec, num_frames=video.num_frames, height=video.height, width=video.width, clip_id=clip_id, view=view, seed=seed
        )
        ref = ClipRef(path, frame_indices, crop, spec.size_px)
        return Clip(_cut(video, ref), ref)


def read_clips(path: Location, spec: ClipSpec, plan: EvalClips) -> Tensor:
    """Several clips of a video, opened once: uint8 (C, T, 3, S, S), each as its `ClipRef` alone would be decoded.

    A frame that several clips take is decoded once, and whole frames of one clip's length at most wait in memory.

    Raises:
        VideoError: the file cannot be used; the message names it and says why.
    """
    with Video(path) as video:
        planned = cut_eval_clips(spec, plan, num_frames=video.num_frames, height=video.height, width=video.width)
        refs = [ClipRef(path, frame_indices, crop, spec.size_px) for frame_indices, crop in planned]
        if len(refs) == 1:
            return _cut(video, refs[0]).unsqueeze(0)
        distinct = tuple(sorted({i for ref in refs for i in ref.frame_indices}))
        crops = {ref.crop: ref for ref in refs}
        parts: dict[CropBox, list[Tensor]] = {crop: [] for crop in crops}
        for frames in video.runs(distinct, spec.num_frames):
            for crop, ref in crops.items():
                parts[crop].append(_resized(frames, ref))
        whole = {crop: torch.cat(found) for crop, found in parts.items()}
        return torch.stack([whole[ref.crop][[distinct.index(i) for i in ref.frame_indices]] for ref in refs])


def decode(ref: ClipRef) -> Tensor:
    """The pixels of a clip, uint8 (T, 3, S, S): always the same for the same file and reference.

    Raises:
        VideoError: the file is no longer there, or no longer what it was.
    """
    with Video(ref.path) as video:
        if max(ref.frame_indices) >= video.num_frames:
            raise VideoError(ref.path, f"it has {video.num_frames} frames, expected more than {max(ref.frame_indices)}")
        if ref.crop.top + ref.crop.height > video.height or ref.crop.left + ref.crop.width > video.width:
            raise VideoError(ref.path, f"its frames are {video.width}x{video.height} px, the clip was cut from larger ones")
        return _cut(video, ref)


def encode_video(path: Path, frames: Tensor, *, fps: float) -> None:
    """Write frames uint8 (T, 3, H, W) as a file whose suffix names the format, as `video_bytes` makes it."""
    data = video_bytes(frames, path.suffix, fps=fps)
    with storage_errors(path):
        path.write_bytes(data)


def video_bytes(frames: Tensor, suffix: str, *, fps: float) -> bytes:
    """Encode frames uint8 (T, 3, H, W): `.webm` VP9, `.avi` MPEG-4, `.mp4` H.264. The same frames give the same bytes."""
    encoder = _torchcodec().encoders.VideoEncoder(frames, frame_rate=fps)
    data: bytes = encoder.to_tensor(format=suffix[1:], **_ENCODINGS[suffix]).numpy().tobytes()
    start = data.find(_TRACK_UID) if suffix == ".webm" else -1  # FFmpeg numbers the tracks of a webm at random
    return data if start < 0 else data.replace(data[start + 3 : start + 11], bytes(7) + b"\1")


def ffmpeg_version() -> str:
    """The version of torchcodec and of the FFmpeg that it found.

    Raises:
        NotReadyError: one of them cannot be loaded.
    """
    torchcodec = _torchcodec()
    program = "with the ffmpeg program" if shutil.which("ffmpeg") else "libraries only"
    return f"torchcodec {torchcodec.__version__} with FFmpeg {torchcodec.ffmpeg_major_version}, {program}"


def _torchcodec() -> Any:
    try:
        import torchcodec
        import torchcodec.decoders
        import torchcodec.encoders
    except ImportError as error:
        raise NotReadyError("torchcodec is not installed", fix="Type `pip install 'torchcodec~=0.13.0'`.") from error
    except (RuntimeError, OSError) as error:
        raise NotReadyError("torchcodec cannot load FFmpeg's libraries", fix=INSTALL_FFMPEG) from error
    return torchcodec


def _open(path: Location, source: Source) -> VideoDecoder:
    decoders = _torchcodec().decoders
    if isinstance(source, RemoteFile):
        source.seek(0)
    try:
        decoder: VideoDecoder = decoders.VideoDecoder(source, seek_mode="exact", num_ffmpeg_threads=1)
    except _CODEC_ERRORS as error:
        why = _first_line(error).removeprefix(f"Could not open input file: {path} ")
        reason = "it has no video stream" if "video stream" in str(error) else f"not a video ({why})"
        raise VideoError(path, _cut_short(source) or reason) from error
    return decoder


def _first_line(error: Exception) -> str:
    """What torchcodec says, without the place in its sources that it says first."""
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return line.split(", ", 2)[-1] if ".cpp:" in line else line


@contextmanager
def _reading(path: Location) -> Iterator[None]:
    """Turn what a file system says when a file is opened or read into a `VideoError`."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError) as error:
        raise VideoError(path, "there is no such file") from error
    except PermissionError as error:
        raise VideoError(path, "no permission to read it") from error
    except OSError as error:
        raise VideoError(path, f"it cannot be read ({_first_line(error)})") from error


def _check_file(path: Location, source: Source) -> None:
    if isinstance(source, Path) and not source.is_file():
        raise VideoError(path, "it is a folder" if source.is_dir() else "there is no such file")
    if isinstance(source, Path) and not os.access(source, os.R_OK):
        raise VideoError(path, "no permission to read it")
    if _num_bytes(source) == 0:
        raise VideoError(path, "the file is empty")


def _num_bytes(source: Source) -> int:
    return source.stat().st_size if isinstance(source, Path) else source.seek(0, os.SEEK_END)


def _check_whole(path: Location, source: Source, num_announced: int | None, num_found: int) -> None:
    """Refuse a file that was cut short: it opens as a shorter video and would look fine."""
    # an avi's header may lie about its size by little, so its frames must be too few as well
    reason = _cut_short(source)
    if reason and (num_announced is None or num_found < num_announced):
        raise VideoError(path, reason)


def _cut_short(source: Source) -> str | None:
    """What is wrong with a file that has fewer bytes than its header announces."""
    announced, found = announced_bytes(source), _num_bytes(source)
    if announced is None or found >= announced:
        return None
    return f"it is cut short: {found:,} bytes, its header announces {announced:,}"


def announced_bytes(source: Source) -> int | None:
    """How long a webm, Matroska or avi file says that it is; None where it does not say.

    ```text
    avi   "RIFF" size:4 ...              size counts from byte 8
    webm  EBML header, Segment id 18538067, size:1..8 as a variable-length integer, ...
    ```
    """
    if isinstance(source, RemoteFile):
        source.seek(0)
        head = source.read(4096)
    else:
        with source.open("rb") as file:
            head = file.read(4096)
    if head[:4] == b"RIFF":
        return 8 + int.from_bytes(head[4:8], "little")
    segment = head.find(b"\x18\x53\x80\x67")
    if head[:4] != b"\x1a\x45\xdf\xa3" or segment < 0 or segment + 5 > len(head):
        return None
    start = segment + 4
    length = 9 - head[start].bit_length()
    value = int.from_bytes(head[start : start + length], "big") & ((1 << 7 * length) - 1)
    return None if value == (1 << 7 * length) - 1 else start + length + value


def _cut(video: Video, ref: ClipRef) -> Tensor:
    """The pixels of a clip; a frame that it takes twice is decoded and resized once."""
    distinct = tuple(sorted(set(ref.frame_indices)))
    pixels = _resized(video.frames(distinct), ref)
    return pixels if distinct == ref.frame_indices else pixels[[distinct.index(i) for i in ref.frame_indices]]


def _resized(frames: Tensor, ref: ClipRef) -> Tensor:
    """The crop of frames (T, 3, H, W), resized with antialiasing to (T, 3, S, S); uint8 in and out."""
    box = ref.crop
    part = frames[:, :, box.top : box.top + box.height, box.left : box.left + box.width]
    if (box.height, box.width) == (ref.size_px, ref.size_px):
        return part.contiguous()
    size = (ref.size_px, ref.size_px)
    return F.interpolate(part, size=size, mode="bilinear", antialias=True, align_corners=False).contiguous()
