"""Full fine-tuning: the whole student and a linear layer on the mean of its tokens, trained on the train videos.

The recipe is the usual one of BEiT (arXiv 2106.08254), MAE (arXiv 2111.06377) and VideoMAE (arXiv 2203.12602): AdamW, layer-wise
learning rates, warmup and cosine decay, drop path, label smoothing, mixup, CutMix and random erasing. Each epoch sees another random
view of each video. Views are never mirrored, because left and right are classes in Something-Something v2. All settings are fixed in
advance and the weights of the last step are scored, so nothing is chosen on any videos.
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
from stjepa_cli.encoders.base import EncodedVideo, encode_videos
from stjepa_cli.encoders.features import Features
from stjepa_cli.encoders.heads import Head
from stjepa_cli.encoders.student_encoder import StudentEncoder
from stjepa_cli.evaluation.probes._finetuning import Classifier, Schedule, batches, rate_factor, trainable_copy
from stjepa_cli.evaluation.probes.base import ProbeResult, VideoProbe, VideoSource, scored_by_clip
from stjepa_cli.models.student import Student
from stjepa_cli.training.augmentation import DropPath, erase, mix, smooth_targets
from stjepa_cli.training.optim import ScheduledOptimizer

FINAL_LR = 1e-3
CLIP_NORM = 1.0
STEPS_PER_READ = 10
"""Steps between two reads of the loss, because reading it waits for the GPU."""


@dataclass(frozen=True)
class FinetuneSettings:
    """Settings of fine-tuning. Defaults are those of VideoMAE's script, except epochs, batch size and gradient clipping.

    Attributes:
        epochs: Passes over train, each with a new random view of every video.
        batch_size: Clips per step. A smaller train set is one batch.
        micro_batch: Clips in memory at once. It changes results by rounding only.
        lr: Peak learning rate at 256 clips per step. It scales linearly with the batch and decays to a thousandth along a cosine.
        warmup_epochs: Epochs in which the learning rate rises from 0, at most the first half of all.
        layer_decay: Factor of the learning rate from one block to the block below. The classifier and the last norm have the whole
            rate.
        weight_decay: Weight decay of everything except norms and biases.
        drop_path: Fraction of clips that skip the branches of the last block; it rises linearly over depth.
        label_smoothing: Fraction of the target that is spread over all classes.
        mixup: Alpha of mixup, 0 for none.
        cutmix: Alpha of CutMix, 0 for none. With both, each is used half of the time.
        dropout: Dropout of the mean of tokens, before the classifier.
        erasing: Fraction of clips in which a rectangle is replaced by noise.

    Raises:
        ConfigError: A value is out of range.
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
        _each(self, ("lr",), lambda value: 0 < value <= 1e3, "above 0, at most 1000")
        _each(self, ("warmup_epochs", "weight_decay", "mixup", "cutmix"), lambda value: 0 <= value < math.inf, "0 or more")
        _each(self, ("layer_decay",), lambda value: 0 < value <= 1, "above 0, at most 1")
        _each(self, ("erasing",), lambda value: 0 <= value <= 1, "a fraction, 0 to 1")
        _each(self, ("drop_path", "dropout", "label_smoothing"), lambda value: 0 <= value < 1, "a fraction below 1")

    @property
    def warmup(self) -> float:
        """Fraction of all steps in which the learning rate rises."""
        return min(0.5, self.warmup_epochs / self.epochs)

    @property
    def optimizer(self) -> OptimizerConfig:
        """The optimizer settings of this recipe."""
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
    """Fine-tuning of the whole student.

    Attributes:
        settings: Settings of the recipe, which an instance may override.
    """

    gives_head = True
    settings = FinetuneSettings()

    def _fit_score(self, train: Features, test: Features, num_classes: int, seed: int) -> ProbeResult:
        videos, tests = (_listed(self.source, side) for side in (train, test))
        classes, targets = torch.unique(train.labels.cpu(), return_inverse=True)
        schedule = Schedule.of(len(videos), batch_size=self.settings.batch_size, epochs=self.settings.epochs, seed=seed)
        model = fit(self.source, videos, targets, self.settings, schedule)
        head = model.as_head(classes, num_classes)
        logits = _logits(self.source, model.student, head, tests)
        warmup_epochs = self.settings.warmup * self.settings.epochs
        chosen = asdict(self.settings) | {"batch_size": schedule.batch_size, "warmup_epochs": warmup_epochs, "steps": schedule.num_steps}
        chosen["test_clips"] = self.source.eval_clips.num_clips
        scored = scored_by_clip(logits, test, {name: float(value) for name, value in chosen.items()}, head)
        return replace(scored, student=model.student)


def _listed(source: VideoSource, side: Features) -> list[VideoItem]:
    missing = [name for name in side.ids if name not in source.items]
    if missing:
        raise StjepaError(f"fine-tuning reads the videos again, and {len(missing)} of {len(side)} are not listed", got=missing[0])
    return [source.items[name] for name in side.ids]


# ----------------------------------------------------------------------------------------------------------- training


def fit(source: VideoSource, videos: Sequence[VideoItem], targets: Tensor, settings: FinetuneSettings, schedule: Schedule) -> Classifier:
    """Train a copy of the student and a classifier, and return them frozen after the last step.

    Args:
        source: The student, how clips are cut, and how to run.
        videos: R train videos.
        targets: int64 (R,), 0 to C' - 1.
        settings: Settings of the recipe.
        schedule: The videos of each step.

    Raises:
        VideoError: A video cannot be decoded.
        StjepaError: The loss or its gradient is not finite.
    """
    device = source.runtime.torch_device
    student = trainable_copy(source).to(device)
    model = Classifier(student, int(targets.max()) + 1, torch.Generator().manual_seed(schedule.seed)).to(device).train()
    factor = partial(rate_factor, student=student, decay=settings.layer_decay)
    optimizer, targets = ScheduledOptimizer(model, settings.optimizer, schedule.batch_size, factor), targets.to(device)
    blocks, feed = [*student.factorized, *student.joint], batches(source, videos, schedule)
    with DropPath(blocks, settings.drop_path) as paths, closing(feed):
        train_step = TrainStep(model, paths, settings, schedule.seed)
        with source.runtime.progress.task("fine-tuning", total=schedule.num_steps, unit="steps") as task:
            waiting: list[Tensor] = []
            for step, (clips, rows) in enumerate(feed):
                loss = train_step.backward(step, clips.to(device), targets[rows.to(device)])
                norm = torch.as_tensor(optimizer.step(step, schedule.num_steps)["grad_norm"])
                waiting.append(torch.stack([loss, norm.to(loss)]))
                if device.type != "cuda" or len(waiting) == STEPS_PER_READ or step + 1 == schedule.num_steps:
                    task.advance(len(waiting), loss=_read(waiting, step, settings))
                    waiting = []
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class TrainStep:
    """The forward and backward pass of a step.

    Attributes:
        model: The model to train.
        paths: Drop path of its blocks.
        settings: Settings of the recipe.
        seed: Random seed of the run. Each step has random numbers of its own.
    """

    model: Classifier
    paths: DropPath
    settings: FinetuneSettings
    seed: int

    def backward(self, step: int, clips: Tensor, labels: Tensor) -> Tensor:
        """Accumulate the gradient of the mean loss of a batch over its micro-batches, and return the loss.

        Args:
            step: Number of the step, from 0.
            clips: uint8 (B, T, 3, S, S).
            labels: int64 (B,).
        """
        settings, seed = self.settings, self.seed * 1_000_003 + step
        rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        targets = smooth_targets(labels, self.model.head.out_features, settings.label_smoothing)
        clips = erase(clips, settings.erasing, rng)
        clips, targets = mix(clips, targets, mixup=settings.mixup, cutmix=settings.cutmix, rng=rng)
        scales = self.paths.draw(len(clips), generator).to(clips.device)
        kept = torch.rand(len(clips), self.model.head.in_features, generator=generator) >= settings.dropout
        kept = (kept / (1 - settings.dropout)).to(clips.device)
        total = clips.new_zeros(())
        for part in torch.split(torch.arange(len(clips), device=clips.device), settings.micro_batch):
            self.paths.use(scales[:, part])
            log_probs = self.model(clips[part], kept[part]).log_softmax(dim=1)
            loss = -(targets[part] * log_probs).sum() / len(clips)
            torch.autograd.backward(loss)
            total += loss.detach()
        return total


def _read(waiting: Sequence[Tensor], step: int, settings: FinetuneSettings) -> float:
    """Return the last loss of a list of (loss, norm of the gradient).

    Raises:
        StjepaError: One of them is not finite.
    """
    values = torch.stack(list(waiting)).cpu()
    broken = (~values.isfinite()).any(dim=1).nonzero().flatten().tolist()
    if broken:
        raise StjepaError(
            f"fine-tuning diverged at step {step + 2 - len(waiting) + broken[0]}",
            got=f"a loss of {values[broken[0], 0]:.3g} with a gradient of norm {values[broken[0], 1]:.3g}, lr {settings.lr:g}",
            fix="Lower --lr, or check the weights that it started from with `stjepa inspect checkpoint PATH --stats`.",
        )
    return float(values[-1, 0])


# ------------------------------------------------------------------------------------------------------------ scoring


def _logits(source: VideoSource, student: Student, head: Head, videos: Sequence[VideoItem]) -> Tensor:
    """Return logits float32 (R * clips, C) of each clip, those of a video one after the other.

    A video whose clips cannot all be decoded is scored on its centre clip alone, which was decoded before.
    """
    device = source.runtime.torch_device
    encoder, rows = StudentEncoder(student, "the fine-tuned student"), []

    def encoded(items: Sequence[VideoItem], clips: EvalClips) -> Iterator[EncodedVideo]:
        return encode_videos(encoder, items, clips, runtime=source.runtime)

    with source.runtime.progress.task("fine-tuned scores", total=len(videos), unit="videos") as task:
        for item, features in encoded(videos, source.eval_clips):
            if isinstance(features, VideoError):
                source.runtime.progress.note(f"scored on its centre clip alone: {features}")
                features = next(encoded([item], replace(source.eval_clips, temporal=1, spatial=1)))[1]
            if isinstance(features, VideoError):
                raise features
            rows.append(head.logits(features.to(device).expand(source.eval_clips.num_clips, -1)))
            task.advance(1)
    return torch.cat(rows)


plugin = FinetuneProbe
