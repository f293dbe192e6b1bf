"""The log of judgements: an SQLite file of events that is only ever appended to. The one user of sqlite3.

Each row is an event, and an undo is an event too. Events carry an id that their client made up, so that one which is sent again after a
lost reply is still one row. Readers and several writers work at the same time (write-ahead log); an event is on the disk when
`EventLog.append` returns. The order is that of arrival: the clocks of clients are not trusted.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from stjepa_cli.core.errors import ConfigError, StjepaError, UnreadableError, storage_errors

VERDICTS = ("choice", "none", "skip", "undo")
SCHEMA = 1
_APPLICATION = 0x53544A45  # marks the file as ours, in its header
_WAIT_S = 60.0
_LISTS = ("candidates", "positions", "selected", "rejected", "rank_in_space")


@dataclass(frozen=True)
class Event:
    """Something that a judge did.

    Attributes:
        event_id: Key that the client made up; the same id is the same event.
        session_id: Sitting of a judge. An undo takes back events of its own session only.
        judge: Name of the judge.
        mode: The question that was asked, such as `trick` or `place`.
        anchor: Item that was compared with: the id or uri of a row; empty for an undo.
        candidates: Items that were shown beside it.
        positions: Place of each candidate on the screen, from 0; empty if it is not known.
        selected: Candidates that were chosen as most like the anchor. For an undo: the events that it takes back, or nothing for the
            latest one of the session that has not been taken back.
        rejected: Candidates that were turned down; empty for all that were not selected.
        verdict: `choice`, `none` (no candidate is like the anchor), `skip` or `undo`.
        rank_in_space: Rank of each candidate among the neighbours of the anchor when it was shown, from 1; empty if it is not known.
        head_digest: Digest of the head whose space was used, or an empty string for the raw vectors.
        sampler: What proposed the candidates.
        response_ms: Milliseconds between showing and answering, or None.
        shown_at: Time at which the question was shown, as the client wrote it.
        client: Program that recorded the event.

    Raises:
        ConfigError: The values do not go together.
    """

    event_id: str
    session_id: str
    judge: str
    mode: str
    anchor: str = ""
    candidates: tuple[str, ...] = ()
    positions: tuple[int, ...] = ()
    selected: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()
    verdict: str = "choice"
    rank_in_space: tuple[int, ...] = ()
    head_digest: str = ""
    sampler: str = ""
    response_ms: int | None = None
    shown_at: str = ""
    client: str = ""

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ConfigError("unknown verdict", got=repr(self.verdict), expected="one of " + ", ".join(VERDICTS))
        for name in ("event_id", "session_id", "judge", "mode"):
            if not getattr(self, name):
                raise ConfigError(f"an event needs a {name}")
        if self.verdict != "undo":
            self._check_question()

    def _check_question(self) -> None:
        shown = set(self.candidates)
        if not self.anchor or not shown:
            raise ConfigError("a judgement needs an anchor and candidates")
        if self.anchor in shown or len(shown) < len(self.candidates):
            raise ConfigError("each item of a question is shown once", got=", ".join((self.anchor, *self.candidates)))
        if (self.verdict == "choice") != bool(self.selected):
            raise ConfigError("a choice selects a candidate, and nothing else does", got=f"{self.verdict} of {len(self.selected)}")
        if not {*self.selected, *self.rejected} <= shown:
            raise ConfigError("only candidates can be selected or rejected", got=", ".join({*self.selected, *self.rejected} - shown))
        if set(self.selected) & set(self.rejected):
            raise ConfigError("a candidate is selected or rejected, not both", got=", ".join(set(self.selected) & set(self.rejected)))
        for name in ("positions", "rank_in_space"):
            if len(getattr(self, name)) not in (0, len(self.candidates)):
                raise ConfigError(f"{name} has a value for each candidate, or none", got=len(getattr(self, name)))


FIELDS = tuple(field.name for field in fields(Event))


class EventLog:
    """A log of judgements. It may be open in several processes and threads; each has its own `EventLog`.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path, database: sqlite3.Connection) -> None:
        self.path, self._database = path, database

    @classmethod
    def open(cls, path: Path, *, create: bool = False) -> Self:
        """Open a log.

        Args:
            path: The file.
            create: Create the log if there is none.

        Raises:
            ConfigError: There is no such file, or it is another program's database.
            StjepaError: It is damaged, newer than this program, or cannot be written.
        """
        if not create and not path.is_file():
            raise ConfigError(
                "there is no log of judgements", got=path, fix=f"Type `stjepa judgements import FILE --log {path} --mode MODE`."
            )
        with _failures(path), storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)
        log = cls(path, database)
        try:
            with _failures(path):
                log._prepare()
        except BaseException:
            database.close()
            raise
        return log

    def append(self, events: Sequence[Event]) -> int:
        """Append events, all or none of them, and return when they are on the disk. Events that are there already stay as they are.

        Returns:
            The number of events that were new.

        Raises:
            ConfigError: An id belongs to an event with other content.
            StjepaError: The log cannot be written; none of the events is.
        """
        marks = ", ".join("?" * len(FIELDS))
        insert = f"INSERT INTO events ({', '.join(FIELDS)}) VALUES ({marks}) ON CONFLICT (event_id) DO NOTHING"
        new = 0
        with _failures(self.path), self._transaction():
            for event in events:
                added = self._database.execute(insert, _values(event)).rowcount
                if not added:
                    self._check_same(event)
                new += added
        return new

    def events(self, mode: str | None = None) -> Iterator[Event]:
        """Yield the events in the order of their arrival, those of a mode if one is given.

        Raises:
            StjepaError: The log cannot be read.
        """
        where, values = ("", ()) if mode is None else (" WHERE mode = ?", (mode,))
        with _failures(self.path):
            for row in self._database.execute(f"SELECT {', '.join(FIELDS)} FROM events{where} ORDER BY number", values):
                yield _event(row)

    def modes(self) -> tuple[str, ...]:
        """Return the modes of the events, sorted."""
        with _failures(self.path):
            return tuple(mode for (mode,) in self._database.execute("SELECT DISTINCT mode FROM events ORDER BY mode"))

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prepare(self) -> None:
        self._database.execute(f"PRAGMA busy_timeout = {int(1000 * _WAIT_S)}")
        application, version = (self._database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
        tables = self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application != _APPLICATION and tables:
            raise ConfigError(f"{self.path} is a database of another program", fix="Name another --log.")
        if version > SCHEMA:
            got, expected = f"schema {version}", f"at most {SCHEMA}"
            raise UnreadableError(f"{self.path} was written by a newer version of stjepa", got=got, expected=expected, fix="Update stjepa.")
        self._database.execute("PRAGMA synchronous = FULL")
        if version < SCHEMA:
            self._database.execute("PRAGMA journal_mode = WAL")
            with self._transaction():
                for statement in _CREATION:
                    self._database.execute(statement)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    def _check_same(self, event: Event) -> None:
        stored = self._database.execute(f"SELECT {', '.join(FIELDS)} FROM events WHERE event_id = ?", (event.event_id,)).fetchone()
        if _event(stored) != event:
            raise ConfigError("the log has another event of this id", got=event.event_id, fix="Give each event an id of its own.")


def _column(name: str) -> str:
    kind = "INTEGER" if name == "response_ms" else "TEXT NOT NULL"
    return f"{name} {kind}" + (" UNIQUE" if name == "event_id" else "")


_CREATION = (
    f"CREATE TABLE IF NOT EXISTS events (number INTEGER PRIMARY KEY AUTOINCREMENT, {', '.join(map(_column, FIELDS))})",
    *(
        f"CREATE TRIGGER IF NOT EXISTS no_{change} BEFORE {change} ON events BEGIN SELECT RAISE(ABORT, 'events stay as they are'); END"
        for change in ("update", "delete")
    ),
    f"PRAGMA application_id = {_APPLICATION}",
    f"PRAGMA user_version = {SCHEMA}",
)


def _values(event: Event) -> list[Any]:
    found = asdict(event)
    return [json.dumps(found[name]) if name in _LISTS else found[name] for name in FIELDS]


def _event(row: Sequence[Any]) -> Event:
    values = dict(zip(FIELDS, row, strict=True))
    typed: dict[str, Any] = {name: tuple(json.loads(value)) if name in _LISTS else value for name, value in values.items()}
    return Event(**typed)


@contextmanager
def _failures(path: Path) -> Iterator[None]:
    """Turn what SQLite raises into one sentence."""
    try:
        yield
    except sqlite3.Error as error:
        text, name = str(error), getattr(error, "sqlite_errorname", "")
        if name == "SQLITE_FULL":
            raise StjepaError(f"cannot write {path}: the disk is full", fix="Free some space; what is in the log is safe.") from error
        if name.startswith(("SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN")):
            fix = "Check its disk and its permissions; what is in the log is safe."
            raise StjepaError(f"cannot use {path}: {text}", fix=fix) from error
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise StjepaError(f"another process has been writing {path} for {_WAIT_S:g} s", fix="Try again when it is done.") from error
        fix = f"Keep a copy, then try `sqlite3 {path} .recover`."
        raise UnreadableError(f"{path} is damaged or no log of judgements: {text}", fix=fix) from error
    except (json.JSONDecodeError, TypeError) as error:
        raise UnreadableError(f"{path} is damaged: a row is no event", got=error) from error
