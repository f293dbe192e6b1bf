"""Decode video files to clips, and encode frames to files: the one module that uses torchcodec.

A frame's number is its place in presentation order, counted from 0. Two clips cut by the same `ClipRef` have the same
pixels, whoever cuts them: teacher, student and evaluation all decode here.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.core.errors import NotReadyError, VideoError, how_to_install, storage_errors
from stjepa_cli.core.locations import Location, RemoteFile, is_local
from stjepa_cli.core.types import ClipRef, ClipSpec, CropBox
from stjepa_cli.data.containers import Source, check_file, check_whole, cut_short, first_line, reading
from stjepa_cli.data.eval_clips import EvalClips, cut_eval_clips
from stjepa_cli.data.views import cut_view

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
        ref: Reference that decodes the same clip again.
    """

    pixels: Tensor
    ref: ClipRef


class Video:
    """An open video file; a remote one is closed at the end of a `with` block or when it is collected.

    Attributes:
        num_frames: Number of frames that can be decoded, counted and never taken from the header.
        height: Height of a frame as shown, in pixels.
        width: Width of a frame as shown, in pixels.
        fps: Frames per second on average, or 0 if the file does not say.

    Args:
        path: The file.
        block_bytes: Bytes per request to a remote file, or None for the driver's own number.

    Raises:
        VideoError: The file is missing, empty, cut short, without a video stream, or a single frame.
        NotReadyError: FFmpeg's libraries are missing.
    """

    def __init__(self, path: Location, block_bytes: int | None = None) -> None:
        self.path = path
        with ExitStack() as opened, reading(path):
            self._source: Source = path if is_local(path) else opened.enter_context(RemoteFile(path, block_bytes))
            self._inspect(path)
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def _inspect(self, path: Location) -> None:
        check_file(path, self._source)
        self._decoder = _open(path, self._source)
        metadata = self._decoder.metadata
        self.num_frames = len(self._decoder)
        check_whole(path, self._source, metadata.num_frames_from_header, self.num_frames)
        self.height, self.width = metadata.height or 0, metadata.width or 0
        self.fps = float(metadata.average_fps or 0)
        self._sequential = path.suffix.lower() == ".avi" and self._starts_late()
        if self._sequential:
            self.num_frames = self._count_frames()
        if self.num_frames < 2:
            raise VideoError(path, "it has a single frame, expected 2 or more")
        if not self.height or not self.width:
            raise VideoError(path, "its frames have no size")

    @property
    def duration_seconds(self) -> float | None:
        """The length of the frames that can be decoded, or None if the file does not say how fast they are shown."""
        return self.num_frames / self.fps if self.fps > 0 else None

    def frames(self, indices: tuple[int, ...]) -> Tensor:
        """Decode the frames at `indices`, in that order: uint8 (T, 3, height, width)."""
        wanted = sorted(set(indices))
        try:
            if self._sequential:
                kept = {i: frame for i, frame in self._walk(wanted[-1] + 1) if i in wanted}
                return torch.stack([kept[i] for i in indices])
            decoded: Tensor = self._decoder.get_frames_at(wanted).data
        except (*_CODEC_ERRORS, KeyError, OSError) as error:
            raise VideoError(self.path, f"a frame cannot be decoded ({first_line(error)})") from error
        return decoded if indices == tuple(wanted) else decoded[[wanted.index(i) for i in indices]]  # whole frames: 5 MB to copy

    def runs(self, indices: tuple[int, ...], length: int) -> Iterator[Tensor]:
        """Decode the frames at ascending `indices`, at most `length` at a time; all at once where seeking starts over."""
        step = len(indices) if self._sequential else length
        for start in range(0, len(indices), step):
            yield self.frames(indices[start : start + step])

    def _starts_late(self) -> bool:
        """Tell if the first frame shown has a later time stamp than the start of the stream.

        This is so in avi files with B-frames (XviD): their packets carry no presentation times, torchcodec numbers frames
        by decoding times, and seeking to frame i lands one or two frames off. Reading from the start gives the right order;
        only the last frames, which torchcodec never returns, are lost.
        """
        try:
            first: float = self._decoder.get_frame_at(0).pts_seconds
        except _CODEC_ERRORS as error:
            raise VideoError(self.path, f"its first frame cannot be decoded ({first_line(error)})") from error
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
    """Cut a clip from a video: the centre clip, or a random view of `views.cut_view`.

    Raises:
        VideoError: The file cannot be used; the message names it and says why.
    """
    with Video(path) as video:
        frame_indices, crop = cut_view(
            spec, num_frames=video.num_frames, height=video.height, width=video.width, clip_id=clip_id, view=view, seed=seed
        )
        ref = ClipRef(path, frame_indices, crop, spec.size_px)
        return Clip(_cut(video, ref), ref)


def read_clips(path: Location, spec: ClipSpec, eval_clips: EvalClips) -> Tensor:
    """Cut several clips from a video, opened once: uint8 (C, T, 3, S, S).

    Raises:
        VideoError: The file cannot be used; the message names it and says why.
    """
    with Video(path) as video:
        cuts = cut_eval_clips(spec, eval_clips, num_frames=video.num_frames, height=video.height, width=video.width)
        return cut_clips(video, [ClipRef(path, frame_indices, crop, spec.size_px) for frame_indices, crop in cuts])


def cut_clips(video: Video, refs: Sequence[ClipRef]) -> Tensor:
    """Cut C clips of the same length and size from an open video: uint8 (C, T, 3, S, S), each as its `ClipRef` alone would be decoded.

    A frame that several clips take is decoded once, and at most as many whole frames as a clip has are in memory.

    Raises:
        VideoError: A frame cannot be decoded.
    """
    if len(refs) == 1:
        return _cut(video, refs[0]).unsqueeze(0)
    distinct = tuple(sorted({i for ref in refs for i in ref.frame_indices}))
    crops = {ref.crop: ref for ref in refs}
    parts: dict[CropBox, list[Tensor]] = {crop: [] for crop in crops}
    for frames in video.runs(distinct, len(refs[0].frame_indices)):
        for crop, ref in crops.items():
            parts[crop].append(_resized(frames, ref))
    whole = {crop: torch.cat(found) for crop, found in parts.items()}
    return torch.stack([whole[ref.crop][[distinct.index(i) for i in ref.frame_indices]] for ref in refs])


def decode(ref: ClipRef) -> Tensor:
    """Decode a clip, uint8 (T, 3, S, S): always the same pixels for the same file and reference.

    Raises:
        VideoError: The file is no longer there, or no longer what it was.
    """
    with Video(ref.path) as video:
        if max(ref.frame_indices) >= video.num_frames:
            raise VideoError(ref.path, f"it has {video.num_frames} frames, expected more than {max(ref.frame_indices)}")
        if ref.crop.top + ref.crop.height > video.height or ref.crop.left + ref.crop.width > video.width:
            raise VideoError(ref.path, f"its frames are {video.width}x{video.height} px, the clip was cut from larger ones")
        return _cut(video, ref)


def encode_video(path: Path, frames: Tensor, *, fps: float) -> None:
    """Write frames uint8 (T, 3, H, W) to a file whose suffix names the format, as `video_bytes` encodes them."""
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
    """Return the versions of torchcodec and of the FFmpeg that it found.

    Raises:
        NotReadyError: One of them cannot be loaded.
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
        raise NotReadyError("torchcodec is not installed", fix=how_to_install("torchcodec~=0.13.0")) from error
    except (RuntimeError, OSError) as error:
        raise NotReadyError("torchcodec cannot load FFmpeg's libraries", fix=INSTALL_FFMPEG) from error
    return torchcodec


def _open(path: Location, source: Source) -> VideoDecoder:
    decoders = _torchcodec().decoders
    if isinstance(source, RemoteFile):
        source.seek(0)
    else:  # FFmpeg would take the start of a relative path for a protocol: `concat:other.webm` reads another file
        source = source.absolute()
    try:
        decoder: VideoDecoder = decoders.VideoDecoder(source, seek_mode="exact", num_ffmpeg_threads=1)
    except _CODEC_ERRORS as error:
        why = first_line(error).removeprefix(f"Could not open input file: {source} ")
        reason = "it has no video stream" if "video stream" in str(error) else f"not a video ({why})"
        raise VideoError(path, cut_short(source) or reason) from error
    return decoder


def _cut(video: Video, ref: ClipRef) -> Tensor:
    """Decode the pixels of a clip; a frame that it takes twice is decoded and resized once."""
    distinct = tuple(sorted(set(ref.frame_indices)))
    pixels = _resized(video.frames(distinct), ref)
    return pixels if distinct == ref.frame_indices else pixels[[distinct.index(i) for i in ref.frame_indices]]


def _resized(frames: Tensor, ref: ClipRef) -> Tensor:
    """Crop frames (T, 3, H, W) and resize them with antialiasing to (T, 3, S, S); uint8 in and out."""
    box = ref.crop
    part = frames[:, :, box.top : box.top + box.height, box.left : box.left + box.width]
    if (box.height, box.width) == (ref.size_px, ref.size_px):
        return part.contiguous()
    size = (ref.size_px, ref.size_px)
    return F.interpolate(part, size=size, mode="bilinear", antialias=True, align_corners=False).contiguous()
