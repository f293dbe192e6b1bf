"""An image teacher where it is good: clips over real textures, whose label is only in the texture.

    python -m tests.benchmarks.bench_appearance TEXTURES HELD --teacher FOLDER --work DIR [--seeds 3] [--steps 900]

TEXTURES is a folder of photographs to pretrain on; twelve photographs of the folder HELD, evenly spread over the list of their names, are
the classes of the frozen probes. A clip is a moving window of its class's picture, turned and mirrored at random, behind
an object in the texture of another picture: what moves and how says nothing of the class. It prints JSON: accuracy of the student, of
the student before its first step, of raw pixels and of the teacher, clips/s and operations of student and teacher, and accuracy at
each checkpoint, from which the clock of cached targets and of a teacher in every step follows.

With equal targets, training online takes the same steps as training from a cache, bit for bit, only more slowly. So both curves come
from one run: the cached one starts when the cache is written, the online one pays the teacher in every step. Teacher and student
are timed in turns in one process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from stjepa_cli.core.types import ClipSpec
from stjepa_cli.demo.patterns import FamilyName, family_of
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
PICTURE_PX = 160
NUM_CLASSES = 12
NUM_TRAIN, NUM_TEST = 600, 600
BATCH = 32


def pictures_of(folder: Path) -> Tensor:
    """Read the photographs of a folder in the order of their names: float32 (P, 3, S, S) in [0, 1].

    The middle square of each, in grey: a colour alone would tell most of them apart.
    """
    found = []
    for path in sorted(folder.iterdir()):
        with Image.open(path) as picture:
            square = ImageOps.fit(picture.convert("L"), (PICTURE_PX, PICTURE_PX))
        pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(PICTURE_PX, PICTURE_PX)
        found.append((pixels / 255).expand(3, -1, -1))
    return torch.stack(found)


def draw(pictures: Tensor, family: FamilyName, num_clips: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw clips over pictures.

    Args:
        pictures: Float32 (P, 3, S, S) in [0, 1]; each is a class.
        family: Outlines of the objects.
        num_clips: B, spread evenly over the classes.
        seed: The same seed gives the same clips.

    Returns:
        uint8 (B, T, 3, S, S) and the class of each clip. The background is a moving window of the class's picture, a third to two
        thirds as wide, turned, often mirrored, of changed brightness and contrast; before it an object moves in the
        texture of any other picture.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = family_of(family).shapes
    labels = (torch.arange(num_clips) % len(pictures))[torch.randperm(num_clips, generator=generator)]
    others = torch.randint(len(pictures), (num_clips,), generator=generator)
    kinds = torch.randint(len(shapes), (num_clips,), generator=generator).tolist()
    line = (torch.arange(SPEC.size_px) + 0.5) * (2 / SPEC.size_px) - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    time_line = torch.linspace(-0.5, 0.5, SPEC.num_frames)[:, None, None]
    clips = torch.empty(num_clips, SPEC.num_frames, 3, SPEC.size_px, SPEC.size_px, dtype=torch.uint8)
    for row in range(num_clips):
        # background and object: scale, angle, mirror, place (2), speed (2), brightness, contrast
        values = torch.rand(2, 9, generator=generator)
        layers = []
        for picture, numbers in zip((pictures[labels[row]], pictures[others[row]]), values, strict=True):
            scale, angle = 0.33 + 0.33 * numbers[0], 0.6 * (numbers[1] - 0.5)
            u, v = angle.cos() * x + angle.sin() * y, angle.cos() * y - angle.sin() * x
            u = u * (1 if numbers[2] < 0.5 else -1)
            room = 1 - scale * 1.3
            across = scale * u + room * (2 * numbers[3] - 1) + 0.2 * (numbers[5] - 0.5) * time_line
            down = scale * v + room * (2 * numbers[4] - 1) + 0.2 * (numbers[6] - 0.5) * time_line
            places = torch.stack([across, down], dim=-1)
            seen = F.grid_sample(picture.expand(SPEC.num_frames, -1, -1, -1), places, padding_mode="reflection", align_corners=False)
            layers.append((seen - 0.5) * (0.6 + 0.8 * numbers[8]) + 0.5 + 0.3 * (numbers[7] - 0.5))
        moved = values[0, :4] * 2 - 1
        centre_x, centre_y = 0.5 * moved[0] + 0.6 * moved[2] * time_line, 0.5 * moved[1] + 0.6 * moved[3] * time_line
        outline = shapes[kinds[row]]((x - centre_x) / 0.35, (y - centre_y) / 0.35) * 0.35
        inside = (0.5 - outline * (SPEC.size_px / 2)).clamp(0, 1)[:, None]
        clips[row] = (torch.lerp(layers[0], layers[1], inside) * 255).round().clamp(0, 255).to(torch.uint8)
    return clips, labels


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
    parser.add_argument("held", type=Path)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipes", default="mixed,dense")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seen, held = pictures_of(options.textures), pictures_of(options.held)
    held = held[torch.linspace(0, len(held) - 1, NUM_CLASSES).long()]
    scored, labels = draw(held, "unseen", NUM_TRAIN + NUM_TEST, 1)
    sides = {"train": (scored[:NUM_TRAIN], labels[:NUM_TRAIN]), "test": (scored[NUM_TRAIN:], labels[NUM_TRAIN:])}
    teacher = open_teacher(options.teacher, clip=SPEC, device=torch.device("cpu"))
    pixels = PixelEncoder(SPEC)
    report: dict[str, Any] = {"textures": [len(seen), len(held)], "clips": options.clips, "chance": 1 / NUM_CLASSES}
    report["teacher"] = score(teacher.encode, teacher.card.clip.grid, sides)
    report["pixels"] = score(pixels.encode, pixels.grid, sides)
    print(json.dumps(report), flush=True)

    cache = options.work / "cache"
    if not (options.work / "ready.json").is_file():
        clips, _ = draw(seen, "train", options.clips, 0)
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
