"""A teacher as an encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from stjepa_cli.core.serialization import to_dict
from stjepa_cli.core.types import TokenGrid, digest
from stjepa_cli.encoders.base import LabelUse

if TYPE_CHECKING:
    from stjepa_cli.teachers.base import Teacher


class TeacherEncoder:
    """A teacher as an encoder, to compare students with."""

    layer = None

    def __init__(self, teacher: Teacher) -> None:
        self.teacher, self.name, self.clip = teacher, teacher.card.name, teacher.card.clip

    @property
    def grid(self) -> TokenGrid:
        """The token grid of a clip."""
        return self.clip.grid

    @property
    def dim(self) -> int:
        """Width E of a token."""
        return self.teacher.card.dim

    @property
    def saw_labels(self) -> LabelUse:
        """Use of labels in its training."""
        return LabelUse(self.teacher.card.saw_labels or "unknown")

    @property
    def digest(self) -> str:
        """sha256 over weights, settings and clip geometry, 64 hex digits."""
        card = self.teacher.card
        weights: dict[str, object] = {"weights": card.weights_digest, "settings": card.settings_digest}
        if card.layers is not None:
            weights["layers"] = card.layers
        return digest({"teacher": card.kind, **weights, "dim": card.dim, "clip": to_dict(card.clip)})

    def encode(self, clips: Tensor) -> Tensor:
        """Encode clips uint8 (B, T, 3, S, S) into tokens (B, N, E)."""
        tokens: Tensor = self.teacher.encode(clips)
        return tokens
