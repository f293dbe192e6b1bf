"""DINOv2 (arXiv 2304.07193), with registers (arXiv 2309.16588) or without, through transformers: an image model, frame by frame."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

from torch import nn

from stjepa_cli.core.types import ClipSpec
from stjepa_cli.teachers._images import ImageModel
from stjepa_cli.teachers._weights import in_float32, load_weights
from stjepa_cli.teachers.base import Outline

_CLASSES = {"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"}
_SIZES = {"small": (384, 12), "base": (768, 12), "large": (1024, 24), "giant": (1536, 40)}


class Dinov2(ImageModel):
    """A DINOv2 backbone: patch tokens after its final norm. Its learned positions are interpolated to the token grid."""

    model_types: ClassVar[tuple[str, ...]] = tuple(_CLASSES)
    known: ClassVar[Mapping[str, Outline]] = {
        f"facebook/dinov2{registers}-{size}": Outline(ClipSpec(), dim, "apache-2.0", num_layers)
        for registers in ("", "-with-registers")
        for size, (dim, num_layers) in _SIZES.items()
    }
    family: ClassVar[str] = "DINOv2"
    sizes: ClassVar[Mapping[str, tuple[str, int]]] = {
        "patch_px": ("patch_size", 14),
        "dim": ("hidden_size", 768),
        "colours": ("num_channels", 3),
        "num_layers": ("num_hidden_layers", 12),
    }
    blocks: ClassVar[str] = "encoder.layer"

    @classmethod
    def saw_labels(cls, config: Mapping[str, Any]) -> str:
        """Return `no` for a backbone; a model with a classifier may have been fine-tuned."""
        return "unknown" if any("Classification" in name for name in config.get("architectures") or ()) else "no"

    @classmethod
    def _load(cls, folder: Path, clip: ClipSpec) -> nn.Module:
        model_type = json.loads((folder / "config.json").read_text())["model_type"]
        model: Any = load_weights(_CLASSES[model_type], folder)
        in_float32(model.embeddings)
        return cast(nn.Module, model)


plugin = Dinov2
