"""DINOv3 (arXiv 2508.10104), its vision transformers, through transformers: an image model, frame by frame."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

from torch import nn

from stjepa_cli.core.types import ClipSpec
from stjepa_cli.teachers._images import ImageModel
from stjepa_cli.teachers._weights import in_float32, load_weights
from stjepa_cli.teachers.base import Outline

_LICENCE = "dinov3-license"
_SIZES = {"vits16": (384, 12), "vitb16": (768, 12), "vitl16": (1024, 24)}


class Dinov3(ImageModel):
    """A DINOv3 backbone: patch tokens after its final norm. Its positions are rotary, relative to the size of the image."""

    model_types: ClassVar[tuple[str, ...]] = ("dinov3_vit",)
    known: ClassVar[Mapping[str, Outline]] = {
        f"facebook/dinov3-{size}-pretrain-lvd1689m": Outline(ClipSpec(), dim, _LICENCE, num_layers)
        for size, (dim, num_layers) in _SIZES.items()
    }
    family: ClassVar[str] = "DINOv3"
    sizes: ClassVar[Mapping[str, tuple[str, int]]] = {
        "patch_px": ("patch_size", 16),
        "dim": ("hidden_size", 384),
        "colours": ("num_channels", 3),
        "num_layers": ("num_hidden_layers", 12),
    }
    blocks: ClassVar[str] = "model.layer"

    @classmethod
    def saw_labels(cls, config: Mapping[str, Any]) -> str:
        """Return `no` for a backbone; a model with a classifier may have been fine-tuned."""
        return "unknown" if any("Classification" in name for name in config.get("architectures") or ()) else "no"

    @classmethod
    def _load(cls, folder: Path, clip: ClipSpec) -> nn.Module:
        model: Any = load_weights("DINOv3ViTModel", folder, encoder=r"^(model\.)?layer\.")
        in_float32(model.embeddings)
        return cast(nn.Module, model)


plugin = Dinov3
