"""What the tests of tables share: the server that they start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.search.postgres import running


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The DSN of a server with pgvector that is started for the tests; a test without one is skipped with the reason."""
    with running() as dsn:
        yield dsn
