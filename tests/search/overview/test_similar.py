"""Near-duplicates, neighbours and planes, against what a few lines compute without blocks."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor

from stjepa_cli.search.overview.similar import BLOCK, near_duplicates, nearest, plane


def components(near: Tensor) -> set[tuple[int, ...]]:
    """The connected components of a relation (N, N), by following it until nothing is added."""
    reached = near | torch.eye(len(near), dtype=torch.bool)
    for _ in range(len(near).bit_length() + 1):
        reached = (reached.float() @ reached.float()) > 0
    return {rows for row in reached if len(rows := tuple(row.nonzero().flatten().tolist())) > 1}


@pytest.mark.parametrize(("count", "threshold"), [(1, 0.5), (2, 0.5), (60, 0.2), (300, 0.55), (BLOCK + 200, 0.9)])
def test_groups_are_the_connected_components(count: int, threshold: float) -> None:
    generator = torch.Generator().manual_seed(count)
    vectors = torch.randn(count, 12, generator=generator) * torch.rand(count, 1, generator=generator)
    vectors[count // 2 :: 7] = 3 * vectors[: len(vectors[count // 2 :: 7])]  # copies of another length, across blocks too
    found = near_duplicates(vectors, threshold)
    unit = torch.nn.functional.normalize(vectors, dim=1)
    similarity = (unit @ unit.T).fill_diagonal_(-1)
    assert set(found.rows) == components(similarity >= threshold)
    assert [len(rows) for rows in found.rows] == sorted((len(rows) for rows in found.rows), reverse=True)
    best = similarity.amax(dim=1)
    torch.testing.assert_close(found.similarity, torch.where(best >= threshold, best, -1.0), atol=1e-5, rtol=0)


def test_a_chain_is_one_group() -> None:
    angles = torch.arange(40) * 0.1
    found = near_duplicates(torch.stack([angles.cos(), angles.sin()], dim=1), 0.99)
    assert found.rows == (tuple(range(40)),)


def test_a_copy_is_found_at_a_threshold_of_one() -> None:
    vectors = torch.randn(5, 384, generator=torch.Generator().manual_seed(0))
    assert near_duplicates(torch.cat([vectors, 2 * vectors[3:4]]), 1.0).rows == ((3, 5),)


def test_rows_of_one_owner_are_no_pair_but_join_through_another() -> None:
    vectors = torch.ones(4, 3)
    owners = torch.tensor([0, 0, 0, 0])
    assert near_duplicates(vectors, 0.9, owners).rows == ()
    assert near_duplicates(vectors, 0.9, torch.tensor([0, 0, 1, 1])).rows == ((0, 1, 2, 3),)


def test_a_vector_of_zeros_is_nothing_to_anything() -> None:
    assert near_duplicates(torch.zeros(3, 4), 0.5).rows == ()


def test_neighbours_are_those_of_all_similarities() -> None:
    vectors = torch.randn(BLOCK + 30, 8, generator=torch.Generator().manual_seed(1))
    unit = torch.nn.functional.normalize(vectors, dim=1)
    expected = (unit @ unit.T).fill_diagonal_(-2).topk(3, dim=1).indices
    assert torch.equal(nearest(vectors, 3), expected)
    assert nearest(vectors[:2], 5).tolist() == [[1], [0]]
    assert nearest(vectors[:1], 5).shape == (1, 0)


def test_the_plane_holds_the_two_directions_of_the_largest_variance() -> None:
    generator = torch.Generator().manual_seed(2)
    vectors = torch.randn(500, 10, generator=generator) * torch.tensor([0.5, 0.4] + [0.02] * 8) + 3
    found = plane(vectors)
    unit = torch.nn.functional.normalize(vectors, dim=1)
    _, values, _ = torch.linalg.svd(unit - unit.mean(0))
    assert found.points.shape == (500, 2)
    assert found.explained == pytest.approx(float(values[:2].square().sum() / values.square().sum()), abs=1e-4)
    torch.testing.assert_close(found.points.norm(dim=0), values[:2], atol=1e-3, rtol=1e-3)
    assert torch.equal(found.points, plane(vectors).points)


@pytest.mark.parametrize("vectors", [torch.ones(1, 5), torch.ones(7, 5), torch.ones(3, 1), torch.randn(2, 5)])
def test_the_plane_of_very_little_is_finite(vectors: Tensor) -> None:
    found = plane(vectors)
    assert found.points.shape == (len(vectors), 2)
    assert bool(found.points.isfinite().all())


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("umap") is None, reason="umap-learn is not installed: pip install 'stjepa[umap]'")
@pytest.mark.filterwarnings("ignore")  # numba and umap warn in their own code
def test_umap_keeps_clusters_apart() -> None:
    vectors = torch.randn(90, 16, generator=torch.Generator().manual_seed(3)) * 0.05
    vectors += torch.eye(16)[torch.arange(90) % 3]
    points = plane(vectors, "umap").points
    centres = torch.stack([points[i::3].mean(0) for i in range(3)])
    assert torch.equal(torch.cdist(points, centres).argmin(1), torch.arange(90) % 3)
