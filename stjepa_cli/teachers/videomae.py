"""VideoMAE (arXiv 2203.12602) through transformers: the tokens of the last layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from stjepa_cli.core.types import ClipSpec, TeacherCard
from stjepa_cli.teachers._pretrained import Pretrained
from stjepa_cli.teachers._weights import in_float32, load_weights
from stjepa_cli.teachers.base import Outline

if TYPE_CHECKING:
    from transformers import VideoMAEModel

_OLD_NAMES = {rf"attention\.attention\.{old}_bias": f"attention.attention.{new}.bias" for old, new in (("q", "query"), ("v", "value"))}
"""Names of biases in public checkpoints; not every transformers 5 renames them itself."""

_KINETICS_LABEL = "abseiling"
"""The first class of Kinetics-400, 600 and 700, and of no other data set that such models are fine-tuned on."""


class VideoMae(Pretrained):
    """A VideoMAE encoder, pretrained or fine-tuned; heads and decoders stay in the checkpoint.

    A model that was fine-tuned with mean pooling has no final norm, so its tokens are a raw residual stream. A model that was
    fine-tuned on Kinetics was trained on frames 4 apart, and takes such clips by default; all others take uniform ones.
    """

    model_types: ClassVar[tuple[str, ...]] = ("videomae",)
    known: ClassVar[Mapping[str, Outline]] = {
        "MCG-NJU/videomae-huge-finetuned-kinetics": Outline(ClipSpec(sampling="dense", stride=4), 1280, "CC-BY-NC-4.0", num_layers=32),
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
    def _own_clip(cls, sizes: Mapping[str, int], config: Mapping[str, Any]) -> ClipSpec:
        labels = config.get("id2label")
        kinetics = isinstance(labels, dict) and _KINETICS_LABEL in labels.values()
        return replace(super()._own_clip(sizes, config), sampling="dense" if kinetics else "uniform", stride=4)

    @classmethod
    def saw_labels(cls, config: Mapping[str, Any]) -> str:
        """Return `yes` for fine-tuned models, which have a classifier or names of classes, and `no` for pretrained ones."""
        names = {name.removeprefix("VideoMAE") for name in config.get("architectures") or ()}
        labels = config.get("id2label")
        classes = [str(name) for name in labels.values()] if isinstance(labels, dict) else []
        if "ForVideoClassification" in names or any(not name.startswith("LABEL_") for name in classes):
            return "yes"
        return "no" if "ForPreTraining" in names else "unknown"

    @classmethod
    def _load(cls, folder: Path, clip: ClipSpec) -> VideoMAEModel:
        # its keys have no bias; some versions of transformers give them one, which a softmax does not see
        return load_weights("VideoMAEModel", folder, zeros=".key.bias", key_mapping=_OLD_NAMES)

    def _run(self, pixels: Tensor) -> Tensor:
        tokens: Tensor = self.model(pixel_values=pixels).last_hidden_state
        return tokens


plugin = VideoMae
