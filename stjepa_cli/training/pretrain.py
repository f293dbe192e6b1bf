"""Use case: pretrain a student on cached latents or on videos alone. The teacher neither runs nor is imported."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch

from stjepa_cli.core.config import RunConfig
from stjepa_cli.core.errors import CacheError
from stjepa_cli.core.locations import absolute
from stjepa_cli.core.progress import SILENT, Progress
from stjepa_cli.core.serialization import from_dict, write_toml
from stjepa_cli.core.threads import use_threads
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.data.datasets.base import open_dataset
from stjepa_cli.data.training_clips import CachedClips, TrainingClips, VideoClips
from stjepa_cli.models.checkpoint import checkpoint_path
from stjepa_cli.models.student import Student, num_parameters
from stjepa_cli.store.latent_store import LatentStore
from stjepa_cli.training.distributed import World, joined
from stjepa_cli.training.objectives.base import Objective, build, objective_class, with_all_settings
from stjepa_cli.training.run_folder import Metrics, hold_run, resume_point, start_over
from stjepa_cli.training.trainer import Trainer
from stjepa_cli.training.validation import hold_out

FEW_STEPS = 300
"""Runs shorter than this get a warning: students leave chance after some hundred steps at the earliest."""


@dataclass(frozen=True)
class PretrainResult:
    """Outcome of a run.

    Attributes:
        steps: Optimizer steps of the whole run, earlier sessions included.
        epochs: Passes over the clips, whole or begun.
        loss_first: Loss of the first step; None if `metrics.jsonl` has lost it.
        loss_last: Loss of the last step; None if `metrics.jsonl` has lost it.
        val_loss: Loss on the held-out clips at the last validation; None without any.
        checkpoint: The newest checkpoint.
        clips_per_second: Speed of this session, everything included; 0 if there was nothing left to do.
        data_wait: Fraction of this session in which training waited for clips.
        clips: Clips that are trained on.
        held_out: Clips that are not.
        student_parameters: Parameters of the encoder.
        flops_per_clip: Operations of a forward pass of the student and what is trained beside it.
        device: The device of this process.
        processes: Processes that trained together.
        stopped: The run was asked to stop before its end.
        seconds: Time of this session.
        val_constant_loss: What answering every token with the mean target would lose on the held-out clips.
        val_position_loss: What answering each token with the mean target at its position would lose.
    """

    steps: int
    epochs: int
    loss_first: float | None
    loss_last: float | None
    val_loss: float | None
    checkpoint: str
    clips_per_second: float
    data_wait: float
    clips: int
    held_out: int
    student_parameters: int
    flops_per_clip: int
    device: str
    processes: int
    stopped: bool
    seconds: float
    val_constant_loss: float | None = None
    val_position_loss: float | None = None


def pretrain(
    run: RunConfig, *, fresh: bool = False, progress: Progress = SILENT, stop: Callable[[], bool] = lambda: False
) -> PretrainResult:
    """Pretrain a student, or resume the run that the checkpoint folder holds.

    The order of the clips, the masks and the initial weights are functions of `run.seed` and the step, so a run that was
    stopped and resumed takes the same steps as one that was not. Started by `torchrun`, all its processes train one student
    together.

    Args:
        run: Description of the run.
        fresh: Drop the run that the folder holds and start over.
        progress: Receives progress and messages.
        stop: Called after every step; when it returns True, the run is saved and ends.

    Raises:
        CacheError: There is no cache, it is empty, or its videos are gone.
        CheckpointError: The folder holds another run or a damaged checkpoint.
        StjepaError: The loss is no longer finite, the disk is full, or another process failed.
    """
    started, run = time.monotonic(), with_all_settings(run)
    with joined(run.device) as world, hold_run(run.checkpoints) if world.leads else nullcontext():
        trainer = _open(run, world, fresh=fresh, progress=progress if world.leads else SILENT)
        first_step = trainer.step
        if not trainer.step:
            trainer.save()
        loop_started = time.monotonic()
        trainer.train(stop)
        trainer.metrics.close()
        return _result(trainer, first_step, loop_seconds=time.monotonic() - loop_started, seconds=time.monotonic() - started)


def _result(trainer: Trainer, first_step: int, *, loop_seconds: float, seconds: float) -> PretrainResult:
    losses, validated = trainer.metrics.losses(), trainer.metrics.last_validation()
    clips_taken = (trainer.step - first_step) * trainer.batch_size
    return PretrainResult(
        steps=trainer.step,
        epochs=-(-trainer.step // trainer.steps_per_epoch),
        loss_first=losses.get(1),
        loss_last=losses.get(trainer.step),
        val_loss=validated.get("val_loss"),
        checkpoint=str(checkpoint_path(trainer.run.checkpoints, trainer.step)),
        clips_per_second=round(clips_taken / loop_seconds, 2) if clips_taken else 0.0,
        data_wait=round(trainer.meter.mean_wait, 4),
        clips=len(trainer.clips),
        held_out=len(trainer.held),
        student_parameters=num_parameters(trainer.objective.student),
        flops_per_clip=trainer.objective.flops(),
        device=str(trainer.world.device),
        processes=trainer.world.size,
        stopped=trainer.stopped,
        seconds=round(seconds, 3),
        val_constant_loss=validated.get("val_constant_loss"),
        val_position_loss=validated.get("val_position_loss"),
    )


def _open(run: RunConfig, world: World, *, fresh: bool, progress: Progress) -> Trainer:
    """Open everything that a run needs, at the step where it resumes."""
    source = open_clips(run, progress)
    clips, held = hold_out(source, run.val_fraction)
    objective = _objective(run, source).to(world.device)
    _describe(objective, run, source, progress)
    progress.note(str(use_threads(run.student.dim, run.workers)))
    metrics = Metrics(run.checkpoints, tensorboard=run.tensorboard and world.leads)
    trainer = Trainer(run, source, clips, held, objective, world, metrics, progress)
    if fresh and world.leads:
        start_over(run.checkpoints)
    world.wait()
    _resume(trainer)
    world.wait()
    if world.leads:
        metrics.keep_until(trainer.step)
        write_toml(run.checkpoints / "run.toml", _anywhere(trainer.run))
    if trainer.total_steps < FEW_STEPS:
        progress.note(
            f"warning: the whole run is {trainer.total_steps} steps, and a student says little before some {FEW_STEPS}. "
            "Raise --epochs, or use --steps."
        )
    return trainer


def _resume(trainer: Trainer) -> None:
    """Load the newest whole checkpoint of the folder, if there is one."""
    found = resume_point(trainer.run, trainer.source)
    if not found:
        return
    for path in found.damaged:
        trainer.progress.note(f"{path} is damaged or lacks its optimizer's state: resuming from the one before")
    trainer.load(found.path, found.header)
    trainer.progress.note(f"resuming from {found.path}, step {trainer.step} of {trainer.last_step}")


def _anywhere(run: RunConfig) -> RunConfig:
    """Return the same run with absolute paths, to be started from any folder."""
    cache, second = (None if place is None else absolute(place) for place in (run.cache, run.second_cache))
    return replace(run, data_root=absolute(run.data_root), cache=cache, second_cache=second, checkpoints=run.checkpoints.absolute())


def open_clips(run: RunConfig, progress: Progress = SILENT) -> TrainingClips:
    """Open the clips of a run: a cache's where there is one, else the videos of its data set.

    Raises:
        CacheError: The objective needs latents and the run names no cache, or the cache cannot be used.
        DatasetError: There is no cache and the data set cannot be listed.
    """
    needs_latents = "latents" in objective_class(run).needs
    if run.cache is None:
        if needs_latents:
            raise CacheError(f"the objective {run.objective['name']} needs a cache of latents", fix="Name one with --cache.")
        spec = from_dict(ClipSpec, run.clip, where="[clip]")
        items = open_dataset(run.dataset, run.data_root).videos(run.split)
        progress.note(f"reading {len(items):,} videos of {run.dataset}/{run.split}, without a cache: {spec}")
        return VideoClips(items, spec, f"{run.dataset}/{run.split}", progress)
    progress.note(f"opening the cache {run.cache}")
    second = LatentStore.open(run.second_cache) if run.second_cache else None
    return CachedClips(LatentStore.open(run.cache), run.data_root, second=second, reads_latents=needs_latents, progress=progress)


def _objective(run: RunConfig, source: TrainingClips) -> Objective:
    """Build the student, with its geometry from the clips, and what is trained beside it; initial weights from the seed."""
    generator = torch.Generator().manual_seed(run.seed)
    student = Student(run.student, source.spec, generator)
    return build(student, run, [store.header.latent_dim for store in source.stores], generator)


def _describe(objective: Objective, run: RunConfig, source: TrainingClips, progress: Progress) -> None:
    student, card = objective.student, source.teacher
    if source.stores:
        progress.note(f"latents of {card.name}, licence {card.licence}: {card.clip}")
    masks = "no mask" if run.objective.get("dense_fraction") == 1 else f"mask ratio {run.mask_ratio}"
    progress.note(
        f"student {run.preset}: {num_parameters(student) / 1e6:.2f} M parameters"
        f" + {(num_parameters(objective) - num_parameters(student)) / 1e6:.2f} M beside it,"
        f" {objective.flops() / 1e9:.2f} GFLOP per clip forward with {run.recipe or run.objective['name']}, {masks}"
        f" ({student.flops() / 1e9:.2f} for the student on all tokens)"
    )
