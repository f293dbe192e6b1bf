"""Regularisation for fine-tuning: mixup, CutMix, random erasing, label smoothing, stochastic depth.

All random numbers come from the generators that are passed in, on the CPU, so that the device does not change them.
"""

from __future__ import annotations

import math
import random
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from stjepa_cli.models.layers import Attention, Mlp

ERASED_AREA = (0.02, 1 / 3)
ERASED_ASPECT = (0.3, 10 / 3)
"""Bounds of the erased rectangle: fraction of the frame's area, and height over width (arXiv 1708.04896)."""

Box = tuple[int, int, int, int]
"""Top, left, height and width in pixels."""


def smooth_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Smooth labels int64 (B,) to float32 (B, C) with sum 1: `smoothing` is spread evenly over all classes (arXiv 1512.00567)."""
    return torch.nn.functional.one_hot(labels, num_classes).float() * (1 - smoothing) + smoothing / num_classes


def mix(clips: Tensor, targets: Tensor, *, mixup: float, cutmix: float, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Mix a batch with itself in reverse order; the method and its strength are the same for the whole batch.

    Args:
        clips: Tensor uint8 or float (B, T, 3, S, S), 0 to 255.
        targets: Tensor float32 (B, C), each row with sum 1.
        mixup: Alpha of mixup (arXiv 1710.09412): clips and targets are averaged with a weight from Beta(alpha, alpha); 0 for none.
        cutmix: Alpha of CutMix (arXiv 1905.04899): a rectangle, the same in every frame, is taken from the other clip, and targets
            are weighted by its area; 0 for none. If both are positive, each is used half of the time.
        rng: Random number generator.

    Returns:
        Clips float32, 0 to 255, and targets, both of the same shapes as before.
    """
    clips = clips.float()
    if not mixup and not cutmix:
        return clips, targets
    cut = bool(cutmix) and (not mixup or rng.random() < 0.5)
    alpha = cutmix if cut else mixup
    weight = rng.betavariate(alpha, alpha)
    if cut:
        top, left, height, width = cut_box(weight, clips.shape[-2], clips.shape[-1], rng)
        weight = 1 - height * width / (clips.shape[-2] * clips.shape[-1])
        mixed = clips.clone()
        mixed[..., top : top + height, left : left + width] = clips.flip(0)[..., top : top + height, left : left + width]
    else:
        mixed = clips.lerp(clips.flip(0), 1 - weight)
    return mixed, targets.lerp(targets.flip(0), 1 - weight)


def cut_box(weight: float, height: int, width: int, rng: random.Random) -> Box:
    """Return a rectangle of area fraction 1 - weight centred on a random pixel, clipped to the frame."""
    side = math.sqrt(1 - weight)
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    down, right = rng.randrange(height), rng.randrange(width)
    top, left = max(0, down - half_height), max(0, right - half_width)
    return top, left, min(height, down + half_height) - top, min(width, right + half_width) - left


def erase(clips: Tensor, probability: float, rng: random.Random) -> Tensor:
    """Fill a rectangle of some clips, the same in every frame, with noise (random erasing, arXiv 1708.04896).

    Args:
        clips: Tensor uint8 (B, T, 3, S, S); it is left unchanged.
        probability: Probability that a clip is changed, 0 to 1.
        rng: Random number generator.

    Returns:
        Clips of the same shape and type.
    """
    if not probability:
        return clips
    clips = clips.clone()
    for clip in clips:
        if rng.random() < probability:
            top, left, height, width = erased_box(clip.shape[-2], clip.shape[-1], rng)
            noise = torch.Generator().manual_seed(rng.getrandbits(62))
            shape = (*clip.shape[:2], height, width)
            clip[..., top : top + height, left : left + width] = torch.randint(256, shape, generator=noise, dtype=torch.uint8).to(clip)
    return clips


def erased_box(height: int, width: int, rng: random.Random) -> Box:
    """Return a rectangle inside a frame, of random area and shape as in the paper; one that is too long is cut, not rejected."""
    area = rng.uniform(*ERASED_AREA) * height * width
    aspect = math.exp(rng.uniform(*(math.log(bound) for bound in ERASED_ASPECT)))
    tall = min(height, max(1, round(math.sqrt(area * aspect))))
    wide = min(width, max(1, round(math.sqrt(area / aspect))))
    return rng.randrange(height - tall + 1), rng.randrange(width - wide + 1), tall, wide


class DropPath:
    """Stochastic depth (arXiv 1603.09382): drops branches of residual blocks for some clips during training.

    The drop rate of a branch, an attention or an MLP, rises linearly from 0 at the first block to `rate` at the last; a branch that is
    kept is scaled by 1 / (1 - drop rate), so that its expectation is unchanged. The branches are dropped by forward hooks, which leave
    the names of weights unchanged and are removed at the end of the `with` block. Scales are drawn before a pass, so that activation
    checkpointing drops the same branches again.

    Args:
        blocks: Blocks in order of depth; each takes tokens whose first axis holds clips, one after the other.
        rate: Drop rate of the last block, below 1.
    """

    def __init__(self, blocks: list[nn.Module], rate: float) -> None:
        last = max(1, len(blocks) - 1)
        found = [(part, rate * depth / last) for depth, block in enumerate(blocks) for part in block.children()]
        branches = [(part, drop) for part, drop in found if isinstance(part, (Attention, Mlp))]
        self.drop_rates = torch.tensor([drop for _, drop in branches]).view(-1, 1)
        self.scales: Tensor | None = None
        self._handles = [part.register_forward_hook(self._hook(place)) for place, (part, _) in enumerate(branches)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()

    def draw(self, num_clips: int, generator: torch.Generator) -> Tensor:
        """Draw the scale of each branch for each clip, float32 (branches, B); 0 drops the branch."""
        kept = torch.rand(len(self.drop_rates), num_clips, generator=generator) >= self.drop_rates
        return kept / (1 - self.drop_rates)

    def use(self, scales: Tensor | None) -> None:
        """Use scales (branches, B) from `draw` in the following passes; None drops nothing."""
        self.scales = scales

    def _hook(self, place: int) -> Any:
        def scale(branch: nn.Module, _: object, out: Tensor) -> Tensor | None:
            if self.scales is None or not branch.training:
                return None
            factors = self.scales[place].to(out)
            return out * factors.repeat_interleave(len(out) // len(factors)).view(-1, *[1] * (out.ndim - 1))

        return scale
