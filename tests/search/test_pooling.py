"""The recipes that make one vector of the tokens of a clip."""

from __future__ import annotations

import pytest
import torch

from stjepa_cli.core.errors import ConfigError
from stjepa_cli.core.types import TokenGrid
from stjepa_cli.search import pooling

GRID = TokenGrid(6, 2, 2)
TOKENS = torch.randn(3, GRID.num_tokens, 5, generator=torch.Generator().manual_seed(0))


def by_time(values: list[float]) -> torch.Tensor:
    """Tokens (1, N, t) that say which time step they belong to, scaled by a value per step."""
    steps = torch.diag(torch.tensor(values)).repeat_interleave(GRID.num_positions, dim=0)
    return steps.unsqueeze(0)


@pytest.mark.parametrize("name", pooling.RECIPES)
def test_every_recipe_gives_unit_vectors_that_do_not_depend_on_the_batch(name: str) -> None:
    found = pooling.pool(TOKENS, GRID, name)
    assert found.shape == (3, pooling.pooled_dim(5, name))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(pooling.pool(TOKENS[1:2], GRID, name)[0], found[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", pooling.RECIPES)
def test_every_recipe_takes_half_precision(name: str) -> None:
    assert pooling.pool(TOKENS.half(), GRID, name).dtype == torch.float32


@pytest.mark.parametrize("name", pooling.RECIPES)
def test_tokens_of_zeros_are_not_divided_by_zero(name: str) -> None:
    assert pooling.pool(torch.zeros(1, GRID.num_tokens, 5), GRID, name).eq(0).all()


def test_mean_and_max_are_what_they_say() -> None:
    torch.testing.assert_close(pooling.mean(TOKENS, GRID), torch.nn.functional.normalize(TOKENS.mean(1), dim=1))
    torch.testing.assert_close(pooling.max(TOKENS, GRID), torch.nn.functional.normalize(TOKENS.amax(1), dim=1))


def test_the_weight_over_time_is_a_gaussian_around_the_middle() -> None:
    weights = pooling.weighted(by_time([1.0] * 6), GRID)[0]
    torch.testing.assert_close(weights, weights.flip(0))
    places = (torch.arange(6) + 0.5) / 6 - 0.5
    expected = torch.exp(-places.square() / (2 * pooling.SPREAD**2))
    torch.testing.assert_close(weights, torch.nn.functional.normalize(expected, dim=0))


def test_segments_are_thirds_of_the_clip_side_by_side() -> None:
    found = pooling.segments(by_time([1.0] * 6), GRID)[0].reshape(3, 6)
    assert [row.nonzero().flatten().tolist() for row in found] == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_clip_of_few_steps_has_three_segments_too(steps: int) -> None:
    grid = TokenGrid(steps, 1, 1)
    found = pooling.segments(torch.ones(1, steps, 2), grid)
    torch.testing.assert_close(found, torch.full((1, 6), 6**-0.5))


def test_frames_are_unit_vectors_per_time_step() -> None:
    found = pooling.frames(TOKENS, GRID)
    assert found.shape == (3, 6, 5)
    torch.testing.assert_close(found[1, 2], torch.nn.functional.normalize(TOKENS[1, 8:12].mean(0), dim=0))


def test_none_keeps_the_tokens() -> None:
    assert torch.equal(pooling.pool(TOKENS, GRID, "none"), TOKENS)


def test_an_unknown_pooling_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match="got 'median', expected one of mean, max, weighted, segments, none"):
        pooling.pool(TOKENS, GRID, "median")
