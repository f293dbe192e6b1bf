"""What is particular to LanceDB: places, the index of a large table, and the message when it is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from stjepa_cli.core.errors import ConfigError, NotReadyError
from stjepa_cli.search.indexes.base import open_index
from stjepa_cli.search.indexes.lancedb import WORTH_AN_INDEX, split_place
from stjepa_cli.search.records import Column, Row

pytest.importorskip("lancedb")
COLUMN = Column("vector", "clip", 8, "hog", "a" * 64)


def rows(first: int, count: int) -> list[Row]:
    vectors = np.random.default_rng(first).standard_normal((count, 8)).astype(np.float32)
    return [Row(f"/{first + i}.mp4", digest="1", vectors={"vector": vector}) for i, vector in enumerate(vectors)]


def test_a_large_table_gets_an_index_that_finds_later_rows_too(tmp_path: Path) -> None:
    with open_index(str(tmp_path), create=True) as index:
        index.add_column(COLUMN)
        index.upsert(rows(0, WORTH_AN_INDEX), "vector")
        bad = {"digest": "1", "status": "error", "error": "broken"}
        index.upsert([Row("/null.mp4", **bad, vectors={"vector": None})], "vector")  # type: ignore[arg-type]
        index.upsert([Row("/zero.mp4", **bad, vectors={"vector": np.zeros(8, np.float32)})], "vector")  # type: ignore[arg-type]
        built = index.build_index("vector")
        assert (built.kind, built.rows) == ("IVF_SQ", WORTH_AN_INDEX)
        assert built.recall >= 0.9
        later = rows(WORTH_AN_INDEX, 1)
        index.upsert(later, "vector")
        vector = later[0].vectors["vector"]
        assert vector is not None
        [(nearest, distance), *_] = index.search(vector, "vector")
        assert nearest == later[0]
        assert distance == pytest.approx(0, abs=1e-5)
        index.tidy()
        assert index.build_index("vector").rows == WORTH_AN_INDEX + 1
        everything = index.search(vector, "vector", WORTH_AN_INDEX + 10)
        assert {"/null.mp4", "/zero.mp4"}.isdisjoint(row.uri for row, _ in everything)


def test_a_place_is_a_folder_or_a_folder_and_a_name(tmp_path: Path) -> None:
    db = tmp_path / "db"
    assert split_place(str(db)) == (str(db), "videos")
    assert split_place(f"{db}/second.lance") == (str(db), "second")
    open_index(str(db), create=True)
    assert split_place(str(db)) == (str(db), "videos")
    assert split_place(f"{db}/second") == (str(db), "second")
    open_index(f"{db}/second", create=True)
    assert split_place(f"{db}/second") == (str(db), "second")


def test_a_place_without_the_table_is_refused_and_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no table at this place: got .*stjepa embed SOURCE"):
        open_index(str(tmp_path / "none"))
    assert list(tmp_path.iterdir()) == []


def test_without_lancedb_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(NotReadyError, match=r"LanceDB is not installed\. Type `pip.*stjepa.*search"):
        open_index(str(tmp_path), create=True)
