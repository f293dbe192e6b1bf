"""What a probe is: it fits on frozen features of a train set and is scored once on a test set.

Nothing is ever chosen on the test set; its labels are used to score and for nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stjepa_cli import plugins
from stjepa_cli.errors import StjepaError

ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Features:
    """Frozen features of R videos.

    Attributes:
        values: float32 (R, F), finite.
        labels: int64 (R,), class numbers.
        groups: R names of what must never be split between fitting and choosing (videos cut from one source).
        ids: R names of videos.

    Raises:
        StjepaError: shapes that do not agree, or a value that is not finite; the message names the first video.
    """

    values: Tensor
    labels: Tensor
    groups: tuple[str, ...]
    ids: tuple[str, ...]

    def __post_init__(self) -> None:
        num_rows = len(self.ids)
        if self.values.ndim != 2 or {len(self.values), len(self.labels), len(self.groups)} != {num_rows}:
            raise StjepaError(
                "features, labels, groups and ids disagree",
                got=f"{tuple(self.values.shape)}, {tuple(self.labels.shape)}, {len(self.groups)} groups, {num_rows} ids",
            )
        broken = (~self.values.isfinite().all(dim=1)).nonzero().flatten().tolist()
        if broken:
            raise StjepaError(
                f"the features of {len(broken)} of {num_rows} videos hold NaN or infinity, first {self.ids[broken[0]]}",
                fix="Type `stjepa inspect checkpoint PATH` to see whether the weights are finite.",
            )

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, index: Tensor) -> Features:
        """The rows at `index`, int64 (K,)."""
        places = index.tolist()
        groups, ids = (tuple(names[i] for i in places) for names in (self.groups, self.ids))
        return Features(self.values[index], self.labels[index], groups, ids)


@dataclass(frozen=True)
class ProbeResult:
    """What a probe found.

    Attributes:
        figures: named shares of test videos, 0 to 1 (`top1`).
        scores: float32 (R_test, C), shares of belief that sum to 1 in a row, 0 where a class was never considered;
            None where the protocol ranks videos and not classes.
        chosen: settings, those that were fixed and those that were chosen, and on what.
    """

    figures: dict[str, float]
    scores: Tensor | None = None
    chosen: dict[str, float] = field(default_factory=dict)


class Probe(ABC):
    """One protocol."""

    def fit_score(self, train: Features, test: Features, num_classes: int, seed: int) -> ProbeResult:
        """Fit on `train`, score on `test`.

        Args:
            train: in any order: rows are sorted by id first, so that ties fall the same way.
            test: what it is scored on.
            num_classes: C; labels are 0 to C - 1.
            seed: decides whatever is drawn.

        Raises:
            StjepaError: a side is empty, widths differ, or a label is out of range.
        """
        for name, side in (("train", train), ("test", test)):
            if not len(side):
                raise StjepaError(f"a probe needs {name} features", got="none")
            low, high = int(side.labels.min()), int(side.labels.max())
            if low < 0 or high >= num_classes:
                raise StjepaError(f"a {name} label is out of range", got=f"{low} to {high}", expected=f"0 to {num_classes - 1}")
        widths = train.values.shape[1], test.values.shape[1]
        if widths[0] != widths[1]:
            raise StjepaError("train and test features differ in width", got=f"{widths[0]} and {widths[1]}")
        order = torch.tensor(sorted(range(len(train)), key=lambda row: train.ids[row]))
        return self._fit_score(train.rows(order), test, num_classes, seed)

    @abstractmethod
    def _fit_score(self, train: Features, test: Features, num_classes: int, seed: int) -> ProbeResult:
        """The protocol itself, on checked features."""


def build(name: str) -> Probe:
    """The probe plug-in `name`.

    Raises:
        ConfigError: there is none of that name; the message lists those that exist.
    """
    probe: Probe = plugins.load("probes", name)()
    return probe


def top_k_share(scores: Tensor, labels: Tensor, k: int) -> float:
    """Share of rows whose label is among the k best classes.

    Args:
        scores: float (R, C), higher is better; -inf marks a class that is no guess at all and never a hit. Of equal
            classes the lower number comes first.
        labels: int64 (R,).
        k: guesses; with k >= C every label is a hit.
    """
    if k >= scores.shape[1]:
        return 1.0
    best = scores.sort(dim=1, descending=True, stable=True)
    hits = (best.indices[:, :k] == labels[:, None]) & best.values[:, :k].isfinite()
    return hits.any(dim=1).double().mean().item()


def nearest(queries: Tensor, gallery: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest gallery rows of each query, best first; of equal ones the earlier row comes first.

    Args:
        queries: float32 (Q, F), unit rows.
        gallery: float32 (R, F), unit rows.
        k: neighbours, shrunk to R.

    Returns:
        similarities float32 (Q, k) and rows int64 (Q, k).
    """
    k = min(k, len(gallery))
    chunks = [(part @ gallery.T).sort(dim=1, descending=True, stable=True) for part in torch.split(queries, ROWS_AT_ONCE)]
    return torch.cat([c.values[:, :k] for c in chunks]), torch.cat([c.indices[:, :k] for c in chunks])
