"""The steps of a benchmark: generate clips, cache teachers, pretrain students, score everything on looks and speeds never seen.

```text
pretraining clips (train family) -> a cache per teacher -> a student per row and seed --+
scored clips (unseen family) -----------------------------------------------------------+-> kNN, linear, retrieval
```

Every step is the use case of a command, keeps what it has done, and resumes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stjepa_cli.cache.build import BuildResult
from stjepa_cli.cache.build import build as build_cache
from stjepa_cli.cache.request import BuildRequest
from stjepa_cli.core import plugins
from stjepa_cli.core.config import RunConfig
from stjepa_cli.core.errors import ConfigError
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.core.serialization import to_dict
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.data.datasets.base import open_dataset
from stjepa_cli.demo.layouts import write_ssv2, write_ucf101
from stjepa_cli.demo.scenes import Task
from stjepa_cli.demo.sizes import NUM_VALIDATION, BenchmarkSize, StudentRow, teacher_place
from stjepa_cli.demo.students import pretrain_all
from stjepa_cli.encoders.base import Encoder
from stjepa_cli.encoders.extraction import Extraction
from stjepa_cli.encoders.resolve import NamedEncoder
from stjepa_cli.evaluation.evaluate import evaluate
from stjepa_cli.evaluation.intervals import intervals_of
from stjepa_cli.evaluation.report import write_report
from stjepa_cli.evaluation.results import EvaluationResult
from stjepa_cli.models.checkpoint import checkpoint_path
from stjepa_cli.teachers.base import survey
from stjepa_cli.training.pretrain import PretrainResult
from stjepa_cli.training.recipes import RECIPES, resolve_run

POOL = "time"
EVALUATION_BATCH = 64
UNTRAINED = "untrained student"
FEATURES = "features"

Trained = Mapping[str, tuple[PretrainResult, ...]]
"""Results of pretraining by the name of the row, one for each seed."""

Scores = Mapping[str, tuple[EvaluationResult, ...]]
"""Results of scoring by the name of the row: one for each seed of a student, one for anything else."""


@dataclass(frozen=True)
class BenchmarkPlan:
    """The clips to generate, the students to pretrain and the models to score.

    Attributes:
        out: Folder for everything that is written.
        size: Sizes.
        students: Rows of the table that are pretrained, at least one.
        baselines: What is scored beside them by its name in the table: names that `stjepa infer --compare` takes, and
            `tiny_videomae_motion`.
        task: What the labels of the scored clips say.
        seeds: Seeds of pretraining; each student is trained once for each.
        data_seed: Seed of the clips and the probes.
    """

    out: Path
    size: BenchmarkSize
    students: tuple[StudentRow, ...]
    baselines: Mapping[str, str]
    task: Task = "motion"
    seeds: tuple[int, ...] = (0,)
    data_seed: int = 0

    @property
    def ssv2(self) -> Path:
        """Folder of the pretraining clips."""
        return self.out / "ssv2"

    @property
    def ucf101(self) -> Path:
        """Folder of the scored clips."""
        return self.out / ("ucf101" if self.task == "motion" else f"ucf101_{self.task}")

    @property
    def teachers(self) -> tuple[str, ...]:
        """The teachers of the students, each once."""
        return tuple(dict.fromkeys(row.teacher for row in self.students if row.teacher))

    def cache(self, teacher: str) -> Path:
        """Return the cache of a teacher."""
        return self.out / ("cache" if teacher == self.teachers[0] else f"cache_{slug(teacher)}")

    def run_folder(self, row: StudentRow, seed: int) -> Path:
        """Return the folder of a student's checkpoints."""
        return self.out / (row.folder if seed == self.seeds[0] else f"{row.folder}_seed{seed}")

    def report_folder(self, name: str) -> Path:
        """Return the folder of a row's report."""
        return self.out / ("reports" if self.task == "motion" else f"reports_{self.task}") / slug(name)

    def settings(self) -> dict[str, Any]:
        """Return what decides the files of a folder; students and tasks can be added to it."""
        numbers = {name: value for name, value in to_dict(self.size).items() if name not in ("memory_gb", "teachers", "recipes")}
        return dict(json.loads(json.dumps({"size": numbers, "data_seed": self.data_seed})))

    def check(self) -> None:
        """Check what can be checked before anything is generated.

        Raises:
            ConfigError: Two rows of one name or folder, or an unknown recipe.
            TeacherError: There is no such teacher.
        """
        for what, names in (("name", [row.name for row in self.students]), ("folder", [row.folder for row in self.students])):
            if len(set(names)) < len(names):
                raise ConfigError(f"two students have one {what}", got=", ".join(names))
        for row in self.students:
            if row.recipe not in RECIPES:
                raise ConfigError("unknown recipe", got=repr(row.recipe), expected="one of " + ", ".join(RECIPES))
        for teacher in self.teachers:
            survey(teacher_place(teacher), clip=_clip_of(teacher, self.size.clip))


def slug(name: str) -> str:
    """Return a name as a file name."""
    return re.sub(r"[^\w.-]+", "_", Path(name).name if "/" in name else name)


def needs_no_teacher(recipe: str) -> bool:
    """Return whether a recipe learns from pixels alone, without a cache."""
    return recipe in RECIPES and RECIPES[recipe].objective["name"] == "pixels"


def _views_of(teacher: str, size: BenchmarkSize) -> dict[str, Any]:
    """Return how often each clip is in the cache of a teacher; several views keep their frames, which are decoded once."""
    views = 1 if _clip_of(teacher, size.clip) is None else size.views
    return {"views": views, "frames": views > 1}


def _clip_of(teacher: str, clip: ClipSpec) -> ClipSpec | None:
    """Return the clips to ask a teacher for: those given for a built-in of free geometry, None for any other teacher's own."""
    free = teacher in plugins.names("teachers") and plugins.load("teachers", teacher).built_in
    return clip if free else None


# ------------------------------------------------------------------------------------------------------------- steps


def generate(plan: BenchmarkPlan, runtime: Runtime) -> None:
    """Write the video files of both sets that are not there yet."""
    write_ssv2(plan.ssv2, plan.size.pretraining_clips(plan.data_seed), num_validation=NUM_VALIDATION, progress=runtime.progress)
    clips = plan.size.scored_clips(plan.data_seed, plan.task)
    write_ucf101(plan.ucf101, clips, test_fraction=plan.size.num_test / clips.num_clips, progress=runtime.progress)


def cache_teachers(plan: BenchmarkPlan, runtime: Runtime) -> dict[str, BuildResult]:
    """Run every teacher once over the pretraining clips."""
    return {
        teacher: build_cache(
            BuildRequest.of(
                plan.ssv2,
                plan.cache(teacher),
                teacher=teacher_place(teacher),
                clip=_clip_of(teacher, plan.size.clip),
                latent_dim=plan.size.latent_dim,
                **_views_of(teacher, plan.size),
            ),
            runtime,
        )
        for teacher in plan.teachers
    }


def pretrain_students(plan: BenchmarkPlan, runtime: Runtime) -> dict[str, tuple[PretrainResult, ...]]:
    """Pretrain every student with every seed; those that are done are not trained again."""
    runs = {_run_name(plan, row, seed): _run(plan, row, seed, runtime) for row in plan.students for seed in plan.seeds}
    results = pretrain_all(runs, runtime)
    return {row.name: tuple(results[_run_name(plan, row, seed)] for seed in plan.seeds) for row in plan.students}


def _run_name(plan: BenchmarkPlan, row: StudentRow, seed: int) -> str:
    return row.name if len(plan.seeds) == 1 else f"{row.name}, seed {seed}"


def _run(plan: BenchmarkPlan, row: StudentRow, seed: int, runtime: Runtime) -> RunConfig:
    """Return the description of a student's run."""
    size, places = plan.size, dict[str, Any](data_root=plan.ssv2, checkpoints=plan.run_folder(row, seed))
    places |= {"clip": to_dict(size.clip)} if needs_no_teacher(row.recipe) else {"cache": plan.cache(row.teacher)}
    flags = {"preset": size.preset, "epochs": size.epochs, "batch_size": size.batch_size, "lr": size.lr, "seed": seed}
    flags |= {"recipe": row.recipe, "memory_gb": size.memory_gb, "device": runtime.device, "workers": runtime.workers}
    return resolve_run(places, flags=flags | dict(row.settings))


def score(plan: BenchmarkPlan, trained: Trained, runtime: Runtime) -> dict[str, tuple[EvaluationResult, ...]]:
    """Score the untrained student, the students and the baselines on the unseen family, and write a report of each."""
    dataset = open_dataset("ucf101", plan.ucf101)
    runtime = replace(runtime, batch_size=EVALUATION_BATCH)
    found: dict[str, tuple[EvaluationResult, ...]] = {}
    for name, encoders in _encoders(plan, trained, runtime):
        runtime.progress.note(f"scoring: {name}")
        extraction = Extraction(POOL, folder=plan.out / FEATURES)
        found[name] = tuple(evaluate(encoder, dataset, extraction, seed=plan.data_seed, runtime=runtime) for encoder in encoders)
        intervals = intervals_of(found[name][:1], plan.data_seed)
        write_report(found[name][0], plan.report_folder(name), intervals=intervals, progress=runtime.progress)
    return found


def _encoders(plan: BenchmarkPlan, trained: Trained, runtime: Runtime) -> Iterator[tuple[str, Iterator[Encoder]]]:
    """Yield the rows of the table in order, each with its encoders, which are opened one by one."""
    device = runtime.torch_device
    folders = {row.name: [plan.run_folder(row, seed) for seed in plan.seeds] for row in plan.students}
    first = folders[plan.students[0].name]
    clip = NamedEncoder(str(checkpoint_path(first[0], 0)), first[0]).card().clip
    yield UNTRAINED, (NamedEncoder(str(checkpoint_path(folder, 0)), folder).open(device) for folder in first)
    for name, places in folders.items():
        paths = [checkpoint_path(folder, result.steps) for folder, result in zip(places, trained[name], strict=True)]
        yield name, (NamedEncoder(str(path), path.parent).open(device) for path in paths)
    for name, place in plan.baselines.items():
        yield name, iter([NamedEncoder(teacher_place(place), first[0]).open(device, clip)])
