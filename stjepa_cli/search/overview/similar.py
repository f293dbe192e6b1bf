"""Near-duplicates and maps of vectors: what is computed from all vectors of a column at once, in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.core.errors import NotReadyError, how_to_install
from stjepa_cli.core.progress import SILENT, Progress

BLOCK = 1024  # rows compared with as many others at a time, so that memory does not grow with the square of the rows
METHODS = ("pca", "umap")


@dataclass(frozen=True)
class Groups:
    """Near-duplicates.

    Attributes:
        rows: Indices of the rows of each group, ascending; at least two. The largest group comes first.
        similarity: float32 (N,): cosine similarity of each row to the closest row that counts, -1 if none reaches the threshold.
    """

    rows: tuple[tuple[int, ...], ...]
    similarity: Tensor


@dataclass(frozen=True)
class Plane:
    """Vectors in two dimensions.

    Attributes:
        points: float32 (N, 2).
        explained: Fraction of the variance that the two axes hold, 0 to 1; None for methods without such a figure.
    """

    points: Tensor
    explained: float | None


def near_duplicates(vectors: Tensor, threshold: float, owners: Tensor | None = None, progress: Progress = SILENT) -> Groups:
    """Group rows whose cosine similarity reaches a threshold: the connected components of these pairs.

    A row can be in a group with a row that is not similar to it, if a chain of similar rows connects them.

    Args:
        vectors: float (N, D); of any length, but not zero.
        threshold: Least cosine similarity of a pair, -1 to 1.
        owners: int64 (N,), the video that each row is cut from: two rows of one video are no pair. None if all rows may be pairs.
        progress: Receives progress.
    """
    unit = F.normalize(vectors.float(), dim=1)
    roots, best = torch.arange(len(unit)), torch.full((len(unit),), -1.0)
    tiles = list(_tiles(len(unit)))
    with progress.task("comparing vectors", total=len(tiles), unit="blocks") as task:
        for first, second in tiles:
            rows, columns, values = _pairs(unit, first, second, threshold)
            if owners is not None:
                others = owners[rows] != owners[columns]
                rows, columns, values = rows[others], columns[others], values[others]
            for side in (rows, columns):
                best.scatter_reduce_(0, side, values, "amax")
            _unite(roots, rows, columns)
            task.advance()
    found: dict[int, list[int]] = {}
    for row, root in enumerate(roots.tolist()):
        found.setdefault(root, []).append(row)
    groups = sorted((tuple(rows) for rows in found.values() if len(rows) > 1), key=lambda rows: (-len(rows), rows))
    return Groups(tuple(groups), best)


def nearest(vectors: Tensor, count: int) -> Tensor:
    """Return the indices of the nearest other rows of each row by cosine similarity, int64 (N, K) with K at most `count`.

    Args:
        vectors: float (N, D).
        count: Number of neighbours; N - 1 if that is less.
    """
    unit = F.normalize(vectors.float(), dim=1)
    count = min(count, len(unit) - 1)
    found = [torch.empty(0, count, dtype=torch.int64)]
    for start in range(0, len(unit), BLOCK):
        similarity = unit[start : start + BLOCK] @ unit.T
        rows = torch.arange(len(similarity))
        similarity[rows, start + rows] = -2.0  # a row is not its own neighbour
        found.append(similarity.topk(count, dim=1).indices)
    return torch.cat(found)


def plane(vectors: Tensor, method: str = "pca", seed: int = 0) -> Plane:
    """Lay vectors out in two dimensions, so that similar ones are close.

    Args:
        vectors: float (N, D).
        method: `pca` for the two directions of the largest variance (exact, fast, keeps large distances), `umap` for UMAP
            (arXiv 1802.03426; keeps neighbourhoods).
        seed: Seed of UMAP.

    Raises:
        NotReadyError: umap-learn is not installed.
    """
    unit = F.normalize(vectors.float(), dim=1)
    if method == "umap" and len(unit) > 3:
        return Plane(_umap(unit, seed), None)
    centred = (unit - unit.mean(dim=0)).double()
    if centred.shape[1] < 2 or len(centred) < 2:
        return Plane(F.pad(centred[:, :1], (0, 1)).float(), 1.0)
    values, directions = torch.linalg.eigh(centred.T @ centred)
    axes = directions[:, [-1, -2]]
    largest = axes.abs().argmax(dim=0)
    axes = axes * axes[largest, torch.arange(2)].sign()  # an eigenvector has no sign; a page should not be mirrored by chance
    total = float(values.clamp(min=0).sum())
    return Plane((centred @ axes).float(), float(values[-2:].clamp(min=0).sum()) / total if total else 1.0)


def _tiles(count: int) -> Iterator[tuple[int, int]]:
    """Yield the first row and the first column of each tile on and above the diagonal."""
    starts = range(0, count, BLOCK)
    return ((row, column) for row in starts for column in starts if column >= row)


def _pairs(unit: Tensor, first: int, second: int, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows, columns and similarities of the pairs of a tile that reach the threshold; each pair once."""
    similarity = unit[first : first + BLOCK] @ unit[second : second + BLOCK].T
    near = similarity >= threshold - 1e-6  # float32: a copy has a similarity of 0.9999999
    if first == second:
        near = near.triu(diagonal=1)
    rows, columns = near.nonzero(as_tuple=True)
    return rows + first, columns + second, similarity[rows, columns].clamp(max=1.0)


def _unite(roots: Tensor, rows: Tensor, columns: Tensor) -> None:
    """Give the rows of connected groups one root, the smallest row of the group; `roots` is changed in place."""
    while True:
        left, right = roots[rows], roots[columns]
        apart = left != right
        if not bool(apart.any()):
            return
        rows, columns = rows[apart], columns[apart]
        low, high = torch.minimum(left, right)[apart], torch.maximum(left, right)[apart]
        roots.scatter_reduce_(0, high, low, "amin")
        while not torch.equal(roots, roots[roots]):
            roots.copy_(roots[roots])


def _umap(unit: Tensor, seed: int) -> Tensor:
    try:
        import umap
    except ImportError as error:
        raise NotReadyError("umap-learn is not installed", fix=how_to_install(extra="umap") + " Or use --method pca.") from error
    neighbours = min(15, len(unit) - 1)
    reducer = umap.UMAP(n_neighbors=neighbours, metric="cosine", random_state=seed, n_jobs=1, init="pca" if len(unit) < 20 else "spectral")
    return torch.from_numpy(reducer.fit_transform(unit.numpy())).float()
