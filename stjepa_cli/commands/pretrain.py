"""`stjepa pretrain`: pretrain a student on a cache; `stjepa recipes`: the named settings for it."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stjepa_cli.commands import console, options
from stjepa_cli.core import places
from stjepa_cli.core.config import PRESETS, OptimizerConfig, RunConfig
from stjepa_cli.core.progress import Progress

if TYPE_CHECKING:
    from stjepa_cli.training.pretrain import PretrainResult

Preset = StrEnum("Preset", {name: name for name in PRESETS})  # type: ignore[misc]

_NOT_SETTINGS = ("config_file", "resume", "as_json")


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("pretrain", help="Pretrain a student on a cache.\n\nExample: stjepa pretrain --epochs 4 --preset small")(pretrain)
    app.command("recipes", help="List the recipes of pretraining.\n\nExample: stjepa recipes")(recipes)


# Environment variables are the defaults below a file's values, so they are read in `_default_places` and not by the options.
def pretrain(
    data_root: Annotated[
        str | None, typer.Option(metavar="PATH|URL", help="Folder or URL of the videos.", show_default="STJEPA_SSV2, else /mnt/ssv2")
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(metavar="PATH|URL", help="Latent cache.", show_default="STJEPA_CACHE, else <data root>/cache_<teacher>_<dim>"),
    ] = None,
    second_cache: Annotated[
        str | None, typer.Option(metavar="PATH|URL", help="Cache of another teacher for the same clips, predicted at the same time.")
    ] = None,
    checkpoints: Annotated[
        Path | None, typer.Option(help="Folder of the run.", show_default="STJEPA_CHECKPOINTS, else checkpoints")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            autocompletion=options.complete_recipe,
            help="Named settings; `stjepa recipes` lists them.",
            show_default="dense; mixed with an option of the masks",
        ),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(autocompletion=options.complete_objective, help="latent, or pixels, which needs no cache.", show_default="latent"),
    ] = None,
    preset: Annotated[Preset | None, typer.Option(help="Size of the student.", show_default=RunConfig.preset)] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the clips.", show_default=str(RunConfig.epochs))] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the whole schedule, instead of --epochs.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Clips per step, over all processes.", show_default=str(RunConfig.batch_size))
    ] = None,
    accumulate: Annotated[int | None, typer.Option(min=1, help="Micro-batches per step, to save memory.", show_default="1")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate at 64 clips per step.", show_default=str(OptimizerConfig.lr))] = None,
    weight_decay: Annotated[
        float | None, typer.Option(min=0, help="Weight decay of matrices.", show_default=str(OptimizerConfig.weight_decay))
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            autocompletion=options.completing(lambda: ("adamw", "muon")),
            help="adamw, or muon for the matrices of the blocks.",
            show_default="adamw",
        ),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            autocompletion=options.completing(lambda: ("cosine", "smooth_l1", "l1")),
            help="Distance: cosine, smooth_l1 or l1.",
            show_default="cosine",
        ),
    ] = None,
    hidden_weight: Annotated[
        float | None, typer.Option(help="Weight of the predictor's loss on hidden tokens.", show_default="by recipe")
    ] = None,
    visible_weight: Annotated[
        float | None, typer.Option(help="Weight of the linear head's loss on visible tokens.", show_default="by recipe")
    ] = None,
    dense_fraction: Annotated[
        float | None, typer.Option(help="Fraction of steps that see whole clips, 0 to 1.", show_default="by recipe")
    ] = None,
    second_weight: Annotated[float | None, typer.Option(help="Weight of the second cache's latents.", show_default="1")] = None,
    mask_ratio: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Fraction of the tubes to hide.", show_default="by recipe")
    ] = None,
    mask_sampler: Annotated[
        str | None,
        typer.Option(
            autocompletion=options.completing(lambda: ("tube", "multiblock")),
            help="tube, or multiblock: rectangles of tubes.",
            show_default="tube",
        ),
    ] = None,
    masks_per_clip: Annotated[int | None, typer.Option(min=1, help="Masks per decoded clip and step.", show_default="1")] = None,
    ema: Annotated[
        float | None, typer.Option(help="Decay of the moving average that is released; 0 for none.", show_default=str(RunConfig.ema))
    ] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Stop at this step; the schedule stays that of the whole run.")] = None,
    checkpoint_every: Annotated[
        str | None, typer.Option(metavar="STEPS|MINUTESm", help="Save every 500 steps (500) or 30 minutes (30m) too.")
    ] = None,
    keep: Annotated[
        int | None, typer.Option(min=0, help="Number of newest checkpoints to keep, with the best; 0 for all.", show_default="0")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Random seed for weights, masks and clip order.", show_default=str(RunConfig.seed))
    ] = None,
    device: Annotated[
        str | None, typer.Option(autocompletion=options.complete_device, help="auto, cpu, cuda or cuda:N.", show_default=RunConfig.device)
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that decode.", show_default=str(RunConfig.workers))] = None,
    memory_gb: Annotated[
        float | None, typer.Option(min=0, help="Memory for decoded clips, in GB.", show_default=str(RunConfig.memory_gb))
    ] = None,
    compile_: Annotated[
        str | None,
        typer.Option(
            "--compile",
            autocompletion=options.completing(lambda: ("auto", "on", "off")),
            help="Use torch.compile: auto (on a GPU, unless activations are recomputed), on or off.",
            show_default="auto",
        ),
    ] = None,
    activation_checkpointing: Annotated[
        bool | None,
        typer.Option(
            "--activation-checkpointing/--no-activation-checkpointing",
            help="Save memory by computing activations twice.",
            show_default="off",
        ),
    ] = None,
    recompute: Annotated[bool | None, typer.Option("--recompute/--no-recompute", hidden=True)] = None,
    tensorboard: Annotated[
        bool | None, typer.Option("--tensorboard/--no-tensorboard", help="Write TensorBoard events too.", show_default="off")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            autocompletion=options.complete_dataset,
            help="Data set whose videos are read where there is no cache.",
            show_default=RunConfig.dataset,
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="List of that data set.", show_default=RunConfig.split)] = None,
    num_frames: Annotated[int | None, typer.Option(min=1, help="Frames per clip where there is no cache.", show_default="16")] = None,
    size_px: Annotated[
        int | None, typer.Option("--size", min=1, help="Clip size in pixels where there is no cache.", show_default="224")
    ] = None,
    config_file: Annotated[Path | None, typer.Option("--config", help="A run.toml; flags win over it.")] = None,
    resume: Annotated[bool, typer.Option("--resume/--fresh", help="Resume the run in the folder if there is one, or replace it.")] = True,
    as_json: options.Json = False,
) -> None:
    flags = {name: value for name, value in locals().items() if name not in _NOT_SETTINGS}
    flags["compile"] = flags.pop("compile_")
    flags["activation_checkpointing"] = recompute if activation_checkpointing is None else activation_checkpointing
    del flags["recompute"]

    def call(progress: Progress) -> PretrainResult:
        from stjepa_cli.training.pretrain import pretrain
        from stjepa_cli.training.recipes import resolve_run

        run = resolve_run(_default_places(flags), file=config_file, flags=flags)
        with console.asked_to_stop() as asked:
            result = pretrain(run, fresh=not resume, progress=progress, stop=lambda: bool(asked))
            if result.stopped and signal.SIGINT in asked:
                raise KeyboardInterrupt
            return result

    console.run_command(call, render=_show, as_json=as_json, distributed=True)


def _default_places(flags: dict[str, Any]) -> dict[str, Any]:
    """Return the places of data, cache and checkpoints where neither flags nor a file name them."""
    root = places.dataset_root(flags["dataset"] or RunConfig.dataset, flags["data_root"])
    return {"data_root": root, "cache": places.cache_path(None, root), "checkpoints": places.checkpoints_dir()}


@dataclass(frozen=True)
class RecipeList:
    """The recipes by name."""

    recipes: dict[str, dict[str, Any]]


def recipes(as_json: options.Json = False) -> None:
    """Show the recipes."""

    def call(_: Progress) -> RecipeList:
        from stjepa_cli.training.cost import recipe_costs

        return RecipeList(recipe_costs())

    console.run_command(call, render=_show_recipes, as_json=as_json)


def _show_recipes(result: RecipeList) -> None:
    columns = ("recipe", "GFLOP/clip", "needs", "source", "finding")
    rows = [(name, f"{e['gflops_per_clip']:.0f}", e["needs"], e["source"], e["finding"]) for name, e in result.recipes.items()]
    console.show_table("Recipes", columns, rows, caption="GFLOP/clip: base student on 16 frames of 224 px, forward")
    console.say("Next: stjepa pretrain --recipe NAME")


def _show(result: PretrainResult) -> None:
    pairs: dict[str, object] = {
        "checkpoint": result.checkpoint,
        "steps": f"{result.steps:,} in {result.epochs} epochs of {result.clips:,} clips",
        "loss": f"{console.decimal(result.loss_first, 4)} at the first step, {console.decimal(result.loss_last, 4)} at the last",
        "speed": f"{result.clips_per_second:.1f} clips/s on {result.device}"
        + (f" x {result.processes}" if result.processes > 1 else "")
        + f", {result.data_wait:.0%} of the time waiting for clips",
        "time": f"{result.seconds:.1f} s",
    }
    if result.val_loss is not None:
        pairs["validation loss"] = f"{result.val_loss:.4f} on {result.held_out:,} held-out clips"
        pairs["verdict"] = _verdict(result)
    if result.stopped:
        console.show_pairs("Stopped and saved", pairs)
        console.say(f"Resume with: stjepa pretrain --config {Path(result.checkpoint).with_name('run.toml')}")
        return
    console.show_pairs("Pretrained", pairs)
    console.say(f"Next: stjepa infer ucf101 --checkpoint {result.checkpoint}")


def _verdict(result: PretrainResult) -> str:
    """Compare the held-out loss with the two trivial answers."""
    loss, answers = (
        result.val_loss,
        {"the constant answer": result.val_constant_loss, "the mean of each position": result.val_position_loss},
    )
    known = {name: other for name, other in answers.items() if other is not None and loss is not None}
    return ", ".join(f"{'better' if (loss or 0) < other else 'worse'} than {name} ({other:.4f})" for name, other in known.items())
