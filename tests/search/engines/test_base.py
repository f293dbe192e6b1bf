"""Every engine, found by its name, keeps the contract."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from stjepa_cli.core import plugins
from stjepa_cli.core.errors import ConfigError
from stjepa_cli.search.engines.base import Engine, open_engine
from tests.search.engines.contract import EngineContract

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray warns about itself


@pytest.fixture(scope="module", params=plugins.names("search.engines"))
def opened(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Each engine once for the module; a cluster, where one is needed, is started once."""
    if request.param != "ray":
        yield open_engine(request.param)
        return
    ray = pytest.importorskip("ray")
    ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=10**8, log_to_driver=False, logging_level=logging.ERROR)
    yield open_engine(request.param)
    ray.shutdown()


class TestEveryEngine(EngineContract):
    @pytest.fixture
    def engine(self, opened: Engine) -> Engine:
        return opened


def test_an_unknown_engine_is_refused_with_the_names_of_those_that_exist() -> None:
    with pytest.raises(ConfigError, match="unknown engine: got 'spark', expected one of " + ", ".join(plugins.names("search.engines"))):
        open_engine("spark")
