"""Nearest neighbours on unit vectors, with ties broken by row."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS_AT_ONCE = 512


def nearest(queries: Tensor, gallery: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k nearest gallery rows of each query, best first. Of equal rows the earlier one comes first.

    Args:
        queries: float32 (Q, F), unit vectors.
        gallery: float32 (R, F), unit vectors.
        k: Number of neighbours, reduced to R if there are fewer rows.

    Returns:
        Similarities float32 (Q, k) and rows int64 (Q, k).
    """
    k = min(k, len(gallery))
    chunks = [highest(part @ gallery.T, k) for part in torch.split(queries, ROWS_AT_ONCE)]
    return torch.cat([values for values, _ in chunks]), torch.cat([rows for _, rows in chunks])


def highest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the first k columns of a stable descending sort of each row of (Q, R): values (Q, k) and columns int64 (Q, k).

    Only rows with ties at the k-th value are sorted whole. The others take a third of the time of a sort.
    """
    values, columns = scores.topk(k, dim=1)
    columns = columns.sort(dim=1).values  # of equal values the earlier column comes first
    values, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    columns = columns.gather(1, order)
    tied = ((scores >= values[:, -1:]).sum(dim=1) > k).nonzero()[:, 0]
    if len(tied):
        whole = scores[tied].sort(dim=1, descending=True, stable=True)
        values[tied], columns[tied] = whole.values[:, :k], whole.indices[:, :k]
    return values, columns
