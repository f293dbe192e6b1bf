"""The page of a benchmark: its table, what a clip of each class looks like, and links to the reports."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.core.progress import Progress
from stjepa_cli.data.datasets.base import VideoItem, open_dataset
from stjepa_cli.data.video import read_clip
from stjepa_cli.demo.chain import BenchmarkPlan, Scores
from stjepa_cli.viz import html
from stjepa_cli.viz.images import encode_picture

if TYPE_CHECKING:
    from stjepa_cli.demo.benchmark import BenchmarkResult, BenchmarkRow

SHOWN_FRAMES = 8
SHOWN_PX = 96
NAMES = {"knn": "kNN", "linear": "linear probe", "r1": "retrieval R@1"}
ABOUT = {
    "motion": "The label is only in the motion: textures, outlines, colours and background are independent of it, and a frame taken at "
    "a random time looks the same in every class. Motions and their reverses, and doing and pretending, differ in nothing but the order "
    "of frames.",
    "appearance": "The label is only in the appearance: the outline of the objects and the texture of the scene. Motion is independent "
    "of it, so a single frame tells as much as a clip.",
}


def page(result: BenchmarkResult, plan: BenchmarkPlan, scores: Scores, progress: Progress) -> str:
    """Return the whole document, HTML.

    Args:
        result: The table and the numbers behind it.
        plan: What was done.
        scores: What was scored, for links to the reports.
        progress: Receives progress while clips are read.
    """
    title = f"{result.task.capitalize()} benchmark, size {result.size}"
    body = [
        html.heading(title, 1),
        html.paragraph(ABOUT[plan.task]),
        html.paragraph(
            f"Students learned from {result.num_pretrain:,} clips of other textures, outlines and speeds than those scored here: probes "
            f"were fitted on {result.num_train:,} videos and scored on {result.num_test:,} of {len(result.classes)} classes, guessing "
            f"gives {result.chance:.1%}. Clips of {result.clip}.",
            quiet=True,
        ),
        *_tables(result),
        html.heading("A clip of each class"),
        *_samples(plan, progress),
        html.heading("Reports"),
        html.links({name: f"{plan.report_folder(name).relative_to(plan.out)}/report.html" for name in scores}),
    ]
    return html.page(title, body)


def _tables(result: BenchmarkResult) -> Iterator[str]:
    columns = ("model", "saw labels", *NAMES.values())
    rows = [(row.model, row.saw_labels, *(_cell(row, metric) for metric in NAMES)) for row in result.rows]
    seeds = f" Means over {len(result.seeds)} seeds of pretraining." if len(result.seeds) > 1 else ""
    yield html.wrapped(
        columns,
        rows,
        widths=(28, 18, 18, 18, 18),
        numbers=(2, 3, 4),
        bars=[row.metrics["knn"].value for row in result.rows],
        caption=f"Percent of test videos, in brackets the 95 % bootstrap interval over them; bars show kNN.{seeds}",
    )
    if len(result.seeds) > 1:
        rows = [(row.model, *(_of_seeds(row, metric) for metric in NAMES)) for row in result.rows if row.steps]
        yield html.folded("Every seed", [html.wrapped(("model", *NAMES.values()), rows, widths=(31, 23, 23, 23), numbers=(1, 2, 3))])


def _cell(row: BenchmarkRow, metric: str) -> str:
    found = row.metrics[metric]
    return "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * number for number in (found.value, *found.interval)))


def _of_seeds(row: BenchmarkRow, metric: str) -> str:
    return ", ".join(f"{100 * value:.1f}" for value in row.metrics[metric].seeds)


def _samples(plan: BenchmarkPlan, progress: Progress) -> Iterator[str]:
    """Yield a strip of frames for each class, the first test video of each."""
    dataset = open_dataset("ucf101", plan.ucf101)
    templates = plan.size.scored_clips(plan.data_seed, plan.task).templates
    shown: dict[int, VideoItem] = {}
    for item in dataset.videos("test1"):
        if item.label is not None:
            shown.setdefault(item.label, item)
    with progress.task("reading sample clips", total=len(shown)) as task:
        for label, item in sorted(shown.items()):
            name = templates[label] if plan.task == "motion" else dataset.classes[label]
            words = name.replace("[", "").replace("]", "")
            yield html.strip(words, f"Frames of a clip: {words}", [("image/jpeg", frame) for frame in _frames(plan, item)])
            task.advance(1)


def _frames(plan: BenchmarkPlan, item: VideoItem) -> Iterator[bytes]:
    """Yield up to `SHOWN_FRAMES` frames of a clip as JPEG files."""
    pixels = read_clip(item.path, plan.size.clip).pixels
    for frame in _enlarged(pixels[:: max(1, len(pixels) // SHOWN_FRAMES)]):
        yield encode_picture(frame, "JPEG")


def _enlarged(frames: Tensor) -> Tensor:
    """Return frames uint8 (T, 3, S, S) at `SHOWN_PX` or more, each pixel as a square."""
    factor = max(1, round(SHOWN_PX / frames.shape[-1]))
    return F.interpolate(frames, scale_factor=factor, mode="nearest")
