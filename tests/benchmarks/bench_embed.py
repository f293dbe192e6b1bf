"""What `stjepa embed` takes: its speed against a plain loop, its memory over many videos, and how fast a table is searched.

    python -m tests.benchmarks.bench_embed [--quick] [--json] [--only speed,memory,search,models]

*Speed*: the plain loop of `bench_features` (torchcodec, crop, resize, a batch, the model, the mean), against `Encoder.embed_many` and
against the rows of `stjepa embed` written to a LanceDB table. A `small` student on 16 frames of 112 px; one torch thread; in turns in
one process. The plain loop decodes and encodes one after the other; ours decodes in a thread beside the encoder, so two cores help it.
*Memory*: resident memory of this process over a run of 5,000 videos into a table; few different files under many names.
*Search*: 100,000 vectors of 384 channels around 2,000 centres; the ten nearest of twenty of them, exactly and with the index.
*Models*: a forward pass of one clip of 16 frames by a `base` student at 224 px and by V-JEPA 2 ViT-L at 256 px, its own size, both with
random weights and on one thread, and the operations of each as torch counts them.

Aims: 1.0 of the plain loop or better; memory flat; a search in less than 100 ms.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch in the decoding threads too; before torch is imported

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import VJEPA2Config, VJEPA2Model

from stjepa_cli.core.config import PRESETS
from stjepa_cli.core.progress import Task
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.encoders.student_encoder import StudentEncoder
from stjepa_cli.models.student import Student
from stjepa_cli.search.embed import EmbedRequest, embed
from stjepa_cli.search.embedding import Recipe, embed_items
from stjepa_cli.search.encoder import Encoder
from stjepa_cli.search.indexes.base import open_index
from stjepa_cli.search.reading import Item
from stjepa_cli.search.records import Column
from stjepa_cli.search.records import Row as Record
from tests.benchmarks.bench_build import resident_mb
from tests.benchmarks.bench_decode import make_videos
from tests.benchmarks.bench_features import BATCH, SPEC, plain
from tests.benchmarks.common import Row, interleave, parser, ratio, report
from tests.search.clips import MODEL, write_clips

DIM, CENTRES, SPREAD = 384, 2000, 0.7


def speed(paths: Sequence[Path], folder: Path, rounds: int) -> tuple[list[Row], str]:
    """Clips a second of each way, and how far their vectors are apart."""
    student = Student(PRESETS["small"][0], SPEC, torch.Generator().manual_seed(0)).eval().requires_grad_(False)
    encoder = Encoder(StudentEncoder(student, "small"), Runtime("cpu", workers=1, batch_size=BATCH))
    recipe = Recipe("vector")

    def into_a_table() -> None:
        shutil.rmtree(folder / "table", ignore_errors=True)
        with open_index(str(folder / "table"), create=True) as index:
            column = recipe.column_of(encoder, "small")
            index.add_column(column)
            found = embed_items(encoder, column, recipe, [Item(str(path)) for path in paths], {})
            index.upsert([row for each in found for row in each.rows], column.name)

    ours = torch.stack(list(encoder.embed_many(paths, "mean")))
    apart = float((ours - torch.nn.functional.normalize(plain(paths, student), dim=1)).abs().max())
    ways = {
        "plain loop": lambda: plain(paths, student),
        "Encoder.embed_many": lambda: list(encoder.embed_many(paths, "mean")),
        "into a table": into_a_table,
    }
    seconds = interleave(ways, rounds)
    rows: list[Row] = [
        {"way": name, "clips/s": len(paths) / statistics.median(times), "of the plain loop": ratio(seconds, name, "plain loop")}
        for name, times in seconds.items()
    ]
    return rows, f"largest difference of a number of a unit vector: {apart:.1e}"


class Memory:
    """A listener that notes the resident memory of this process at each video."""

    def __init__(self) -> None:
        self.samples: list[float] = []

    def task(self, name: str, *, total: int | None, unit: str = "clips", completed: int = 0) -> AbstractContextManager[Task]:
        return nullcontext(self)

    def advance(self, count: int = 1, **figures: float) -> None:
        self.samples.append(resident_mb())

    def note(self, text: str) -> None:
        pass


def memory(folder: Path, count: int) -> list[Row]:
    """A long run, its memory watched."""
    videos = write_clips(folder / "few", 6)
    (folder / "many").mkdir()
    for number in range(count):
        os.link(videos[number % len(videos)], folder / "many" / f"{number:05d}.mp4")
    watched = Memory()
    embed(EmbedRequest((str(folder / "many"),), MODEL, str(folder / "many-table")), Runtime("cpu", 2, 8, watched))
    rows: list[Row] = []
    for first, last in ((0, count // 10), (count // 10, count // 2), (count // 2, count)):
        size = np.array(watched.samples[first:last])
        slope = float(np.polyfit(np.arange(len(size)), size, 1)[0])
        rows.append(
            {"videos": f"{first}-{last}", "MB at the end": size[-1], "max - min MB": float(np.ptp(size)), "kB a video": 1000 * slope}
        )
    return rows


def search(folder: Path, count: int) -> list[Row]:
    """Milliseconds of a search in a large table."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((CENTRES, DIM)).astype(np.float32)
    rows: list[Row] = []
    with open_index(str(folder / "large"), create=True) as index:
        index.add_column(Column("vector", "clip", DIM, "none", "0" * 64))
        for start in range(0, count, 5000):
            vectors = centres[generator.integers(0, CENTRES, 5000)]
            vectors = vectors + SPREAD * generator.standard_normal(vectors.shape).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            records = [Record(f"/{start + i}.mp4", digest="0", vectors={"vector": vector}) for i, vector in enumerate(vectors)]
            index.upsert(records, "vector")
        index.tidy()
        queries = list(vectors[:20])
        for name in ("exact", "index"):
            began = time.perf_counter()
            built = index.build_index("vector") if name == "index" else None
            seconds = time.perf_counter() - began
            times = []
            for query in queries:
                began = time.perf_counter()
                index.search(query, "vector", exact=built is None)
                times.append(1000 * (time.perf_counter() - began))
            rows.append(
                {
                    "search": name if built is None else built.kind,
                    "ms, median": statistics.median(times),
                    "ms, longest": max(times),
                    "recall@10": 1.0 if built is None else built.recall,
                    "s to build": None if built is None else seconds,
                }
            )
    return rows


def models(rounds: int) -> list[Row]:
    """A compact student against a large model."""
    student = Student(PRESETS["base"][0], ClipSpec(), torch.Generator().manual_seed(0)).eval()
    large = VJEPA2Model(VJEPA2Config()).eval()  # the defaults are those of ViT-L
    few = torch.zeros(1, 16, 3, 224, 224, dtype=torch.uint8)
    many = torch.zeros(1, 16, 3, 256, 256)
    ways: dict[str, Callable[[], object]] = {
        "base student": lambda: student(few),
        "V-JEPA 2 ViT-L": lambda: large(pixel_values_videos=many, skip_predictor=True),
    }
    with torch.inference_mode():
        flops = {}
        for name, way in ways.items():
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the kernel whose sums torch counts
                way()
            flops[name] = counter.get_total_flops() / 1e9
        seconds = interleave(ways, rounds, warmup=0)
    rows: list[Row] = []
    for name, times in seconds.items():
        faster = ratio(seconds, name, "V-JEPA 2 ViT-L")
        rows.append({"model": name, "clips/s": 1 / statistics.median(times), "of V-JEPA 2": faster, "GFLOP": flops[name]})
    return rows


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--only", default="memory,speed,search", help="some of speed,memory,search,models")
    arguments = made.parse_args()
    torch.set_num_threads(1)
    count, rounds, many, large = (4, 1, 60, 20_000) if arguments.quick else (16, 5, 5000, 100_000)
    notes = [f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}"]
    wanted = arguments.only.split(",")
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        if "memory" in wanted:  # first: what the other parts leave in memory is no concern of it
            report(f"Memory of a run of {many:,} videos", memory(folder, many), as_json=arguments.json, notes=notes)
        if "speed" in wanted:
            (folder / "videos").mkdir()
            rows, note = speed(make_videos(folder / "videos", count), folder, rounds)
            report(f"Vectors of {count} videos, medians of {rounds} rounds", rows, as_json=arguments.json, notes=[*notes, note])
        if "models" in wanted:
            report("One clip of 16 frames", models(1 if arguments.quick else 3), as_json=arguments.json, notes=notes)
        if "search" in wanted:
            report(f"Searching {large:,} vectors of {DIM}", search(folder, large), as_json=arguments.json, notes=notes)


if __name__ == "__main__":
    main()
