"""Versions of stored formats: a file that a newer version wrote is refused in words, before its fields are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stjepa_cli.core.errors import ConfigError, UnreadableError


def refuse_newer(data: Mapping[str, Any], known: int, what: str) -> None:
    """Refuse a header whose schema is newer than the one that this version writes.

    Args:
        data: Header as read from JSON; a header without a schema is one of the first version.
        known: Schema that this version writes.
        what: What the header belongs to, for the message.

    Raises:
        UnreadableError: The schema is newer.
        ConfigError: The schema is not a number.
    """
    schema = data.get("schema", 1)
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise ConfigError(f"{what} has an invalid schema", got=repr(schema), expected=f"1 to {known}")
    if schema > known:
        raise UnreadableError(
            f"{what} was written by a newer version of stjepa", got=f"schema {schema}", expected=f"at most {known}", fix="Update stjepa."
        )
