"""Full fine-tuning: the whole student and a linear layer on the mean of its tokens, trained on the train videos.

The usual recipe of BEiT (arXiv 2106.08254), MAE (arXiv 2111.06377) and VideoMAE (arXiv 2203.12602): AdamW, a rate that falls
from block to block towards the pixels, warm-up and a cosine, drop path, label smoothing, mixup, CutMix and random erasing. Each
epoch sees another random view of each video. Views are never mirrored, not even where a data set would allow it: left and right
are classes in Something-Something v2. All settings are fixed beforehand and the weights of the last step are scored: nothing is
chosen, on test videos or others.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import Tensor

from stjepa_cli.core.config import OptimizerConfig
from stjepa_cli.core.errors import ConfigError, StjepaError, VideoError
from stjepa_cli.data.datasets.base import VideoItem
from stjepa_cli.data.eval_clips import EvalClips
from stjepa_cli.encoders.base import Decoded, encode_videos
from stjepa_cli.encoders.features import Features
from stjepa_cli.encoders.heads import Head
from stjepa_cli.encoders.student_encoder import StudentEncoder
from stjepa_cli.evaluation.probes._finetuning import Classifier, Schedule, batches, rate_share, started
from stjepa_cli.evaluation.probes.base import ProbeResult, Sources, VideoProbe, scored_by_clip
from stjepa_cli.models.student import Student
from stjepa_cli.training.augmentation import DropPath, erase, mix, smooth_targets
from stjepa_cli.training.optim import ScheduledOptimizer

FINAL_LR = 1e-3
CLIP_NORM = 1.0
STEPS_PER_READ = 10
"""Reading a loss waits for a GPU."""


@dataclass(frozen=True)
class FinetuneSettings:
    """The recipe; the defaults are those that VideoMAE's script starts with, but for epochs, batch size and clipped gradients.

    Attributes:
        epochs: passes over train, each with a new random view of every video.
        batch_size: clips of a step; a smaller train set is one batch.
        micro_batch: clips that are held in memory at once; changes results by rounding only.
        lr: peak rate at 256 clips a step; it follows the batch linearly, and falls to a thousandth along a cosine.
        warmup_epochs: in which the rate rises from 0; at most the first half of all.
        layer_decay: the classifier and the last norm learn with the whole rate, the last block with this share of it, each
            block below with this share of the one above, and the embedding with the least.
        weight_decay: of all but norms and biases.
        drop_path: share of clips for which the branches of the last block are left out, rising linearly over depth.
        label_smoothing: share of the target that all classes share.
        mixup: alpha of mixup, 0 for none.
        cutmix: alpha of CutMix, 0 for none; with both, either is taken half of the time.
        dropout: of the mean of tokens, before the classifier.
        erasing: share of clips in which a rectangle is noise.

    Raises:
        ConfigError: a value out of range.
    """

    epochs: int = 50
    batch_size: int = 32
    micro_batch: int = 8
    lr: float = 1e-3
    warmup_epochs: int = 5
    layer_decay: float = 0.75
    weight_decay: float = 0.05
    drop_path: float = 0.1
    label_smoothing: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    dropout: float = 0.0
    erasing: float = 0.25

    def __post_init__(self) -> None:
        _each(self, ("epochs", "batch_size", "micro_batch"), lambda value: value >= 1, "at least 1")
        _each(self, ("lr",), lambda value: 0 < value < math.inf, "a rate above 0")
        _each(self, ("warmup_epochs", "weight_decay", "mixup", "cutmix"), lambda value: 0 <= value < math.inf, "0 or more")
        _each(self, ("layer_decay",), lambda value: 0 < value <= 1, "above 0, at most 1")
        _each(self, ("erasing",), lambda value: 0 <= value <= 1, "a share, 0 to 1")
        _each(self, ("drop_path", "dropout", "label_smoothing"), lambda value: 0 <= value < 1, "a share below 1")

    @property
    def warmup(self) -> float:
        """Share of all steps in which the rate rises."""
        return min(0.5, self.warmup_epochs / self.epochs)

    @property
    def optimizer(self) -> OptimizerConfig:
        """The same as settings of a descent."""
        return OptimizerConfig(
            lr=self.lr,
            lr_batch=256,
            lr_scaling="linear",
            weight_decay=self.weight_decay,
            beta2=0.999,
            warmup=self.warmup,
            final_lr=FINAL_LR,
            clip_norm=CLIP_NORM,
        )


def _each(settings: FinetuneSettings, names: Sequence[str], fits: Callable[[float], bool], expected: str) -> None:
    for name in names:
        if not fits(getattr(settings, name)):
            raise ConfigError(f"fine-tuning cannot use this {name}", got=getattr(settings, name), expected=expected)


class FinetuneProbe(VideoProbe):
    """The student itself changes.

    Attributes:
        settings: the recipe; an instance may be given others.
    """

    gives_head = True
    settings = FinetuneSettings()

    def _fit_score(self, train: Features, test: Features, num_classes: int, seed: int) -> ProbeResult:
        videos, tests = (_listed(self.sources, side) for side in (train, test))
        classes, targets = torch.unique(train.labels.cpu(), return_inverse=True)
        schedule = Schedule.of(len(videos), batch_size=self.settings.batch_size, epochs=self.settings.epochs, seed=seed)
        model = fit(self.sources, videos, targets, self.settings, schedule, self.device)
        head = model.as_head(classes, num_classes)
        logits = _logits(self.sources, model.student, head, tests, self.device)
        warmup_epochs = self.settings.warmup * self.settings.epochs
        told = asdict(self.settings) | {"batch_size": schedule.batch_size, "warmup_epochs": warmup_epochs, "steps": schedule.num_steps}
        told["test_clips"] = self.sources.plan.num_clips
        scored = scored_by_clip(logits, test, {name: float(value) for name, value in told.items()}, head)
        return replace(scored, student=model.student)


def _listed(sources: Sources, side: Features) -> list[VideoItem]:
    missing = [name for name in side.ids if name not in sources.items]
    if missing:
        raise StjepaError(f"fine-tuning reads the videos again, and {len(missing)} of {len(side)} are not listed", got=missing[0])
    return [sources.items[name] for name in side.ids]


# ----------------------------------------------------------------------------------------------------------- training


def fit(
    sources: Sources, videos: Sequence[VideoItem], targets: Tensor, settings: FinetuneSettings, schedule: Schedule, device: torch.device
) -> Classifier:
    """Train a copy of the student and a classifier.

    Args:
        sources: the student, how its clips are cut, who decodes and who listens.
        videos: R train videos.
        targets: int64 (R,), 0 to C' - 1.
        settings: the recipe.
        schedule: of these videos.
        device: where it computes.

    Returns:
        the classifier after the last step, frozen.

    Raises:
        VideoError: a video cannot be decoded.
        StjepaError: the loss or its gradient is not finite.
    """
    student = started(sources).to(device)
    model = Classifier(student, int(targets.max()) + 1, torch.Generator().manual_seed(schedule.seed)).to(device).train()
    share = partial(rate_share, student=student, decay=settings.layer_decay)
    descent, targets = ScheduledOptimizer(model, settings.optimizer, schedule.batch_size, share), targets.to(device)
    blocks, feed = [*student.factorized, *student.joint], batches(sources, videos, schedule)
    with DropPath(blocks, settings.drop_path) as paths, closing(feed):
        pass_over = Pass(model, paths, settings, schedule.seed)
        with sources.progress.task("fine-tuning", total=schedule.num_steps, unit="steps") as task:
            waiting: list[Tensor] = []
            for step, (clips, places) in enumerate(feed):
                loss = pass_over.descend(step, clips.to(device), targets[places.to(device)])
                norm = torch.as_tensor(descent.step(step, schedule.num_steps)["grad_norm"])
                waiting.append(torch.stack([loss, norm.to(loss)]))
                if device.type != "cuda" or len(waiting) == STEPS_PER_READ or step + 1 == schedule.num_steps:
                    task.advance(len(waiting), loss=_read(waiting, step, settings))
                    waiting = []
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Pass:
    """One step's way forward and back.

    Attributes:
        model: what is trained.
        paths: what it leaves out.
        settings: the recipe.
        seed: with the number of a step, of all that is drawn for it.
    """

    model: Classifier
    paths: DropPath
    settings: FinetuneSettings
    seed: int

    def descend(self, step: int, clips: Tensor, labels: Tensor) -> Tensor:
        """Add the gradient of a batch's mean loss, micro-batch by micro-batch; returns the loss.

        Args:
            step: from 0.
            clips: uint8 (B, T, 3, S, S).
            labels: int64 (B,).
        """
        settings, seed = self.settings, self.seed * 1_000_003 + step
        draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        targets = smooth_targets(labels, self.model.head.out_features, settings.label_smoothing)
        clips = erase(clips, settings.erasing, draw)
        clips, targets = mix(clips, targets, mixup=settings.mixup, cutmix=settings.cutmix, draw=draw)
        scales = self.paths.draw(len(clips), generator).to(clips.device)
        kept = torch.rand(len(clips), self.model.head.in_features, generator=generator) >= settings.dropout
        kept = (kept / (1 - settings.dropout)).to(clips.device)
        total = clips.new_zeros(())
        for part in torch.split(torch.arange(len(clips), device=clips.device), settings.micro_batch):
            self.paths.use(scales[:, part])
            log_shares = self.model(clips[part], kept[part]).log_softmax(dim=1)
            loss = -(targets[part] * log_shares).sum() / len(clips)
            torch.autograd.backward(loss)
            total += loss.detach()
        return total


def _read(waiting: Sequence[Tensor], step: int, settings: FinetuneSettings) -> float:
    """The last loss of some (loss, norm of the gradient).

    Raises:
        StjepaError: one of them is not finite.
    """
    figures = torch.stack(list(waiting)).cpu()
    broken = (~figures.isfinite()).any(dim=1).nonzero().flatten().tolist()
    if broken:
        raise StjepaError(
            f"fine-tuning diverged at step {step + 2 - len(waiting) + broken[0]}",
            got=f"a loss of {figures[broken[0], 0]:.3g} with a gradient of norm {figures[broken[0], 1]:.3g}, lr {settings.lr:g}",
            fix="Lower --lr, or check the weights that it started from with `stjepa inspect checkpoint PATH --stats`.",
        )
    return float(figures[-1, 0])


# ------------------------------------------------------------------------------------------------------------ scoring


def _logits(sources: Sources, student: Student, head: Head, videos: Sequence[VideoItem], device: torch.device) -> Tensor:
    """float32 (R * clips, C): what the head says of each clip, those of a video one after the other.

    A video of which not all clips can be decoded is scored on its centre clip alone, which was decoded before.
    """
    encoder, rows = StudentEncoder(student, "the fine-tuned student"), []

    def encoded(items: Sequence[VideoItem], plan: EvalClips) -> Iterator[Decoded]:
        return encode_videos(encoder, items, plan, batch_size=sources.batch_size, workers=sources.workers, device=device)

    with sources.progress.task("fine-tuned scores", total=len(videos), unit="videos") as task:
        for item, features in encoded(videos, sources.plan):
            if isinstance(features, VideoError):
                sources.progress.note(f"scored on its centre clip alone: {features}")
                features = next(encoded([item], replace(sources.plan, temporal=1, spatial=1)))[1]
            if isinstance(features, VideoError):
                raise features
            rows.append(head.logits(features.to(device).expand(sources.plan.num_clips, -1)))
            task.advance(1)
    return torch.cat(rows)


plugin = FinetuneProbe
