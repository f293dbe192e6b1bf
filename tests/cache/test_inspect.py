"""`inspect cache`: counts, sizes and statistics are those of the rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from stjepa_cli.cache.inspect import inspect_cache
from stjepa_cli.core.errors import CacheError
from tests.caches import DIM, make_cache


def test_counts_and_statistics_are_those_of_the_rows(tmp_path: Path) -> None:
    store = make_cache(tmp_path / "cache", num_clips=30, num_views=2, rows_per_shard=16, dtype="int8")
    report = inspect_cache(tmp_path / "cache", sample=1000)
    assert (report.rows, report.stored, report.failed, report.missing, report.shards) == (60, 59, 1, 0, 4)
    tokens = store.read(store.usable_rows()).astype(np.float64).reshape(-1, DIM)
    assert report.channels is not None
    assert np.allclose(report.channels.mean, tokens.mean(0), atol=1e-4)
    assert np.allclose(report.channels.std, tokens.std(0), atol=1e-4)
    assert np.allclose(report.channels.maximum, tokens.max(0), atol=1e-4)
    assert (report.sampled, report.constant_channels) == (59, 0)
    assert json.loads(json.dumps(report.to_dict()))["header"]["teacher"]["licence"] == "none"
    store.manifests.discard(1)
    report = inspect_cache(tmp_path / "cache", sample=5)
    assert (report.stored, report.missing, report.shards_done, report.sampled) == (43, 16, 3, 5)


def test_a_cache_without_rows_has_no_statistics(tmp_path: Path) -> None:
    store = make_cache(tmp_path / "cache", num_clips=3)
    store.manifests.discard(0)
    report = inspect_cache(tmp_path / "cache")
    assert (report.stored, report.channels, report.bytes) == (0, None, 0)
    with pytest.raises(CacheError, match="there is no cache"):
        inspect_cache(tmp_path / "none")
