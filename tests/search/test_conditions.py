"""Conditions: one, whole, and nothing else."""

from __future__ import annotations

import pytest

from stjepa_cli.core.errors import ConfigError
from stjepa_cli.search.conditions import check_condition


@pytest.mark.parametrize("where", ["fps > 3", "(a = 1 OR b = 2) AND c", "uri = 'it''s; (here -- /*'", "uri LIKE '%.mp4' AND \"fps\" > 1"])
def test_a_condition_passes(where: str) -> None:
    check_condition(where)


@pytest.mark.parametrize("where", ["", " ", "a) OR (b", "a; DROP TABLE x", "a -- b", "a /* b */", "uri = 'a", '"a', "(a", "a\0"])
def test_anything_else_is_refused(where: str) -> None:
    with pytest.raises(ConfigError, match="not a condition"):
        check_condition(where)
