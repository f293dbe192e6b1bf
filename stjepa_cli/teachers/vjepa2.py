"""V-JEPA 2 (arXiv 2506.09985) through transformers: the tokens of the encoder, after its final norm."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from stjepa_cli.core.types import ClipSpec, TeacherCard
from stjepa_cli.teachers._pretrained import Pretrained
from stjepa_cli.teachers._weights import in_float32, load_weights

if TYPE_CHECKING:
    from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2Encoder


class VJepa2(Pretrained):
    """A V-JEPA 2 encoder, pretrained or with a classifier; predictor, pooler and classifier stay in the checkpoint.

    Its positions are rotary, so it takes clips of any length and size; by default those of its training, `frames_per_clip`
    and `crop_size`. It was trained on 4 frames a second, which no stride gives for videos of every rate, so its clips are
    uniform by default. V-JEPA 2 itself learns from tokens normalised without affine, as the projection does.
    """

    model_types: ClassVar[tuple[str, ...]] = ("vjepa2",)
    flexible: ClassVar[tuple[str, ...]] = ("num_frames", "size_px")
    family: ClassVar[str] = "V-JEPA 2"
    sizes: ClassVar[Mapping[str, tuple[str, int]]] = {
        "num_frames": ("frames_per_clip", 64),
        "size_px": ("crop_size", 256),
        "tubelet": ("tubelet_size", 2),
        "patch_px": ("patch_size", 16),
        "dim": ("hidden_size", 1024),
        "colours": ("in_chans", 3),
        "num_layers": ("num_hidden_layers", 24),
    }
    blocks: ClassVar[str] = "layer"

    def __init__(
        self, card: TeacherCard, model: VJEPA2Encoder, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
    ) -> None:
        super().__init__(card, model, mean, std, device)
        in_float32(model.embeddings)

    @classmethod
    def saw_labels(cls, config: Mapping[str, Any]) -> str:
        """Return `no` for a pretrained model; with a classifier the encoder may have been frozen or fine-tuned."""
        return "no" if config.get("architectures") == ["VJEPA2Model"] else "unknown"

    @classmethod
    def _load(cls, folder: Path, clip: ClipSpec) -> VJEPA2Encoder:
        # transformers computes rows and columns from `crop_size`, not from the clip: for another size they would silently be wrong
        geometry: dict[str, Any] = {"frames_per_clip": clip.num_frames, "crop_size": clip.size_px, "patch_size": clip.patch_px}
        return load_weights("VJEPA2Model", folder, part="encoder.", pred_num_hidden_layers=0, **geometry).encoder

    def _run(self, pixels: Tensor) -> Tensor:
        tokens: Tensor = self.model(pixel_values_videos=pixels).last_hidden_state
        return tokens


plugin = VJepa2
