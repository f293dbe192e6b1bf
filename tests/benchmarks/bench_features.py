"""How fast features of a data set are extracted, against a plain loop with the same model on the same files.

    python -m tests.benchmarks.bench_features [--quick] [--json]

One core, one thread; both in turns in one process; medians over rounds. A round extracts every video once: 16 uniform frames of a
webm as Something-Something v2 has them, the centre square at 112 px, a `small` student, the mean of its tokens.

The plain loop is what one would write: torchcodec's decoder, the frames, crop, antialiased resize, a batch, the model. It neither
checks that a file is whole, nor keeps what it found, nor goes on after a broken video. `stjepa` is `FeatureStore.extract` with one
decoding thread; `stjepa, kept` writes its files too; `stjepa, again` finds them.

Aim: 0.95 of the plain loop, or better.
"""

from __future__ import annotations

import importlib
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.core.config import PRESETS
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.data.datasets.base import VideoItem
from stjepa_cli.encoders.extraction import Extraction
from stjepa_cli.encoders.feature_store import FeatureStore
from stjepa_cli.encoders.student_encoder import StudentEncoder
from stjepa_cli.models.student import Student
from tests.benchmarks.bench_decode import make_videos
from tests.benchmarks.common import Row, interleave, parser, pin_to_one_core, ratio, report

SPEC = ClipSpec(size_px=112)
BATCH = 4


@torch.inference_mode()
def plain(paths: Sequence[Path], student: Student) -> Tensor:
    """Features (R, D) of videos by a loop without anything else."""
    decoders: Any = importlib.import_module("torchcodec.decoders")
    rows = []
    for start in range(0, len(paths), BATCH):
        clips = []
        for path in paths[start : start + BATCH]:
            decoder = decoders.VideoDecoder(path, seek_mode="exact", num_ffmpeg_threads=1)
            frames = decoder.get_frames_at(list(SPEC.frame_indices(len(decoder)))).data
            height, width = frames.shape[2:]
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            part = frames[:, :, top : top + side, left : left + side]
            clips.append(F.interpolate(part, size=(SPEC.size_px, SPEC.size_px), mode="bilinear", antialias=True, align_corners=False))
        rows.append(student(torch.stack(clips)).mean(dim=1))
    return torch.cat(rows)


def measure(paths: Sequence[Path], folder: Path, rounds: int) -> tuple[list[Row], str]:
    """Clips a second of each way, and how far their features are apart."""
    student = Student(PRESETS["small"][0], SPEC, torch.Generator().manual_seed(0)).eval().requires_grad_(False)
    encoder = StudentEncoder(student, "small")
    items = [VideoItem(path.stem, path, 0, None) for path in paths]

    def take(kept: Path | None) -> Tensor:
        store = FeatureStore(encoder, "bench", Extraction(folder=kept), Runtime("cpu", workers=1, batch_size=BATCH))
        return store.extract(items)[0].values

    def take_and_keep() -> None:
        shutil.rmtree(folder / "new", ignore_errors=True)
        take(folder / "new")

    apart = float((take(folder / "old") - plain(paths, student)).abs().max())
    seconds = interleave(
        {
            "plain loop": lambda: plain(paths, student),
            "stjepa": lambda: take(None),
            "stjepa, kept": take_and_keep,
            "stjepa, again": lambda: take(folder / "old"),
        },
        rounds,
    )
    rows: list[Row] = [
        {"way": name, "clips/s": len(paths) / statistics.median(times), "of the plain loop": ratio(seconds, name, "plain loop")}
        for name, times in seconds.items()
    ]
    return rows, f"largest difference of a feature: {apart:.1e}"


def main() -> None:
    arguments = parser(__doc__).parse_args()
    core = pin_to_one_core()
    count, rounds = (4, 2) if arguments.quick else (16, 7)
    with tempfile.TemporaryDirectory() as folder:
        paths = make_videos(Path(folder), count)
        rows, note = measure(paths, Path(folder) / "features", rounds)
    title = f"Features of {count} videos, medians of {rounds} rounds, core {core}"
    report(title, rows, as_json=arguments.json, notes=[note])


if __name__ == "__main__":
    main()
