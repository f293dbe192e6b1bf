"""Masks: disjoint, of constant sizes, tubes, and a function of the seed."""

from __future__ import annotations

import pytest
import torch

from stjepa_cli.core.errors import MaskError
from stjepa_cli.core.types import TokenGrid
from stjepa_cli.models.masking import gather_tokens, num_hidden_positions, tube_mask

GRID = TokenGrid(4, 3, 5)


def _mask(ratio: float = 0.75, seed: int = 0, grid: TokenGrid = GRID, batch_size: int = 6):  # type: ignore[no-untyped-def]
    return tube_mask(grid, batch_size, ratio, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.5, 0.75, 0.9, 0.99])
def test_visible_and_predicted_tokens_are_the_whole_clip_and_share_none(ratio: float) -> None:
    mask = _mask(ratio)
    for visible, predict in zip(mask.visible.tolist(), mask.predict.tolist(), strict=True):
        assert sorted(visible + predict) == list(range(GRID.num_tokens))


def test_the_same_positions_are_hidden_at_every_time_step() -> None:
    mask = _mask()
    by_time = mask.visible.view(6, GRID.t, -1)
    positions = by_time - torch.arange(GRID.t).view(1, -1, 1) * GRID.num_positions
    assert mask.is_tube
    assert (positions == positions[:, :1]).all()
    assert ((positions >= 0) & (positions < GRID.num_positions)).all()


def test_the_ratio_is_kept_and_never_hides_all_or_nothing() -> None:
    assert num_hidden_positions(TokenGrid(8, 14, 14), 0.75) == 147
    assert num_hidden_positions(GRID, 0.001) == 1
    assert num_hidden_positions(GRID, 0.999) == GRID.num_positions - 1
    with pytest.raises(MaskError, match="two spatial positions"):
        num_hidden_positions(TokenGrid(4, 1, 1), 0.5)


def test_one_seed_gives_one_mask_and_another_another() -> None:
    assert torch.equal(_mask(seed=3).visible, _mask(seed=3).visible)
    assert not torch.equal(_mask(seed=3).visible, _mask(seed=4).visible)


def test_clips_of_a_batch_have_masks_of_their_own_and_all_positions_get_their_turn() -> None:
    mask = _mask(batch_size=400)
    share = torch.zeros(GRID.num_tokens).scatter_add(0, mask.predict.flatten(), torch.ones(mask.predict.numel())) / 400
    hidden = num_hidden_positions(GRID, 0.75) / GRID.num_positions
    assert (share - hidden).abs().max() < 0.1


def test_gather_tokens_equals_indexing() -> None:
    tokens, mask = torch.randn(6, GRID.num_tokens, 7), _mask()
    picked = gather_tokens(tokens, mask.visible)
    for b in range(6):
        assert torch.equal(picked[b], tokens[b, mask.visible[b]])
