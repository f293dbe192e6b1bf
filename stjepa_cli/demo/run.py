"""The whole chain on generated clips: what a stranger runs first, and a check that all parts work together.

Real files, real commands' use cases, a real tiny teacher; nothing here knows how any of them works inside.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from stjepa_cli.cache.build import BuildResult
from stjepa_cli.cache.build import build as build_cache
from stjepa_cli.cache.request import BuildRequest
from stjepa_cli.cache.verify import VerifyResult
from stjepa_cli.cache.verify import verify as verify_cache
from stjepa_cli.core.devices import pick_device
from stjepa_cli.core.errors import StjepaError, storage_errors
from stjepa_cli.core.progress import SILENT, Progress
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.data.datasets.base import open_dataset
from stjepa_cli.demo.layouts import write_ssv2, write_ucf101
from stjepa_cli.demo.scenes import GeneratedClips
from stjepa_cli.encoders.base import Encoder
from stjepa_cli.encoders.extraction import Extraction
from stjepa_cli.encoders.student_encoder import StudentEncoder
from stjepa_cli.encoders.teacher_encoder import TeacherEncoder
from stjepa_cli.evaluation.evaluate import evaluate
from stjepa_cli.evaluation.intervals import intervals_of
from stjepa_cli.evaluation.report import write_report
from stjepa_cli.models.checkpoint import checkpoint_path
from stjepa_cli.teachers.base import open_teacher
from stjepa_cli.training.pretrain import PretrainResult
from stjepa_cli.training.pretrain import pretrain as run_pretraining
from stjepa_cli.training.recipes import resolve_run

TEACHER = "tiny_videomae_motion"
MARKER = "demo.json"


@dataclass(frozen=True)
class Recipe:
    """Sizes of the demonstration, found by the experiments in `docs/log.md`."""

    num_clips: int = 3000
    num_train: int = 400
    num_test: int = 400
    epochs: int = 20
    batch_size: int = 32
    lr: float = 2.83e-3  # at 64 clips a step, so 2e-3 at 32
    mask_ratio: float = 0.5
    preset: str = "tiny"
    latent_dim: int = 96
    pool: str = "time"
    seed: int = 0


@dataclass(frozen=True)
class Row:
    """One line of the demonstration's table; figures are top-1 shares of test videos, 0 to 1."""

    model: str
    saw_labels: str
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class DemoResult:
    """What each step gave.

    Attributes:
        table: untrained student, pretrained student, teacher and chance, measured on clips whose textures, shapes and
            speeds neither teacher nor student has seen.
    """

    out: str
    build: BuildResult
    verify: VerifyResult
    pretrain: PretrainResult
    infer: dict[str, dict[str, Any]]
    table: tuple[Row, ...]
    seconds: float


def demonstrate(out: Path, recipe: Recipe = Recipe(), *, keep: bool = False, progress: Progress = SILENT) -> DemoResult:
    """Generate two data sets, cache, verify, pretrain and score, in the folder `out`.

    Args:
        out: a new or empty folder, or that of an earlier demonstration, which is replaced.
        recipe: sizes.
        keep: leave the generated videos and the cache; checkpoints and reports stay in any case.
        progress: is told of every step.

    Raises:
        StjepaError: the folder holds something else, or a step failed.
    """
    started = time.monotonic()
    _make_room(out)
    ssv2, ucf101 = out / "ssv2", out / "ucf101"
    progress.note("1/5 generating clips: the label is in the motion")
    write_ssv2(ssv2, GeneratedClips("8", recipe.num_clips + 64, recipe.seed), num_validation=64, progress=progress)
    num_scored = recipe.num_train + recipe.num_test
    clips = GeneratedClips("8", num_scored, recipe.seed + 1, "unseen")
    write_ucf101(ucf101, clips, test_fraction=recipe.num_test / num_scored, progress=progress)
    teacher = str(files("stjepa_cli.demo") / "assets" / TEACHER)
    progress.note("2/5 cache build: the teacher runs once over every clip")
    request = BuildRequest.of(ssv2, out / "cache", teacher=teacher, latent_dim=recipe.latent_dim)
    built = build_cache(request, Runtime(workers=2, progress=progress))
    progress.note("3/5 cache verify: every byte")
    verified = verify_cache(out / "cache", level="full", runtime=Runtime(workers=os.cpu_count() or 1, progress=progress))
    progress.note("4/5 pretrain: the student predicts latents of hidden tubes; the teacher no longer runs")
    trained = _pretrain(out, ssv2, recipe, progress)
    progress.note("5/5 infer ucf101: frozen features, clips of a kind that no model has seen")
    scored = _score(out, ucf101, teacher, trained.steps, recipe, progress)
    if not keep:
        for folder in (ssv2, ucf101, out / "cache"):
            shutil.rmtree(folder)
    result = DemoResult(str(out), built, verified, trained, scored, _table(scored), round(time.monotonic() - started, 1))
    (out / MARKER).write_text(json.dumps(asdict(result), indent=2, default=str) + "\n")
    return result


def _make_room(out: Path) -> None:
    """An empty folder; only what an earlier demonstration left is removed."""
    with storage_errors(out):
        if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARKER).exists())):
            raise StjepaError(f"{out} holds something else", fix="Name a new folder with --out.")
        for name in ("ssv2", "ucf101", "cache", "checkpoints", "reports"):
            shutil.rmtree(out / name, ignore_errors=True)
        out.mkdir(parents=True, exist_ok=True)
        (out / MARKER).write_text("{}\n")


def _pretrain(out: Path, ssv2: Path, recipe: Recipe, progress: Progress) -> PretrainResult:
    places = {"data_root": ssv2, "cache": out / "cache", "checkpoints": out / "checkpoints"}
    names = ("epochs", "batch_size", "lr", "mask_ratio", "preset", "seed")
    run = resolve_run(places, flags={name: getattr(recipe, name) for name in names} | {"workers": 2})
    return run_pretraining(run, fresh=True, progress=progress)


def _score(out: Path, ucf101: Path, teacher: str, steps: int, recipe: Recipe, progress: Progress) -> dict[str, dict[str, Any]]:
    device = pick_device()
    model = open_teacher(teacher, device=device)
    encoders: dict[str, Encoder] = {
        "untrained student": StudentEncoder.open(checkpoint_path(out / "checkpoints", 0), device),
        "pretrained student": StudentEncoder.open(checkpoint_path(out / "checkpoints", steps), device),
        "hog": TeacherEncoder(open_teacher("hog", clip=model.card.clip, device=device)),
        "teacher": TeacherEncoder(model),
    }
    scored = {}
    for name, encoder in encoders.items():
        dataset = open_dataset("ucf101", ucf101)
        runtime = Runtime(workers=2, batch_size=64, progress=progress)
        result = evaluate(encoder, dataset, Extraction(recipe.pool), seed=recipe.seed, runtime=runtime)
        write_report(result, out / "reports" / name.replace(" ", "_"), intervals=intervals_of((result,), recipe.seed))
        scored[name] = result.to_json()
    return scored


_SAW_LABELS = {
    "untrained student": "no",
    "pretrained student": "no; its teacher did",
    "hog": "no; it has no weights",
    "teacher": "yes: fine-tuned on motion labels",
}


def _table(scored: dict[str, dict[str, Any]]) -> tuple[Row, ...]:
    rows = [
        Row(name, _SAW_LABELS[name], {"knn": found["knn"]["top1"], "linear": found["linear"]["top1"], "r1": found["retrieval"]["r1"]})
        for name, found in scored.items()
    ]
    chance = next(iter(scored.values()))["chance"]
    return (*rows, Row("chance", "-", {"knn": chance, "linear": chance, "r1": chance}))
