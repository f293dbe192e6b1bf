"""`stjepa pretrain`: learn a student from a cache."""

from __future__ import annotations

import signal
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stjepa_cli.commands import console, options
from stjepa_cli.core import config
from stjepa_cli.core.locations import Location
from stjepa_cli.core.progress import Progress

if TYPE_CHECKING:
    from stjepa_cli.training.pretrain import PretrainResult

Preset = StrEnum("Preset", {name: name for name in config.PRESETS})  # type: ignore[misc]


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("pretrain", help="Pretrain a student on a cache.\n\nExample: stjepa pretrain --epochs 4 --preset small")(pretrain)


def pretrain(
    data_root: options.SSv2Root = None,
    cache: options.Cache = None,
    checkpoints: Annotated[
        Path | None, typer.Option(envvar="STJEPA_CHECKPOINTS", help="Folder of the run.", show_default="checkpoints")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the clips.", show_default=str(config.RunConfig.epochs))] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Clips a step, over all processes.", show_default=str(config.RunConfig.batch_size))
    ] = None,
    accumulate: Annotated[int | None, typer.Option(min=1, help="Micro-batches of a step, to save memory.", show_default="1")] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Peak learning rate at 64 clips a step.", show_default=str(config.OptimizerConfig.lr)),
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(min=0, show_default=str(config.OptimizerConfig.weight_decay))] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw, or muon for the matrices of the blocks.", show_default="adamw")] = None,
    loss: Annotated[str | None, typer.Option(help="cosine, smooth_l1 or l1.", show_default="cosine")] = None,
    mask_ratio: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Share of the tubes to hide.", show_default=str(config.RunConfig.mask_ratio))
    ] = None,
    mask_sampler: Annotated[str | None, typer.Option(help="tube, or multiblock: rectangles of tubes.", show_default="tube")] = None,
    masks_per_clip: Annotated[int | None, typer.Option(min=1, help="Masks that each decoded clip is seen under.", show_default="1")] = None,
    ema: Annotated[
        float | None, typer.Option(help="Decay of the average that is released; 0 for none.", show_default=str(config.RunConfig.ema))
    ] = None,
    preset: Annotated[Preset | None, typer.Option(help="Size of the student.", show_default=str(config.RunConfig.preset))] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Stop there; the schedule stays that of all epochs.")] = None,
    checkpoint_every: Annotated[
        str | None,
        typer.Option(metavar="STEPS|MINUTESm", help="Save also every 500 steps (500) or 30 minutes (30m)."),
    ] = None,
    keep: Annotated[
        int | None, typer.Option(min=0, help="Newest checkpoints that stay, with the best; 0 for all.", show_default="0")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of weights, masks and order.", show_default=str(config.RunConfig.seed))] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.", show_default=str(config.RunConfig.device))] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that decode.", show_default=str(config.RunConfig.workers))] = None,
    memory_gb: Annotated[
        float | None, typer.Option(min=0, help="Keep so much of decoded clips in memory.", show_default=str(config.RunConfig.memory_gb))
    ] = None,
    compile_: Annotated[
        str | None, typer.Option("--compile", help="auto (on a GPU), on or off: torch.compile.", show_default="auto")
    ] = None,
    recompute: Annotated[
        bool | None,
        typer.Option("--recompute/--no-recompute", help="Save memory by computing activations twice."),
    ] = None,
    tensorboard: Annotated[
        bool | None,
        typer.Option("--tensorboard/--no-tensorboard", help="Write events for TensorBoard too."),
    ] = None,
    config_file: Annotated[Path | None, typer.Option("--config", help="A run.toml; flags win over it.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Go on with the run in the folder if there is one, or replace it.")
    ] = True,
    as_json: options.Json = False,
) -> None:
    flags = {
        "data_root": data_root, "cache": cache, "checkpoints": checkpoints, "epochs": epochs, "batch_size": batch_size,
        "accumulate": accumulate, "lr": lr, "weight_decay": weight_decay, "optimizer": optimizer, "loss": loss,
        "mask_ratio": mask_ratio, "mask_sampler": mask_sampler, "masks_per_clip": masks_per_clip, "ema": ema,
        "preset": preset.value if preset else None, "max_steps": max_steps, "checkpoint_every": checkpoint_every, "keep": keep,
        "seed": seed, "device": device, "workers": workers, "memory_gb": memory_gb, "compile": compile_, "recompute": recompute,
        "tensorboard": tensorboard,
    }  # fmt: skip

    def call(progress: Progress) -> PretrainResult:
        run = config.resolve_run(_places(data_root), file=config_file, flags=flags)
        from stjepa_cli.training import pretrain

        with console.asked_to_stop() as asked:
            result = pretrain.pretrain(run, fresh=not resume, progress=progress, stop=lambda: bool(asked))
            if result.stopped and signal.SIGINT in asked:
                raise KeyboardInterrupt
            return result

    console.run_command(call, render=_show, as_json=as_json)


def _places(data_root: str | None) -> dict[str, Location]:
    root = config.ssv2_root(data_root)
    return {"data_root": root, "cache": config.cache_path(None, root), "checkpoints": config.checkpoints_dir()}


def _show(result: PretrainResult) -> None:
    pairs: dict[str, object] = {
        "checkpoint": result.checkpoint,
        "steps": f"{result.steps:,} in {result.epochs} epochs of {result.clips:,} clips",
        "loss": f"{result.loss_first:.4f} at the first step, {result.loss_last:.4f} at the last",
        "speed": f"{result.clips_per_second:.1f} clips/s on {result.device}"
        + (f" x {result.processes}" if result.processes > 1 else "")
        + f", {result.data_wait:.0%} of the time waiting for clips",
        "time": f"{result.seconds:.1f} s",
    }
    if result.val_loss is not None:
        pairs["validation loss"] = f"{result.val_loss:.4f} on {result.held_out:,} clips held out"
    if result.stopped:
        console.show_pairs("Stopped and saved", pairs)
        console.say(f"Go on with: stjepa pretrain --config {Path(result.checkpoint).with_name('run.toml')}")
        return
    console.show_pairs("Pretrained", pairs)
    console.say(f"Next: stjepa infer ucf101 --checkpoint {result.checkpoint}")
