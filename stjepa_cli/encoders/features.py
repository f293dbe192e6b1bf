"""Frozen features of a set of videos, the input of every probe."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stjepa_cli.core.errors import StjepaError

NUMBERS_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Features:
    """Frozen features of R videos.

    Attributes:
        values: float32 (R, F), finite.
        labels: int64 (R,), class numbers.
        groups: Names of the R sources that the videos were cut from. A group is never split between fitting and choosing.
        ids: Names of the R videos.
        tokens: float16 or float32 (R, C * N, D) for the probes that take single tokens, with the clips of a video side by side.
            They may be mapped from a file.
        clips: float32 (R, C, F), whose mean over the C clips is `values`, or None if each video has one clip.

    Raises:
        StjepaError: Shapes disagree, or a value is not finite. The message names the first such video.
    """

    values: Tensor
    labels: Tensor
    groups: tuple[str, ...]
    ids: tuple[str, ...]
    tokens: Tensor | None = None
    clips: Tensor | None = None

    def __post_init__(self) -> None:
        num_rows = len(self.ids)
        if self.values.ndim != 2 or {len(self.values), len(self.labels), len(self.groups)} != {num_rows}:
            raise StjepaError(
                "features, labels, groups and ids disagree",
                got=f"{tuple(self.values.shape)}, {tuple(self.labels.shape)}, {len(self.groups)} groups, {num_rows} ids",
            )
        if self.tokens is not None and (self.tokens.ndim != 3 or len(self.tokens) != num_rows or not self.tokens.is_floating_point()):
            got = f"{self.tokens.dtype} {tuple(self.tokens.shape)}"
            raise StjepaError("tokens and ids disagree", got=got, expected=f"float16 or float32 ({num_rows}, L, D)")
        if self.clips is not None and (self.clips.ndim != 3 or (len(self.clips), self.clips.shape[2]) != self.values.shape):
            raise StjepaError(
                "clips and features disagree", got=tuple(self.clips.shape), expected=f"({num_rows}, C, {self.values.shape[1]})"
            )
        self._refuse(~self.values.isfinite().all(dim=1).cpu())

    def refuse_broken_tokens(self) -> None:
        """Check every token, which takes a while.

        Raises:
            StjepaError: A token is not finite. The message names the first such video.
        """
        if self.tokens is not None and len(self):
            parts = torch.split(self.tokens, rows_per_chunk(self.tokens))
            self._refuse(torch.cat([~part.isfinite().flatten(1).all(dim=1).cpu() for part in parts]))

    def _refuse(self, broken: Tensor) -> None:
        places = broken.nonzero().flatten().tolist()
        if places:
            raise StjepaError(
                f"the features of {len(places)} of {len(self)} videos hold NaN or infinity, first {self.ids[places[0]]}",
                fix="Type `stjepa inspect checkpoint PATH` to see whether the weights are finite.",
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_clips(self) -> int:
        """C, the number of clips of each video."""
        return 1 if self.clips is None else self.clips.shape[1]

    def by_clip(self) -> Features:
        """Return R * C rows, one per clip, with the clips of a video one after the other and the group of their video."""
        count = self.num_clips
        if self.clips is None or count == 1:
            return self
        groups, ids = (tuple(name for name in names for _ in range(count)) for names in (self.groups, self.ids))
        tokens = None if self.tokens is None else self.tokens.view(len(self) * count, -1, self.tokens.shape[2])
        ids = tuple(f"{name} {i % count:03}" for i, name in enumerate(ids))
        return Features(self.clips.flatten(0, 1), self.labels.repeat_interleave(count), groups, ids, tokens)

    def rows(self, index: Tensor) -> Features:
        """Return the rows at `index`, int64 (K,) on the CPU."""
        places = index.tolist()
        groups, ids = (tuple(names[i] for i in places) for names in (self.groups, self.ids))
        tokens, clips = (None if part is None else part[index] for part in (self.tokens, self.clips))
        return Features(self.values[index], self.labels[index], groups, ids, tokens, clips)

    def by_id(self) -> Tensor:
        """Return int64 (R,), the indices that sort the rows by id."""
        return torch.tensor(sorted(range(len(self)), key=lambda row: self.ids[row]), dtype=torch.int64)


def rows_per_chunk(tokens: Tensor) -> int:
    """Return how many rows of tokens (R, L, D) to process at once."""
    return max(1, NUMBERS_AT_ONCE // math.prod(tokens.shape[1:]))
