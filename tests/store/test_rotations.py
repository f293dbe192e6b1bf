"""Rotations: orthogonal, and every channel gets the same variance."""

from __future__ import annotations

import pytest
import torch

from stjepa_cli.store.rotations import equalising_rotation, hadamard


@pytest.mark.parametrize("size", [1, 2, 4, 12, 20, 24, 96, 192, 384])
def test_hadamard_matrices_have_orthogonal_rows_of_ones(size: int) -> None:
    matrix = hadamard(size)
    assert matrix is not None
    assert torch.equal(matrix.abs(), torch.ones(size, size, dtype=torch.float64))
    assert torch.equal(matrix @ matrix.T, size * torch.eye(size, dtype=torch.float64))


@pytest.mark.parametrize("size", [3, 5, 6, 7, 36, 100])
def test_other_sizes_have_none_here(size: int) -> None:
    assert hadamard(size) is None


@pytest.mark.parametrize("size", [1, 2, 3, 5, 12, 35, 36, 96, 100])
@pytest.mark.parametrize("spectrum", ["random", "steep", "low rank", "equal", "zero"])
def test_the_rotation_is_orthogonal_deterministic_and_equalises(size: int, spectrum: str) -> None:
    values = torch.rand(size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    made = {"random": values, "steep": 10 ** (12 * values - 6), "equal": torch.full_like(values, 2), "zero": torch.zeros_like(values)}
    variances = made.get(spectrum, values * (torch.arange(size) < max(1, size // 4)))
    rotation = equalising_rotation(variances)
    assert torch.equal(rotation, equalising_rotation(variances))
    assert torch.allclose(rotation @ rotation.T, torch.eye(size, dtype=torch.float64), atol=1e-12)
    equal = ((rotation * variances) @ rotation.T).diagonal()
    assert torch.allclose(equal, variances.mean().expand(size), rtol=1e-9, atol=1e-12)
