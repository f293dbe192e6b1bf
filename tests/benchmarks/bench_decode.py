"""How fast a clip comes from a video, and from the JPEGs that are kept beside the latents.

    python -m tests.benchmarks.bench_decode [--quick] [--json] [--videos FOLDER]

One core, one thread; all contenders in turns in one process; medians over rounds. A round decodes every video once.

*Decoding*: 16 uniform frames of a webm as Something-Something v2 has them (VP9, 427x240, 12 fps, 45 frames, some 90 kB; made
here from generated motion clips, or the files of `--videos`), the centre square, resized to 224 px. Peers do the same job in
the best way we know: the same frames, each stopping behind the last one, converting only what it takes, with the same crop and
the same antialiased resize of torch. PyAV counts the frames by reading packets, as we do; decord counts by itself; OpenCV cannot
count a webm without decoding it and is told which frames to take. `psnr` compares a contender's clip with ours, in dB; equal
clips have none.

*Frame cache*: a clip from its chunk of JPEGs in memory, its crc32c checked, against decoding the video again.

*Ways to keep frames*: size of a clip, time to write and to read it, and what is lost, for the encodings that were considered.

Aims: decoding 1.2 times as fast as PyAV and 1.1 times as fast as decord; from the frame cache 10 times as fast as from the video.
"""

from __future__ import annotations

import importlib
import importlib.util
import statistics
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from stjepa_cli.core.types import ClipRef, ClipSpec
from stjepa_cli.data.video import encode_video, read_clip
from stjepa_cli.demo.scenes import draw_clips
from stjepa_cli.demo.synthetic import FPS
from stjepa_cli.store.frames import decode_clip, encode_clip
from stjepa_cli.store.shard_format import checksum
from tests.benchmarks.common import Row, interleave, parser, pin_to_one_core, ratio, report

SPEC = ClipSpec()
HEIGHT, WIDTH, NUM_FRAMES = 240, 427, 45
GRAIN = 2.6
"""Standard deviation of the noise of a camera, in grey levels: it brings a file to the size that real ones have."""

Peer = Callable[[Path, ClipRef], Tensor]


# ------------------------------------------------------------------------------------------------------------- peers


def by_pyav(path: Path, ref: ClipRef) -> Tensor:
    """PyAV: count packets, then decode from the start and keep what is wanted."""
    av: Any = importlib.import_module("av")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count, stream.thread_type = 1, "NONE"
        wanted = SPEC.frame_indices(sum(packet.size > 0 for packet in container.demux(stream)))
        container.seek(0)
        kept: dict[int, Tensor] = {}
        for i, frame in enumerate(container.decode(stream)):
            if i in wanted:
                kept[i] = torch.from_numpy(frame.to_ndarray(format="rgb24"))
            if i == wanted[-1]:
                break
    return cut(torch.stack([kept[i] for i in wanted]), ref)


def by_decord(path: Path, ref: ClipRef) -> Tensor:
    """decord: its own count, one batch."""
    decord: Any = importlib.import_module("decord")
    video = decord.VideoReader(str(path), num_threads=1)
    return cut(torch.from_numpy(video.get_batch(list(SPEC.frame_indices(len(video)))).asnumpy()), ref)


def by_opencv(path: Path, ref: ClipRef) -> Tensor:
    """OpenCV: grab all, retrieve what is wanted."""
    cv2: Any = importlib.import_module("cv2")
    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    kept: dict[int, Tensor] = {}
    for i in range(ref.frame_indices[-1] + 1):
        video.grab()
        if i in ref.frame_indices:
            kept[i] = torch.from_numpy(cv2.cvtColor(video.retrieve()[1], cv2.COLOR_BGR2RGB))
    video.release()
    return cut(torch.stack([kept[i] for i in ref.frame_indices]), ref)


PEERS: dict[str, tuple[str, Peer]] = {"PyAV": ("av", by_pyav), "decord": ("decord", by_decord), "OpenCV": ("cv2", by_opencv)}


def cut(frames: Tensor, ref: ClipRef) -> Tensor:
    """Crop and resize whole frames (T, H, W, 3) as `stjepa_cli.data.video` does."""
    box = ref.crop
    part = frames.permute(0, 3, 1, 2)[:, :, box.top : box.top + box.height, box.left : box.left + box.width]
    return F.interpolate(part, size=(ref.size_px, ref.size_px), mode="bilinear", antialias=True, align_corners=False).contiguous()


# ------------------------------------------------------------------------------------------------------------ videos


def make_videos(folder: Path, count: int) -> list[Path]:
    """Webm files as Something-Something v2 has them, from generated clips."""
    clips, _ = draw_clips(count, 0, num_frames=NUM_FRAMES, size_px=WIDTH)
    top = (WIDTH - HEIGHT) // 2
    paths = []
    for number, clip in enumerate(clips[:, :, :, top : top + HEIGHT]):
        generator = torch.Generator().manual_seed(number)
        grain = GRAIN * torch.randn(NUM_FRAMES, 1, HEIGHT, WIDTH, generator=generator)
        path = folder / f"{number}.webm"
        encode_video(path, (clip + grain).clamp(0, 255).to(torch.uint8), fps=FPS)
        paths.append(path)
    return paths


def psnr(ours: Tensor, theirs: Tensor) -> float | None:
    """In dB, None for equal clips."""
    error = float((ours.float() - theirs.float()).square().mean())
    return 10 * float(np.log10(255**2 / error)) if error else None


def drain(clips: Iterable[object]) -> None:
    """Make each and keep none: memory that is used again costs no page faults."""
    deque(clips, maxlen=0)


def lowest(values: Sequence[float | None]) -> float | str:
    """The worst PSNR of several clips."""
    return min((value for value in values if value is not None), default="equal")


# -------------------------------------------------------------------------------------------------------- measurements


def decoding(paths: Sequence[Path], rounds: int) -> tuple[list[Row], list[str]]:
    """Clips from videos: ours and the peers'."""
    clips = [read_clip(path, SPEC) for path in paths]
    jobs = [(path, clip.ref) for path, clip in zip(paths, clips, strict=True)]
    found = {name: peer for name, (module, peer) in PEERS.items() if importlib.util.find_spec(module)}
    contenders: dict[str, Callable[[], object]] = {"stjepa": lambda: drain(read_clip(path, SPEC) for path in paths)}
    for name, peer in found.items():
        contenders[name] = lambda peer=peer: drain(peer(path, ref) for path, ref in jobs)  # type: ignore[misc]
    seconds = interleave(contenders, rounds)
    worst = {name: lowest([psnr(clip.pixels, peer(*job)) for clip, job in zip(clips, jobs, strict=True)]) for name, peer in found.items()}
    rows: list[Row] = [
        {
            "contender": name,
            "ms a clip": 1000 * statistics.median(times) / len(paths),
            "clips/s": len(paths) / statistics.median(times),
            "stjepa is faster by": ratio(seconds, "stjepa", name),
            "psnr": worst.get(name, "equal"),
        }
        for name, times in seconds.items()
    ]
    return rows, [f"{name}: skipped, not installed" for name in PEERS if name not in found]


def frame_cache(paths: Sequence[Path], rounds: int) -> list[Row]:
    """Clips from their kept JPEGs, against their videos."""
    clips = [read_clip(path, SPEC) for path in paths]
    chunks = [encode_clip(clip.pixels) for clip in clips]
    checksums = [checksum(chunk) for chunk in chunks]
    out = torch.empty_like(clips[0].pixels)

    def read() -> None:
        for chunk, expected in zip(chunks, checksums, strict=True):
            if checksum(chunk) != expected:
                raise AssertionError("the checksum does not match")
            decode_clip(chunk, SPEC.size_px, out)

    seconds = interleave({"frame cache": read, "video": lambda: drain(read_clip(path, SPEC) for path in paths)}, rounds)
    worst = lowest([psnr(clip.pixels, decode_clip(chunk, SPEC.size_px)) for clip, chunk in zip(clips, chunks, strict=True)])
    return [
        {
            "clips from": name,
            "ms a clip": 1000 * statistics.median(times) / len(paths),
            "clips/s": len(paths) / statistics.median(times),
            "frame cache is faster by": ratio(seconds, "frame cache", name),
            "kB a clip": sum(map(len, chunks) if name == "frame cache" else (path.stat().st_size for path in paths)) / len(paths) / 1000,
            "psnr": worst if name == "frame cache" else "equal",
        }
        for name, times in seconds.items()
    ]


def simple(subsampling: str, quality: int, *, fast: bool = False) -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]]:
    """A frame to JPEG and back by simplejpeg."""
    return (
        lambda frame: bytes(simplejpeg.encode_jpeg(frame, quality=quality, colorsubsampling=subsampling, fastdct=fast)),
        lambda data: simplejpeg.decode_jpeg(data, fastdct=fast, fastupsample=fast),
    )


def pillow(kind: str, **options: int) -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]]:
    """A frame to a file in memory and back by Pillow."""

    def encode(frame: Any) -> bytes:
        file = BytesIO()
        Image.fromarray(frame).save(file, kind, **options)
        return file.getvalue()

    return encode, lambda data: np.asarray(Image.open(BytesIO(data)))


CODECS = {
    "simplejpeg 4:2:0 q90": simple("420", 90),
    "simplejpeg 4:2:0 q90, fast transforms": simple("420", 90, fast=True),
    "simplejpeg 4:4:4 q90": simple("444", 90),
    "simplejpeg 4:4:4 q85": simple("444", 85),
    "Pillow JPEG 4:2:0 q90": pillow("JPEG", quality=90, subsampling=2),
    "Pillow WebP q90": pillow("WEBP", quality=90, method=0),
}


def codecs(paths: Sequence[Path], rounds: int) -> list[Row]:
    """What each way to keep frames costs."""
    clips = [read_clip(path, SPEC).pixels.permute(0, 2, 3, 1).contiguous() for path in paths]
    frames = [frame for clip in clips for frame in clip.numpy()]
    files = {name: [encode(frame) for frame in frames] for name, (encode, _) in CODECS.items()}
    contenders: dict[str, Callable[[], object]] = {}
    for name, (encode, decode) in CODECS.items():
        contenders[f"write {name}"] = lambda encode=encode: [encode(frame) for frame in frames]  # type: ignore[misc]
        contenders[f"read {name}"] = lambda decode=decode, name=name: [decode(file) for file in files[name]]  # type: ignore[misc]
    seconds = {name: 1000 * statistics.median(times) / len(clips) for name, times in interleave(contenders, rounds).items()}
    rows: list[Row] = []
    for name, (_, decode) in CODECS.items():
        again = torch.from_numpy(np.stack([decode(file) for file in files[name]])).view(len(clips), SPEC.num_frames, SPEC.size_px, -1, 3)
        rows.append(
            {
                "frames kept as": name,
                "kB a clip": sum(map(len, files[name])) / len(clips) / 1000,
                "ms to write": seconds[f"write {name}"],
                "ms to read": seconds[f"read {name}"],
                "psnr": lowest([psnr(clip, theirs) for clip, theirs in zip(clips, again, strict=True)]),
            }
        )
    return rows


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--videos", type=Path, help="folder of webm files to use instead of generated ones")
    arguments = made.parse_args()
    core = pin_to_one_core()
    count, rounds = (2, 2) if arguments.quick else (8, 11)
    with tempfile.TemporaryDirectory() as folder:
        paths = sorted(arguments.videos.glob("*.webm"))[:count] if arguments.videos else make_videos(Path(folder), count)
        size = statistics.mean(path.stat().st_size for path in paths) / 1000
        notes = [f"{len(paths)} videos of {size:.0f} kB, {rounds} rounds, one thread" + ("" if core is None else f" on core {core}")]
        rows, skipped = decoding(paths, rounds)
        report("Decoding 16 frames of a webm to 224 px", rows, as_json=arguments.json, notes=notes + skipped)
        report("The frame cache", frame_cache(paths, rounds), as_json=arguments.json, notes=notes)
        report("Ways to keep the frames", codecs(paths, max(2, rounds // 3)), as_json=arguments.json, notes=notes)


if __name__ == "__main__":
    main()
