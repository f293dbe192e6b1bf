"""What makes a few labelled clips many: clips mixed with their targets, squares erased, parts of a network left out.

Everything is drawn from the generators that are handed in, on the CPU, so that the device changes nothing.
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
"""Of a rectangle that is erased, as shares of a frame's area and as height over width (arXiv 1708.04896)."""

Box = tuple[int, int, int, int]
"""Top, left, height and width in pixels."""


def smooth_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Labels int64 (B,) as float32 (B, C) that sum to 1: the class has 1 - smoothing, and all share the rest (arXiv 1512.00567)."""
    return torch.nn.functional.one_hot(labels, num_classes).float() * (1 - smoothing) + smoothing / num_classes


def mix(clips: Tensor, targets: Tensor, *, mixup: float, cutmix: float, draw: random.Random) -> tuple[Tensor, Tensor]:
    """Mix a batch with itself in reverse order; which way and how much is drawn once for all of it.

    Args:
        clips: uint8 or float (B, T, 3, S, S), 0 to 255.
        targets: float32 (B, C), each of sum 1.
        mixup: alpha of mixup (arXiv 1710.09412): clips and targets are averaged with a weight from Beta(alpha, alpha); 0 for none.
        cutmix: alpha of CutMix (arXiv 1905.04899): a rectangle, the same in every frame, is of the other clip, and the targets
            are weighted by its area; 0 for none. If both are positive, either is taken half of the time.
        draw: where everything is drawn from.

    Returns:
        clips float32, 0 to 255, and targets of the same shapes.
    """
    clips = clips.float()
    if not mixup and not cutmix:
        return clips, targets
    cut = bool(cutmix) and (not mixup or draw.random() < 0.5)
    alpha = cutmix if cut else mixup
    weight = draw.betavariate(alpha, alpha)
    if cut:
        top, left, height, width = cut_box(weight, clips.shape[-2], clips.shape[-1], draw)
        weight = 1 - height * width / (clips.shape[-2] * clips.shape[-1])
        mixed = clips.clone()
        mixed[..., top : top + height, left : left + width] = clips.flip(0)[..., top : top + height, left : left + width]
    else:
        mixed = clips.lerp(clips.flip(0), 1 - weight)
    return mixed, targets.lerp(targets.flip(0), 1 - weight)


def cut_box(weight: float, height: int, width: int, draw: random.Random) -> Box:
    """A rectangle of share 1 - weight around any pixel of a frame, without what sticks out of it."""
    side = math.sqrt(1 - weight)
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    down, right = draw.randrange(height), draw.randrange(width)
    top, left = max(0, down - half_height), max(0, right - half_width)
    return top, left, min(height, down + half_height) - top, min(width, right + half_width) - left


def erase(clips: Tensor, share: float, draw: random.Random) -> Tensor:
    """Fill a rectangle of a share of the clips, the same in every frame, with noise (random erasing, arXiv 1708.04896).

    Args:
        clips: uint8 (B, T, 3, S, S).
        share: of clips, 0 to 1.
        draw: where everything is drawn from.

    Returns:
        clips of the same shape and type; those that were given stay as they are.
    """
    if not share:
        return clips
    clips = clips.clone()
    for clip in clips:
        if draw.random() < share:
            top, left, height, width = erased_box(clip.shape[-2], clip.shape[-1], draw)
            noise = torch.Generator().manual_seed(draw.getrandbits(62))
            shape = (*clip.shape[:2], height, width)
            clip[..., top : top + height, left : left + width] = torch.randint(256, shape, generator=noise, dtype=torch.uint8).to(clip)
    return clips


def erased_box(height: int, width: int, draw: random.Random) -> Box:
    """A rectangle inside a frame, its area and shape drawn as in the paper; one that is too long is cut, not drawn again."""
    area = draw.uniform(*ERASED_AREA) * height * width
    aspect = math.exp(draw.uniform(*(math.log(bound) for bound in ERASED_ASPECT)))
    tall = min(height, max(1, round(math.sqrt(area * aspect))))
    wide = min(width, max(1, round(math.sqrt(area / aspect))))
    return draw.randrange(height - tall + 1), draw.randrange(width - wide + 1), tall, wide


class DropPath:
    """Stochastic depth (arXiv 1603.09382): branches of residual blocks are left out for some clips while training.

    A branch, an attention or an MLP, is left out for a share of the clips that rises linearly from 0 at the first block to
    `rate` at the last, and counts 1 / (1 - share) where it stays, so that its expectation is what it is when all stay. They are
    hooks and no layers: the names of weights stay, and they go at the end of the `with` block. What is left out is drawn before
    a pass, so that activations that are computed again leave out the same.

    Args:
        blocks: in order of depth; each takes tokens whose first axis is made of clips, one after the other.
        rate: of the last block, below 1.
    """

    def __init__(self, blocks: list[nn.Module], rate: float) -> None:
        last = max(1, len(blocks) - 1)
        found = [(part, rate * depth / last) for depth, block in enumerate(blocks) for part in block.children()]
        branches = [(part, share) for part, share in found if isinstance(part, (Attention, Mlp))]
        self.shares = torch.tensor([share for _, share in branches]).view(-1, 1)
        self.scales: Tensor | None = None
        self._handles = [part.register_forward_hook(self._hook(place)) for place, (part, _) in enumerate(branches)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()

    def draw(self, num_clips: int, generator: torch.Generator) -> Tensor:
        """float32 (branches, B): what each branch counts for each clip, 0 where it is left out."""
        kept = torch.rand(len(self.shares), num_clips, generator=generator) >= self.shares
        return kept / (1 - self.shares)

    def use(self, scales: Tensor | None) -> None:
        """Leave out in the passes to come what `draw` says of their clips (branches, B); nothing if None."""
        self.scales = scales

    def _hook(self, place: int) -> Any:
        def scale(branch: nn.Module, _: object, out: Tensor) -> Tensor | None:
            if self.scales is None or not branch.training:
                return None
            factors = self.scales[place].to(out)
            return out * factors.repeat_interleave(len(out) // len(factors)).view(-1, *[1] * (out.ndim - 1))

        return scale
