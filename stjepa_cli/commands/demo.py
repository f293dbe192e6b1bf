"""`stjepa demo`: the whole chain on generated clips."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stjepa_cli.commands import console, options
from stjepa_cli.core.errors import install_command
from stjepa_cli.core.progress import Progress

if TYPE_CHECKING:
    from stjepa_cli.demo.run import DemoResult

HELP = """Run the whole chain on generated video files, in a few minutes on a CPU.

A demo that was stopped is resumed by the same command; one that was finished is replaced.

Example: stjepa demo --keep"""


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("demo", help=HELP)(demo)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that is written.")] = Path("demo"),
    keep: Annotated[bool, typer.Option("--keep", help="Keep the videos pretrained on, the caches and the features too.")] = False,
    all_rows: Annotated[
        bool, typer.Option("--all", help="Also pretrain students by the published recipe `st-jepa` and score raw pixels: twice as long.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    def call(progress: Progress) -> DemoResult:
        from stjepa_cli.core.runtime import Runtime
        from stjepa_cli.demo.run import demo_plan, demonstrate

        return demonstrate(demo_plan(out, all_rows=all_rows), keep=keep, runtime=Runtime(workers=2, progress=progress))

    console.run_command(call, render=_show, as_json=as_json)


def _show(result: DemoResult) -> None:
    build = result.build
    console.show_pairs(
        "What was done",
        {
            "cache": f"{build.clips:,} clips, {console.megabytes(build.bytes)}, {build.seconds:.0f} s; every byte checked: "
            + ("ok" if result.verify.ok else "NOT ok"),
            **{
                name: f"{run.student_parameters:,} parameters, {run.steps:,} steps, "
                f"loss {console.decimal(run.loss_first, 3)} to {console.decimal(run.loss_last, 3)}"
                for name, run in result.students.items()
            },
            "all of it": f"{result.seconds:.0f} s, in {result.out}",
            "pages to look at": f"{result.out}/reports/*/report.html, one for each model",
        },
    )
    videos = result.infer["teacher"]["videos"]
    console.show_table(
        "Frozen features on motions in textures, shapes and speeds that no model has seen",
        ("model", "saw labels", "kNN top-1", "linear top-1", "retrieval R@1"),
        [(row.model, row.saw_labels, *(f"{row.figures[name]:.3f}" for name in ("knn", "linear", "r1"))) for row in result.table],
        caption=f"{videos['train']} train and {videos['test']} test videos",
    )
    needed = [] if importlib.util.find_spec("lancedb") else [install_command(extra="search")]
    console.show_lines("Next, search these videos and see all of them on a map:", [*needed, result.search, result.map])
