"""Every data set, found by its name, keeps the contract, and `spread` samples fairly."""

from __future__ import annotations

from pathlib import Path

import pytest

from stjepa_cli.core import plugins
from stjepa_cli.core.errors import ConfigError
from stjepa_cli.data.datasets.base import VideoItem, open_dataset, spread
from tests.data.datasets.contract import DatasetContract


class TestEveryDataset(DatasetContract):
    """Each data set, from the small example that the fixture `tiny_<name>` makes."""

    @pytest.fixture(params=plugins.names("data.datasets"))
    def name(self, request: pytest.FixtureRequest) -> str:
        found: str = request.param
        return found

    @pytest.fixture
    def root(self, name: str, request: pytest.FixtureRequest) -> Path:
        try:
            found: Path = request.getfixturevalue(f"tiny_{name}")
        except pytest.FixtureLookupError:
            pytest.fail(f"data/datasets/{name}.py needs an example: tests/conftest.py must have a fixture tiny_{name} that makes one")
        return found


def test_an_unknown_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown dataset.*ssv2"):
        open_dataset("imagenet", tmp_path)


# ------------------------------------------------------------------------------------------------------------ spread


def listed(*classes: tuple[int | None, str | None]) -> list[VideoItem]:
    return [VideoItem(str(i), Path(f"{i}.webm"), label, group) for i, (label, group) in enumerate(classes)]


def chosen(items: list[VideoItem], limit: int) -> str:
    return "".join(item.id for item in spread(items, limit))


def test_spread_takes_from_each_class_in_turn_and_keeps_the_order() -> None:
    items = listed((0, None), (0, None), (0, None), (1, None), (1, None), (2, None))
    assert chosen(items, 3) == "035"
    assert chosen(items, 5) == "01345"  # class 2 has no more


def test_spread_takes_from_each_group_in_turn() -> None:
    items = listed((0, "g01"), (0, "g01"), (0, "g02"), (1, "g01"), (1, "g01"), (1, "g02"))
    assert chosen(items, 4) == "0235"


def test_a_larger_limit_contains_the_smaller_choice() -> None:
    items = listed(*((i % 7 // 2, f"g{i % 3}") for i in range(60)))
    for limit in range(1, 60):
        assert set(spread(items, limit)) < set(spread(items, limit + 1))


def test_spread_without_labels_takes_the_first() -> None:
    assert chosen(listed(*[(None, None)] * 5), 2) == "01"


def test_spread_takes_all_there_are() -> None:
    items = listed((0, None), (1, None))
    assert spread(items, 99) == spread(items, None) == tuple(items)
    assert spread([], 3) == ()


def test_spread_refuses_a_limit_below_one() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        spread([], 0)
