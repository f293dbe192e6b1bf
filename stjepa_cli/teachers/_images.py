"""Base class of the image models that serve as teachers of video: each frame alone, then frames to tubelets.

The image is resized so that one patch of the model is one token of the clip: a grid of 14 x 14 tokens makes an image of
14 x 14 patches, 196 px for patches of 14 px and 224 px for patches of 16 px. Positions of these models are interpolated or
rotary, so that they take images of any number of patches, and no token needs to be resampled. Measured with DINOv2 ViT-S/14
on 36 real frames: when the crop moves by one token, 74 % of the tokens find themselves again among all tokens of the moved
crop; 55 to 60 % where the 16 x 16 tokens of a 224 px image are resampled to 14 x 14, at 1.7 times the cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.core.errors import TeacherError
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.teachers._pretrained import Pretrained, processor_settings
from stjepa_cli.teachers.base import ModelFiles, Outline

_FILTERS = {2: "bilinear", 3: "bicubic"}
"""Numbers that Pillow gives its filters, as preprocessors name them."""


class ImageModel(Pretrained):
    """A frozen image model, run on every frame of a clip.

    Prefix tokens (class and registers) are dropped, and the tokens of the frames of a tubelet averaged. Clips may have any
    geometry; by default they have that of the students, 16 frames of 224 px with a tubelet of 2 and patches of 16 px.
    """

    flexible: ClassVar[tuple[str, ...]] = ("num_frames", "size_px", "tubelet", "patch_px")
    resample: str
    """The filter that resizes frames, as the model's preprocessor names it."""

    @classmethod
    def _own_clip(cls, sizes: Mapping[str, int], config: Mapping[str, Any]) -> ClipSpec:
        return ClipSpec()

    @classmethod
    def load(cls, files: ModelFiles | None, outline: Outline, device: torch.device) -> Self:
        teacher = super().load(files, outline, device)
        assert files is not None
        teacher.resample = _filter(files.folder)
        return teacher

    @classmethod
    def _more_settings(cls, folder: Path) -> dict[str, object]:
        return {"resample": _filter(folder)}

    def _resized(self, clips: Tensor) -> Tensor:
        side = self.card.clip.grid.h * self._patch_px
        frames = clips.flatten(0, 1)
        if frames.shape[-1] != side:
            frames = F.interpolate(frames, (side, side), mode=self.resample, antialias=True, align_corners=False).clamp(0, 1)
        return frames

    def _run(self, pixels: Tensor) -> Tensor:
        tokens: Tensor = self.model(pixel_values=pixels).last_hidden_state
        return tokens

    def _as_tokens(self, output: Tensor, num_clips: int) -> Tensor:
        grid = self.card.clip.grid
        patches = output[:, -grid.num_positions :].float()
        return patches.reshape(num_clips, grid.t, -1, grid.num_positions, output.shape[-1]).mean(2).flatten(1, 2)

    @property
    def _patch_px(self) -> int:
        config: Any = self.model.config
        return int(config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0])


def _filter(folder: Path) -> str:
    """Return the filter that a model's preprocessor resizes images with; bicubic where it says nothing."""
    path, settings = processor_settings(folder)
    number = settings.get("resample", 3)
    if number not in _FILTERS:
        raise TeacherError(f"{path}: resample names no filter that is known here", got=number, expected="2 (bilinear) or 3 (bicubic)")
    return _FILTERS[number]
