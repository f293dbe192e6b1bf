"""Use case: a motion benchmark or its appearance twin, as one table and one page."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from stjepa_cli.core.errors import ConfigError
from stjepa_cli.core.files import write_atomic
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.demo import benchmark_page, chain
from stjepa_cli.demo.chain import UNTRAINED, BenchmarkPlan, Scores, Trained, needs_no_teacher, slug
from stjepa_cli.demo.folder import OutputFolder
from stjepa_cli.demo.scenes import Task
from stjepa_cli.demo.sizes import HOG, SIZES, TEACHER, StudentRow
from stjepa_cli.evaluation.intervals import intervals_of

METRICS = {"knn": ("knn", "top1"), "linear": ("linear", "top1"), "r1": ("retrieval", "r1")}
"""Names in the table, and which metric of which protocol each is."""
PIXELS = "pixels"


@dataclass(frozen=True)
class Metric:
    """A top-1 accuracy or R@1, as a fraction of the test videos.

    Attributes:
        value: Mean over the seeds.
        interval: 95 % bootstrap interval of that mean over the test videos.
        seeds: Value of each seed.
    """

    value: float
    interval: tuple[float, float]
    seeds: tuple[float, ...]


@dataclass(frozen=True)
class BenchmarkRow:
    """A line of the table.

    Attributes:
        model: Name of the row.
        teacher: What a student learned from, empty for anything else.
        recipe: Recipe of a student, empty for anything else.
        saw_labels: What the model, or its teacher, knows of labels.
        steps: Steps of a student, 0 for anything else.
        metrics: `knn`, `linear` and `r1`.
    """

    model: str
    teacher: str
    recipe: str
    saw_labels: str
    steps: int
    metrics: dict[str, Metric]


@dataclass(frozen=True)
class BenchmarkResult:
    """The outcome of a benchmark.

    Attributes:
        out: Folder of everything that was written.
        task: `motion` or `appearance`.
        size: Name of the size.
        classes: Class names.
        chance: Accuracy of guessing.
        clip: The clips that the models take, in words.
        num_pretrain: Clips that students learned from.
        num_train: Videos that probes were fitted on.
        num_test: Videos that were scored.
        seeds: Seeds of pretraining.
        rows: The table.
        page: The HTML page.
        seconds: Wall time of this call; what was done before it is not counted.
    """

    out: str
    task: str
    size: str
    classes: tuple[str, ...]
    chance: float
    clip: str
    num_pretrain: int
    num_train: int
    num_test: int
    seeds: tuple[int, ...]
    rows: tuple[BenchmarkRow, ...]
    page: str
    seconds: float


@dataclass(frozen=True)
class BenchmarkRequest:
    """A request as typed on the command line.

    Attributes:
        out: Folder for everything that is written.
        task: What the labels of the scored clips say.
        size: Name of a size.
        teachers: Teachers of the students; empty for those of the size.
        recipes: Recipes of the students; empty for those of the size. There is a student for each pair.
        num_seeds: Number of seeds of pretraining.
        seed: The first of them, and the seed of the clips.
    """

    out: Path
    task: Task = "motion"
    size: str = "minutes"
    teachers: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    num_seeds: int = 1
    seed: int = 0

    def plan(self) -> BenchmarkPlan:
        """Return the students, the baselines and the sizes in full.

        Raises:
            ConfigError: An unknown size.
        """
        if self.size not in SIZES:
            raise ConfigError("unknown size", got=repr(self.size), expected="one of " + ", ".join(SIZES))
        size = SIZES[self.size]
        teachers = self.teachers or size.teachers
        pairs = [(teacher, recipe) for recipe in self.recipes or size.recipes for teacher in teachers]
        students = dict.fromkeys(_student("" if needs_no_teacher(recipe) else teacher, recipe) for teacher, recipe in pairs)
        baselines = {slug(name): name for name in (PIXELS, HOG, *teachers)}
        seeds = tuple(range(self.seed, self.seed + self.num_seeds))
        return BenchmarkPlan(self.out, size, tuple(students), baselines, self.task, seeds, self.seed)


def _student(teacher: str, recipe: str) -> StudentRow:
    name = f"student of {slug(teacher)}, {recipe}" if teacher else f"student, {recipe}"
    return StudentRow(name, teacher, recipe, "runs/" + "_".join(filter(None, (slug(teacher), recipe))))


def run_benchmark(request: BenchmarkRequest, runtime: Runtime = Runtime()) -> BenchmarkResult:
    """Run a benchmark, or resume it: what the folder holds already is not done again.

    Args:
        request: The benchmark.
        runtime: Device, decoding threads and progress.

    Raises:
        ConfigError: An unknown recipe.
        TeacherError: There is no such teacher.
        StjepaError: The folder holds something else, or a step failed.
    """
    started, plan, progress = time.monotonic(), request.plan(), runtime.progress
    plan.check()
    with OutputFolder(plan.out, "benchmark").claimed(plan.settings(), replace_finished=False):
        progress.note("1/4 generating clips")
        chain.generate(plan, runtime)
        progress.note("2/4 caching teachers: each runs once over every clip")
        chain.cache_teachers(plan, runtime)
        progress.note("3/4 pretraining students")
        trained = chain.pretrain_students(plan, runtime)
        progress.note("4/4 scoring frozen features on looks and speeds that no model has seen")
        scores = chain.score(plan, trained, runtime)
        result = _result(request, plan, trained, scores, time.monotonic() - started)
        write_atomic(Path(result.page), benchmark_page.page(result, plan, scores, progress).encode("utf-8", "replace"))
    return result


def _result(request: BenchmarkRequest, plan: BenchmarkPlan, trained: Trained, scores: Scores, seconds: float) -> BenchmarkResult:
    first = scores[UNTRAINED][0]
    assert first.inputs is not None  # evaluate always fills it
    return BenchmarkResult(
        out=str(plan.out),
        task=plan.task,
        size=request.size,
        classes=first.classes,
        chance=first.chance,
        clip=str(first.inputs.clip),
        num_pretrain=plan.size.num_clips,
        num_train=first.num_train,
        num_test=len(first.ids),
        seeds=plan.seeds,
        rows=rows(plan, trained, scores),
        page=str(plan.out / f"{plan.task}.html"),
        seconds=round(seconds, 1),
    )


def rows(plan: BenchmarkPlan, trained: Trained, scores: Scores) -> tuple[BenchmarkRow, ...]:
    """Return the table, in the order of the scores."""
    students = {row.name: row for row in plan.students}
    found = []
    for name, results in scores.items():
        intervals = intervals_of(results, plan.data_seed)
        metrics = {}
        for metric, (protocol, key) in METRICS.items():
            values = tuple(result.probes[protocol].metrics[key] for result in results)
            metrics[metric] = Metric(statistics.fmean(values), intervals[protocol], values)
        row = students.get(name)
        steps = trained[name][0].steps if row else 0
        found.append(BenchmarkRow(name, row.teacher if row else "", row.recipe if row else "", saw_labels(plan, name), steps, metrics))
    return tuple(found)


def saw_labels(plan: BenchmarkPlan, name: str) -> str:
    """Return what the model of a row, or its teacher, knows of labels."""
    taught = {row.name: row.teacher for row in plan.students}
    if name in taught:
        return {"": "no", HOG: "no", TEACHER: "no; its teacher did"}.get(taught[name], "no; its teacher may have")
    known = {UNTRAINED: "no", HOG: "no; it has no weights", PIXELS: "no", TEACHER: "yes: fine-tuned on motion labels"}
    return known.get(plan.baselines.get(name, name), "see its model card")
