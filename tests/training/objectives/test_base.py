"""Every objective, found by its name, keeps the contract."""

from __future__ import annotations

import pytest

from stjepa_cli.core import plugins
from tests.training.objectives.contract import ObjectiveContract


class TestEveryObjective(ObjectiveContract):
    @pytest.fixture(params=plugins.names("training.objectives"))
    def name(self, request: pytest.FixtureRequest) -> str:
        found: str = request.param
        return found
