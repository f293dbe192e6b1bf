"""The demo: the whole chain on generated clips, what a stranger runs first, and a check that all parts work together.

It is the smallest motion benchmark, with a check of every byte of the caches; real files, real use cases, a real tiny teacher.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from stjepa_cli.cache.build import BuildResult
from stjepa_cli.cache.verify import VerifyResult
from stjepa_cli.cache.verify import verify as verify_cache
from stjepa_cli.core.errors import storage_errors
from stjepa_cli.core.files import write_atomic
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.demo import chain
from stjepa_cli.demo.benchmark import PIXELS, rows
from stjepa_cli.demo.chain import FEATURES, BenchmarkPlan, Scores, Trained
from stjepa_cli.demo.folder import OutputFolder
from stjepa_cli.demo.sizes import HOG, SIZES, TEACHER, StudentRow
from stjepa_cli.training.pretrain import PretrainResult

RESULT_FILE = "demo.json"
PRETRAINED = "pretrained student"
TABLE = "table"

STUDENTS = (
    StudentRow(PRETRAINED, TEACHER, "dense", "checkpoints", {"epochs": 11}),
    StudentRow("student of hog", HOG, "dense", "checkpoints_hog", {"epochs": 11}),
)
"""Found by experiments on other seeds; `docs/log.md` has them."""
MORE_STUDENTS = (
    StudentRow("st-jepa student", TEACHER, "st-jepa", "checkpoints_st-jepa", {"mask_ratio": 0.5}),
    StudentRow("st-jepa student of hog", HOG, "st-jepa", "checkpoints_hog_st-jepa", {"mask_ratio": 0.5}),
)
"""Students of the published recipe, for comparison."""


@dataclass(frozen=True)
class Row:
    """One line of the demo's table.

    Attributes:
        model: Name of the model.
        saw_labels: What the model, or its teacher, knows of labels.
        figures: `knn`, `linear` and `r1`, fractions of the test videos.
    """

    model: str
    saw_labels: str
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class DemoResult:
    """The outcome of each step.

    Attributes:
        out: Folder of everything that was written.
        build: The cache of the shipped teacher.
        verify: The check of that cache.
        pretrain: The student of the shipped teacher.
        infer: Evaluation of each model by its name in the table.
        table: The models and chance, on clips whose textures, outlines and speeds neither teacher nor student has seen.
        seconds: Wall time of this call.
        students: Every student by its name in the table.
        search: Command that embeds the scored clips with the first student and searches them.
        map: Command that draws all of them after that.
    """

    out: str
    build: BuildResult
    verify: VerifyResult
    pretrain: PretrainResult
    infer: dict[str, dict[str, Any]]
    table: tuple[Row, ...]
    seconds: float
    students: dict[str, PretrainResult] = field(default_factory=dict)
    search: str = ""
    map: str = ""


def demo_plan(out: Path, *, all_rows: bool = False) -> BenchmarkPlan:
    """Return what the demo does; `all_rows` adds students of the published recipe and raw pixels."""
    students = (*STUDENTS, *(MORE_STUDENTS if all_rows else ()))
    baselines = ({PIXELS: PIXELS} if all_rows else {}) | {HOG: HOG, "teacher": TEACHER}
    return BenchmarkPlan(out, SIZES["minutes"], students, baselines)


def demonstrate(plan: BenchmarkPlan, *, keep: bool = False, runtime: Runtime = Runtime(workers=2)) -> DemoResult:
    """Generate two data sets, cache, verify, pretrain and score.

    A demo that was stopped is resumed; one that was finished is replaced.

    Args:
        plan: What to do; its folder is new, empty, or that of an earlier demo.
        keep: Leave the videos that were pretrained on, the caches and the features; the scored videos, a few megabytes that can be
            searched, the checkpoints and the reports stay in any case.
        runtime: Device, decoding threads and progress.

    Raises:
        StjepaError: The folder holds something else, or a step failed.
    """
    started, progress = time.monotonic(), runtime.progress
    plan.check()
    folder = OutputFolder(plan.out, "demo")
    with folder.claimed(plan.settings(), replace_finished=True) as resumed:
        progress.note(f"resuming the demo in {plan.out}") if resumed else None
        progress.note("1/5 generating clips: the label is in the motion")
        chain.generate(plan, runtime)
        progress.note("2/5 cache build: the teacher runs once over every clip")
        built = chain.cache_teachers(plan, runtime)
        progress.note("3/5 cache verify: every byte")
        verified = _verified(plan, runtime)
        progress.note("4/5 pretrain: the student learns the latents; the teacher no longer runs")
        trained = chain.pretrain_students(plan, runtime)
        progress.note("5/5 infer ucf101: frozen features, clips of a kind that no model has seen")
        scores = chain.score(plan, trained, runtime)
        first, students = plan.teachers[0], {name: results[0] for name, results in trained.items()}
        result = DemoResult(
            out=str(plan.out),
            build=built[first],
            verify=verified[first],
            pretrain=students[plan.students[0].name],
            infer={name: results[0].to_json() for name, results in scores.items()},
            table=_table(plan, trained, scores),
            seconds=round(time.monotonic() - started, 1),
            students=students,
            search=_search_command(plan),
            map=shlex.join(["stjepa", "map", str(plan.out / TABLE), "--html", str(plan.out / "map.html")]),
        )
        write_atomic(plan.out / RESULT_FILE, (json.dumps(asdict(result), indent=2, default=str) + "\n").encode())
        folder.finish(plan.settings())
        if not keep:
            _clean(plan)
            folder.finish(plan.settings())
    return result


def _verified(plan: BenchmarkPlan, runtime: Runtime) -> dict[str, VerifyResult]:
    """Check every byte of every cache."""
    all_cores = replace(runtime, workers=len(os.sched_getaffinity(0)))
    return {teacher: verify_cache(plan.cache(teacher), level="full", runtime=all_cores) for teacher in plan.teachers}


def _clean(plan: BenchmarkPlan) -> None:
    """Remove pretraining videos, caches and features, which were all written here: the folder was empty before."""
    for place in (plan.ssv2, plan.out / FEATURES, *(plan.cache(teacher) for teacher in plan.teachers)):
        with storage_errors(place):
            shutil.rmtree(place)


def _search_command(plan: BenchmarkPlan) -> str:
    """Return the command that searches the scored clips for one of them, after embedding them with the first student."""
    clip, table = min(plan.ucf101.rglob("*.avi")), str(plan.out / TABLE)
    model = str(plan.run_folder(plan.students[0], plan.seeds[0]))
    embed = ["stjepa", "embed", str(plan.ucf101), "--model", model, "--table", table]
    search = ["stjepa", "search", table, str(clip), "--html", str(plan.out / "found.html")]
    return f"{shlex.join(embed)} && {shlex.join(search)}"


def _table(plan: BenchmarkPlan, trained: Trained, scores: Scores) -> tuple[Row, ...]:
    found = rows(plan, trained, scores)
    chance = next(iter(scores.values()))[0].chance
    return (
        *(Row(row.model, row.saw_labels, {name: metric.value for name, metric in row.metrics.items()}) for row in found),
        Row("chance", "-", dict.fromkeys(found[0].metrics, chance)),
    )
