"""Conditions that people type (`--where "duration_seconds > 3"`): checked to be a single one before a database sees them."""

from __future__ import annotations

import re

from stjepa_cli.core.errors import ConfigError

_PART = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"|--|/\*|.", re.DOTALL)


def check_condition(where: str) -> None:
    """Refuse text that a database could read as more than one condition; whether its columns exist the database says.

    Args:
        where: A condition in SQL.

    Raises:
        ConfigError: It is empty, holds a comment, a semicolon or an open quote, or closes a bracket that it has not opened.
    """
    depth = 0
    for part in _PART.findall(where):
        depth += {"(": 1, ")": -1}.get(part, 0)
        if part in ("--", "/*", ";", "'", '"', "\0") or depth < 0:
            raise _error(where)
    if depth or not where.strip():
        raise _error(where)


def _error(where: str) -> ConfigError:
    expected = "a single comparison, or several joined by AND and OR, such as duration_seconds > 3"
    return ConfigError("this is not a condition", got=repr(where), expected=expected)
