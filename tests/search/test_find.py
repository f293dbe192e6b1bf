"""A search: whatever is asked with, the nearest rows come first, and rows that are not ok never come."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from stjepa_cli.core.errors import ConfigError, StjepaError
from stjepa_cli.data.video import Video
from stjepa_cli.search.find import Found, find
from stjepa_cli.search.indexes.base import open_index
from tests.media import write_video
from tests.search.tables import RUNTIME, embed_folder


def search(place: str, query: object, **options: object) -> Found:
    with open_index(place) as index:
        return find(index, str(query), runtime=RUNTIME, **options)  # type: ignore[arg-type]


def names(found: Found) -> list[str]:
    return ["/".join(Path(hit.row.uri).parts[-2:]) for hit in found.hits]


def test_a_video_of_the_table_is_its_own_nearest_row(place: str, videos: Path) -> None:
    found = search(place, videos / "left" / "1.mp4")
    assert names(found)[0] == "left/1.mp4"
    assert found.hits[0].distance == pytest.approx(0, abs=1e-6)
    assert len(found.hits) == 6
    distances = [hit.distance for hit in found.hits]
    assert distances == sorted(distances)
    assert "broken.mp4" not in str(found.to_json())


def test_a_reencoded_copy_finds_its_original_first(place: str, videos: Path, tmp_path: Path) -> None:
    with Video(videos / "down" / "0.mp4") as video:
        frames = video.frames(tuple(range(video.num_frames)))
    copy = write_video(tmp_path / "copy.webm", frames)
    assert names(search(place, copy, top=1)) == ["down/0.mp4"]


def test_a_row_finds_others_and_not_itself(place: str, videos: Path) -> None:
    by_file = search(place, videos / "left" / "1.mp4")
    row_id = by_file.hits[0].row.id
    for asked in (row_id, row_id[:8]):
        found = search(place, asked, top=3)
        assert names(found) == names(by_file)[1:4]
        assert found.query.kind == "row"
        assert found.query.row is not None


def test_a_vector_is_searched_whatever_its_length(place: str, videos: Path, tmp_path: Path) -> None:
    by_file = search(place, videos / "right" / "0.mp4")
    with open_index(place) as index:
        row = index.get(by_file.hits[0].row.id, ("video_embedding",))
    assert row is not None
    vector = row.vectors["video_embedding"]
    assert vector is not None
    np.save(tmp_path / "vector.npy", 7.0 * vector[None].astype(np.float64))
    found = search(place, tmp_path / "vector.npy")
    assert names(found) == names(by_file)
    np.testing.assert_allclose([hit.distance for hit in found.hits], [hit.distance for hit in by_file.hits], atol=1e-6)


def test_a_condition_and_a_number_limit_what_is_found(place: str, videos: Path) -> None:
    found = search(place, videos / "right" / "0.mp4", top=5, where="uri like '%/down/%'")
    assert sorted(names(found)) == ["down/0.mp4", "down/1.mp4"]
    assert search(place, videos / "right" / "0.mp4", where="duration_seconds > 1e6").hits == ()


@pytest.mark.parametrize("where", ["uri = 'a'; DROP TABLE videos", "1 = 1) OR (1 = 1", "uri in (select usename from pg_user)", ""])
def test_a_hostile_condition_is_refused_before_anything_is_done(place: str, where: str) -> None:
    with pytest.raises(ConfigError, match="cannot read the condition"):
        search(place, "a video that is not there", where=where)


def test_both_databases_find_the_same(table: str, videos: Path, postgres: str) -> None:
    other = f"{postgres}#both"
    embed_folder(videos, other)
    mine, theirs = (search(place, videos / "down" / "1.mp4") for place in (table, other))
    assert names(mine) == names(theirs)
    np.testing.assert_allclose([hit.distance for hit in mine.hits], [hit.distance for hit in theirs.hits], atol=1e-6)


def test_the_model_of_the_column_is_used_and_another_is_refused_by_name(table: str, videos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(table, other)
    with pytest.raises(ConfigError, match=r"pixels is not the model .*expected hog \(digest"):
        search(str(other), videos / "left" / "0.mp4", model="pixels")
    assert search(str(other), videos / "left" / "0.mp4", model="hog", top=1).hits[0].distance == pytest.approx(0, abs=1e-6)


def test_a_query_is_pooled_as_its_column_was(videos: Path, tmp_path: Path) -> None:
    place = str(tmp_path / "pools")
    embed_folder(videos, place, "segments", pool="segments")
    embed_folder(videos, place, "greatest", pool="max")
    for column in ("segments", "greatest"):
        assert search(place, videos / "left" / "0.mp4", column=column, top=1).hits[0].distance == pytest.approx(0, abs=1e-6)
    with pytest.raises(ConfigError, match=r"several columns.*expected one of segments, greatest.*--column"):
        search(place, videos / "left" / "0.mp4")


def test_a_column_of_tokens_is_refused_with_what_to_do(videos: Path, tmp_path: Path) -> None:
    place = str(tmp_path / "tokens")
    embed_folder(videos / "left", place, "tokens", "tokens", "none")
    with pytest.raises(ConfigError, match=r"several vectors per row \(tokens\).*--output clip"):
        search(place, videos / "left" / "0.mp4")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros(420, np.float32), "a vector of zeros"),
        (np.full(420, np.nan), "not finite"),
        (np.ones(3), r"does not fit column video_embedding: got shape \(3,\), expected \(420,\)"),
        (np.ones((2, 420)), r"got shape \(2, 420\)"),
        (np.array(1.0), r"got shape \(\)"),
        (np.array(["a"] * 420), "is no file of numbers"),
        (np.array([{}] * 420, dtype=object), "is no file of numbers"),
    ],
)
def test_a_bad_vector_is_one_sentence(table: str, tmp_path: Path, content: npt.NDArray[Any], message: str) -> None:
    np.save(tmp_path / "bad.npy", content, allow_pickle=True)
    with pytest.raises(StjepaError, match=message):
        search(table, tmp_path / "bad.npy")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("nosuch.mp4", "no such file, and not the id of a row"),
        ("00000000", "has no row of this id"),
        ("", "no such file"),
        ("s3", "no such file"),
    ],
)
def test_a_query_that_is_nothing_is_one_sentence(place: str, query: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        search(place, query)


def test_a_file_that_is_no_video_is_one_sentence(place: str, videos: Path) -> None:
    with pytest.raises(StjepaError, match="cannot be searched for"):
        search(place, videos / "broken.mp4")


def test_a_row_without_a_vector_cannot_be_asked_with(place: str) -> None:
    with open_index(place) as index:
        failed = next(row for row in index.rows() if row.status == "error")
    with pytest.raises(ConfigError, match="has no vector in column video_embedding"):
        search(place, failed.id)


def test_a_table_without_vectors_says_how_to_get_some(tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    with open_index(str(tmp_path / "empty"), create=True) as index, pytest.raises(ConfigError, match="Fill one with `stjepa embed SOURCE"):
        find(index, "00000000")


def test_json_names_what_scripts_need(table: str, videos: Path) -> None:
    found = search(table, videos / "left" / "0.mp4", top=1).to_json()
    assert {"table", "column", "model", "query", "where", "results", "seconds"} == set(found)
    assert list(found["results"][0])[:5] == ["id", "uri", "start_seconds", "end_seconds", "distance"]
