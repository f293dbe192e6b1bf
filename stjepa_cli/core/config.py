"""The frozen, typed description of a run: every default is written once, here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stjepa_cli.core.errors import ConfigError
from stjepa_cli.core.locations import Location
from stjepa_cli.core.serialization import from_dict
from stjepa_cli.core.types import ClipSpec

SCHEDULE = 2
DEFAULT_TEACHER = "MCG-NJU/videomae-huge-finetuned-kinetics"
LATENT_DIM = 384

MAX_COUNT = 2**31 - 1
MAX_DIM, MAX_BLOCKS, MAX_MASKS = 2**16, 1024, 1024
"""Largest width and numbers of blocks and masks that are taken for meant: above what is trained, below what fills a memory."""


def check(condition: bool, what: str, *, got: object, expected: object = None) -> None:
    """Raise a ConfigError unless a condition on a setting holds."""
    if not condition:
        raise ConfigError(what, got=got, expected=expected)


def check_between(value: float, name: str, least: float, most: float, *, low: str | None = None) -> None:
    """Raise a ConfigError unless a setting is between two values, both included; NaN never is.

    Args:
        value: Value of the setting.
        name: Name of the setting.
        least: Lowest value.
        most: Highest value.
        low: What a value that is too low is told, without the name; "must be at least <least>" if None.
    """
    check(not value < least, f"{name} {low or f'must be at least {least}'}", got=value)
    check(value <= most, f"{name} is out of range", got=value, expected=f"{least} to {most}")


def check_one_of(value: str, known: tuple[str, ...], what: str) -> None:
    """Raise a ConfigError unless a setting is one of the known values."""
    check(value in known, f"unknown {what}", got=repr(value), expected="one of " + ", ".join(known))


@dataclass(frozen=True)
class StudentConfig:
    """Sizes of the student: `num_factorized` blocks of attention over time then space, then `num_joint` over all tokens."""

    dim: int = 384
    num_factorized: int = 8
    num_joint: int = 4
    num_heads: int = 6
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        for name in ("num_factorized", "num_joint"):
            check_between(getattr(self, name), name, 0, MAX_BLOCKS, low="cannot be negative")
        check(self.num_factorized + self.num_joint >= 1, "a student needs a block", got=f"{self.num_factorized} + {self.num_joint}")
        _check_width(self.dim, self.num_heads, "student")
        check(0 < self.mlp_ratio <= 64, "mlp_ratio is out of range", got=self.mlp_ratio, expected="more than 0, at most 64")


@dataclass(frozen=True)
class PredictorConfig:
    """Sizes of the predictor, which is trained beside the student and is not part of the released encoder.

    Attributes:
        dim: Width of its tokens.
        depth: Number of joint blocks.
        num_heads: Attention heads of each block.
        position_scale: Amplitude of the sine and cosine positions. A narrow predictor of one block learns sooner when they
            do not drown the student's tokens.
    """

    dim: int = 192
    depth: int = 4
    num_heads: int = 6
    position_scale: float = 1.0

    def __post_init__(self) -> None:
        check_between(self.depth, "depth", 1, MAX_BLOCKS)
        check_between(self.position_scale, "position_scale", 0, 1e6, low="cannot be negative")
        _check_width(self.dim, self.num_heads, "predictor")


def _check_width(dim: int, num_heads: int, what: str) -> None:
    check_between(num_heads, f"num_heads of the {what}", 1, MAX_DIM)
    check_between(dim, f"dim of the {what}", 2, MAX_DIM)
    check(dim % num_heads == 0 and dim % 2 == 0, f"{what} dim must be even and a multiple of its heads", got=f"{dim}, {num_heads} heads")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or Muon with linear warm-up, cosine decay and gradient clipping; norms and biases are never decayed.

    Attributes:
        name: `adamw`, or `muon` for the matrices of the blocks and AdamW for the rest.
        lr: Peak learning rate at a batch of `lr_batch` clips.
        lr_batch: Batch size that `lr` is stated for.
        lr_scaling: How the rate scales with the batch: `sqrt` (suits adaptive optimizers, arXiv 2205.10287), `linear` or `none`.
        weight_decay: Weight decay at the first step.
        final_weight_decay: Weight decay at the last step, reached along a cosine (DINO, arXiv 2104.14294); None keeps it constant.
        beta1: Decay of AdamW's first moment, 0 to 1.
        beta2: Decay of AdamW's second moment, 0 to 1.
        warmup: Fraction of all steps during which the rate rises from 0.
        final_lr: Fraction of the peak rate at the last step.
        clip_norm: Gradients are scaled down to this norm.
    """

    name: str = "adamw"
    lr: float = 6e-4
    lr_batch: int = 64
    lr_scaling: str = "sqrt"
    weight_decay: float = 0.05
    final_weight_decay: float | None = None
    beta1: float = 0.9
    beta2: float = 0.95
    warmup: float = 0.1
    final_lr: float = 0.01
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        check_one_of(self.name, ("adamw", "muon"), "optimizer")
        check_one_of(self.lr_scaling, ("sqrt", "linear", "none"), "lr_scaling")
        check(0 < self.lr < float("inf"), "lr must be positive and finite", got=self.lr)
        check_between(self.lr_batch, "lr_batch", 1, MAX_COUNT)
        for name in ("beta1", "beta2", "warmup"):
            value = getattr(self, name)
            check(0 <= value < 1, f"{name} is out of range", got=value, expected=f"0 <= {name} < 1")
        check(0 <= self.final_lr <= 1, "final_lr is a fraction of lr", got=self.final_lr, expected="0 <= final_lr <= 1")
        for name in ("weight_decay", "final_weight_decay"):
            check_between(getattr(self, name) or 0.0, name, 0, 1e3, low="cannot be negative")
        check(self.clip_norm > 0, "clip_norm must be positive", got=self.clip_norm)

    def peak_lr(self, batch_size: int) -> float:
        """Return the peak learning rate at a batch of so many clips."""
        power = {"sqrt": 0.5, "linear": 1.0, "none": 0.0}[self.lr_scaling]
        return self.lr * float((batch_size / self.lr_batch) ** power)


PRESETS: dict[str, tuple[StudentConfig, PredictorConfig]] = {
    "base": (StudentConfig(), PredictorConfig()),
    "small": (StudentConfig(dim=192, num_factorized=8, num_joint=4, num_heads=3), PredictorConfig(dim=96, depth=4, num_heads=3)),
    "tiny": (
        StudentConfig(dim=96, num_factorized=2, num_joint=2, num_heads=4),
        PredictorConfig(dim=64, depth=1, num_heads=4, position_scale=0.1),
    ),
}


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a pretraining run; `run.toml` holds this.

    Attributes:
        data_root: Data set whose videos the cache was built from, a folder or a URL.
        cache: Latent cache, a folder or a URL; None for an objective that needs no latents and reads videos alone.
        second_cache: Another cache of the same clips, predicted at the same time (MVD's co-teaching, arXiv 2212.04500).
        checkpoints: Folder of the run.
        dataset: Data set to list the videos of where there is no cache, `ssv2` or `ucf101` for example.
        split: List of that data set.
        clip: Geometry of the clips where there is no cache (`num_frames`, `size_px`, `tubelet`, `patch_px`, `sampling`, `stride`).
        recipe: Name of the settings that `objective` and `mask_ratio` started from, for information.
        objective: Table of the objective: its `name` and its own settings.
        preset: Sizes of student and predictor by name.
        epochs: Passes over the clips.
        steps: Steps of the whole schedule instead of `epochs`.
        batch_size: Clips per step, over all processes and micro-batches together.
        accumulate: Micro-batches that each process splits its part of a step into, to save memory; a single GPU takes more by itself
            where the first step does not fit.
        mask_ratio: Fraction of the spatial positions whose tubes are hidden.
        mask_sampler: `tube` hides scattered positions, `multiblock` rectangles (V-JEPA, arXiv 2404.08471).
        masks_per_clip: Masks per decoded clip and step; the second one costs no decoding.
        ema: Decay of the moving average of the student that is released (arXiv 2307.13813); 0 for none.
        val_fraction: Fraction of the clips held out for the validation loss, at most 512 clips.
        max_steps: Step at which this session ends, None for the end of the schedule.
        schedule: How rate and weight decay go from the first step to the last: 2 reaches the final values at the last step; 1, until 0.1,
            would have reached them one step later. A run keeps the one that it began with.
        seed: Seed of weights, masks and clip order.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        workers: Threads that decode videos or frames.
        memory_gb: Memory for decoded clips in gigabytes, so that small sets are decoded once.
        compile: `auto` compiles the blocks on a GPU unless activations are recomputed, `on` everywhere, `off` nowhere.
        activation_checkpointing: Recompute activations in the backward pass: less memory, a third more time.
        checkpoint_every: `500` for steps or `30m` for minutes, besides the end of every epoch; empty for nothing more.
        keep: Number of newest checkpoints to keep, besides the best one; 0 keeps all.
        tensorboard: Write TensorBoard events too.
    """

    data_root: Location
    cache: Location | None = None
    checkpoints: Path = Path("checkpoints")
    second_cache: Location | None = None
    dataset: str = "ssv2"
    split: str = "train"
    clip: dict[str, Any] = field(default_factory=dict)
    recipe: str = ""
    objective: dict[str, Any] = field(default_factory=lambda: {"name": "latent"})
    preset: str = "base"
    epochs: int = 4
    steps: int | None = None
    batch_size: int = 64
    accumulate: int = 1
    mask_ratio: float = 0.75
    mask_sampler: str = "tube"
    masks_per_clip: int = 1
    ema: float = 0.999
    val_fraction: float = 0.02
    max_steps: int | None = None
    schedule: int = SCHEDULE
    seed: int = 0
    device: str = "auto"
    workers: int = 4
    memory_gb: float = 2.0
    compile: str = "auto"
    activation_checkpointing: bool = False
    checkpoint_every: str = ""
    keep: int = 0
    tensorboard: bool = False
    student: StudentConfig = field(default_factory=StudentConfig)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "workers"):
            check_between(getattr(self, name), name, 1, MAX_COUNT)
        check_between(self.masks_per_clip, "masks_per_clip", 1, MAX_MASKS)
        check(0 < self.mask_ratio < 1, "mask_ratio is a fraction", got=self.mask_ratio, expected="0 < mask_ratio < 1")
        for name in ("steps", "max_steps"):
            if (value := getattr(self, name)) is not None:
                check_between(value, name, 1, MAX_COUNT)
        check_between(self.memory_gb, "memory_gb", 0, 1e6, low="cannot be negative")
        check(0 <= self.ema < 1, "ema is a decay", got=self.ema, expected="0 <= ema < 1")
        check(0 <= self.val_fraction < 1, "val_fraction is a fraction", got=self.val_fraction, expected="0 <= val_fraction < 1")
        check_between(self.keep, "keep", 0, MAX_COUNT, low="cannot be negative")
        check(0 <= self.seed < 2**40, "seed is out of range", got=self.seed, expected="0 <= seed < 2^40")
        check_between(self.schedule, "schedule", 1, SCHEDULE)
        check_one_of(self.mask_sampler, ("tube", "multiblock"), "mask_sampler")
        check_one_of(self.compile, ("auto", "on", "off"), "compile")
        check(isinstance(self.objective.get("name"), str), "[objective] has no name", got=self.objective.get("name"))
        from_dict(ClipSpec, self.clip, where="[clip]")
        self.checkpoint_interval()

    def checkpoint_interval(self) -> tuple[int, float]:
        """Return the steps and the seconds between checkpoints, 0 where not asked for.

        Raises:
            ConfigError: `checkpoint_every` is neither steps nor minutes.
        """
        text = self.checkpoint_every.strip().lower()
        number = text.removesuffix("in").removesuffix("m")
        valid = not text or (number.isascii() and number.isdecimal() and len(number) < 10 and int(number) > 0)
        check(valid, "checkpoint_every is steps or minutes", got=repr(self.checkpoint_every), expected="500 or 30m, say")
        if not text:
            return 0, 0.0
        return (int(number), 0.0) if text.isdecimal() else (0, 60.0 * int(number))

    @staticmethod
    def upgrade(data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the table of a run in today's layout, whichever version wrote it.

        Until 0.1, `loss` and `visible_weight` (through the predictor) stood beside the objective's name, `recompute` and
        `val_share` were the names of `activation_checkpointing` and `val_fraction`.
        """
        data = dict(data)
        for old, new in (("recompute", "activation_checkpointing"), ("val_share", "val_fraction")):
            if old in data:
                data.setdefault(new, data.pop(old))
        if isinstance(data.get("objective"), str) or "loss" in data or "visible_weight" in data:
            name = data.get("objective", "latent")
            check(isinstance(name, str), "loss and visible_weight belong to the table [objective]", got="both forms")
            data["objective"] = {
                "name": name,
                "loss": data.pop("loss", "cosine"),
                "visible_weight": 0.0,
                "visible_predictor_weight": data.pop("visible_weight", 0.0),
            }
            data.setdefault("recipe", "")
        return data
