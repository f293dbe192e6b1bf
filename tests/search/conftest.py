"""What the tests of tables share: the server that they start, and a table of videos to read."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.search.postgres import running
from tests.search.tables import embed_folder, write_videos


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The DSN of a server with pgvector that is started for the tests; a test without one is skipped with the reason."""
    with running() as dsn:
        yield dsn


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 6 videos and a file that is none; to read, not to change."""
    folder = tmp_path_factory.mktemp("videos")
    write_videos(folder)
    return folder


@pytest.fixture(scope="session")
def table(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A LanceDB table of these videos; to read, not to change."""
    pytest.importorskip("lancedb")
    place = str(tmp_path_factory.mktemp("tables") / "table")
    embed_folder(videos, place)
    return place


@pytest.fixture(scope="session", params=["lancedb", "pgvector"])
def place(videos: Path, request: pytest.FixtureRequest) -> str:
    """A table of these videos in each database; to read, not to change."""
    if request.param == "lancedb":
        found: str = request.getfixturevalue("table")
        return found
    place = f"{request.getfixturevalue('postgres')}#v{uuid.uuid4().hex}"
    embed_folder(videos, place)
    return place
