"""Every engine, found by its name, keeps the contract."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from stjepa_cli.cache.engines.base import Engine, open_engine
from stjepa_cli.cache.engines.local import Local
from stjepa_cli.core import plugins
from stjepa_cli.core.errors import ConfigError, NotReadyError
from tests.cache.engines.contract import EngineContract


@pytest.fixture(scope="module", params=plugins.names("cache.engines"))
def opened(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Each engine once for the module; a cluster, where one is needed, is started once."""
    try:
        engine = open_engine(request.param)
    except NotReadyError as error:
        pytest.skip(str(error))
    if request.param != "ray":
        yield engine
        return
    ray = pytest.importorskip("ray")  # connecting beforehand saves the start of a local instance in each test
    ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=10**8, log_to_driver=False, logging_level=logging.ERROR)
    yield engine
    ray.shutdown()


class TestEveryEngine(EngineContract):
    @pytest.fixture
    def engine(self, opened: Engine) -> Engine:
        return opened


def test_an_engine_is_found_by_its_name() -> None:
    assert isinstance(open_engine("local"), Local)


def test_an_unknown_engine_is_refused_with_the_names_of_those_that_exist() -> None:
    with pytest.raises(ConfigError, match="unknown engine: got 'spark', expected one of " + ", ".join(plugins.names("cache.engines"))):
        open_engine("spark")
