"""`stjepa pretrain`: learn a student from a cache."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stjepa_cli import config, console
from stjepa_cli.commands import options
from stjepa_cli.locations import Location
from stjepa_cli.progress import Progress

if TYPE_CHECKING:
    from stjepa_cli.training import PretrainResult

Preset = StrEnum("Preset", {name: name for name in config.PRESETS})  # type: ignore[misc]


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("pretrain", help="Pretrain a student on a cache.\n\nExample: stjepa pretrain --epochs 4 --preset small")(pretrain)


def pretrain(
    data_root: options.SSv2Root = None,
    cache: options.Cache = None,
    checkpoints: Annotated[Path | None, typer.Option(envvar="STJEPA_CHECKPOINTS", help="Folder of the run. [default: checkpoints]")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help=f"Passes over the clips. [default: {config.RunConfig.epochs}]")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help=f"Clips a step. [default: {config.RunConfig.batch_size}]")] = None,
    lr: Annotated[float | None, typer.Option(help=f"Peak learning rate. [default: {config.OptimizerConfig.lr}]")] = None,
    mask_ratio: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help=f"Share of the tubes to hide. [default: {config.RunConfig.mask_ratio}]")
    ] = None,
    preset: Annotated[Preset | None, typer.Option(help=f"Size of the student. [default: {config.RunConfig.preset}]")] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Stop there; the schedule stays that of all epochs.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help=f"Of weights, masks and order. [default: {config.RunConfig.seed}]")] = None,
    device: Annotated[str | None, typer.Option(help=f"auto, cpu, cuda or cuda:N. [default: {config.RunConfig.device}]")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help=f"Threads that decode. [default: {config.RunConfig.workers}]")] = None,
    memory_gb: Annotated[
        float | None, typer.Option(min=0, help=f"Keep so much of decoded clips in memory. [default: {config.RunConfig.memory_gb}]")
    ] = None,
    config_file: Annotated[Path | None, typer.Option("--config", help="A run.toml; flags win over it.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Go on with the run in the folder if there is one, or replace it.")
    ] = True,
    as_json: options.Json = False,
) -> None:
    flags = {
        "data_root": data_root,
        "cache": cache,
        "checkpoints": checkpoints,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "mask_ratio": mask_ratio,
        "preset": preset.value if preset else None,
        "max_steps": max_steps,
        "seed": seed,
        "device": device,
        "workers": workers,
        "memory_gb": memory_gb,
    }

    def call(progress: Progress) -> PretrainResult:
        run = config.resolve_run(_places(data_root), file=config_file, flags=flags)
        from stjepa_cli import training

        return training.pretrain(run, fresh=not resume, progress=progress)

    console.run_command(call, render=_show, as_json=as_json)


def _places(data_root: str | None) -> dict[str, Location]:
    root = config.ssv2_root(data_root)
    return {"data_root": root, "cache": config.cache_path(None, root), "checkpoints": config.checkpoints_dir()}


def _show(result: PretrainResult) -> None:
    pairs: dict[str, object] = {
        "checkpoint": result.checkpoint,
        "steps": f"{result.steps:,} in {result.epochs} epochs of {result.clips:,} clips",
        "loss": f"{result.loss_first:.4f} at the first step, {result.loss_last:.4f} at the last",
        "speed": f"{result.clips_per_second:.1f} clips/s on {result.device}",
        "time": f"{result.seconds:.1f} s",
    }
    console.show_pairs("Pretrained", pairs)
    console.say(f"Next: stjepa infer ucf101 --checkpoint {result.checkpoint}")
