"""Use case: pretrain a student on a cache. The teacher is neither run nor imported."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from stjepa_cli.batches import Batch, ClipFeed, steps_per_epoch, views_of
from stjepa_cli.checkpoint import CheckpointHeader, checkpoint_path, write_checkpoint
from stjepa_cli.config import OptimizerConfig, RunConfig, write_toml
from stjepa_cli.devices import autocast, pick_device
from stjepa_cli.errors import CacheError, StjepaError
from stjepa_cli.locations import Location, absolute, is_local
from stjepa_cli.nouns import software_versions
from stjepa_cli.objectives.base import Loss, Objective, build
from stjepa_cli.progress import SILENT, Progress
from stjepa_cli.runs import Metrics, load_optimizer, optimizer_tensors, resume_point, start_over
from stjepa_cli.store import LatentStore
from stjepa_cli.student import Student, load_group, num_parameters

STEPS_PER_READ = 10  # losses are read from the device so often, since reading one waits for it


@dataclass(frozen=True)
class PretrainResult:
    """What a run did.

    Attributes:
        steps: optimizer steps of the whole run, earlier sessions included.
        epochs: passes over the clips, whole or begun.
        loss_first: of the first step.
        loss_last: of the last step.
        checkpoint: the newest.
        clips_per_second: in this session, decoding included; 0 if there was nothing left to do.
        student_parameters: of the encoder.
        flops_per_clip: of a forward pass of student and what is trained beside it.
    """

    steps: int
    epochs: int
    loss_first: float
    loss_last: float
    checkpoint: str
    clips_per_second: float
    clips: int
    student_parameters: int
    flops_per_clip: int
    device: str
    seconds: float


@dataclass
class _Session:
    """A run under way: what a step changes."""

    run: RunConfig
    store: LatentStore
    clips: list[tuple[int, ...]]
    objective: Objective
    optimizer: torch.optim.AdamW
    device: torch.device
    metrics: Metrics
    step: int = 0

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self.clips), self.run.batch_size)

    @property
    def total_steps(self) -> int:
        return self.run.epochs * self.steps_per_epoch

    @property
    def last_step(self) -> int:
        return min(self.total_steps, self.run.max_steps or self.total_steps)


def pretrain(run: RunConfig, *, fresh: bool = False, progress: Progress = SILENT) -> PretrainResult:
    """Pretrain a student, or go on with the run that the checkpoint folder holds.

    The order of the clips, the masks and the initial weights are functions of `run.seed` and the step, so that a run that
    was stopped and went on takes the same steps as one that was not.

    Args:
        run: the description of the run.
        fresh: drop the run that the folder holds and start over.
        progress: is told of every step.

    Raises:
        CacheError: no cache, nothing in it, or its videos are gone.
        CheckpointError: the folder holds another run or a damaged checkpoint.
        StjepaError: the loss is no longer finite; the disk is full.
    """
    started = time.monotonic()
    session = _open(run, fresh=fresh, progress=progress)
    first_step = session.step
    if not session.step:
        _save(session)
    loop_started = time.monotonic()
    _train(session, progress)
    losses = session.metrics.losses()
    trained = (session.step - first_step) * min(run.batch_size, len(session.clips))
    return PretrainResult(
        steps=session.step,
        epochs=-(-session.step // session.steps_per_epoch),
        loss_first=losses[0],
        loss_last=losses[-1],
        checkpoint=str(checkpoint_path(run.checkpoints, session.step)),
        clips_per_second=round(trained / (time.monotonic() - loop_started), 2) if trained else 0.0,
        clips=len(session.clips),
        student_parameters=num_parameters(session.objective.student),
        flops_per_clip=session.objective.flops(),
        device=str(session.device),
        seconds=round(time.monotonic() - started, 3),
    )


def learning_rate(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """The rate of a step (from 0): a linear rise over `warmup`, then half a cosine down to `final_lr` of the peak."""
    warmup_steps = max(1, round(config.warmup * total_steps))
    if step < warmup_steps:
        return config.lr * (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return config.lr * (config.final_lr + (1 - config.final_lr) * (1 + math.cos(math.pi * share)) / 2)


def _open(run: RunConfig, *, fresh: bool, progress: Progress) -> _Session:
    """Everything that a run needs, at the step where it goes on."""
    device = pick_device(run.device)
    store = LatentStore.open(run.cache)
    clips = _clips(store, run.data_root, progress)
    objective = _objective(run, store).to(device)
    _describe(objective, run, store, progress)
    if fresh:
        start_over(run.checkpoints)
    found = resume_point(run, store.header.digest)
    session = _Session(run, store, clips, objective, _optimizer(objective, run.optimizer), device, Metrics(run.checkpoints))
    if found:
        path, session.step = found
        for group, module in objective.named_children():
            load_group(module, path, group)
        load_optimizer(session.optimizer, objective, path)
        progress.note(f"going on with {path}, step {session.step} of {session.last_step}")
    session.metrics.keep_until(session.step)
    write_toml(run.checkpoints / "run.toml", _anywhere(run))
    return session


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


def _optimizer(objective: Objective, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101); norms, biases and mask tokens are not decayed."""
    parameters = list(objective.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def _train(session: _Session, progress: Progress) -> None:
    """Take the steps that are left, saving a checkpoint at the end of every epoch and of the run."""
    waiting: list[dict[str, Tensor | float]] = []
    with progress.task("pretrain", total=max(0, session.last_step - session.step), unit="steps") as task:
        for batch in _batches(session):
            waiting.append(_step(session, batch))
            ends = session.step == session.last_step or session.step % session.steps_per_epoch == 0
            if ends or len(waiting) == STEPS_PER_READ:
                shown = session.metrics.write(waiting)
                task.advance(len(waiting), loss=shown["loss"], lr=shown["lr"])
                waiting = []
                if not math.isfinite(shown["loss"]):
                    raise StjepaError(
                        f"the loss is not finite at step {session.step}",
                        got=shown["loss"],
                        fix="Go on from the last checkpoint with a lower --lr, or start over with --fresh.",
                    )
            if ends:
                _save(session)


def _batches(session: _Session) -> Iterator[Batch]:
    run = session.run
    feed = ClipFeed(session.store, run.data_root, num_workers=run.workers, memory_bytes=int(run.memory_gb * 1e9))
    for batch in feed.batches(session.clips, run.batch_size, run.seed, range(session.step, session.last_step)):
        yield batch.to(session.device)


def _step(session: _Session, batch: Batch) -> dict[str, Tensor | float]:
    """One optimizer step; returns its figures, still on the device."""
    started = time.monotonic()
    config = session.run.optimizer
    lr = learning_rate(session.step, session.total_steps, config)
    for group in session.optimizer.param_groups:
        group["lr"] = lr
    generator = torch.Generator().manual_seed(session.run.seed * 1_000_003 + session.step)
    with autocast(session.device):
        loss: Loss = session.objective(batch, generator)
    session.optimizer.zero_grad(set_to_none=True)
    loss.total.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(session.objective.parameters(), config.clip_norm)
    session.optimizer.step()
    session.step += 1
    session.objective.after_step(session.step, session.total_steps)
    figures = {"loss": loss.total.detach(), **loss.parts, **loss.monitors, "grad_norm": norm}
    return figures | {"step": session.step, "lr": lr, "seconds": time.monotonic() - started}


def _save(session: _Session) -> Path:
    """Write the checkpoint of the step that was just taken."""
    path = checkpoint_path(session.run.checkpoints, session.step)
    header = CheckpointHeader(
        step=session.step,
        epoch=session.step // session.steps_per_epoch,
        run=session.run,
        clip=session.objective.student.spec,
        latent_dim=session.store.header.latent_dim,
        teacher=session.store.header.teacher,
        cache_digest=session.store.header.digest,
        dataset=f"{session.store.header.dataset}/{session.store.header.split}",
        software=software_versions(),
    )
    write_checkpoint(path, header, session.objective.state_dict(), optimizer_tensors(session.optimizer, session.objective))
    return path
