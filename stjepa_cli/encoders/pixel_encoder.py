"""The raw-pixel baseline: a clip averaged down to 4 x 16 x 16 grey values, without a model."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.core.types import ClipSpec, TokenGrid, digest
from stjepa_cli.encoders.base import LabelUse

SHAPE = (4, 16, 16)
LUMA = (0.299, 0.587, 0.114)


class PixelEncoder:
    """An encoder whose only token (B, 1, 1024) is the downsampled clip itself, with grey values from 0 to 1.

    Args:
        clip: The clips that it takes, usually those of the encoder that it is compared with.
    """

    name = "pixels"
    grid = TokenGrid(1, 1, 1)
    dim = math.prod(SHAPE)
    layer = None
    saw_labels = LabelUse("no")

    def __init__(self, clip: ClipSpec) -> None:
        self.clip = clip

    @property
    def digest(self) -> str:
        """sha256 over the settings, 64 hex digits."""
        return digest({"pixels": SHAPE, "clip": str(self.clip), "stride": self.clip.stride})

    def encode(self, clips: Tensor) -> Tensor:
        """Average clips uint8 (B, T, 3, S, S) over equal blocks of time and space."""
        colours = clips.float() / 255
        grey = (colours * colours.new_tensor(LUMA).view(3, 1, 1)).sum(dim=2)
        return F.adaptive_avg_pool3d(grey.unsqueeze(1), SHAPE).flatten(1).unsqueeze(1)
