"""The contract of an engine: a test class that every plug-in of `search/engines` is run through without being listed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stjepa_cli import Encoder
from stjepa_cli.core.errors import ConfigError
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.search.embedding import Embedded, Recipe, embed_items
from stjepa_cli.search.engines.base import Engine, Job
from stjepa_cli.search.parts import Framing
from stjepa_cli.search.reading import Item
from stjepa_cli.search.records import Known, Row
from tests.media import write_empty
from tests.search.clips import MODEL, write_clips

RECIPE = Recipe("vector", framing=Framing("full", 0.5))


class EngineContract:
    """A subclass supplies the fixture `engine`."""

    @pytest.fixture
    def job(self, tmp_path: Path) -> Job:
        """Six videos in three parts and a whole each, and an empty one."""
        clips = [*write_clips(tmp_path / "clips", 6), write_empty(tmp_path / "clips" / "empty.mp4")]
        encoder = Encoder.load(MODEL, Runtime("cpu", workers=1, batch_size=4))
        return Job(encoder, MODEL, None, RECIPE.column_of(encoder, MODEL), RECIPE, [Item(str(clip)) for clip in clips], {})

    @pytest.fixture
    def expected(self, job: Job) -> list[Embedded]:
        return list(embed_items(job.encoder, job.column, job.recipe, job.items, job.known))

    def test_it_embeds_what_the_encoder_embeds_in_its_order(self, engine: Engine, job: Job, expected: list[Embedded]) -> None:
        with engine.ready():
            found = list(engine.run(job))
        assert [(each.uri, each.digest, each.skipped, each.last) for each in found] == [
            (each.uri, each.digest, each.skipped, each.last) for each in expected
        ]
        pairs = [pair for mine, theirs in zip(found, expected, strict=True) for pair in zip(mine.rows, theirs.rows, strict=True)]
        assert len(pairs) == 6 * 4 + 1
        for row, other in pairs:
            assert row == other
            assert_same_vector(row, other)

    def test_it_leaves_out_what_is_known(self, engine: Engine, job: Job, expected: list[Embedded]) -> None:
        for row in (row for each in expected[:2] for row in each.rows):
            job.known[row.id] = Known(row.digest, row.strategy, row.duration_seconds)  # type: ignore[index]
        with engine.ready():
            found = list(engine.run(job))
        assert [(len(each.rows), each.skipped) for each in found] == [(0, 4)] * 2 + [(4, 0)] * 4 + [(1, 0)]

    def test_no_videos_are_no_work(self, engine: Engine, job: Job) -> None:
        with engine.ready():
            assert list(engine.run(Job(job.encoder, MODEL, None, job.column, RECIPE, [], {}))) == []

    def test_an_error_arrives_as_one_sentence(self, engine: Engine, job: Job) -> None:
        other = Job(job.encoder, MODEL, None, job.column, RECIPE, [Item("nosuch://bucket/clip.mp4")], {})
        with engine.ready(), pytest.raises(ConfigError, match="unknown protocol"):
            list(engine.run(other))


def assert_same_vector(row: Row, other: Row) -> None:
    mine, theirs = row.vectors["vector"], other.vectors["vector"]
    assert (mine is None) == (theirs is None)
    if mine is not None and theirs is not None:
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-6)
