"""VideoMAE (arXiv 2203.12602) through transformers: tokens of the last layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from stjepa_cli.core.types import ClipSpec, TeacherCard
from stjepa_cli.teachers._pretrained import Pretrained
from stjepa_cli.teachers._weights import in_float32, load_weights
from stjepa_cli.teachers.base import Outline

if TYPE_CHECKING:
    from transformers import VideoMAEModel

_OLD_NAMES = {rf"attention\.attention\.{old}_bias": f"attention.attention.{new}.bias" for old, new in (("q", "query"), ("v", "value"))}
"""What biases are called in public checkpoints; not every transformers 5 renames them itself."""


class VideoMae(Pretrained):
    """A VideoMAE encoder, pretrained or fine-tuned; heads and decoders in the checkpoint are left alone.

    One that was fine-tuned with mean pooling has no final norm, so its tokens are a raw residual stream.
    """

    model_types: ClassVar[tuple[str, ...]] = ("videomae",)
    known: ClassVar[Mapping[str, Outline]] = {
        "MCG-NJU/videomae-huge-finetuned-kinetics": Outline(ClipSpec(), 1280, "CC-BY-NC-4.0", num_layers=32),
    }
    family: ClassVar[str] = "VideoMAE"
    sizes: ClassVar[Mapping[str, tuple[str, int]]] = {
        "num_frames": ("num_frames", 16),
        "size_px": ("image_size", 224),
        "tubelet": ("tubelet_size", 2),
        "patch_px": ("patch_size", 16),
        "dim": ("hidden_size", 768),
        "colours": ("num_channels", 3),
        "num_layers": ("num_hidden_layers", 12),
    }
    blocks: ClassVar[str] = "encoder.layer"

    def __init__(
        self, card: TeacherCard, model: VideoMAEModel, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
    ) -> None:
        super().__init__(card, model, mean, std, device)
        in_float32(model.embeddings)

    @classmethod
    def _load(cls, folder: Path, clip: ClipSpec) -> VideoMAEModel:
        return load_weights("VideoMAEModel", folder, key_mapping=_OLD_NAMES)

    def _run(self, pixels: Tensor) -> Tensor:
        tokens: Tensor = self.model(pixel_values=pixels).last_hidden_state
        return tokens


plugin = VideoMae
