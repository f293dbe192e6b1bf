"""The contract of an index: a test class that every plug-in of `search/indexes` is run through without being listed."""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Iterator

import numpy as np
import pytest

from stjepa_cli.core.errors import ConfigError
from stjepa_cli.search.indexes.base import Index, open_index
from stjepa_cli.search.records import Column, Row, row_id

DIM = 8
FIRST = Column("first", "clip", DIM, "hog", "a" * 64)
TOKENS = Column("tokens", "tokens", 3, "hog", "b" * 64, pool="none")


def vector(seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    found = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    return found / np.linalg.norm(found)


def row(number: int, column: Column = FIRST, digest: str = "1", status: str = "ok") -> Row:
    value = vector(number) if column.kind == "clip" else np.full((number + 1, column.dim), number, np.float32)
    return Row(
        f"/clips/{number}.mp4",
        digest=digest,
        duration_seconds=float(number),
        width=64,
        model=column.model,
        model_digest=column.model_digest,
        status=status,
        error="broken" if status == "error" else None,
        vectors={column.name: None if status == "error" else value},
    )


def upsert_in_another_process(place: str, start: int) -> None:
    with open_index(place) as index:
        for number in range(start, start + 20, 4):
            index.upsert([row(each) for each in range(number, number + 4)], "first")


class IndexContract:
    """A subclass supplies the fixture `place`, where there is no table yet."""

    @pytest.fixture
    def index(self, place: str) -> Iterator[Index]:
        with open_index(place, create=True) as opened:
            opened.add_column(FIRST)
            yield opened

    def test_a_table_that_is_not_there_is_refused(self, place: str) -> None:
        with pytest.raises(ConfigError, match="no table"):
            open_index(place)

    def test_a_table_that_is_there_is_opened_with_all_that_it_holds(self, place: str, index: Index) -> None:
        index.upsert([row(1)], "first")
        with open_index(place, create=True) as again:
            assert (again.count(), set(again.known("first"))) == (1, {row(1).id})

    def test_a_column_keeps_where_its_vectors_come_from(self, place: str, index: Index) -> None:
        index.add_column(TOKENS)
        with open_index(place) as again:
            assert list(again.columns().values()) == [FIRST, TOKENS]

    def test_a_model_of_another_digest_is_refused_by_name(self, index: Index) -> None:
        index.add_column(dataclasses.replace(FIRST, model="renamed"))
        with pytest.raises(ConfigError, match=r"other vectors: got vjepa \(digest cccccccccccc\), expected hog \(digest aaaaaaaaaaaa\)"):
            index.add_column(dataclasses.replace(FIRST, model="vjepa", model_digest="c" * 64))

    @pytest.mark.parametrize("change", [{"kind": "tokens"}, {"dim": 9}, {"pool": "max"}, {"strategy": "window"}])
    def test_a_column_of_other_vectors_is_refused(self, index: Index, change: dict[str, object]) -> None:
        with pytest.raises(ConfigError, match="holds other vectors"):
            index.add_column(dataclasses.replace(FIRST, **change))  # type: ignore[arg-type]

    def test_rows_come_back_as_they_were(self, index: Index) -> None:
        rows = [row(number) for number in range(5)]
        index.upsert(rows, "first")
        found = sorted(index.rows(columns=("first",), batch_size=2), key=lambda each: each.uri)
        assert found == rows
        for mine, theirs in zip(rows, found, strict=True):
            np.testing.assert_array_equal(mine.vectors["first"], theirs.vectors["first"])
            assert theirs.statuses == {"first": "ok"}

    @pytest.mark.parametrize("called", ["video_embedding", "vector"])
    def test_a_row_without_a_vector_stands_beside_others_whatever_the_name_of_the_column(self, index: Index, called: str) -> None:
        column = dataclasses.replace(FIRST, name=called)
        index.add_column(column)
        index.upsert([row(1, column), row(2, column, status="error"), row(3, column)], called)
        found = {each.uri: each.vectors[called] is None for each in index.rows(columns=(called,))}
        assert found == {"/clips/1.mp4": False, "/clips/2.mp4": True, "/clips/3.mp4": False}

    def test_the_same_row_twice_is_one_row_with_the_later_values(self, index: Index) -> None:
        index.upsert([row(1), row(2)], "first")
        index.upsert([row(2, digest="2"), row(3)], "first")
        assert index.count() == 3
        found = index.get(row(2).id)
        assert found is not None
        assert found.digest == "2"

    def test_parts_of_a_video_are_rows_of_their_own(self, index: Index) -> None:
        parts = [dataclasses.replace(row(1), start_seconds=float(start), end_seconds=start + 2.0) for start in range(3)]
        index.upsert([row(1), *parts], "first")
        assert index.count() == 4
        assert index.get(row_id(parts[1].uri, 1.0, 3.0)) == parts[1]

    def test_known_are_the_rows_that_are_ok_in_the_column(self, index: Index) -> None:
        index.add_column(TOKENS)
        index.upsert([row(1), row(2, status="error")], "first")
        assert {key: (known.digest, known.duration_seconds) for key, known in index.known("first").items()} == {row(1).id: ("1", 1.0)}
        assert index.known("tokens") == {}

    def test_a_second_column_stands_beside_the_first(self, index: Index) -> None:
        index.add_column(TOKENS)
        index.upsert([row(1)], "first")
        index.upsert([row(1, TOKENS), row(2, TOKENS)], "tokens")
        assert index.count() == 2
        found = index.get(row(1).id, ("first", "tokens"))
        assert found is not None
        np.testing.assert_array_equal(found.vectors["first"], vector(1))
        np.testing.assert_array_equal(found.vectors["tokens"], np.full((2, 3), 1, np.float32))
        other = index.get(row(2).id, ("first", "tokens"))
        assert other is not None
        assert (other.vectors["first"], other.statuses) == (None, {"first": None, "tokens": "ok"})

    def test_vectors_of_a_video_that_has_changed_are_forgotten_in_other_columns(self, index: Index) -> None:
        index.add_column(TOKENS)
        index.upsert([row(1), row(2)], "first")
        index.upsert([row(1, TOKENS, digest="2"), row(2, TOKENS)], "tokens")
        assert set(index.known("first")) == {row(2).id}
        found = index.get(row(1).id, ("first",))
        assert found is not None
        assert (found.vectors["first"], found.statuses["first"]) == (None, None)

    def test_a_video_that_cannot_be_reached_keeps_what_other_columns_hold(self, index: Index) -> None:
        index.add_column(TOKENS)
        index.upsert([row(1)], "first")
        index.upsert([row(1, TOKENS, digest="", status="error")], "tokens")
        assert set(index.known("first")) == {row(1).id}

    def test_a_failure_in_one_column_leaves_another_alone(self, index: Index) -> None:
        index.add_column(TOKENS)
        index.upsert([row(1)], "first")
        index.upsert([row(1, TOKENS, status="error")], "tokens")
        assert set(index.known("first")) == {row(1).id}
        assert [found.id for found, _ in index.search(vector(1), "first")] == [row(1).id]

    @pytest.mark.parametrize("called", ["video_embedding", "vector", "plain"])
    def test_a_failure_beside_vectors_is_written_whatever_the_column_is_called(self, index: Index, called: str) -> None:
        column = Column(called, "clip", 384, "hog", "c" * 64)
        index.add_column(column)
        wide = dataclasses.replace(row(1), vectors={called: np.ones(384, np.float32)})
        index.upsert([wide, dataclasses.replace(row(2, status="error"), vectors={called: None})], called)
        found = {each.uri: each.vectors[called] is None for each in index.rows(columns=(called,))}
        assert found == {"/clips/1.mp4": False, "/clips/2.mp4": True}

    def test_vectors_of_another_width_are_refused_and_nothing_is_written(self, index: Index) -> None:
        bad = dataclasses.replace(row(2), vectors={"first": np.zeros(DIM + 1, np.float32)})
        with pytest.raises(ConfigError, match="do not fit column first"):
            index.upsert([row(1), bad], "first")
        assert index.count() == 0

    def test_an_unknown_column_is_refused_with_those_that_exist(self, index: Index) -> None:
        with pytest.raises(ConfigError, match="got other, expected one of first"):
            index.upsert([row(1)], "other")

    def test_deleted_rows_are_gone_and_unknown_ids_are_ignored(self, index: Index) -> None:
        index.upsert([row(1), row(2)], "first")
        index.delete([row(1).id, row(9).id, "' OR TRUE --"])
        assert [each.uri for each in index.rows()] == ["/clips/2.mp4"]

    def test_search_finds_the_nearest_first(self, index: Index) -> None:
        rows = [row(number) for number in range(30)]
        index.upsert(rows, "first")
        found = index.search(vector(7), "first", top=5)
        similarities = np.stack([vector(number) for number in range(30)]) @ vector(7)
        assert [each.uri for each, _ in found] == [rows[i].uri for i in np.argsort(-similarities)[:5]]
        np.testing.assert_allclose([distance for _, distance in found], 1 - np.sort(similarities)[::-1][:5], atol=1e-5)

    def test_search_leaves_out_rows_that_are_not_ok_zeros_among_them(self, index: Index) -> None:
        zero = dataclasses.replace(row(2, status="error"), vectors={"first": np.zeros(DIM, np.float32)})
        index.upsert([row(1), zero, row(3, status="error")], "first")
        assert [each.uri for each, _ in index.search(vector(2), "first")] == ["/clips/1.mp4"]
        assert [each.uri for each in index.rows(only_ok=True)] == ["/clips/1.mp4"]
        assert [each.uri for each in index.rows(columns=("first",), only_ok=True)] == ["/clips/1.mp4"]

    def test_search_applies_a_condition_before_it_counts(self, index: Index) -> None:
        index.upsert([row(number) for number in range(30)], "first")
        found = index.search(vector(7), "first", top=3, where="duration_seconds > 20")
        assert len(found) == 3
        assert all(each.duration_seconds is not None and each.duration_seconds > 20 for each, _ in found)

    @pytest.mark.parametrize(
        ("where", "numbers"),
        [
            ("duration_seconds >= 2 and duration_seconds < 4", [2, 3]),
            ("duration_seconds = 1 or duration_seconds in (3, 2.0)", [1, 2, 3]),
            ("not (duration_seconds > 1)", [0, 1]),
            ("uri like '%/1_.mp4'", [10, 11]),
            ("uri not like '/clips/%'", []),
            ("uri = '/clips/4.mp4'", [4]),
            ("uri in ('/clips/4.mp4', 'it''s')", [4]),
            ("width is null", []),
            ("error is not null", [11]),
            ("error is null and duration_seconds > 9", [10]),
            ("fps > 1", []),
            ("not fps > 1", []),  # unknown is neither true nor false
            ("width <> 65 and width = 6.4e1 and duration_seconds <= 0", [0]),
            ("first_status = 'ok' and duration_seconds > 8", [9, 10]),
            ("uri LIKE '%' AND uri <> '%' AND duration_seconds > 10", [11]),
        ],
    )
    def test_conditions_mean_the_same_everywhere(self, index: Index, where: str, numbers: list[int]) -> None:
        index.upsert([row(number, status="error" if number == 11 else "ok") for number in range(12)], "first")
        assert sorted(each.uri for each in index.rows(where=where)) == sorted(f"/clips/{number}.mp4" for number in numbers)
        assert index.count(where) == len(numbers)

    @pytest.mark.parametrize("value", ["it's", "a\\b", "100%", "%s", 'a"b', "`", "é 日本", "'; DROP TABLE videos; --", "line\nline"])
    def test_any_text_is_kept_and_found_by_a_condition(self, index: Index, value: str) -> None:
        index.upsert([dataclasses.replace(row(1), uri=value), row(2)], "first")
        quoted = value.replace("'", "''")
        assert [each.uri for each in index.rows(where=f"uri = '{quoted}'")] == [value]
        assert index.count() == 2

    @pytest.mark.parametrize("where", ["duration_seconds >", "1 = 1) OR (1 = 1", "1 = 1; DROP TABLE videos", "nosuch = 3", "uri = 'a' --)"])
    def test_a_hostile_condition_is_refused_in_one_sentence_and_changes_nothing(self, index: Index, where: str) -> None:
        index.upsert([row(1), row(2, status="error")], "first")
        with pytest.raises(ConfigError) as caught:
            index.search(vector(1), "first", where=where)
        assert "\n" not in str(caught.value)
        with pytest.raises(ConfigError):
            list(index.rows(where=where, only_ok=True))
        assert index.count() == 2

    def test_a_query_of_another_width_or_on_tokens_is_refused(self, index: Index) -> None:
        index.add_column(TOKENS)
        with pytest.raises(ConfigError, match="another width"):
            index.search(np.ones(3, np.float32), "first")
        with pytest.raises(ConfigError, match="one vector per clip"):
            index.search(np.ones(3, np.float32), "tokens")

    def test_a_small_table_is_searched_exactly(self, index: Index) -> None:
        index.upsert([row(number) for number in range(40)], "first")
        built = index.build_index("first")
        assert (built.rows, built.recall) == (40, 1.0)

    def test_two_processes_write_no_row_twice(self, place: str, index: Index) -> None:
        context = multiprocessing.get_context("spawn")  # LanceDB does not survive a fork
        workers = [context.Process(target=upsert_in_another_process, args=(place, start)) for start in (0, 10)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(120)
        assert [worker.exitcode for worker in workers] == [0, 0]
        found = sorted(each.uri for each in index.rows())
        assert found == sorted(f"/clips/{number}.mp4" for number in range(30))
