"""PostgreSQL: places, servers that are not there, tables of others, and an approximate index; the rest is the contract."""

from __future__ import annotations

import dataclasses
import sys
import uuid

import numpy as np
import pytest

from stjepa_cli.core.errors import ConfigError, NotReadyError, StjepaError
from stjepa_cli.search.indexes.base import open_index
from stjepa_cli.search.indexes.pgvector import WIDEST_INDEX, WORTH_AN_INDEX, join_place, split_place
from stjepa_cli.search.records import Column, Row
from tests.search.indexes.contract import FIRST, row, vector

psycopg = pytest.importorskip("psycopg")


@pytest.fixture
def place(postgres: str) -> str:
    return join_place(postgres, f"t{uuid.uuid4().hex}")


def test_a_place_is_a_dsn_and_the_name_of_a_table() -> None:
    assert split_place("postgresql://me@host/db") == ("postgresql://me@host/db", "videos")
    assert split_place("postgresql://me@host/db#clips") == ("postgresql://me@host/db", "clips")
    assert split_place("host=/tmp dbname=db#clips") == ("host=/tmp dbname=db", "clips")
    assert split_place(join_place("postgresql://host/db", "clips")) == ("postgresql://host/db", "clips")


@pytest.mark.parametrize("table", ['a"; DROP TABLE b; --', "pg_catalog.pg_class", "1st", "a b", "é", "a" * 59, "a-b"])
def test_a_name_that_is_none_is_refused(postgres: str, table: str) -> None:
    with pytest.raises(ConfigError, match="cannot have this name"):
        open_index(join_place(postgres, table), create=True)


@pytest.mark.parametrize(
    ("dsn", "message"),
    [
        ("postgresql://me:secret@127.0.0.1:1/db", "the PostgreSQL server at 127.0.0.1, database db does not answer"),
        ("postgresql:///db?host=/nosuchfolder&password=secret", "the PostgreSQL server at /nosuchfolder, database db does not answer"),
        ("host=/nosuchfolder user=me password=secret dbname=db", "does not answer"),
    ],
)
def test_a_server_that_does_not_answer_is_one_sentence_without_the_password(dsn: str, message: str) -> None:
    with pytest.raises(NotReadyError, match=message) as caught:
        open_index(join_place(dsn, "videos"))
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_dsn_that_is_none_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match="the DSN cannot be read"):
        open_index("postgresql://host/db?nosuch=1#videos")


def test_without_the_driver_the_command_that_installs_it_is_named(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(NotReadyError, match=r"driver of PostgreSQL is not installed.*stjepa\[pgvector\]"):
        open_index(place)


def test_a_database_without_the_extension_says_who_can_help(postgres: str) -> None:
    name = f"d{uuid.uuid4().hex}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN")
        connection.execute(f"CREATE DATABASE {name} OWNER {name}")
    dsn = postgres.replace("/postgres?", f"/{name}?").replace("user=tests", f"user={name}")
    with pytest.raises(NotReadyError, match=r"the database has no pgvector.*CREATE EXTENSION vector"):
        open_index(join_place(dsn, "videos"), create=True)


def test_a_user_who_may_only_read_can_search(postgres: str, place: str) -> None:
    _, table = split_place(place)
    reader = f"r{uuid.uuid4().hex}"
    with open_index(place, create=True) as index:
        index.add_column(FIRST)
        index.upsert([row(1), row(2)], "first")
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {reader} LOGIN")
        connection.execute(f"GRANT SELECT ON {table} TO {reader}")
    with open_index(place.replace("user=tests", f"user={reader}")) as index:
        assert [found.uri for found, _ in index.search(vector(1), "first", 1)] == ["/clips/1.mp4"]
        assert len(list(index.rows())) == 2
        with pytest.raises(StjepaError, match="cannot write"):
            index.upsert([row(3)], "first")


def test_a_table_of_another_schema_is_refused_and_left_alone(postgres: str, place: str) -> None:
    dsn, table = split_place(place)
    with psycopg.connect(dsn) as connection:
        connection.execute(f"CREATE TABLE {table} (id text, name text)")
        connection.execute(f"INSERT INTO {table} VALUES ('1', 'mine')")
    for create in (False, True):
        with pytest.raises(ConfigError, match="a table of another schema: got no uri, digest"):
            open_index(place, create=create)
    with psycopg.connect(dsn) as connection:
        assert connection.execute(f"SELECT * FROM {table}").fetchall() == [("1", "mine")]


def test_a_comment_of_somebody_else_is_no_column_of_vectors(place: str) -> None:
    dsn, table = split_place(place)
    with open_index(place, create=True) as index:
        index.add_column(FIRST)
        with psycopg.connect(dsn) as connection:
            connection.execute(f"ALTER TABLE {table} ADD COLUMN note text")
            connection.execute(f"COMMENT ON COLUMN {table}.note IS 'where it is from'")
        assert list(index.columns()) == ["first"]
        index.upsert([row(1)], "first")
        assert index.count() == 1


def test_a_text_with_a_character_that_postgresql_cannot_store_is_written(place: str) -> None:
    with open_index(place, create=True) as index:
        index.add_column(FIRST)
        index.upsert([dataclasses.replace(row(1, status="error"), error="broken\0here")], "first")
        found = index.get(row(1).id)
    assert found is not None
    assert found.error == "broken\N{REPLACEMENT CHARACTER}here"


def test_a_connection_that_is_lost_is_one_sentence(place: str) -> None:
    dsn, _ = split_place(place)
    with open_index(place, create=True) as index:
        index.add_column(FIRST)
        with psycopg.connect(dsn, autocommit=True) as other:
            mine = "pid <> pg_backend_pid() AND backend_type = 'client backend'"
            other.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {mine}")
        with pytest.raises(StjepaError, match="terminating connection") as caught:
            index.upsert([row(1)], "first")
    assert "\n" not in str(caught.value)


def test_a_wide_column_is_searched_exactly(place: str) -> None:
    column = Column("wide", "clip", WIDEST_INDEX + 1, "hog", "d" * 64)
    last = np.zeros(column.dim, np.float32)
    last[-1] = 1
    with open_index(place, create=True) as index:
        index.add_column(column)
        index.upsert([dataclasses.replace(row(1), vectors={"wide": last})], "wide")
        assert index.build_index("wide").kind == "exact"
        assert index.search(last, "wide")[0][1] == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_a_large_table_gets_an_approximate_index_that_finds_nearly_all(place: str) -> None:
    column = Column("many", "clip", 16, "hog", "e" * 64)
    numbers = np.random.default_rng(0).standard_normal((WORTH_AN_INDEX, 16)).astype(np.float32)
    with open_index(place, create=True) as index:
        index.add_column(column)
        rows = [Row(f"/{i}.mp4", digest="1", duration_seconds=float(i), vectors={"many": each}) for i, each in enumerate(numbers)]
        for start in range(0, len(rows), 2000):
            index.upsert(rows[start : start + 2000], "many")
        built = index.build_index("many")
        assert (built.kind, built.rows) == ("HNSW", WORTH_AN_INDEX)
        assert built.recall > 0.9
        again = index.build_index("many")  # replaces the first
        assert again.recall > 0.9
        few = index.search(numbers[0], "many", 10, where="duration_seconds < 20")  # rare rows are found through the index too
        assert len(few) == 10
        assert all(found.duration_seconds is not None and found.duration_seconds < 20 for found, _ in few)
