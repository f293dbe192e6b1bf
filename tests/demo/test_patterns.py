"""Two families of looks that share nothing."""

from __future__ import annotations

import pytest
import torch

from stjepa_cli.demo.patterns import MAX_PATTERNS, family_of, pattern_name


@pytest.mark.parametrize("count", [3, MAX_PATTERNS])
def test_families_share_no_shape_no_texture_and_no_speed(count: int) -> None:
    train, unseen = family_of("train", count), family_of("unseen", count)
    assert len(train.shapes) == len(unseen.textures) == count
    assert not set(train.shapes) & set(unseen.shapes)
    assert not set(train.textures) & set(unseen.textures)
    assert train.speeds[1] <= unseen.speeds[0]


@pytest.mark.parametrize("name", ["train", "unseen"])
def test_textures_lie_in_0_to_1_and_outlines_have_an_inside_within_the_unit_square(name: str) -> None:
    family = family_of("train" if name == "train" else "unseen")
    line = torch.linspace(-3, 3, 121)
    v, u = torch.meshgrid(line, line, indexing="ij")
    for texture in family.textures:
        field = texture(u, v)
        assert field.min() >= 0
        assert field.max() <= 1
        assert field.std() > 0.1
    for shape in family.shapes:
        inside = shape(u, v) < 0
        assert 0.02 < inside.float().mean() < 0.15
        assert u[inside].abs().max() < 1.5
        assert v[inside].abs().max() < 1.5


def test_names_of_patterns_are_words() -> None:
    shapes = [pattern_name(shape) for shape in family_of("unseen").shapes]
    assert shapes == ["Cross", "HalfDisc", "Kite", "Crescent", "Tee"]
