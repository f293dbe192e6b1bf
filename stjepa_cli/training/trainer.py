"""One training session: steps, validation, checkpoints, and where it stops."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stjepa_cli.core.config import RunConfig
from stjepa_cli.core.devices import autocast
from stjepa_cli.core.errors import StjepaError
from stjepa_cli.core.progress import Progress, Task
from stjepa_cli.core.types import software_versions
from stjepa_cli.data.loader import Batch, ClipFeed, Request, batch_rows, on_device, steps_per_epoch
from stjepa_cli.data.training_clips import TrainingClips
from stjepa_cli.models.checkpoint import CheckpointHeader, checkpoint_path, read_optimizer, write_checkpoint
from stjepa_cli.models.layers import FactorizedBlock, JointBlock
from stjepa_cli.models.student import Student
from stjepa_cli.models.tensor_file import load_group
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
        run: Description of the run.
        source: Clips of the run.
        clips: Rows of each clip that is trained on.
        held: Rows of each clip that is held out.
        objective: The student and what is trained beside it, on the device.
        world: The processes that train together.
        metrics: File that metrics are appended to.
        progress: Receives progress and messages.
        step: Optimizer steps taken.
        stopped: The run was asked to stop before its end.
    """

    run: RunConfig
    source: TrainingClips
    clips: Clips
    held: Clips
    objective: Objective
    world: World
    metrics: Metrics
    progress: Progress
    step: int = 0
    stopped: bool = False

    def __post_init__(self) -> None:
        run = self.run
        self.micro_batches = self.world.share(self.batch_size, run.accumulate)
        self.optimizer = ScheduledOptimizer(self.objective, run.optimizer, self.batch_size)
        self.optimizer.schedule = run.schedule
        self.average = MovingAverage(self.objective.student, run.ema) if run.ema else None
        self.objective.student.activation_checkpointing = run.activation_checkpointing
        pinned = self.world.device.type == "cuda"
        self.feed = ClipFeed(self.source, num_workers=run.workers, memory_bytes=int(run.memory_gb * 1e9), pinned=pinned)
        step_flops = 3 * self.objective.flops()  # forward, and twice that backward; recomputed activations are no progress
        self.meter = ThroughputMeter(step_flops, self.world.device, self.world.size)
        self._unread: list[dict[str, Tensor | float]] = []
        self._saved_at = time.monotonic()
        self._warned = False

    @property
    def batch_size(self) -> int:
        """Clips per step, over all processes; a small set is one batch."""
        return min(self.run.batch_size, len(self.clips))

    @property
    def steps_per_epoch(self) -> int:
        """Steps per pass over the clips."""
        return steps_per_epoch(len(self.clips), self.run.batch_size)

    @property
    def total_steps(self) -> int:
        """Steps of the whole schedule."""
        return self.run.steps or self.run.epochs * self.steps_per_epoch

    @property
    def last_step(self) -> int:
        """The step at which this session ends."""
        return min(self.total_steps, self.run.max_steps or self.total_steps)

    # ---- steps --------------------------------------------------------------------------------------------------

    def train(self, stop: Callable[[], bool]) -> None:
        """Take the steps that are left; stop after the one at which `stop` returns True, with everything saved.

        A first step that does not fit into the GPU's memory is taken again in smaller micro-batches.
        """
        module, first = self._prepared(), self.step
        while self.step < self.last_step:
            try:
                return self._take_steps(module, stop)
            except torch.OutOfMemoryError:
                if self.step > first or self.world.size > 1 or len(self.micro_batches) == self.batch_size:
                    raise
            self._split_further()

    def _split_further(self) -> None:
        """Halve the micro-batches; the gradients of a step stay the same sum."""
        self.optimizer.drop_gradients()
        if self.world.device.type == "cuda":
            torch.cuda.empty_cache()
        self.run = replace(self.run, accumulate=min(2 * self.run.accumulate, self.batch_size))
        self.micro_batches = self.world.share(self.batch_size, self.run.accumulate)
        self.progress.note(f"the step does not fit into the GPU's memory: continuing with --accumulate {self.run.accumulate}")

    def _take_steps(self, module: nn.Module, stop: Callable[[], bool]) -> None:
        micro: list[tuple[Loss, int]] = []
        with self.progress.task("pretrain", total=self.last_step, completed=self.step, unit="steps") as task:
            for batch in self.meter.waiting(on_device(self.feed.batches(self._requests()), self.world.device)):
                micro.append((self._add_gradients(module, batch, number=len(micro)), len(batch.rows)))
                if len(micro) == len(self.micro_batches):
                    self._finish_step(micro)
                    micro = []
                    if self._between_steps(task, stop):
                        return

    def _requests(self) -> Iterator[Request]:
        """Yield what each micro-batch needs: a function of seed, step, rank and number of processes alone."""
        for step in range(self.step, self.last_step):
            rows = batch_rows(self.clips, self.run.batch_size, self.run.seed, step)
            for places in self.micro_batches:
                yield Request([rows[i] for i in places], places.start, len(rows))

    def _prepared(self) -> nn.Module:
        """Return the objective, compiled where that is asked for, and wrapped where several processes train it."""
        if self._compiles():
            for block in self._blocks():
                block.compile()
        self.objective.train()
        if self.world.size == 1:
            return self.objective
        ids = [self.world.device.index] if self.world.device.type == "cuda" else None
        unused = self.objective.skips_modules
        return DistributedDataParallel(self.objective, device_ids=ids, gradient_as_bucket_view=True, find_unused_parameters=unused)

    def _compiles(self) -> bool:
        # on a GPU with torch 2.11 a compiled block saved other tensors when it was recomputed than in the forward pass, and failed
        automatic = self.world.device.type == "cuda" and not self.run.activation_checkpointing
        return self.run.compile == "on" or (self.run.compile == "auto" and automatic)

    def _blocks(self) -> list[nn.Module]:
        return [part for part in self.objective.modules() if isinstance(part, (FactorizedBlock, JointBlock))]

    def _add_gradients(self, module: nn.Module, batch: Batch, *, number: int) -> Loss:
        """Add the gradients of a micro-batch of the step, the first of which has the number 0.

        If the blocks cannot be compiled, that is said once and training continues without. This is tried at the first
        micro-batch only: a later one would lose the gradients that the earlier ones have added.
        """
        last = number + 1 == len(self.micro_batches)
        try:
            return self._backward(module, batch, last=last)
        except Exception as error:
            compiled = [block for block in self._blocks() if block._compiled_call_impl is not None]
            if number or not compiled or not _comes_from_compiler(error):
                raise
            for block in compiled:
                block._compiled_call_impl = None
            self.progress.note(f"the blocks cannot be compiled here ({type(error).__name__}): continuing without")
            self.optimizer.drop_gradients()
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
        taken = self.optimizer.step(self.step, self.total_steps)
        self.step += 1
        if self.average:
            self.average.update(self.objective.student, self.step)
        self.objective.after_step(self.step, self.total_steps)
        self.meter.count(self.batch_size)
        self._unread.append({**_mean(micro), **taken, "step": self.step, "epoch": 1 + (self.step - 1) // self.steps_per_epoch})

    # ---- between steps ------------------------------------------------------------------------------------------

    def _between_steps(self, task: Task, stop: Callable[[], bool]) -> bool:
        """Read metrics, validate and save where it is time to; return True when training ends."""
        ends_epoch = self.step % self.steps_per_epoch == 0
        ends = self.step == self.last_step
        every, seconds = self.run.checkpoint_interval()
        due = bool(every) and self.step % every == 0
        asked = stop()
        # reading a metric waits for the device, so on a GPU it is not done at every step
        reads = self.step % STEPS_PER_READ == 0 or self.world.device.type != "cuda"
        if not (ends or ends_epoch or due or reads or (asked and self.world.size == 1)):
            return False
        task.advance(len(self._unread), **self._read())
        if ends_epoch or (ends and self.run.steps):
            self._validate()
        self.stopped = self.world.any(asked) and not ends
        late = bool(seconds) and self.world.any(time.monotonic() - self._saved_at >= seconds)
        if ends or ends_epoch or self.stopped or late or due:
            self.save()
        return self.stopped or ends

    def _read(self) -> dict[str, float]:
        """Write the metrics of the steps since the last reading; return those that are shown."""
        rates = self.meter.read()
        taken: list[dict[str, Tensor | float]] = [{**metrics, **rates} for metrics in self._unread]
        self._unread = []
        if self.world.size > 1:
            taken = [{**self.world.mean(metrics)} for metrics in taken]
        lines = self.metrics.write(taken) if self.world.leads else [{k: float(v) for k, v in metrics.items()} for metrics in taken]
        for line in lines:
            if not math.isfinite(line["loss"]) or not math.isfinite(line["grad_norm"]):
                self._refuse(int(line["step"]) - 1)
        shown = ("epoch", "loss", "lr", "clips_per_second", "data_wait", "mfu", "memory_gb")
        return {name: lines[-1][name] for name in shown if name in lines[-1]}

    def _refuse(self, step: int) -> None:
        """Stop at a step whose loss is not finite: it changed no weight, the state is saved, and the clips are named."""
        sound = all(bool(p.isfinite().all()) for p in self.objective.parameters())
        if sound:
            self.save()
        names = self._clips_without_finite_loss(step)
        saved = (
            f"The state at step {self.step} is saved" if sound else "The weights are not finite either, continue from an earlier checkpoint"
        )
        raise StjepaError(
            f"the loss is not finite at step {step + 1}",
            got=", ".join(names[:MAX_NAMED]) + (f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""),
            fix=f"{saved}; look at these clips with `stjepa cache verify --level recompute`, or lower --lr.",
        )

    def _clips_without_finite_loss(self, step: int) -> list[str]:
        """Name the clips of a step whose own loss is not finite; all of them if that is none."""
        rows = batch_rows(self.clips, self.run.batch_size, self.run.seed, step)
        requests = (Request([row], place, len(rows)) for place, row in enumerate(rows))
        found = []
        with torch.no_grad():
            for batch in on_device(self.feed.batches(requests), self.world.device):
                with autocast(self.world.device):
                    loss = self.objective(batch, self._generator(step)).total
                if not bool(loss.isfinite()):
                    found.append(int(batch.rows[0]))
        return [f"clip {self.source.name_of(row)}" for row in found or rows]

    def _validate(self) -> None:
        """Score the held-out clips with the student that would be released, and say what stands out."""
        if self.held and self.world.leads:
            with self._released_student():
                found = validate(self.objective, self.feed, self.held, self.run.batch_size, self.world.device, self.run.seed)
            epoch = -(-self.step // self.steps_per_epoch)
            self.metrics.write([{"step": self.step, "epoch": epoch, **found}])
            self.progress.note(
                f"epoch {epoch}: validation loss {found['val_loss']:.4f} (constant answer {found['val_constant_loss']:.4f}, "
                f"per-position answer {found['val_position_loss']:.4f}), feature_std {found['feature_std']:.3f}, "
                f"effective rank {found['effective_rank']:.1f}, content {found['content_fraction']:.2f}"
            )
            warning = alarm(found, len(self.held))
            if warning:
                self.progress.note(warning)
        self.world.wait()
        self._warn_of_waiting()

    @contextmanager
    def _released_student(self) -> Iterator[None]:
        """Put the moving average in the student's place for a while, if there is one: it is what will be released."""
        raw = self.objective.student
        try:
            if self.average:
                self.objective.student = cast(Student, self.average.module)
            yield
        finally:
            self.objective.student = raw

    def _warn_of_waiting(self) -> None:
        if self.meter.mean_wait <= MOST_WAIT or self._warned:
            return
        self._warned = True
        frames = ", or build the cache with --frames: frames decode several times faster than videos" if self.source.decodes_videos else ""
        self.progress.note(f"training waited for clips {self.meter.mean_wait:.0%} of the time: raise --workers{frames}")

    # ---- saving -------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint of the last step, and remove those that are not kept."""
        self._saved_at = time.monotonic()
        if self.world.leads:
            first, *second = self.source.stores or (None,)
            header = CheckpointHeader(
                step=self.step,
                epoch=self.step // self.steps_per_epoch,
                run=self.run,
                clip=self.objective.student.spec,
                latent_dim=first.header.latent_dim if first else 0,
                teacher=self.source.teacher,
                cache_digest=self.source.digest,
                dataset=self.source.dataset,
                software=software_versions(),
                second_latent_dim=second[0].header.latent_dim if second else 0,
                second_cache_digest=second[0].header.digest if second else "",
            )
            average = {f"ema.{name}": value for name, value in self.average.named()} if self.average else {}
            path = checkpoint_path(self.run.checkpoints, self.step)
            write_checkpoint(path, header, self.objective.state_dict() | average, self.optimizer.tensors())
            prune(self.run.checkpoints, self.run.keep, self.metrics.validations())
        self.world.wait()

    def load(self, path: Path, header: CheckpointHeader) -> None:
        """Continue from a checkpoint of this run, along the schedule that it began with.

        Raises:
            CheckpointError: The checkpoint is missing or damaged.
        """
        for group, module in self.objective.named_children():
            load_group(module, path, group)
        if self.average:
            load_group(self.average.module, path, "ema")
        self.optimizer.load(read_optimizer(path, header.step))
        self.step, self.optimizer.schedule = header.step, header.run.schedule
        self.run = replace(self.run, schedule=header.run.schedule)


def _mean(micro: list[tuple[Loss, int]]) -> dict[str, Tensor | float]:
    """Return the metrics of a step: means over its micro-batches, weighted by their clips."""
    total = sum(size for _, size in micro)
    found = [{"loss": loss.total, **loss.parts, **loss.monitors} for loss, _ in micro]
    return {name: sum(part[name] * (size / total) for part, (_, size) in zip(found, micro, strict=True)) for name in found[0]}


def _comes_from_compiler(error: Exception) -> bool:
    """Return True if torch.compile failed, or a compiler that it calls."""
    return any(cls.__module__.startswith(("torch._dynamo", "torch._inductor", "triton")) for cls in type(error).__mro__)
