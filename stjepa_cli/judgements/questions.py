"""Choices as tensors: which of some rows was chosen as most like an anchor, and which were turned down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stjepa_cli.judgements.events import Event
from stjepa_cli.judgements.triplets import turned_down


@dataclass(frozen=True)
class Questions:
    """Q questions with at most M candidates each; items are numbers of rows.

    Attributes:
        anchors: int64 (Q,), the item that is compared with.
        candidates: int64 (Q, M), padded with 0.
        selected: bool (Q, M), what was chosen.
        rejected: bool (Q, M), what was turned down; False for padding too.
    """

    anchors: Tensor
    candidates: Tensor
    selected: Tensor
    rejected: Tensor

    def __len__(self) -> int:
        return len(self.anchors)

    def among(self, items: Tensor) -> tuple[Questions, Tensor]:
        """Return what is left of the questions if only some items exist.

        Args:
            items: bool (N,), True for items that exist.

        Returns:
            The questions whose anchor, one selected and one rejected candidate exist; and their numbers, int64 (Q',).
        """
        here = items[self.candidates]
        selected, rejected = self.selected & here, self.rejected & here
        kept = (items[self.anchors] & selected.any(1) & rejected.any(1)).nonzero().flatten()
        return Questions(self.anchors[kept], self.candidates[kept], selected[kept], rejected[kept]), kept


def questions_of(answers: Sequence[Event], numbers: Mapping[str, int]) -> Questions:
    """Return the choices among judgements; those whose items are not known are left out.

    Args:
        answers: Judgements.
        numbers: Number of each item by the name that the judgements use.
    """
    found = []
    for event in answers:
        chosen = [numbers[each] for each in event.selected if each in numbers]
        others = [numbers[each] for each in turned_down(event) if each in numbers]
        if event.verdict == "choice" and event.anchor in numbers and chosen and others:
            found.append((numbers[event.anchor], chosen, others))
    most = max((len(chosen) + len(others) for _, chosen, others in found), default=1)
    candidates = torch.zeros(len(found), most, dtype=torch.int64)
    selected, rejected = torch.zeros(2, len(found), most, dtype=torch.bool)
    for i, (_, chosen, others) in enumerate(found):
        candidates[i, : len(chosen) + len(others)] = torch.tensor(chosen + others)
        selected[i, : len(chosen)] = True
        rejected[i, len(chosen) : len(chosen) + len(others)] = True
    return Questions(torch.tensor([anchor for anchor, _, _ in found], dtype=torch.int64), candidates, selected, rejected)
