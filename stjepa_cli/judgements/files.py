"""Use case: judgements from files into a log, and out of it. JSON Lines, Parquet, triplets as CSV, labels as CSV.

```text
{"judge": "ann", "anchor": "/v/1.mp4", "candidates": ["/v/2.mp4", "/v/3.mp4"], "selected": ["/v/2.mp4"], "verdict": "choice"}
anchor,positive,negative    a triplet a line, and a column `judge` if there is one
item,label                  a label a line; each item is asked about once, among one of its own label and others
```
"""

from __future__ import annotations

import csv
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stjepa_cli.core.errors import ConfigError, storage_errors
from stjepa_cli.core.files import replacing, write_atomic
from stjepa_cli.core.serialization import from_dict
from stjepa_cli.core.types import digest
from stjepa_cli.judgements.events import FIELDS, Event, EventLog

NUM_CANDIDATES = 8
CLIENT = "stjepa judgements import"
_NEEDED = ("judge", "anchor", "candidates", "selected", "verdict")
_SUFFIXES = ".jsonl, .parquet or .csv"


@dataclass(frozen=True)
class Imported:
    """What an import has done.

    Attributes:
        log: The log.
        read: Number of events in the file.
        new: Number of events that the log did not have.
        mode: Mode of the events.
    """

    log: Path
    read: int
    new: int
    mode: str


@dataclass(frozen=True)
class Exported:
    """What an export has done.

    Attributes:
        file: File that was written.
        events: Number of events in it.
    """

    file: Path
    events: int


def import_file(file: Path, log: Path, mode: str) -> Imported:
    """Append the events of a file to a log, all or none of them. The same file again adds nothing.

    Args:
        file: JSON Lines, Parquet, or CSV with triplets or labels.
        log: The log; it is created if there is none.
        mode: Mode of events that do not name their own.

    Raises:
        ConfigError: The file is none of these; the message names the line.
        StjepaError: The log cannot be written.
    """
    events = list(read_events(file, mode))
    if not events:
        raise ConfigError(f"there are no judgements in {file}")
    with EventLog.open(log, create=True) as opened:
        return Imported(log, len(events), opened.append(events), mode)


def export_file(log: Path, file: Path, mode: str | None = None) -> Exported:
    """Write the events of a log to a file, undos included, so that importing it gives the same log.

    Args:
        log: The log.
        file: File to write, `.jsonl` or `.parquet`.
        mode: Mode of the events; None for all.

    Raises:
        ConfigError: There is no such log, or the name of the file does not say how to write it.
        StjepaError: The file cannot be written.
    """
    with EventLog.open(log) as opened:
        rows = [asdict(event) for event in opened.events(mode)]
    if file.suffix == ".jsonl":
        write_atomic(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(errors="surrogateescape"))
    elif file.suffix == ".parquet":
        _write_parquet(file, rows)
    else:
        raise ConfigError("the name of the file does not say how to write it", got=file, expected=".jsonl or .parquet")
    return Exported(file, len(rows))


def read_events(file: Path, mode: str) -> Iterator[Event]:
    """Yield the events of a file.

    Events without an id get one that is a function of what they say, and of how often the file has said it before.

    Args:
        file: JSON Lines, Parquet, or CSV with triplets or labels.
        mode: Mode of events that do not name their own.

    Raises:
        ConfigError: The file cannot be read; the message names the line.
    """
    if not file.is_file():
        raise ConfigError("there is no such file", got=file)
    seen: Counter[str] = Counter()
    for number, values in enumerate(_records(file), 1):
        try:
            yield _event(values, mode, seen)
        except ConfigError as error:
            raise ConfigError(f"judgement {number} of {file}: {error.sentence()}") from error


def _event(values: Mapping[str, Any], mode: str, seen: Counter[str]) -> Event:
    given = {name: value for name, value in values.items() if value is not None}
    missing = [name for name in _NEEDED if name not in given and given.get("verdict") != "undo"]
    if missing:
        raise ConfigError("a judgement is incomplete", got="no " + ", ".join(missing), expected=", ".join(_NEEDED))
    judge = str(given.get("judge", ""))
    content = digest([mode, *(given.get(name) for name in _NEEDED)])
    seen[content] += 1
    usual = {"event_id": digest([content, seen[content]])[:32], "session_id": f"import/{judge}", "mode": mode, "client": CLIENT}
    return from_dict(Event, {**usual, **given}, where="a judgement")


def _records(file: Path) -> Iterator[Mapping[str, Any]]:
    if file.suffix == ".parquet":
        from stjepa_cli.search.arrow import read_parquet

        names = FIELDS
        for row in read_parquet(file, names):
            if row.get("judge") is not None:  # the first row only tells which columns there are
                yield row
        return
    try:
        if file.suffix == ".csv":
            yield from _from_csv(file)
        elif file.suffix in (".jsonl", ".ndjson"):
            yield from _from_json(file)
        else:
            raise ConfigError("the name of the file does not say how to read it", got=file, expected=_SUFFIXES)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{file} cannot be read as text", got=error) from error


def _from_json(file: Path) -> Iterator[Mapping[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                found = json.loads(line)
            except json.JSONDecodeError as error:
                raise ConfigError(f"line {number} of {file} is no JSON", got=error) from error
            if not isinstance(found, dict):
                raise ConfigError(f"line {number} of {file} is no judgement", got=line.strip()[:80], expected="a JSON object")
            yield found


def _from_csv(file: Path) -> Iterator[Mapping[str, Any]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        names = set(reader.fieldnames or ())
        if {"anchor", "positive", "negative"} <= names:
            for row in reader:
                items = {"candidates": [row["positive"], row["negative"]], "selected": [row["positive"]]}
                yield {"judge": row.get("judge") or "triplets", "anchor": row["anchor"], "verdict": "choice", **items}
        elif {"item", "label"} <= names:
            yield from _from_labels({row["item"]: row["label"] for row in reader})
        else:
            expected = "anchor,positive,negative or item,label"
            raise ConfigError(f"{file} has other columns than a file of triplets or labels", got=", ".join(names), expected=expected)


def _from_labels(labels: Mapping[str, str]) -> Iterator[Mapping[str, Any]]:
    """Yield a question about each item: which of these has its label? Drawn from the labels alone, so the same each time."""
    groups: dict[str, list[str]] = defaultdict(list)
    for item in sorted(labels):
        groups[labels[item]].append(item)
    for item in sorted(labels):
        lottery = random.Random(item)
        same = [other for other in groups[labels[item]] if other != item]
        others = [other for other in sorted(labels) if labels[other] != labels[item]]
        if not same or not others:
            continue
        right = lottery.choice(same)
        shown = [right, *lottery.sample(others, min(NUM_CANDIDATES - 1, len(others)))]
        lottery.shuffle(shown)
        yield {"judge": "labels", "anchor": item, "candidates": shown, "selected": [right], "verdict": "choice"}


def _write_parquet(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    from stjepa_cli.search.arrow import library

    arrow = library()
    texts, whole = arrow.list_(arrow.string()), arrow.list_(arrow.int32())
    lists = dict.fromkeys(("candidates", "selected", "rejected"), texts) | dict.fromkeys(("positions", "rank_in_space"), whole)
    kinds = lists | {"response_ms": arrow.int64()}
    schema = arrow.schema([(name, kinds.get(name, arrow.string())) for name in FIELDS])
    values = {name: [list(row[name]) if name in lists else row[name] for row in rows] for name in FIELDS}
    with storage_errors(file), replacing(file) as part:
        arrow.parquet.write_table(arrow.table(values, schema=schema), part)
