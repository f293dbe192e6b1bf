"""Every index, found by its name, keeps the contract."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from stjepa_cli.core import plugins
from stjepa_cli.core.errors import NotReadyError
from stjepa_cli.search.indexes.base import open_index
from tests.search.indexes.contract import IndexContract


def lancedb_place(folder: Path) -> str:
    pytest.importorskip("lancedb")
    return str(folder / "table")


PLACES: dict[str, Callable[[Path], str]] = {"lancedb": lancedb_place}
"""For each plug-in, where there is no table yet; a plug-in without one fails."""


@pytest.mark.parametrize("name", plugins.names("search.indexes"))
class TestEveryIndex(IndexContract):
    @pytest.fixture
    def place(self, name: str, tmp_path: Path) -> str:
        assert name in PLACES, f"tests/search/indexes/test_base.py must say where {name} keeps a table"
        try:
            return PLACES[name](tmp_path)
        except NotReadyError as error:
            pytest.skip(str(error))


def test_the_place_decides_the_database(tmp_path: Path) -> None:
    assert type(open_index(lancedb_place(tmp_path), create=True)).__module__.endswith(".lancedb")
