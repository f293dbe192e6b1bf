"""Connections to PostgreSQL: its driver, its errors as sentences, and names in SQL. The one user of psycopg and pgvector."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stjepa_cli.core.errors import ConfigError, NotReadyError, StjepaError, how_to_install

CONNECT_SECONDS = 10


def connect(dsn: str) -> Any:
    """Connect to a database, each statement a transaction of its own, with the type `vector` where the database has it.

    Args:
        dsn: URL or `key=value` pairs, as libpq takes them.

    Raises:
        ConfigError: The DSN cannot be read.
        NotReadyError: The server does not answer, or the driver is not installed.
    """
    psycopg, adapters = _libraries()
    try:
        settings = psycopg.conninfo.conninfo_to_dict(dsn)
    except psycopg.Error as error:
        fix = "Example: postgresql://user@host/database."
        raise ConfigError("the DSN cannot be read", got=_first_line(error), fix=fix) from error
    where = f"{settings.get('host', 'this machine')}, database {settings.get('dbname', settings.get('user', ''))}"  # never the password
    settings.setdefault("connect_timeout", CONNECT_SECONDS)
    try:
        connection = psycopg.connect(**settings, autocommit=True)
    except psycopg.Error as error:
        raise NotReadyError(f"the PostgreSQL server at {where} does not answer", got=_first_line(error)) from error
    if connection.execute("SELECT to_regtype('vector')").fetchone()[0] is not None:
        adapters.register_vector(connection)
    return connection


def add_extension(connection: Any) -> None:
    """Create the extension where it is not yet there; that needs a right that writing rows does not.

    Raises:
        NotReadyError: The server does not have it, or the user may not create it.
    """
    if connection.execute("SELECT count(*) FROM pg_extension WHERE extname = 'vector'").fetchone()[0]:
        return
    try:
        connection.execute("CREATE EXTENSION vector")
    except _libraries()[0].Error as error:
        fix = "Install pgvector on the server, and let an administrator type `CREATE EXTENSION vector`."
        raise NotReadyError("the database has no pgvector", got=_first_line(error), fix=fix) from error


@contextmanager
def failures(what: str) -> Iterator[None]:
    """Turn what PostgreSQL raises into one sentence."""
    psycopg = _libraries()[0]
    try:
        yield
    except (psycopg.Error, UnicodeError) as error:
        raise StjepaError(what, got=_first_line(error)) from error


def quoted(name: str) -> str:
    """Return a name between double quotes; names are checked where they enter, and here once more."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ConfigError("not a name of a table or column", got=repr(name))
    return f'"{name}"'


def register_vector(connection: Any) -> None:
    """Teach a connection the type `vector`."""
    _libraries()[1].register_vector(connection)


def as_literal(text: str, connection: Any) -> str:
    """Return a text as a quoted literal, for the few statements that take no parameters."""
    quoted_text: str = _libraries()[0].sql.Literal(text).as_string(connection)
    return quoted_text


def _libraries() -> tuple[Any, Any]:
    try:
        import pgvector.psycopg
        import psycopg
        import psycopg.conninfo
        import psycopg.sql
    except ImportError as error:
        raise NotReadyError("the driver of PostgreSQL is not installed", fix=how_to_install(extra="pgvector")) from error
    return psycopg, pgvector.psycopg


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
