"""Dataclasses to plain values and TOML and back, checked field by field; unknown keys are refused."""

from __future__ import annotations

import tomllib
import types
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from stjepa_cli.core.errors import ConfigError, UnreadableError
from stjepa_cli.core.files import write_atomic
from stjepa_cli.core.locations import Location, is_location, location

T = TypeVar("T")


def to_dict(value: Any) -> dict[str, Any]:
    """Return a dataclass as plain JSON-able values: paths and URLs as text, tuples as lists, None left out."""
    return {name: _plain(part) for name, part in asdict(value).items() if part is not None}


def from_dict(cls: type[T], data: Mapping[str, Any], *, where: str) -> T:
    """Build the dataclass `cls` from plain values, checked field by field.

    A class with an `upgrade` function gets data of an earlier version in its own layout.

    Raises:
        ConfigError: A key that `cls` does not have, one that is missing, or a value of another type.
    """
    hints = get_type_hints(cls)
    upgrade = getattr(cls, "upgrade", None)
    data = upgrade(data) if upgrade else data
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ConfigError(f"{where} has an unknown key", got=", ".join(unknown), expected="one of " + ", ".join(known))
    try:
        return cls(**{name: _typed(hints[name], value, f"{where}: {name}") for name, value in data.items()})
    except TypeError as error:
        raise ConfigError(f"{where} is incomplete", got=str(error).replace("__init__() ", "")) from error


def read_toml(path: Path) -> dict[str, Any]:
    """Read the tables of a TOML file.

    Raises:
        ConfigError: There is no such file, or it is not TOML.
    """
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError("there is no such configuration file", got=path) from error
    except (ValueError, RecursionError, OSError) as error:  # not text, not TOML, a number of thousands of digits; nested too deeply
        raise ConfigError(f"{path} cannot be read as TOML", got=str(error)) from error


def write_toml(path: Path, value: Any) -> None:
    """Write a dataclass as TOML, with a table for each dataclass inside it.

    Raises:
        StjepaError: The disk is full, read-only or forbidden.
    """
    import tomli_w

    write_atomic(path, tomli_w.dumps(to_dict(value)).encode("utf-8", "surrogateescape"))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if is_location(value) else value


def _typed(hint: Any, value: Any, where: str) -> Any:
    """Return `value` as the type that `hint` names, or raise a ConfigError."""
    if get_origin(hint) in (Union, types.UnionType):
        options = [option for option in get_args(hint) if option is not type(None)]
        return None if value is None else _typed(options[0], value, where)
    if get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where} has a wrong type", got=repr(value), expected="a list")
        return tuple(_typed(get_args(hint)[0], item, where) for item in value)
    if get_origin(hint) is dict:
        return dict(value)
    if is_dataclass(hint):
        if type(value) is hint:
            return value
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} has a wrong type", got=repr(value), expected="a table")
        return from_dict(hint, value, where=where)  # type: ignore[arg-type]
    if hint is Location and (isinstance(value, str) or is_location(value)):
        return location(value)
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is Any or (isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool)):
        return value
    raise ConfigError(f"{where} has a wrong type", got=repr(value), expected=hint.__name__)


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
