"""Use case: pretrain a student on a cache. The teacher is neither run nor imported."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from stjepa_cli.core.config import RunConfig, write_toml
from stjepa_cli.core.errors import CacheError
from stjepa_cli.core.locations import Location, absolute, is_local
from stjepa_cli.core.progress import SILENT, Progress
from stjepa_cli.data.loader import views_of
from stjepa_cli.models.checkpoint import checkpoint_path
from stjepa_cli.models.student import Student, num_parameters
from stjepa_cli.store.latent_store import LatentStore
from stjepa_cli.training.distributed import World, joined
from stjepa_cli.training.objectives.base import Objective, build
from stjepa_cli.training.run_folder import Metrics, resume_point, start_over
from stjepa_cli.training.trainer import Trainer
from stjepa_cli.training.validation import hold_out


@dataclass(frozen=True)
class PretrainResult:
    """What a run did.

    Attributes:
        steps: optimizer steps of the whole run, earlier sessions included.
        epochs: passes over the clips, whole or begun.
        loss_first: of the first step.
        loss_last: of the last step.
        val_loss: of the clips held out, at the end of the last whole epoch; None without any.
        checkpoint: the newest.
        clips_per_second: in this session, everything included; 0 if there was nothing left to do.
        data_wait: share of this session in which training waited for clips, 0 to 1.
        clips: that are trained on.
        held_out: clips that are not.
        student_parameters: of the encoder.
        flops_per_clip: of a forward pass of student and what is trained beside it.
        processes: that trained together.
        stopped: it was asked to stop before the end.
    """

    steps: int
    epochs: int
    loss_first: float
    loss_last: float
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


def pretrain(
    run: RunConfig, *, fresh: bool = False, progress: Progress = SILENT, stop: Callable[[], bool] = lambda: False
) -> PretrainResult:
    """Pretrain a student, or go on with the run that the checkpoint folder holds.

    The order of the clips, the masks and the initial weights are functions of `run.seed` and the step, so that a run that
    was stopped and went on takes the same steps as one that was not. Started by `torchrun`, all its processes train one
    student together.

    Args:
        run: the description of the run.
        fresh: drop the run that the folder holds and start over.
        progress: is told of every step.
        stop: asked after every step; when it says so, the run is saved and ends.

    Raises:
        CacheError: no cache, nothing in it, or its videos are gone.
        CheckpointError: the folder holds another run or a damaged checkpoint.
        StjepaError: the loss is no longer finite; the disk is full; another process failed.
    """
    started = time.monotonic()
    with joined(run.device) as world:
        trainer = _open(run, world, fresh=fresh, progress=progress if world.leads else SILENT)
        first_step = trainer.step
        if not trainer.step:
            trainer.save()
        loop_started = time.monotonic()
        trainer.train(stop)
        trainer.metrics.close()
        seconds = time.monotonic() - loop_started
        losses, validations = trainer.metrics.losses(), trainer.metrics.validations()
        return PretrainResult(
            steps=trainer.step,
            epochs=-(-trainer.step // trainer.steps_per_epoch),
            loss_first=losses[0],
            loss_last=losses[-1],
            val_loss=validations[max(validations)] if validations else None,
            checkpoint=str(checkpoint_path(run.checkpoints, trainer.step)),
            clips_per_second=round((trainer.step - first_step) * trainer.batch_size / seconds, 2) if trainer.step > first_step else 0.0,
            data_wait=round(trainer.meter.mean_wait, 4),
            clips=len(trainer.clips),
            held_out=len(trainer.held),
            student_parameters=num_parameters(trainer.objective.student),
            flops_per_clip=trainer.objective.flops(),
            device=str(world.device),
            processes=world.size,
            stopped=trainer.stopped,
            seconds=round(time.monotonic() - started, 3),
        )


def _open(run: RunConfig, world: World, *, fresh: bool, progress: Progress) -> Trainer:
    """Everything that a run needs, at the step where it goes on."""
    progress.note(f"opening the cache {run.cache}")
    store = LatentStore.open(run.cache)
    clips, held = hold_out(store, _clips(store, run.data_root, progress), run.val_share)
    objective = _objective(run, store).to(world.device)
    _describe(objective, run, store, progress)
    if fresh and world.leads:
        start_over(run.checkpoints)
    world.wait()
    metrics = Metrics(run.checkpoints, tensorboard=run.tensorboard and world.leads)
    trainer = Trainer(run, store, clips, held, objective, world, metrics, progress)
    found = resume_point(run, store.header.digest)
    if found:
        for path in found.damaged:
            progress.note(f"{path} is damaged or lacks its optimizer's state: going on from the one before")
        trainer.load(found.path, found.step)
        progress.note(f"going on with {found.path}, step {trainer.step} of {trainer.last_step}")
    world.wait()
    if world.leads:
        metrics.keep_until(trainer.step)
        write_toml(run.checkpoints / "run.toml", _anywhere(run))
    return trainer


def _anywhere(run: RunConfig) -> RunConfig:
    """The same run, whatever folder it is started in."""
    return replace(run, data_root=absolute(run.data_root), cache=absolute(run.cache), checkpoints=run.checkpoints.absolute())


def _clips(store: LatentStore, data_root: Location, progress: Progress) -> list[tuple[int, ...]]:
    """The rows to train on, by clip; says what is left out, and refuses before the first step what would stop the run later."""
    rows = store.usable_rows()
    if not rows:
        raise CacheError(f"the cache {store.path} holds no latents yet", fix="Type `stjepa cache build`.")
    if len(rows) < store.header.num_rows:
        failed = len(store.failures())
        left = store.header.num_rows - len(rows) - failed
        progress.note(f"the cache holds {len(rows)} of {store.header.num_rows} rows ({failed} failed, {left} not built yet)")
    clips = views_of(rows, store.header.num_views)
    videos = [] if store.header.frames or not is_local(data_root) else [data_root / store.clip_of(views[0])[0].video for views in clips]
    gone = [video for video in videos if not video.is_file()]
    if gone:
        raise CacheError(
            f"{len(gone)} of the {len(clips)} cached clips have no video below {data_root}",
            got=f"no {gone[0]}",
            fix="Name the folder that the cache was built from with --data-root.",
        )
    return clips


def _objective(run: RunConfig, store: LatentStore) -> Objective:
    """The student, with its geometry from the cache, and what is trained beside it; initial weights from the seed."""
    generator = torch.Generator().manual_seed(run.seed)
    student = Student(run.student, store.header.teacher.clip, generator)
    return build(run.objective, student, run, store.header.latent_dim, generator)


def _describe(objective: Objective, run: RunConfig, store: LatentStore, progress: Progress) -> None:
    student, card = objective.student, store.header.teacher
    progress.note(f"latents of {card.name}, licence {card.licence}: {card.clip}")
    progress.note(
        f"student {run.preset}: {num_parameters(student) / 1e6:.2f} M parameters"
        f" + {(num_parameters(objective) - num_parameters(student)) / 1e6:.2f} M beside it,"
        f" {objective.flops() / 1e9:.2f} GFLOP a clip forward at mask ratio {run.mask_ratio}"
        f" ({student.flops() / 1e9:.2f} for the student on all tokens)"
    )
