"""`stjepa embed` that is killed, or run twice at once: no row twice, none lost. Real processes of the program."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from stjepa_cli.core.runtime import Runtime
from stjepa_cli.search.embed import EmbedRequest, embed
from stjepa_cli.search.indexes.base import open_index
from tests.search.clips import MODEL, write_clips

pytest.importorskip("lancedb")
ROOT = Path(__file__).resolve().parents[2]
COLUMN = "video_embedding"
CLIPS = 40
HURRY = "import stjepa_cli.search.embed as e; e.FLUSH_ROWS = 3; e.TIDY_AFTER = 2; from stjepa_cli.main import main; main()"
"""The program, but it writes after every third row: many more moments at which a kill can meet it."""


def start(folder: Path, table: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    options = ("--model", MODEL, "--table", table, "--device", "cpu", "--batch-size", "2", "--workers", "1", "--threads", "1", "--quiet")
    command = [sys.executable, "-c", HURRY, "embed", str(folder), *options]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def assert_whole(table: str, expected: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]) -> None:
    """Every row once, and with the vector that a run without any kill gives."""
    with open_index(table) as index:
        found = list(index.rows(columns=(COLUMN,)))
    assert sorted(row.uri for row in found) == sorted(expected)
    for row in found:
        vector = row.vectors[COLUMN]
        assert vector is not None
        np.testing.assert_allclose(vector, expected[row.uri], rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "clips"
    write_clips(folder, CLIPS)
    return folder


@pytest.fixture(scope="module")
def expected(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    table = str(tmp_path_factory.mktemp("plain"))
    embed(EmbedRequest((str(clips),), MODEL, table), Runtime("cpu", 1, 8))
    with open_index(table) as index:
        found = {row.uri: row.vectors[COLUMN] for row in index.rows(columns=(COLUMN,))}
    return {uri: vector for uri, vector in found.items() if vector is not None}


def test_two_runs_at_once_write_no_row_twice(clips: Path, expected: dict[str, object], tmp_path: Path) -> None:
    table = str(tmp_path / "table")
    both = [start(clips, table) for _ in range(2)]
    errors = [process.communicate(timeout=240)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert_whole(table, expected)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_after_twenty_kills_the_table_is_whole(clips: Path, expected: dict[str, object], tmp_path: Path) -> None:
    table, chance = str(tmp_path / "table"), random.Random(0)
    began = time.monotonic()
    start(clips, str(tmp_path / "timed")).communicate(timeout=240)
    seconds = time.monotonic() - began
    killed, rows = 0, [0]
    while killed < 20:
        process = start(clips, table)
        time.sleep(seconds * chance.uniform(0.35, 0.95))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        killed += process.returncode == -signal.SIGKILL
        if (Path(table) / "videos.lance").is_dir():
            with open_index(table) as index:
                rows.append(index.count())
                assert len({row.id for row in index.rows()}) == rows[-1] >= rows[-2]
        if rows[-1] == CLIPS:  # all is done: the rest of the kills meet another table
            assert_whole(table, expected)  # type: ignore[arg-type]
            table, rows = f"{table}x", [0]
    last = start(clips, table)
    _, errors = last.communicate(timeout=240)
    assert last.returncode == 0, errors
    assert_whole(table, expected)  # type: ignore[arg-type]
