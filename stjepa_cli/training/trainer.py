"""One training session: steps, validation, checkpoints, and where it stops. Knows nothing of teachers, commands or files' places."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stjepa_cli.core.config import RunConfig
from stjepa_cli.core.devices import autocast
from stjepa_cli.core.errors import StjepaError
from stjepa_cli.core.progress import Progress, Task
from stjepa_cli.core.types import software_versions
from stjepa_cli.data.loader import Batch, ClipFeed, Request, batch_rows, on_device, steps_per_epoch
from stjepa_cli.models.checkpoint import CheckpointHeader, checkpoint_path, optimizer_path, read_tensors, write_checkpoint
from stjepa_cli.models.layers import FactorizedBlock, JointBlock
from stjepa_cli.models.student import load_group
from stjepa_cli.store.latent_store import LatentStore
from stjepa_cli.training.distributed import World
from stjepa_cli.training.objectives.base import Loss, Objective
from stjepa_cli.training.optim import MovingAverage, ScheduledOptimizer
from stjepa_cli.training.run_folder import Metrics, prune
from stjepa_cli.training.throughput import MOST_WAIT, ThroughputMeter
from stjepa_cli.training.validation import Clips, alarm, validate

MAX_NAMED = 8
STEPS_PER_READ = 10


@dataclass
class Trainer:
    """A run under way.

    Attributes:
        clips: the rows of each clip that is trained on; `held` are those held out.
        objective: the student and what is trained beside it, on the device.
        step: optimizer steps taken.
        stopped: it was asked to stop before the end.
        figures: the last that were read.
    """

    run: RunConfig
    store: LatentStore
    clips: Clips
    held: Clips
    objective: Objective
    world: World
    metrics: Metrics
    progress: Progress
    step: int = 0
    stopped: bool = False
    figures: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        run = self.run
        self.share = self.world.share(self.batch_size, run.accumulate)
        self.descent = ScheduledOptimizer(self.objective, run.optimizer, self.batch_size)
        self.average = MovingAverage(self.objective.student, run.ema) if run.ema else None
        self.objective.student.recompute = run.recompute
        self.feed = ClipFeed(
            self.store,
            run.data_root,
            num_workers=run.workers,
            memory_bytes=int(run.memory_gb * 1e9),
            pinned=self.world.device.type == "cuda",
        )
        passes = 4 if run.recompute else 3  # forward, and twice that backward
        self.meter = ThroughputMeter(passes * self.objective.flops(), self.world.device, self.world.size)
        self._waiting: list[dict[str, Tensor | float]] = []
        self._saved_at = time.monotonic()
        self._warned = False

    @property
    def batch_size(self) -> int:
        """Clips of a step, over all processes; a small set is one batch."""
        return min(self.run.batch_size, len(self.clips))

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a pass over the clips."""
        return steps_per_epoch(len(self.clips), self.run.batch_size)

    @property
    def total_steps(self) -> int:
        """Steps of the whole schedule."""
        return self.run.epochs * self.steps_per_epoch

    @property
    def last_step(self) -> int:
        """The step at which this session ends."""
        return min(self.total_steps, self.run.max_steps or self.total_steps)

    # ---- steps --------------------------------------------------------------------------------------------------

    def train(self, stop: Callable[[], bool]) -> None:
        """Take the steps that are left; stops after one at which `stop` says so, with everything saved."""
        if self.step >= self.last_step:
            return
        module = self._prepared()
        micro: list[tuple[Loss, int]] = []
        with self.progress.task("pretrain", total=self.last_step - self.step, unit="steps") as task:
            for batch in self.meter.waiting(on_device(self.feed.batches(self._requests()), self.world.device)):
                first, last = not micro, len(micro) + 1 == len(self.share)
                micro.append((self._descend(module, batch, first=first, last=last), len(batch.rows)))
                if len(micro) == len(self.share):
                    self._finish_step(micro)
                    micro = []
                    if self._look_around(task, stop):
                        return

    def _requests(self) -> Iterator[Request]:
        """What is needed, micro-batch by micro-batch: a function of seed, step, rank and world alone."""
        for step in range(self.step, self.last_step):
            rows = batch_rows(self.clips, self.run.batch_size, self.run.seed, step)
            for places in self.share:
                yield Request([rows[i] for i in places], places.start, len(rows))

    def _prepared(self) -> nn.Module:
        """The objective, compiled where that is asked for, and wrapped where several processes train it."""
        if self.run.compile == "on" or (self.run.compile == "auto" and self.world.device.type == "cuda"):
            for block in self._blocks():
                block.compile()
        self.objective.train()
        if self.world.size == 1:
            return self.objective
        ids = [self.world.device.index] if self.world.device.type == "cuda" else None
        return DistributedDataParallel(self.objective, device_ids=ids, gradient_as_bucket_view=True)

    def _blocks(self) -> list[nn.Module]:
        return [part for part in self.objective.modules() if isinstance(part, (FactorizedBlock, JointBlock))]

    def _descend(self, module: nn.Module, batch: Batch, *, first: bool, last: bool) -> Loss:
        """Add the gradient of a micro-batch; if blocks cannot be compiled, say so once and go on without.

        Only at the first of a step: a later one would lose the gradients that the earlier ones have added.
        """
        try:
            return self._backward(module, batch, last=last)
        except Exception as error:
            compiled = [block for block in self._blocks() if block._compiled_call_impl is not None]
            if not first or not compiled or not _is_of_compiler(error):
                raise
            for block in compiled:
                block._compiled_call_impl = None
            self.progress.note(f"the blocks cannot be compiled here ({type(error).__name__}): going on without")
            self.descent.drop_gradients()
            return self._backward(module, batch, last=last)

    def _backward(self, module: nn.Module, batch: Batch, *, last: bool) -> Loss:
        synced = last or not isinstance(module, DistributedDataParallel)
        with nullcontext() if synced else module.no_sync():  # type: ignore[operator]
            with autocast(self.world.device):
                loss: Loss = module(batch, self._generator(self.step))
            (loss.total * (len(batch.rows) * self.world.size / batch.total)).backward()  # type: ignore[no-untyped-call]
        return Loss(loss.total.detach(), loss.parts, loss.monitors)

    def _generator(self, step: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.run.seed * 1_000_003 + step)

    def _finish_step(self, micro: list[tuple[Loss, int]]) -> None:
        moved = self.descent.step(self.step, self.total_steps)
        self.step += 1
        if self.average:
            self.average.update(self.objective.student, self.step)
        self.objective.after_step(self.step, self.total_steps)
        self.meter.count(self.batch_size)
        self._waiting.append({**_mean(micro), **moved, "step": self.step, "epoch": 1 + (self.step - 1) // self.steps_per_epoch})

    # ---- between steps ------------------------------------------------------------------------------------------

    def _look_around(self, task: Task, stop: Callable[[], bool]) -> bool:
        """Read figures, validate and save where it is time to; returns whether to stop."""
        ends_epoch = self.step % self.steps_per_epoch == 0
        ends = self.step == self.last_step
        every, seconds = self.run.checkpoint_interval()
        due = bool(every) and self.step % every == 0
        asked = stop()
        # reading a figure waits for the device, so on a GPU it is not done at every step
        rests = self.step % STEPS_PER_READ == 0 or self.world.device.type != "cuda"
        if not (ends or ends_epoch or due or rests or (asked and self.world.size == 1)):
            return False
        task.advance(len(self._waiting), **self._read())
        if ends_epoch:
            self._validate()
        self.stopped = self.world.any(asked) and not ends
        late = bool(seconds) and self.world.any(time.monotonic() - self._saved_at >= seconds)
        if ends or ends_epoch or self.stopped or late or due:
            self.save()
        return self.stopped or ends

    def _read(self) -> dict[str, float]:
        """Write the figures of the steps since the last reading; returns what is shown."""
        rates = self.meter.read()
        taken: list[dict[str, Tensor | float]] = [{**figures, **rates} for figures in self._waiting]
        self._waiting = []
        if self.world.size > 1:
            taken = [{**self.world.mean(figures)} for figures in taken]
        lines = self.metrics.write(taken) if self.world.leads else [{k: float(v) for k, v in figures.items()} for figures in taken]
        self.figures = lines[-1]
        for line in lines:
            if not math.isfinite(line["loss"]) or not math.isfinite(line["grad_norm"]):
                self._refuse(int(line["step"]) - 1)
        shown = ("epoch", "loss", "lr", "clips_per_second", "data_wait", "mfu", "memory_gb")
        return {name: self.figures[name] for name in shown if name in self.figures}

    def _refuse(self, step: int) -> None:
        """Stop at a step whose loss is not finite: it changed nothing, the state is saved, and the clips are named."""
        sound = all(bool(p.isfinite().all()) for p in self.objective.parameters())
        if sound:
            self.save()
        names = self._unfit(step)
        saved = (
            f"The state at step {self.step} is saved" if sound else "The weights are not finite either, go on from an earlier checkpoint"
        )
        raise StjepaError(
            f"the loss is not finite at step {step + 1}",
            got=", ".join(names[:MAX_NAMED]) + (f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""),
            fix=f"{saved}; look at these clips with `stjepa cache verify --level recompute`, or lower --lr.",
        )

    def _unfit(self, step: int) -> list[str]:
        """The clips of a step whose own loss is not finite; all of them if that is none."""
        rows = batch_rows(self.clips, self.run.batch_size, self.run.seed, step)
        requests = (Request([row], place, len(rows)) for place, row in enumerate(rows))
        found = []
        with torch.no_grad():
            for batch in on_device(self.feed.batches(requests), self.world.device):
                with autocast(self.world.device):
                    loss = self.objective(batch, self._generator(step)).total
                if not bool(loss.isfinite()):
                    found.append(int(batch.rows[0]))
        return [f"clip {self.store.record(row).name}" for row in found or rows]

    def _validate(self) -> None:
        """The held-out clips, at the end of an epoch, by the process that leads; and what to say about it."""
        if self.held and self.world.leads:
            found = validate(self.objective, self.feed, self.held, self.run.batch_size, self.world.device, self.run.seed)
            epoch = self.step // self.steps_per_epoch
            self.metrics.write([{"step": self.step, "epoch": epoch, **found}])
            warning = alarm(found)
            self.progress.note(
                f"epoch {epoch}: validation loss {found['val_loss']:.4f} (constant answer {found.get('val_constant_loss', math.nan):.4f}), "
                f"feature_std {found['feature_std']:.3f}, effective rank {found['effective_rank']:.1f}"
            )
            if warning:
                self.progress.note(warning)
        self.world.wait()
        if self.meter.mean_wait > MOST_WAIT and not self._warned:
            self._warned = True
            kept = self.store.header.frames
            fix = (
                "raise --workers"
                if kept
                else "raise --workers, or build the cache with --frames: frames decode several times faster than videos"
            )
            self.progress.note(f"training waited for clips {self.meter.mean_wait:.0%} of the time: {fix}")

    # ---- saving -------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint of the last step, and remove those that need not stay."""
        self._saved_at = time.monotonic()
        if self.world.leads:
            header = CheckpointHeader(
                step=self.step,
                epoch=self.step // self.steps_per_epoch,
                run=self.run,
                clip=self.objective.student.spec,
                latent_dim=self.store.header.latent_dim,
                teacher=self.store.header.teacher,
                cache_digest=self.store.header.digest,
                dataset=f"{self.store.header.dataset}/{self.store.header.split}",
                software=software_versions(),
            )
            average = {f"ema.{name}": value for name, value in self.average.named()} if self.average else {}
            path = checkpoint_path(self.run.checkpoints, self.step)
            write_checkpoint(path, header, self.objective.state_dict() | average, self.descent.tensors())
            prune(self.run.checkpoints, self.run.keep, self.metrics.validations())
        self.world.wait()

    def load(self, path: Any, step: int) -> None:
        """Go on from a checkpoint of this run.

        Raises:
            CheckpointError: missing or damaged.
        """
        for group, module in self.objective.named_children():
            load_group(module, path, group)
        if self.average:
            load_group(self.average.module, path, "ema")
        self.descent.load(read_tensors(optimizer_path(path)))
        self.step = step


def _mean(micro: list[tuple[Loss, int]]) -> dict[str, Tensor | float]:
    """The figures of a step: means over its micro-batches, by their clips."""
    total = sum(size for _, size in micro)
    figures = [{"loss": loss.total, **loss.parts, **loss.monitors} for loss, _ in micro]
    return {name: sum(part[name] * (size / total) for part, (_, size) in zip(figures, micro, strict=True)) for name in figures[0]}


def _is_of_compiler(error: Exception) -> bool:
    """Whether torch.compile is what failed, or the compilers that it calls."""
    return any(cls.__module__.startswith(("torch._dynamo", "torch._inductor", "triton")) for cls in type(error).__mro__)
