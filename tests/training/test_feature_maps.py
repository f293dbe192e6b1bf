"""Maps: colours lie where the tokens are, and a perfect prediction is 1 everywhere."""

from __future__ import annotations

import pytest
import torch

from stjepa_cli.core.types import ClipSpec, TokenGrid
from stjepa_cli.models.masking import gather_tokens
from stjepa_cli.training import feature_maps

SPEC = ClipSpec(num_frames=4, size_px=48, tubelet=2, patch_px=16)
GRID = TokenGrid(2, 3, 4)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.5, 0.75, 0.99])
def test_the_masks_hide_every_token_and_are_tubes_of_the_ratio(ratio: float) -> None:
    mask = feature_maps.covering_masks(GRID, ratio, torch.Generator().manual_seed(1))
    hidden = min(11, max(1, round(12 * ratio)))
    assert mask.predict.shape == (-(-12 // hidden), 2 * hidden)
    assert mask.visible.shape == (len(mask.predict), 24 - 2 * hidden)
    assert set(mask.predict.flatten().tolist()) == set(range(24))
    for visible, predict in zip(mask.visible.tolist(), mask.predict.tolist(), strict=True):
        assert sorted(visible + predict) == list(range(24))
        assert predict == sorted(predict)
        assert [token + 12 for token in predict[:hidden]] == predict[hidden:]


@pytest.mark.parametrize("ratio", [0.3, 0.75])
def test_a_perfect_predictor_has_cosine_one_everywhere(ratio: float) -> None:
    latents, mask = random(24, 5), feature_maps.covering_masks(GRID, ratio, torch.Generator().manual_seed(1))
    truth = gather_tokens(latents.expand(len(mask.predict), -1, -1), mask.predict)
    assert torch.allclose(feature_maps.token_cosines(3 * truth, latents, mask), torch.ones(24))
    assert torch.allclose(feature_maps.token_cosines(-truth, latents.half(), mask), -torch.ones(24), atol=1e-3)


def test_a_token_that_two_masks_hide_has_the_cosine_of_the_first() -> None:
    latents, mask = random(24, 5), feature_maps.covering_masks(GRID, 0.75, torch.Generator().manual_seed(1))
    truth = gather_tokens(latents.expand(2, -1, -1), mask.predict)
    cosines = feature_maps.token_cosines(torch.stack([truth[0], -truth[1]]), latents, mask)
    assert torch.allclose(cosines[mask.predict[0]], torch.ones(18))
    assert (cosines < 0).sum() == 6


def test_the_constant_answer_is_right_where_all_latents_are_one_direction() -> None:
    latents = torch.rand(3, 24, 1) * torch.tensor([1.0, 2.0, -1.0])
    assert torch.allclose(feature_maps.constant_cosines(latents[0], feature_maps.mean_answer(latents)), torch.ones(24), atol=1e-5)


def test_components_are_colours_whose_signs_are_fixed() -> None:
    tokens = torch.zeros(1, 4, 5)
    tokens[0, :, 2] = torch.tensor([0.0, 1.0, 2.0, 3.0])
    components, fraction = feature_maps.principal_components(tokens)
    assert feature_maps.as_colours(components)[0, :, 0].tolist() == [0, 85, 170, 255]
    assert fraction == pytest.approx(1.0)
    components, _ = feature_maps.principal_components(torch.ones(2, 4, 5))
    colours = feature_maps.as_colours(components)
    assert (colours.shape, colours.dtype) == ((2, 4, 3), torch.uint8)


@pytest.mark.parametrize("width", [1, 2, 3, 8])
def test_components_have_unit_variance_and_are_zero_where_there_are_none(width: int) -> None:
    components, fraction = feature_maps.principal_components(random(3, 24, width))
    assert components.shape == (3, 24, 3)
    spread = components.flatten(0, 1).std(dim=0, correction=0)
    assert torch.allclose(spread, (torch.arange(3) < width).double())
    assert fraction == pytest.approx(1.0) or width == 8


def test_turned_and_mirrored_components_come_back_to_their_reference() -> None:
    reference, _ = feature_maps.principal_components(random(2, 24, 6))
    rotation = torch.linalg.qr(random(3, 3).double()).Q
    assert torch.allclose(feature_maps.align(reference @ rotation, reference), reference)


def test_smooth_maps_keep_corners_and_have_every_frame() -> None:
    colours = torch.zeros(18, 3, dtype=torch.uint8)
    colours[0] = 255
    found = feature_maps.smooth(colours, SPEC, 4, 30)
    assert (found.shape, found.dtype) == ((4, 3, 30, 30), torch.uint8)
    assert found[0, :, 0, 0].tolist() == [255, 255, 255]
    assert found[0, 0, 0].int().diff().le(0).all()
    assert found[3].max() == 0


def test_heat_goes_from_end_to_end_of_its_scale() -> None:
    colours = feature_maps.heat(torch.tensor([-1.0, 0.0, 0.125, 1.0, 2.0, torch.nan])).tolist()
    expected = [
        feature_maps.SCALE[0],
        feature_maps.SCALE[0],
        feature_maps.SCALE[1],
        feature_maps.SCALE[-1],
        feature_maps.SCALE[-1],
        feature_maps.SCALE[0],
    ]
    assert [tuple(colour) for colour in colours] == expected


def test_colours_lie_over_their_patches_and_other_patches_stay_as_they_are() -> None:
    frames = torch.full((2, 3, 48, 48), 100, dtype=torch.uint8)
    shown, colours = torch.zeros(18, dtype=torch.bool), torch.zeros(18, 3, dtype=torch.uint8)
    token = 9 + 1 * 3 + 2  # time step 1, row 1, column 2
    shown[token], colours[token] = True, torch.tensor([200, 0, 40], dtype=torch.uint8)
    picture = feature_maps.overlay(frames, colours, SPEC, shown)
    patch = picture[1, :, 16:32, 32:48].flatten(1)
    assert patch.amin(1).tolist() == patch.amax(1).tolist() == [175, 25, 55]
    picture[1, :, 16:32, 32:48] = 100
    assert torch.equal(picture, frames)
