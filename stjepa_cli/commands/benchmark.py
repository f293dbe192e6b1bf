"""`stjepa benchmark motion` and `stjepa benchmark appearance`: what students learn, on generated videos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from stjepa_cli.commands import console, options
from stjepa_cli.core.progress import Progress

if TYPE_CHECKING:
    from stjepa_cli.demo.benchmark import BenchmarkResult, BenchmarkRow
    from stjepa_cli.demo.scenes import Task

app = typer.Typer(
    no_args_is_help=True,
    help="Generate videos, pretrain students on them, and score what they learned.\n\nExample: stjepa benchmark motion --size hour",
)

_ABOUT = """Generate videos whose label is only in the {label}, pretrain students on cached teachers, and score frozen features on
textures, shapes and speeds that no model has seen. Videos are files in the official layouts; a stopped benchmark is resumed by the
same command. Both tasks share videos to pretrain on, caches and students: run them in one folder.

Example: stjepa benchmark {task} --size {size}"""

Size = Annotated[
    Literal["minutes", "hour", "gpu"],
    typer.Option(help="minutes: 32 px, the demo's clips. hour: 64 px, 512 tokens, on two cores. gpu: 112 px, 1,568 tokens."),
]
Teachers = Annotated[
    list[str] | None,
    typer.Option(
        "--teacher",
        autocompletion=options.complete_teacher,
        help="Teacher of the students; give it again for more.",
        show_default="by size",
    ),
]
Recipes = Annotated[
    list[str] | None,
    typer.Option(
        "--recipe",
        autocompletion=options.complete_recipe,
        help="Recipe of the students; `stjepa recipes` lists them. Give it again for more.",
        show_default="by size",
    ),
]
Seeds = Annotated[int, typer.Option(min=1, max=100, help="Number of seeds to pretrain each student with.")]
Seed = Annotated[int, typer.Option(min=0, max=10**6, help="First seed of pretraining, and seed of the videos.")]
Out = Annotated[Path | None, typer.Option(help="Folder for everything that is written.", show_default="benchmark_<size>")]


@app.command("motion", help=_ABOUT.format(label="motion", task="motion", size="minutes"))
def motion(
    size: Size = "minutes",
    out: Out = None,
    teacher: Teachers = None,
    recipe: Recipes = None,
    seeds: Seeds = 1,
    seed: Seed = 0,
    device: options.Device = "auto",
    workers: options.Workers = 2,
    as_json: options.Json = False,
) -> None:
    _run("motion", size, out, teacher, recipe, (seed, seeds), (device, workers), as_json)


@app.command("appearance", help=_ABOUT.format(label="outline and texture of what is shown", task="appearance", size="minutes"))
def appearance(
    size: Size = "minutes",
    out: Out = None,
    teacher: Teachers = None,
    recipe: Recipes = None,
    seeds: Seeds = 1,
    seed: Seed = 0,
    device: options.Device = "auto",
    workers: options.Workers = 2,
    as_json: options.Json = False,
) -> None:
    _run("appearance", size, out, teacher, recipe, (seed, seeds), (device, workers), as_json)


def _run(
    task: Task,
    size: str,
    out: Path | None,
    teachers: list[str] | None,
    recipes: list[str] | None,
    seeds: tuple[int, int],
    machine: tuple[str, int],
    as_json: bool,
) -> None:
    def call(progress: Progress) -> BenchmarkResult:
        from stjepa_cli.core.runtime import Runtime
        from stjepa_cli.demo.benchmark import BenchmarkRequest, run_benchmark

        place = out or Path(f"benchmark_{size}")
        request = BenchmarkRequest(place, task, size, tuple(teachers or ()), tuple(recipes or ()), num_seeds=seeds[1], seed=seeds[0])
        return run_benchmark(request, Runtime(device=machine[0], workers=machine[1], progress=progress))

    console.run_command(call, render=_show, as_json=as_json)


def _show(result: BenchmarkResult) -> None:
    seeds = f", means over {len(result.seeds)} seeds" if len(result.seeds) > 1 else ""
    console.show_table(
        f"{result.task.capitalize()} benchmark, size {result.size}: {len(result.classes)} classes, guessing gives {result.chance:.3f}",
        ("model", "saw labels", "kNN top-1", "linear top-1", "retrieval R@1"),
        [(row.model, row.saw_labels, *(_cell(row, name) for name in ("knn", "linear", "r1"))) for row in result.rows],
        caption=f"{result.num_train} train and {result.num_test} test videos, 95 % bootstrap intervals over them{seeds}",
    )
    console.show_lines("Page to look at", [result.page])


def _cell(row: BenchmarkRow, name: str) -> str:
    found = row.metrics[name]
    return f"{found.value:.3f} [{found.interval[0]:.3f}, {found.interval[1]:.3f}]"
