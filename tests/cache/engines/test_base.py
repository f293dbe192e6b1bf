"""Engines are found by name."""

from __future__ import annotations

import pytest

from stjepa_cli.cache.engines.base import open_engine
from stjepa_cli.cache.engines.local import Local
from stjepa_cli.core import plugins
from stjepa_cli.core.errors import ConfigError


def test_an_engine_is_found_by_its_name() -> None:
    assert isinstance(open_engine("local"), Local)


def test_an_unknown_engine_is_refused_with_the_names_of_those_that_exist() -> None:
    with pytest.raises(ConfigError, match="unknown engine: got 'spark', expected one of " + ", ".join(plugins.names("cache.engines"))):
        open_engine("spark")
