"""Every index, found by its name, keeps the contract."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest

from stjepa_cli.core import plugins
from stjepa_cli.core.errors import NotReadyError
from stjepa_cli.search.indexes.base import open_index
from tests.search.indexes.contract import IndexContract


def lancedb_place(request: pytest.FixtureRequest) -> str:
    pytest.importorskip("lancedb")
    return str(request.getfixturevalue("tmp_path") / "table")


def pgvector_place(request: pytest.FixtureRequest) -> str:
    return f"{request.getfixturevalue('postgres')}#t{uuid.uuid4().hex}"


PLACES: dict[str, Callable[[pytest.FixtureRequest], str]] = {"lancedb": lancedb_place, "pgvector": pgvector_place}
"""For each plug-in, where there is no table yet; a plug-in without one fails."""


@pytest.mark.parametrize("name", plugins.names("search.indexes"))
class TestEveryIndex(IndexContract):
    @pytest.fixture
    def place(self, name: str, request: pytest.FixtureRequest) -> str:
        assert name in PLACES, f"tests/search/indexes/test_base.py must say where {name} keeps a table"
        try:
            return PLACES[name](request)
        except NotReadyError as error:
            pytest.skip(str(error))


@pytest.mark.parametrize("name", PLACES)
def test_the_place_decides_the_database(name: str, request: pytest.FixtureRequest) -> None:
    with open_index(PLACES[name](request), create=True) as index:
        assert type(index).__module__.endswith(f".{name}")
