"""What the tests of generated clips share: silhouettes, and a ridge classifier."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

GRID = 8


def silhouettes(clips: Tensor) -> Tensor:
    """Where frames differ from the background, float32 (B, T, 64) on a grid of 8 x 8 cells, of clips uint8 (B, T, 3, S, S)."""
    background = clips.flatten(3).median(dim=-1, keepdim=True).values[..., None]
    distance = (clips.float() - background.float()).abs().sum(2) / 255
    return F.adaptive_avg_pool2d(distance, GRID).flatten(2)


def random_frames(frames: Tensor, seed: int = 0) -> Tensor:
    """One frame of each clip at a random time: (B, F) of (B, T, F)."""
    moments = torch.randint(frames.shape[1], (len(frames),), generator=torch.Generator().manual_seed(seed))
    return frames[torch.arange(len(frames)), moments]


class Ridge:
    """Ridge regression onto the labels, fitted on features (B, F)."""

    def __init__(self, features: Tensor, labels: Tensor, strength: float = 100.0) -> None:
        self.mean, self.std = features.mean(0), features.std(0) + 1e-4
        x = self._standardised(features)
        wanted = F.one_hot(labels).float()
        self.weights = torch.linalg.solve(x.T @ x + strength * torch.eye(x.shape[1]), x.T @ (wanted - wanted.mean(0)))
        self.bias = wanted.mean(0)

    def _standardised(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.std

    def predict(self, features: Tensor) -> Tensor:
        """The class of each row."""
        scores: Tensor = self._standardised(features) @ self.weights + self.bias
        return scores.argmax(1)


def ridge_accuracy(features: Tensor, labels: Tensor) -> float:
    """Accuracy on the second half of a ridge classifier fitted on the first."""
    half = len(features) // 2
    return float((Ridge(features[:half], labels[:half]).predict(features[half:]) == labels[half:]).float().mean())


def three_standard_errors(chance: float, num_clips: int) -> float:
    """Of the accuracy of a guesser over half of the clips."""
    return 3 * math.sqrt(chance * (1 - chance) / (num_clips // 2))


def quarters(frames: Tensor) -> Tensor:
    """The mean of each quarter of a clip, (B, 4, F) of frames (B, T, F)."""
    return frames.reshape(len(frames), 4, -1, frames.shape[2]).mean(2)
