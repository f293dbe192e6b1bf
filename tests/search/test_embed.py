"""Videos embedded into a table: resumed, changed, broken, in parts, and by several engines."""

from __future__ import annotations

import csv
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stjepa_cli import Encoder
from stjepa_cli.core.errors import ConfigError, StjepaError
from stjepa_cli.core.locations import Location
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.search.embed import EmbedRequest, EmbedResult, build_index, embed
from stjepa_cli.search.embedding import Recipe
from stjepa_cli.search.indexes.base import open_index
from stjepa_cli.search.parts import Framing
from stjepa_cli.search.reading import Item, Reader
from stjepa_cli.search.records import Known, Row, row_id
from tests.media import moving_square, truncate, upload, write_empty, write_video
from tests.search.clips import DIM, MODEL, NUM_TOKENS, STEPS, write_clips

pytest.importorskip("lancedb")
RUNTIME = Runtime("cpu", workers=2, batch_size=4)
COLUMN = "video_embedding"


@pytest.fixture
def table(tmp_path: Path) -> str:
    return str(tmp_path / "table")


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    write_clips(tmp_path / "clips", 6)
    return tmp_path / "clips"


def run(source: object, table: str, recipe: Recipe | None = None, runtime: Runtime = RUNTIME, **options: Any) -> EmbedResult:
    request = EmbedRequest((str(source),), options.pop("model", MODEL), table, recipe or Recipe(COLUMN), **options)
    return embed(request, runtime)


def counts(result: EmbedResult) -> tuple[int, int, int, int]:
    return result.rows, result.written, result.skipped, len(result.failed)


def rows(table: str, *columns: str) -> dict[str, Row]:
    with open_index(table) as index:
        return {row.id: row for row in index.rows(columns=columns or (COLUMN,))}


def vectors(table: str, column: str = COLUMN) -> dict[str, np.ndarray[Any, Any]]:
    found = {key: row.vectors[column] for key, row in rows(table, column).items()}
    return {key: vector for key, vector in found.items() if vector is not None}


def assert_same(first: dict[str, np.ndarray[Any, Any]], second: dict[str, np.ndarray[Any, Any]]) -> None:
    assert first.keys() == second.keys()
    for key, vector in first.items():
        np.testing.assert_allclose(vector, second[key], rtol=0, atol=1e-6)


def test_a_row_holds_the_video_and_its_vector(clips: Path, table: str) -> None:
    result = run(clips, table)
    assert counts(result) == (6, 6, 0, 0)
    assert (result.column, result.model, result.dim, result.table) == (COLUMN, MODEL, DIM, f"{table}/videos")
    encoder = Encoder.from_pretrained(MODEL, device="cpu")
    row = rows(table)[row_id(str(clips / "003.mp4"))]
    assert (row.uri, row.status, row.error, row.model, row.model_digest) == (str(clips / "003.mp4"), "ok", None, MODEL, encoder.digest)
    assert (row.width, row.height, row.start_seconds, row.end_seconds, row.strategy) == (64, 48, 0.0, None, "full")
    assert row.fps == pytest.approx(12)
    assert row.duration_seconds == pytest.approx(14 / 12)
    np.testing.assert_allclose(vectors(table)[row.id], encoder.embed(clips / "003.mp4", "mean"), atol=1e-6)


class TestVectorsDoNotDependOn:
    @pytest.fixture
    def plain(self, clips: Path, tmp_path: Path) -> dict[str, np.ndarray[Any, Any]]:
        run(clips, str(tmp_path / "plain"))
        return vectors(str(tmp_path / "plain"))

    @pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (3, 4), (100, 2)])
    def test_batches_and_threads(self, clips: Path, table: str, plain: dict[str, Any], batch_size: int, workers: int) -> None:
        run(clips, table, runtime=Runtime("cpu", workers=workers, batch_size=batch_size))
        assert_same(vectors(table), plain)

    def test_where_a_run_was_resumed(self, clips: Path, table: str, plain: dict[str, Any]) -> None:
        assert counts(run(clips, table, limit=2)) == (2, 2, 0, 0)
        assert counts(run(clips, table, limit=3)) == (3, 1, 2, 0)
        assert counts(run(clips, table)) == (6, 3, 3, 0)
        assert_same(vectors(table), plain)

    @pytest.mark.filterwarnings("ignore")  # Ray warns about itself
    def test_the_engine(self, clips: Path, table: str, plain: dict[str, Any]) -> None:
        pytest.importorskip("ray")
        write_empty(clips / "empty.mp4")
        run(clips / "000.mp4", table)
        assert counts(run(clips, table, engine="ray")) == (7, 5, 1, 1)
        assert_same(vectors(table), plain)

    def test_the_name_of_the_file(self, clips: Path, table: str) -> None:
        shutil.copy(clips / "001.mp4", clips / "renamed.mp4")
        run(clips, table)
        found = vectors(table)
        np.testing.assert_array_equal(found[row_id(str(clips / "001.mp4"))], found[row_id(str(clips / "renamed.mp4"))])

    def test_where_the_file_lies(self, clips: Path, table: str, bucket: Location, plain: dict[str, Any]) -> None:
        upload(clips, bucket)
        result = run(bucket, table, Recipe(COLUMN, block_bytes=4096))
        assert counts(result) == (6, 6, 0, 0)
        assert_same({row_id(str(clips / row.uri.rpartition("/")[2])): vectors(table)[row.id] for row in rows(table).values()}, plain)
        assert counts(run(bucket, table)) == (6, 0, 6, 0)
        upload(clips / "001.mp4", bucket / "000.mp4")
        assert counts(run(bucket, table)) == (6, 1, 5, 0)


@pytest.mark.parametrize("count", [24, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_copy_that_was_encoded_again_is_the_nearest_neighbour(count: int, tmp_path: Path, table: str) -> None:
    write_clips(tmp_path / "clips", count)
    frames = moving_square(direction=2, seed=5)
    copy = write_video(tmp_path / "copy.webm", frames)
    run(tmp_path / "clips", table)
    vector = Encoder.from_pretrained(MODEL, device="cpu").embed(copy, "mean").numpy()
    with open_index(table) as index:
        (nearest, distance), (_, second), *_ = index.search(vector, COLUMN, 3)
    assert nearest.uri.endswith("005.mp4")
    assert distance < second / 2


def test_a_table_in_postgresql_holds_the_same(clips: Path, table: str, postgres: str) -> None:
    write_empty(clips / "empty.mp4")
    place = f"{postgres}#embedded"
    assert counts(run(clips, place, limit=3)) == (3, 3, 0, 0)
    assert counts(run(clips, place)) == (7, 3, 3, 1)
    run(clips, table)
    assert_same(vectors(place), vectors(table))
    assert rows(place) == rows(table)


def test_a_second_column_stands_beside_the_first_and_neither_is_done_again(clips: Path, table: str) -> None:
    run(clips, table)
    second = Recipe("centre", "clip", "max", Framing("centered"))
    assert counts(run(clips, table, second)) == (6, 6, 0, 0)
    assert counts(run(clips, table)) == (6, 0, 6, 0)
    assert counts(run(clips, table, second)) == (6, 0, 6, 0)
    with open_index(table) as index:
        assert [(column.name, column.pool, column.strategy) for column in index.columns().values()] == [
            (COLUMN, "mean", "full"),
            ("centre", "max", "centered"),
        ]


def test_a_model_of_another_digest_is_refused_by_name(clips: Path, table: str) -> None:
    run(clips, table, limit=1)
    with pytest.raises(ConfigError, match=r"column video_embedding of .* holds other vectors: got hog \(digest .*\), expected .*motion"):
        run(clips, table, model="hog")
    with pytest.raises(ConfigError, match="got pool max, expected pool mean"):
        run(clips, table, Recipe(COLUMN, pool="max"))
    assert len(rows(table)) == 1


def test_a_file_that_has_changed_is_embedded_again_in_every_column(clips: Path, table: str) -> None:
    run(clips, table)
    run(clips, table, Recipe("second"))
    before = vectors(table)
    write_video(clips / "002.mp4", moving_square(direction=1, seed=99))
    assert counts(run(clips, table)) == (6, 1, 5, 0)
    changed = [key for key, vector in vectors(table).items() if not np.array_equal(vector, before[key])]
    assert changed == [row_id(str(clips / "002.mp4"))]
    assert counts(run(clips, table, Recipe("second"))) == (6, 1, 5, 0)


def test_a_single_byte_anywhere_in_a_file_counts(clips: Path, table: str) -> None:
    video = clips / "002.mp4"
    box = bytes(200_000)
    whole = video.read_bytes() + (8 + len(box)).to_bytes(4, "big") + b"free" + box
    video.write_bytes(whole)
    run(clips, table)
    assert counts(run(clips, table)) == (6, 0, 6, 0)
    video.write_bytes(whole[:-60_000] + b"x" + whole[-59_999:])
    assert counts(run(clips, table)) == (6, 1, 5, 0)


class TestOutput:
    def test_frames_are_a_vector_per_time_step(self, clips: Path, table: str) -> None:
        result = run(clips, table, Recipe("steps", "frames"), limit=2)
        assert (result.dim, result.output) == (DIM, "frames")
        found = vectors(table, "steps")[row_id(str(clips / "000.mp4"))]
        assert found.shape == (STEPS, DIM)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)

    def test_tokens_are_all_tokens(self, clips: Path, table: str) -> None:
        run(clips, table, Recipe("tokens", "tokens", "none"), limit=2)
        expected = Encoder.from_pretrained(MODEL, device="cpu").embed(clips / "001.mp4")
        assert expected.shape == (NUM_TOKENS, DIM)
        np.testing.assert_allclose(vectors(table, "tokens")[row_id(str(clips / "001.mp4"))], expected, atol=1e-5)

    def test_segments_are_three_times_as_wide(self, clips: Path, table: str) -> None:
        assert run(clips, table, Recipe(COLUMN, pool="segments"), limit=1).dim == 3 * DIM

    @pytest.mark.parametrize(("output", "pool"), [("clip", "none"), ("tokens", "mean"), ("frames", "max")])
    def test_a_pooling_that_does_not_fit_is_refused(self, output: str, pool: str) -> None:
        with pytest.raises(ConfigError, match=f"this pooling does not make {output}"):
            Recipe(COLUMN, output, pool)


class TestParts:
    def test_parts_stand_beside_the_whole_and_resume(self, tmp_path: Path, table: str) -> None:
        clip = write_video(tmp_path / "long.mp4", moving_square(num_frames=60))  # 5 s, so 10 parts
        recipe = Recipe(COLUMN, framing=Framing("full", 0.5, 0.5))
        assert counts(run(clip, table)) == (1, 1, 0, 0)
        assert counts(run(clip, table, recipe)) == (11, 10, 1, 0)
        assert counts(run(clip, table, recipe)) == (11, 0, 11, 0)
        ends = sorted((row.start_seconds, row.end_seconds) for row in rows(table).values() if row.end_seconds is not None)
        assert ends == [(i / 2, i / 2 + 0.5) for i in range(10)]
        np.testing.assert_allclose([np.linalg.norm(vector) for vector in vectors(table).values()], 1, atol=1e-5)

    def test_a_part_is_the_vector_of_that_part_alone(self, tmp_path: Path, table: str) -> None:
        frames = moving_square(num_frames=48)
        clip = write_video(tmp_path / "whole.mp4", frames)
        run(clip, table, Recipe(COLUMN, framing=Framing("full", 2.0)))
        alone = write_video(tmp_path / "alone.mp4", frames[24:])
        expected = Encoder.from_pretrained(MODEL, device="cpu").embed(alone, "mean").numpy()
        assert vectors(table)[row_id(str(clip), 2.0, 4.0)] @ expected > 0.999

    def test_parts_of_what_a_file_was_before_disappear(self, tmp_path: Path, table: str) -> None:
        clip = write_video(tmp_path / "clip.mp4", moving_square(num_frames=48))
        recipe = Recipe(COLUMN, framing=Framing("full", 1.0))
        assert counts(run(clip, table, recipe)) == (5, 5, 0, 0)
        write_video(clip, moving_square(num_frames=24, seed=3))
        assert counts(run(clip, table, recipe)) == (3, 3, 0, 0)

    def test_a_long_video_that_cannot_be_read_is_one_failure(self, tmp_path: Path, table: str) -> None:
        write_empty(tmp_path / "empty.mp4")
        assert counts(run(tmp_path / "empty.mp4", table, Recipe(COLUMN, framing=Framing("full", 1.0)))) == (1, 0, 0, 1)

    def test_windows_of_one_video_are_rows_of_their_own(self, tmp_path: Path, table: str) -> None:
        write_video(tmp_path / "clip.mp4", moving_square(num_frames=48))
        with (tmp_path / "events.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("uri", "at"), ("clip.mp4", 1.0), ("clip.mp4", 3.0), ("clip.mp4", 9.0)])
        recipe = Recipe(COLUMN, framing=Framing("window"))
        result = run(tmp_path / "events.csv", table, recipe, window_center="at")
        assert counts(result) == (3, 2, 0, 1)
        assert result.failed[0].error == "the window is around 9 s, and the video is 4 s long"
        assert counts(run(tmp_path / "events.csv", table, recipe, window_center="at")) == (3, 0, 2, 1)
        first, second = (vectors(table)[row_id(str(tmp_path / "clip.mp4"), at, at)] for at in (1.0, 3.0))
        assert not np.allclose(first, second, atol=1e-4)

    @pytest.mark.parametrize(("strategy", "center"), [("window", None), ("full", "1.0")])
    def test_a_window_and_its_moment_go_together(self, clips: Path, table: str, strategy: str, center: str | None) -> None:
        with pytest.raises(ConfigError, match=r"a window needs its moment|a moment is for windows"):
            run(clips, table, Recipe(COLUMN, framing=Framing(strategy)), window_center=center)


class TestFailures:
    @pytest.fixture
    def broken(self, clips: Path) -> Path:
        write_empty(clips / "001.mp4")
        truncate(clips / "004.mp4")
        return clips

    def test_a_broken_video_gets_a_row_that_says_why_and_the_others_go_on(self, broken: Path, table: str) -> None:
        result = run(broken, table)
        assert counts(result) == (6, 4, 0, 2)
        assert {Path(each.uri).name: each.error.partition(":")[0] for each in result.failed} == {
            "001.mp4": "the file is empty",
            "004.mp4": "it is cut short",
        }
        row = rows(table)[row_id(str(broken / "001.mp4"))]
        assert (row.status, row.error, row.vectors[COLUMN], row.statuses[COLUMN]) == ("error", "the file is empty", None, "error")

    @pytest.mark.parametrize(
        ("output", "pool", "shape"), [("clip", "mean", (DIM,)), ("frames", "mean", (1, DIM)), ("tokens", "none", (1, DIM))]
    )
    def test_a_zero_stands_for_it_if_that_is_asked_for_and_no_search_finds_it(
        self, broken: Path, table: str, output: str, pool: str, shape: tuple[int, ...]
    ) -> None:
        run(broken, table, Recipe(COLUMN, output, pool, on_error="zero"))
        zero = rows(table)[row_id(str(broken / "001.mp4"))].vectors[COLUMN]
        assert zero is not None
        assert zero.shape == shape
        assert not zero.any()
        with open_index(table) as index:
            assert len(list(index.rows(columns=(COLUMN,), only_ok=True))) == 4
            if output == "clip":
                assert len(index.search(np.ones(DIM, np.float32), COLUMN)) == 4

    def test_it_is_tried_again_and_repaired(self, broken: Path, table: str) -> None:
        run(broken, table)
        assert counts(run(broken, table)) == (6, 0, 4, 2)
        write_video(broken / "001.mp4")
        assert counts(run(broken, table)) == (6, 1, 4, 1)

    def test_a_file_that_is_gone_keeps_its_vectors(self, clips: Path, table: str, tmp_path: Path) -> None:
        (tmp_path / "list.csv").write_text("uri\nclips/000.mp4\nclips/001.mp4\n")
        run(tmp_path / "list.csv", table)
        (clips / "000.mp4").unlink()
        result = run(tmp_path / "list.csv", table)
        assert (counts(result), result.failed[0].error) == ((2, 0, 1, 1), "there is no such file")
        assert counts(run(tmp_path / "list.csv", table, Recipe("second"))) == (2, 1, 0, 1)
        assert len(vectors(table)) == 2

    def test_a_video_that_changes_while_it_is_read_is_not_embedded(self, clips: Path) -> None:
        clip = clips / "000.mp4"

        class Rewriting(dict[str, Known]):
            """Knows nothing, and replaces the file when it is asked: after the first look at it, before it is decoded."""

            def get(self, key: str, default: Any = None) -> Any:
                write_video(clip, moving_square(direction=2, seed=77))
                return default

        found = Reader(Encoder.from_pretrained(MODEL, device="cpu").clip, known=Rewriting()).read(Item(str(clip)))
        assert (found.clips, found.error) == (None, "it has changed while it was read")

    def test_a_request_that_makes_no_sense_is_refused(self, clips: Path, table: str) -> None:
        with pytest.raises(ConfigError, match="unknown engine: got 'spark', expected one of "):
            run(clips, table, engine="spark")
        with pytest.raises(ConfigError, match="unknown way to treat errors"):
            Recipe(COLUMN, on_error="ignore")
        with pytest.raises(ConfigError, match="a column cannot have this name: got 'uri'"):
            run(clips, table, Recipe("uri"))

    def test_a_list_without_videos_is_refused(self, tmp_path: Path, table: str) -> None:
        (tmp_path / "list.csv").write_text("uri\n")
        with pytest.raises(ConfigError, match="there are no videos to embed"):
            run(tmp_path / "list.csv", table)

    def test_a_table_of_another_schema_is_refused(self, clips: Path, tmp_path: Path) -> None:
        lancedb, pyarrow = pytest.importorskip("lancedb"), pytest.importorskip("pyarrow")
        lancedb.connect(str(tmp_path / "db")).create_table("videos", pyarrow.table({"path": ["a"], "uri": ["b"]}))
        with pytest.raises(ConfigError, match="is a table of another schema: got no id, digest"):
            run(clips, str(tmp_path / "db"))

    def test_a_place_that_cannot_be_written_is_one_sentence(self, clips: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(StjepaError, match=r"^cannot write|cannot be opened") as caught:
            run(clips, str(tmp_path / "file" / "table"))
        assert "\n" not in str(caught.value)


def test_a_table_becomes_a_parquet_file(clips: Path, table: str, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    write_empty(clips / "001.mp4")
    run(clips, table)
    result = run(clips, table, Recipe("tokens", "tokens", "none"), parquet=tmp_path / "out" / "table.parquet")
    assert result.parquet == str(tmp_path / "out" / "table.parquet")
    found = {row["id"]: row for row in parquet.read_table(result.parquet).to_pylist()}
    assert found.keys() == rows(table).keys()
    for key, row in rows(table, COLUMN, "tokens").items():
        for column in (COLUMN, "tokens"):
            vector = row.vectors[column]
            assert (found[key][column] is None) == (vector is None)
            if vector is not None:
                np.testing.assert_array_equal(np.array(found[key][column], np.float32), vector)
    assert {row["status"] for row in found.values()} == {"ok", "error"}


def test_an_index_is_built_when_it_pays(clips: Path, table: str) -> None:
    run(clips, table)
    built = build_index(table)
    assert (built.kind, built.rows, built.recall, built.column) == ("exact", 6, 1.0, COLUMN)
    with pytest.raises(ConfigError, match="no table at this place"):
        build_index(table + "nowhere")


def test_memory_holds_a_few_videos_at_a_time(tmp_path: Path, table: str) -> None:
    """What is read ahead is bounded: readers never get further ahead of the encoder than the window."""
    write_clips(tmp_path / "clips", 30)
    progress: list[int] = []
    runtime = dataclasses.replace(RUNTIME, batch_size=2, workers=1)
    encoder = Encoder.load(MODEL, runtime)
    sources = sorted((tmp_path / "clips").iterdir())
    taken = 0

    def counted() -> Any:
        nonlocal taken
        for source in sources:
            taken += 1
            yield source

    for done, _ in enumerate(encoder.embed_many(counted()), start=1):
        progress.append(taken - done)
    assert max(progress) <= 2 + 2 * 1 + 2
