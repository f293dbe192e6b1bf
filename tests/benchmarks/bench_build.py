"""What `cache build` takes: its time against decoding or the teacher alone, its memory over many clips, and what int8 costs.

    python -m tests.benchmarks.bench_build [--quick] [--json] [--only overlap,memory,int8]

*Overlap*: a build on two cores with one decoding thread and one torch thread, of videos as Something-Something v2 has them and a
VideoMAE with random weights, as deep as makes it take about as long as decoding, which is the hardest case: half of the work is
to vanish behind the other half. Filling the shards is compared, and the whole build with loading the teacher, creating the
cache and fitting the projection to one batch. All in turns; the ratio is to the slower of the two alone in the same round.
*Memory*: resident memory of this process as clips become safe, over a build of 5,000 small clips with the built-in teacher; few
different files, listed many times. The slope is that of a straight line through the samples of a range of clips.
*int8*: size of the same cache in both types, and the mean cosine of int8 tokens to what the teacher said.

Aims: filling at most 1.10 times the slower of the two; memory flat after 200 clips.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch in the decoding threads too; before torch is imported

import shutil
import statistics
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from transformers import VideoMAEConfig, VideoMAEModel

from stjepa_cli.cache.build import build
from stjepa_cli.cache.request import BuildRequest
from stjepa_cli.cache.shard_builder import ShardBuilder, load
from stjepa_cli.core.prefetch import ordered_map
from stjepa_cli.core.progress import SILENT, Task
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.data.video import read_clip
from stjepa_cli.store import quantization
from stjepa_cli.store.latent_store import LatentStore
from stjepa_cli.teachers.base import Teacher, open_teacher
from tests.benchmarks.bench_decode import make_videos
from tests.benchmarks.common import Row, interleave, parser, report
from tests.media import MOTIONS, moving_square, plain, ssv2_entry, write_json, write_video

BATCH = 4
SPEC = ClipSpec(num_frames=16, size_px=112, tubelet=2, patch_px=16)
ONE_THREAD = Runtime("cpu", workers=1, batch_size=BATCH)
SMALL = ClipSpec(num_frames=4, size_px=32, tubelet=2, patch_px=16)
DIM = 384


# --------------------------------------------------------------------------------------------------- data and teachers


def link_dataset(root: Path, videos: list[Path], count: int) -> Path:
    """A Something-Something v2 whose `count` train videos are links to a few files."""
    folder = root / "20bn-something-something-v2"
    folder.mkdir(parents=True)
    write_json(root / "labels.json", {plain(template): str(k) for k, template in enumerate(MOTIONS)})
    for number in range(1, count + 2):
        (folder / f"{number}.webm").hardlink_to(videos[number % len(videos)])
    write_json(root / "train.json", [ssv2_entry(str(number), MOTIONS[0]) for number in range(1, count + 1)])
    write_json(root / "validation.json", [ssv2_entry(str(count + 1), MOTIONS[0])])
    return root


def save_teacher(folder: Path, num_layers: int) -> str:
    """A VideoMAE with random weights."""
    torch.manual_seed(0)
    config = VideoMAEConfig(
        num_frames=SPEC.num_frames, image_size=SPEC.size_px, patch_size=SPEC.patch_px, tubelet_size=SPEC.tubelet, hidden_size=DIM,
        num_hidden_layers=num_layers, num_attention_heads=6, intermediate_size=2 * DIM, use_mean_pooling=True,
    )  # fmt: skip
    VideoMAEModel(config).save_pretrained(folder)
    return str(folder)


def seconds_of(teacher: Teacher, batch: torch.Tensor) -> float:
    """Of encoding a batch, the fastest of three."""
    found = []
    for _ in range(3):
        started = time.perf_counter()
        teacher.encode(batch)
        found.append(time.perf_counter() - started)
    return min(found)


def matching_teacher(folder: Path, videos: list[Path]) -> str:
    """A teacher that takes about as long as decoding."""
    started = time.perf_counter()
    batch = torch.stack([read_clip(videos[number % len(videos)], SPEC).pixels for number in range(BATCH)])
    decoding = time.perf_counter() - started
    one, three = (seconds_of(open_teacher(save_teacher(folder / str(depth), depth)), batch) for depth in (1, 3))
    depth = max(1, round(1 + (decoding - one) / max(1e-6, (three - one) / 2)))
    return save_teacher(folder / "teacher", depth)


# -------------------------------------------------------------------------------------------------------- measurements


def overlap(folder: Path, videos: list[Path], count: int, rounds: int) -> tuple[list[Row], list[str]]:
    """Building against decoding only and the teacher only."""
    root = link_dataset(folder / "data", videos, count)
    name = matching_teacher(folder / "teachers", videos)
    request = BuildRequest.of(root, folder / "cache", teacher=name, fit_clips=BATCH)
    build(request, ONE_THREAD)
    header, items = LatentStore.open(request.cache).header, request.source.items()
    store, teacher = LatentStore.open(request.cache), open_teacher(name)
    clips = torch.stack([read_clip(video, SPEC).pixels for video in videos])[torch.arange(BATCH) % len(videos)]

    def decode() -> None:
        for _ in ordered_map(lambda item: load(item, header, 0), items, num_workers=1):
            pass

    def encode() -> None:
        projection = store.projection()
        for _ in range(count // BATCH):
            quantization.encode(projection(teacher.encode(clips)), header.dtype)

    def fill() -> None:
        for shard in range(header.num_shards):
            store.manifests.discard(shard)
        builder = ShardBuilder(store, items, teacher, ONE_THREAD)
        builder.run(range(header.num_shards), lambda counts: None)

    def whole() -> None:
        shutil.rmtree(str(request.cache))
        build(request, ONE_THREAD)

    seconds = interleave(
        {"decoding only": decode, "teacher only": encode, "filling the shards": fill, "whole build": whole}, rounds, warmup=0
    )
    slower = [max(pair) for pair in zip(seconds["decoding only"], seconds["teacher only"], strict=True)]
    rows: list[Row] = []
    for what, times in seconds.items():
        ratios = [mine / other for mine, other in zip(times, slower, strict=True)]
        aim = 1.1 if what == "filling the shards" else None
        row = {"what": what, "ms a clip": 1000 * statistics.median(times) / count, "to the slower": statistics.median(ratios)}
        rows.append(row | {"worst": max(ratios), "best": min(ratios), "aim": aim})
    return rows, [f"{count} clips, teacher of {teacher.card.name.rpartition('/')[2]} {SPEC}"]


class Memory:
    """A progress bar that notes the resident memory of this process whenever clips become safe.

    Attributes:
        samples: clips and MB.
    """

    def __init__(self) -> None:
        self.samples: list[tuple[int, float]] = []

    def task(self, name: str, *, total: int | None, unit: str = "clips", completed: int = 0) -> AbstractContextManager[Task]:
        return nullcontext(self if name == "cache" else SILENT.task(name, total=total).__enter__())

    def advance(self, count: int = 1, **figures: float) -> None:
        self.samples.append((count + (self.samples[-1][0] if self.samples else 0), resident_mb()))

    def note(self, text: str) -> None:
        pass


def resident_mb() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1e6


def memory(folder: Path, count: int) -> list[Row]:
    """A long build, its memory watched."""
    videos = [write_video(folder / "small" / f"{seed}.webm", moving_square(direction=seed % 3, seed=seed)) for seed in range(6)]
    root = link_dataset(folder / "many", videos, count)
    watched = Memory()
    request = BuildRequest.of(root, folder / "many-cache", teacher="hog", clip=SMALL, fit_clips=64)
    build(request, Runtime("cpu", workers=2, progress=watched))
    samples = np.array(watched.samples)
    rows: list[Row] = []
    for first, last in ((0, 200), (200, 1000), (1000, count // 2), (count // 2, count)):
        clips, size = samples[(samples[:, 0] > first) & (samples[:, 0] <= last)].T if last > first else (np.empty(0), np.empty(0))
        if len(clips) > 1:
            slope = float(np.polyfit(clips, size, 1)[0])
            rows.append(
                {"clips": f"{first}-{last}", "MB at the end": size[-1], "max - min MB": float(np.ptp(size)), "kB a clip": 1000 * slope}
            )
    return rows


def int8(folder: Path, videos: list[Path], count: int) -> list[Row]:
    """The same cache in both types."""
    root = link_dataset(folder / "few", videos, count)
    name = save_teacher(folder / "shallow", 4)
    rows: list[Row] = []
    common = BuildRequest.of(root, folder, teacher=name, fit_clips=BATCH, rows_per_shard=count)
    for dtype in ("float16", "int8"):
        found = build(common.replace(cache=folder / dtype, dtype=dtype), ONE_THREAD)
        cosine = "exact" if found.cosine is None else str(found.cosine)
        rows.append({"dtype": dtype, "MB": found.bytes / 1e6, "kB a clip": found.bytes / 1000 / count, "cosine": cosine})
    return rows


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--only", default="overlap,memory,int8", help="some of overlap,memory,int8")
    made.add_argument("--clips", type=int, default=128, help="of the overlap; the first batch overlaps with nothing")
    made.add_argument("--rounds", type=int, default=3, help="of the overlap")
    arguments = made.parse_args()
    torch.set_num_threads(1)
    count, rounds, many, few = (16, 1, 300, 16) if arguments.quick else (arguments.clips, arguments.rounds, 5000, 64)
    notes = [f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}"]
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        (folder / "videos").mkdir()
        wanted = arguments.only.split(",")
        videos = make_videos(folder / "videos", 2 if arguments.quick else 8) if set(wanted) != {"memory"} else []
        if "memory" in wanted:  # first: what the other parts leave in memory is no concern of it
            report("Memory of a build", memory(folder, many), as_json=arguments.json, notes=notes)
        if "overlap" in wanted:
            rows, more = overlap(folder, videos, count, rounds)
            report("Decoding and teacher at the same time", rows, as_json=arguments.json, notes=notes + more)
        if "int8" in wanted:
            report("int8", int8(folder, videos, few), as_json=arguments.json, notes=notes)


if __name__ == "__main__":
    main()
