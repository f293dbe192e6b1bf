"""Histograms of gradients and of motion: a teacher that needs no weights, for clips of any geometry.

Two kinds of histogram, each at several scales and in several cells of a token's patch:

* `static`: orientation of spatial gradients in each colour channel, HOG as MaskFeat's target (arXiv 2112.09133);
* `flow`: direction of the normal flow -I_t grad I / |grad I|^2, the part of the motion that is visible without smoothness
  assumptions (Horn and Schunck, 1981), weighted by its speed, which saturates.

A clip that is played backwards keeps its static channels and swaps its flow bins with the opposite ones (both in reversed
order). Two further kinds of channel were tried on generated motion clips with one seed and left out: a flow bin for pixels
that do not move, beside which the directions had hardly any variance; and space-time gradients on the axes of a dodecahedron
(HOG3D, Klaeser et al., BMVC 2008), which helped a little while static parts had full weight and harmed at half weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.core.types import ClipSpec, TeacherCard, digest
from stjepa_cli.teachers.base import ModelFiles, Outline, Teacher

VERSION = "1"
LICENCE = "none (no weights)"

NUM_STATIC_BINS = 9
NUM_FLOW_BINS = 8
GRADIENT_FLOOR = 2 / 255  # brightness a pixel: gradients well below are noise of the codec
STATIC_WEIGHT = 0.7
HALF_SPEED = 0.5  # pixels of a scale a frame: at this speed a pixel has half a vote
FLOW_FLOOR = 0.05  # mean vote of a cell's pixels: flow well below is noise
PIXELS_AT_ONCE = 1 << 20
VOTES_AT_ONCE = 1 << 20  # about what a processor's cache holds
TINY = 1e-12
LUMA = (0.299, 0.587, 0.114)


class Hog(Teacher):
    """See the module. E = (27 + 8) x cells x scales, 420 at the default geometry.

    Each histogram is divided by its L2 norm, softened so that flat or still regions give zeros and not noise. Static parts
    have less weight: with more, they drown the few tokens that move in generated clips.
    """

    built_in: ClassVar[bool] = True

    def __init__(self, card: TeacherCard, device: torch.device) -> None:
        super().__init__(card, device)
        self.cells, self.scales = _layout(card.clip)
        self._side = self.cells * card.clip.grid.h
        self._static_axes = _fan(NUM_STATIC_BINS, math.pi).to(device)
        self._flow_axes = _fan(NUM_FLOW_BINS, 2 * math.pi).to(device)

    @classmethod
    def outline(cls, config: Mapping[str, Any], clip: ClipSpec | None) -> Outline:
        clip = clip or ClipSpec()
        return Outline(clip, sum(_widths(clip).values()), LICENCE)

    @classmethod
    def saw_labels(cls, config: Mapping[str, Any]) -> str:
        return "no"  # it has no weights

    @classmethod
    def load(cls, files: ModelFiles | None, outline: Outline, device: torch.device) -> Self:
        constants = [VERSION, NUM_STATIC_BINS, NUM_FLOW_BINS, GRADIENT_FLOOR, FLOW_FLOOR, HALF_SPEED, STATIC_WEIGHT]
        return cls(TeacherCard("hog", "hog", VERSION, digest(constants), LICENCE, outline.dim, outline.clip, "none"), device)

    @property
    def channels(self) -> dict[str, slice]:
        """Return the channels of a token that belong to `static` and to `flow`."""
        ends, start = {}, 0
        for name, width in _widths(self.card.clip).items():
            ends[name] = slice(start, start + width)
            start += width
        return ends

    def _encode(self, clips: Tensor) -> Tensor:
        spec = self.card.clip
        at_once = max(1, PIXELS_AT_ONCE // (spec.num_frames * spec.size_px**2))
        return torch.cat([self._tokens(clips[i : i + at_once]) for i in range(0, len(clips), at_once)])

    def _tokens(self, clips: Tensor) -> Tensor:
        """Compute tokens (B, N, E) of clips uint8 (B, T, 3, S, S)."""
        frames = clips.float() / 255
        static, flow = [], []
        for scale in range(self.scales):
            frames = _halved(frames) if scale else frames
            static.append(STATIC_WEIGHT * self._tubelets(self._static(frames), GRADIENT_FLOOR))
            flow.append(self._tubelets(self._flow(frames), FLOW_FLOOR))
        return torch.cat(static + flow, dim=-1) / math.sqrt(self.scales)

    def _static(self, frames: Tensor) -> Tensor:
        """Turn spatial gradients of frames (B, T, 3, s, s) into votes (B, T, 3, 9, side, side)."""
        gradient = _gradient(frames.flatten(0, 2))
        votes = _votes(gradient, _length(gradient), self._static_axes, self._side, signed=False)
        return votes.reshape(*frames.shape[:3], *votes.shape[1:])

    def _flow(self, frames: Tensor) -> Tensor:
        """Turn the normal flow of frames (B, T, 3, s, s) into votes (B, T, 1, 8, side, side).

        Every pair of neighbouring frames votes, half for either frame, so that time has no preferred direction. The votes of
        a pixel sum to at most 1: less where its gradient is small, and less the slower it moves.
        """
        luma = (frames * frames.new_tensor(LUMA).view(3, 1, 1)).sum(2)
        before, after = luma[:, :-1].flatten(0, 1), luma[:, 1:].flatten(0, 1)
        change, gradient = (after - before).unsqueeze(1), _gradient((after + before) / 2)
        square = gradient.square().sum(1, keepdim=True)
        softened = square + GRADIENT_FLOOR**2
        speed = change.abs() * square.sqrt() / softened
        weights = square / softened * speed / (speed + HALF_SPEED)
        votes = _votes(-change * gradient, weights, self._flow_axes, self._side, signed=True)
        return _pairs_to_frames(votes.reshape(*luma[:, 1:].shape[:2], *votes.shape[1:])).unsqueeze(2)

    def _tubelets(self, votes: Tensor, floor: float) -> Tensor:
        """Turn votes (B, T, C, K, side, side) into normalised histograms (B, N, cells * cells * C * K) of norm 1 at most."""
        grid, cells = self.card.clip.grid, self.cells
        b, _, c, k = votes.shape[:4]
        x = votes.reshape(b, grid.t, -1, c, k, self._side, self._side).mean(2)
        x = x / (x.square().sum(3, keepdim=True) + floor**2).sqrt()
        x = x.reshape(b, grid.t, c, k, grid.h, cells, grid.w, cells)
        x = x.permute(0, 1, 4, 6, 5, 7, 2, 3).flatten(4).flatten(1, 3)
        return x / (cells * math.sqrt(c))


def _layout(clip: ClipSpec) -> tuple[int, int]:
    """Return the numbers of cells along a patch and of scales, fewer for small patches: a cell has 2 px or more if possible."""
    return (2 if clip.patch_px >= 4 else 1), min(3, max(1, int(math.log2(clip.patch_px)) - 1))


def _widths(clip: ClipSpec) -> dict[str, int]:
    cells, scales = _layout(clip)
    bins = {"static": 3 * NUM_STATIC_BINS, "flow": NUM_FLOW_BINS}
    return {name: width * cells * cells * scales for name, width in bins.items()}


def _fan(num_axes: int, angle: float) -> Tensor:
    """Return unit vectors (K, 2) that divide `angle` evenly, the first along x."""
    angles = torch.arange(num_axes, dtype=torch.float64) * angle / num_axes
    return torch.stack([angles.cos(), angles.sin()], dim=1).float()


def _votes(vectors: Tensor, weights: Tensor, axes: Tensor, side: int, *, signed: bool) -> Tensor:
    """Compute histograms of directions over `side` x `side` cells; without scatter, so they are deterministic on any device.

    A vector votes for the axes that are nearer to it than two neighbouring axes are to each other, after Klaeser et al.

    Args:
        vectors: (M, d, s, s).
        weights: (M, 1, s, s), the sum of a vector's votes; vectors of length 0 do not vote.
        axes: (K, d), unit vectors.
        side: Number of cells along a side.
        signed: Opposite vectors differ.

    Returns:
        (M, K, side, side), means over the pixels of a cell.
    """
    between = axes @ axes.T
    nearest = (between if signed else between.abs()).fill_diagonal_(-1).max()
    at_once = max(1, VOTES_AT_ONCE // (len(axes) * vectors.shape[2] * vectors.shape[3]))
    pooled = []
    for i in range(0, max(1, len(vectors)), at_once):  # once even without vectors: a clip of one frame has no pairs
        part, weight = vectors[i : i + at_once], weights[i : i + at_once]
        votes = axes @ part.flatten(2)
        votes = (votes if signed else votes.abs_()).sub_(nearest * _length(part).flatten(2)).clamp_min_(0)
        votes *= weight.flatten(2) / votes.sum(1, keepdim=True).clamp_min_(TINY)
        pooled.append(F.adaptive_avg_pool2d(votes.reshape(*votes.shape[:2], *part.shape[2:]), side))
    return torch.cat(pooled)


def _length(vectors: Tensor) -> Tensor:
    return vectors.square().sum(1, keepdim=True).sqrt()


def _gradient(images: Tensor) -> Tensor:
    """Compute central differences (M, 2, s, s), x then y, of images (M, s, s), edges repeated; in brightness per pixel."""
    padded = F.pad(images.unsqueeze(1), (1, 1, 1, 1), mode="replicate").squeeze(1)
    x = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    y = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    return torch.stack([x, y], dim=1) / 2


def _halved(frames: Tensor) -> Tensor:
    """Return frames (B, T, 3, s, s) at half the size, rounded up."""
    side = -(-frames.shape[-1] // 2)
    return F.avg_pool2d(frames.flatten(0, 1), 2, ceil_mode=True).reshape(*frames.shape[:3], side, side)


def _pairs_to_frames(votes: Tensor) -> Tensor:
    """Turn votes (B, T - 1, ...) of pairs into votes (B, T, ...) of frames, each the mean of its two pairs; none without pairs.

    ```text
    frames    0     1     2     3
    pairs        a     b     c
    votes     a  (a+b)/2 (b+c)/2  c
    ```
    """
    if votes.shape[1] == 0:
        return votes.new_zeros(votes.shape[0], 1, *votes.shape[2:])
    padded = torch.cat([votes[:, :1], votes, votes[:, -1:]], dim=1)
    return (padded[:, 1:] + padded[:, :-1]) / 2


plugin = Hog
