"""An image teacher where it is good: clips over real textures, whose label is only in the texture.

    python -m tests.benchmarks.bench_appearance TEXTURES --teacher FOLDER --work DIR [--seeds 3] [--steps 900]

TEXTURES is a folder of real videos; the middle frame of each is one texture. Half of them are seen in pretraining, the others are the
classes of the frozen probes. The program of `stjepa benchmark appearance` draws the clips: an object moves before a background, both
in the same texture; its place, turn, size and the two colours between which it varies are random, so that neither
colour nor position tells the class. It prints JSON: accuracy of the student, of the student before its first step, of raw pixels and
of the teacher, clips/s and operations of student and teacher, and accuracy over the clock for cached targets and for a
teacher that runs in every step.

With equal targets, training online takes the same steps as training from a cache, bit for bit, only more slowly. So both curves come
from one run: the cached one starts when the cache is written, the online one pays the teacher in every step. Teacher and student
are timed in turns in one process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.core.types import ClipSpec
from stjepa_cli.data.eval_clips import EvalClips
from stjepa_cli.data.video import read_clips
from stjepa_cli.demo.patterns import Family, family_of
from stjepa_cli.demo.scenes import GeneratedClips
from stjepa_cli.encoders.base import pooled
from stjepa_cli.encoders.features import Features
from stjepa_cli.encoders.pixel_encoder import PixelEncoder
from stjepa_cli.evaluation.probes.base import build
from stjepa_cli.models.checkpoint import list_checkpoints
from stjepa_cli.models.student import load_student
from stjepa_cli.teachers.base import Teacher, open_teacher
from stjepa_cli.training.pretrain import pretrain
from stjepa_cli.training.recipes import resolve_run
from tests.benchmarks.study import write_cache

SPEC = ClipSpec(num_frames=4, size_px=64, tubelet=2, patch_px=16)
PICTURE_PX = 128
NUM_CLASSES = 12
NUM_TRAIN, NUM_TEST = 600, 600
BATCH = 32
ENLARGED = 3.0
"""Periods of the drawing program that one picture spans."""


@dataclass(frozen=True)
class Picture:
    """A texture from a real picture: its grey values in equal steps of their distribution, mirrored beyond its edges.

    Attributes:
        grey: float32 (1, 1, P, P) in [0, 1].
    """

    grey: Tensor

    def __call__(self, u: Tensor, v: Tensor) -> Tensor:
        """Sample the picture at (u, v)."""
        places = torch.stack([u, v], dim=-1).flatten(0, 1) * (2 / ENLARGED)
        found = F.grid_sample(self.grey.expand(len(places), -1, -1, -1), places, padding_mode="reflection", align_corners=False)
        return found.reshape(u.shape)


@dataclass(frozen=True)
class PictureClips(GeneratedClips):
    """The appearance task over pictures.

    Attributes:
        pictures: Textures, one class each.
        shapes: Number of outlines.
    """

    pictures: tuple[Picture, ...] = ()

    @cached_property
    def patterns(self) -> Family:
        family = family_of("train" if self.family == "train" else "unseen")
        return Family(family.shapes[:1] if self.family == "unseen" else family.shapes, self.pictures, family.speeds)


def pictures_of(folder: Path) -> list[Picture]:
    """Read the middle frame of each video below a folder, in the order of their names."""
    spec = ClipSpec(num_frames=1, size_px=PICTURE_PX, tubelet=1, patch_px=16)
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".webm", ".mp4", ".avi")):
        pixels = read_clips(path, spec, EvalClips())[0, 0].float()
        grey = pixels.mean(dim=0).flatten()
        ranks = grey.argsort().argsort().float() / (len(grey) - 1)
        found.append(Picture(ranks.view(1, 1, PICTURE_PX, PICTURE_PX)))
    return found


def draw(clips: PictureClips) -> tuple[Tensor, Tensor]:
    """Return the clips uint8 (R, T, 3, S, S) and the number of each one's texture."""
    blocks = [clips.block(start) for start in clips.blocks]
    pixels = torch.cat([clips.render(block, slice(None)) for block in blocks])
    return pixels, torch.cat([block.labels for block in blocks]) % len(clips.pictures)


def score(encode: Any, grid: Any, sides: dict[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Return kNN and linear accuracy of mean-pooled features."""
    found = []
    for side, (clips, labels) in sides.items():
        with torch.inference_mode():
            features = torch.cat([pooled(encode(part).float(), grid, "mean") for part in torch.split(clips, BATCH)])
        names = tuple(f"{side}{i:04}" for i in range(len(clips)))
        found.append(Features(features, labels, names, names))
    return {name: build(name).fit_score(found[0], found[1], NUM_CLASSES, 0).metrics["top1"] for name in ("knn", "linear")}


def timed(teacher: Teacher, student: Any, clips: Tensor, rounds: int = 5) -> tuple[float, float]:
    """Return clips per second of teacher and student, medians over turns."""
    seconds: dict[str, list[float]] = {"teacher": [], "student": []}
    with torch.inference_mode():
        for _ in range(rounds + 1):
            for name, encode in (("teacher", teacher.encode), ("student", student)):
                started = time.process_time()
                encode(clips)
                seconds[name].append(time.process_time() - started)
    return tuple(len(clips) / statistics.median(values[1:]) for values in seconds.values())  # type: ignore[return-value]


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("textures", type=Path)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipes", default="mixed,dense")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pictures = pictures_of(options.textures)
    # every second one, so that both halves have pictures of each folder
    seen, held = tuple(pictures[::2]), tuple(pictures[1::2][:NUM_CLASSES])
    common: dict[str, Any] = {"num_frames": SPEC.num_frames, "size_px": SPEC.size_px, "task": "appearance"}
    train = PictureClips("8", options.clips, 0, "train", **common, pictures=seen)
    scored, labels = draw(PictureClips("8", NUM_TRAIN + NUM_TEST, 1, "unseen", **common, pictures=held))
    sides = {"train": (scored[:NUM_TRAIN], labels[:NUM_TRAIN]), "test": (scored[NUM_TRAIN:], labels[NUM_TRAIN:])}
    teacher = open_teacher(options.teacher, clip=SPEC, device=torch.device("cpu"))
    pixels = PixelEncoder(SPEC)
    report: dict[str, Any] = {"textures": [len(seen), len(held)], "clips": options.clips, "chance": 1 / NUM_CLASSES}
    report["teacher"] = score(teacher.encode, teacher.card.clip.grid, sides)
    report["pixels"] = score(pixels.encode, pixels.grid, sides)
    print(json.dumps(report), flush=True)

    cache = options.work / "cache"
    if not (options.work / "ready.json").is_file():
        clips, _ = draw(train)
        started = time.process_time()
        tokens = torch.cat([teacher.encode(part).half() for part in torch.split(clips, BATCH)])
        spent = time.process_time() - started
        cuts = [(tuple(range(SPEC.num_frames)), (0, 0, SPEC.size_px, SPEC.size_px))] * len(clips)
        write_cache(cache, teacher.card, clips, tokens, cuts)
        (options.work / "ready.json").write_text(json.dumps(spent / len(clips)))
    report["teacher_seconds_per_clip"] = json.loads((options.work / "ready.json").read_text())
    rows: list[dict[str, Any]] = []
    for recipe in options.recipes.split(","):
        for seed in range(options.seeds):
            folder = options.work / f"{recipe}{seed}"
            flags = {"recipe": recipe, "steps": options.steps, "batch_size": BATCH, "seed": seed, "device": "cpu", "workers": 1}
            flags |= {"preset": "tiny", "compile": "off", "lr": 2.83e-3, "checkpoint_every": str(options.steps // 6)}
            run = resolve_run({"data_root": options.work, "cache": cache, "checkpoints": folder}, flags=flags)
            started = time.process_time()
            result = pretrain(run, fresh=True)
            row = {"recipe": recipe, "seed": seed, "cpu_seconds": time.process_time() - started, "curve": []}
            row["training_flops"] = result.flops_per_clip
            for path in list_checkpoints(folder):
                student, _ = load_student(path, torch.device("cpu"))
                row["curve"].append({"step": int(path.stem.removeprefix("checkpoint_step")), **score(student, student.grid, sides)})
            rows.append(row)
            print(json.dumps(row), flush=True)
    report["students"] = rows
    report["clips_per_second"] = dict(zip(("teacher", "student"), timed(teacher, student, scored[:BATCH]), strict=True))
    report["flops"] = {"teacher": flops(teacher.encode, scored[:1]), "student": flops(student, scored[:1])}
    (options.work / "report.json").write_text(json.dumps(report, indent=1))
    print(json.dumps(report))


def flops(encode: Any, clip: Tensor) -> int:
    """Count the floating-point operations of one clip."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        encode(clip)
    return int(counter.get_total_flops())


if __name__ == "__main__":
    main()
