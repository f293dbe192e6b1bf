"""Use case: embed videos into a table. What is done is skipped, so that a run which was stopped goes on where it was."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from stjepa_cli.core.errors import ConfigError
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.search.embedding import Embedded, Recipe
from stjepa_cli.search.encoder import Encoder
from stjepa_cli.search.engines.base import Job, open_engine
from stjepa_cli.search.indexes.base import Index, open_index
from stjepa_cli.search.records import ERROR, Column, Row
from stjepa_cli.search.sources import URI_COLUMN, list_items

COLUMN = "video_embedding"
FLUSH_ROWS = 256
FLUSH_BYTES = 64_000_000
FLUSH_SECONDS = 10.0
TIDY_AFTER = 200
"""Number of writes after which the table is tidied."""


@dataclass(frozen=True)
class EmbedRequest:
    """What to embed, with what, and where to.

    Attributes:
        sources: Files, folders, globs, URLs, and tables with a column of URIs.
        model: Name of an encoder.
        table: Place of a table, as `open_index` takes it.
        recipe: What vectors are made of a video.
        num_frames: Number of frames in a clip, for models that take any; None for the model's own.
        window_center: Moment of a window in seconds, or the column of the source tables that holds it.
        uri_column: Column of the source tables with paths or URLs.
        limit: Greatest number of videos.
        engine: Engine plug-in: `local`, or `ray` for the machines of a Ray cluster.
        ray_address: Address of a running cluster; None for one that is started here.
        parquet: File that the whole table is written to afterwards.

    Raises:
        ConfigError: They do not go together.
    """

    sources: tuple[str, ...]
    model: str
    table: str
    recipe: Recipe = field(default_factory=lambda: Recipe(COLUMN))
    num_frames: int | None = None
    window_center: str | None = None
    uri_column: str = URI_COLUMN
    limit: int | None = None
    engine: str = "local"
    ray_address: str | None = None
    parquet: Path | None = None

    def __post_init__(self) -> None:
        window = self.recipe.framing.strategy == "window"
        if window and self.window_center is None:
            raise ConfigError(
                "a window needs its moment", fix="Add `--window-center SECONDS`, or the name of a column of the source table."
            )
        if self.window_center is not None and not window:
            raise ConfigError("a moment is for windows", got=self.window_center, fix="Add `--strategy window`.")


@dataclass(frozen=True)
class FailedVideo:
    """A video that could not be embedded.

    Attributes:
        uri: Path or URL.
        error: The reason.
    """

    uri: str
    error: str


@dataclass(frozen=True)
class EmbedResult:
    """What a run has done.

    Attributes:
        table: Name of the table.
        rows: Number of rows of the table, those with errors included.
        written: Number of rows whose vectors this run has written.
        skipped: Number of rows that were done before.
        failed: Videos that could not be used, each once.
        column: Column of the vectors.
        model: Name of the encoder.
        dim: Width of a vector.
        output: `clip`, `frames` or `tokens`.
        pool: Pooling of the tokens.
        strategy: Choice of frames.
        parquet: File that the table was written to, or None.
        seconds: Duration of the run.
    """

    table: str
    rows: int
    written: int
    skipped: int
    failed: tuple[FailedVideo, ...]
    column: str
    model: str
    dim: int
    output: str
    pool: str
    strategy: str
    parquet: str | None
    seconds: float


def embed(request: EmbedRequest, runtime: Runtime = Runtime()) -> EmbedResult:
    """Embed videos into a table and report what was done; a video that cannot be used gets a row that says why, and the others go on.

    Args:
        request: What to embed, with what, and where to.
        runtime: Device, batch size, decoding threads and progress.

    Raises:
        ConfigError: There is no such source, the table has another schema, or its column holds vectors of another model.
        StjepaError: The model cannot be loaded, or the table cannot be written; what was written stays.
    """
    started = time.monotonic()
    items = list_items(request.sources, uri_column=request.uri_column, center=request.window_center, limit=request.limit)
    if not items:
        raise ConfigError("there are no videos to embed", got=", ".join(request.sources))
    engine = open_engine(request.engine, request.ray_address)
    with engine.ready(), open_index(request.table, create=True) as index:
        encoder = Encoder.load(request.model, runtime, request.num_frames)
        column = request.recipe.column_of(encoder, request.model)
        index.add_column(column)
        writer = _Writer(index, column)
        job = Job(encoder, request.model, request.num_frames, column, request.recipe, items, writer.known)
        with runtime.progress.task("embed", total=len(items), unit="videos") as task, writer:
            for found in engine.run(job):
                writer.add(found)
                if found.last:
                    task.advance(failed=len(writer.failed))
        if request.parquet is not None:
            write_table(index, request.parquet)
        return EmbedResult(
            table=index.name,  # the place of a table may hold a password
            rows=index.count(),
            written=writer.written,
            skipped=writer.skipped,
            failed=tuple(FailedVideo(uri, error) for uri, error in writer.failed.items()),
            column=column.name,
            model=column.model,
            dim=column.dim,
            output=column.kind,
            pool=column.pool,
            strategy=column.strategy,
            parquet=None if request.parquet is None else str(request.parquet),
            seconds=round(time.monotonic() - started, 3),
        )


def write_table(index: Index, path: Path) -> int:
    """Write a whole table to a Parquet file, whole or not at all, and return its number of rows.

    Raises:
        StjepaError: The file cannot be written.
    """
    from stjepa_cli.search.arrow import write_parquet

    columns = index.columns()
    return write_parquet(path, index.rows(columns=tuple(columns)), list(columns.values()))


class _Writer:
    """Writes rows in groups, so that a stop loses the work of seconds, and counts what was done.

    Args:
        index: The table.
        column: The column that is filled.
    """

    def __init__(self, index: Index, column: Column) -> None:
        self.index, self.column = index, column
        self.known = index.known(column.name)
        self.written = self.skipped = 0
        self.failed: dict[str, str] = {}
        self._waiting: list[Row] = []
        self._bytes, self._flushed, self._num_flushes = 0, time.monotonic(), 0
        self._digests: dict[str, str] = {}

    def __enter__(self) -> None:
        """Start to count the seconds between writes."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write what waits, also when the run is being stopped; the table is tidied only after a run that was not."""
        self._flush()
        if kind is None:
            self._drop_parts_of_old_contents()
            if self._num_flushes:
                self.index.tidy()

    def add(self, found: Embedded) -> None:
        """Take the rows of a video, and write all that wait if it is time."""
        self.skipped += found.skipped
        self._digests[found.uri] = found.digest
        for row in found.rows:
            if row.status == ERROR:
                self.failed.setdefault(row.uri, row.error or "")
            vector = row.vectors[self.column.name]
            self._waiting.append(row)
            self._bytes += 0 if vector is None else vector.nbytes
        late = time.monotonic() - self._flushed > FLUSH_SECONDS
        if self._waiting and (len(self._waiting) >= FLUSH_ROWS or self._bytes >= FLUSH_BYTES or late):
            self._flush()

    def _flush(self) -> None:
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        if rows := self._without_unreachable(waiting):
            self.index.upsert(rows, self.column.name)
            self._num_flushes += 1
            if self._num_flushes % TIDY_AFTER == 0:
                self.index.tidy()
        self.written += sum(row.status != ERROR for row in rows)
        self._flushed = time.monotonic()

    def _without_unreachable(self, rows: list[Row]) -> list[Row]:
        """Leave out files that cannot be reached now and were embedded before: what the table holds of them stays."""
        ids = [row.id for row in rows if not row.digest]
        stored: set[str] = set()
        for start in range(0, len(ids), 64):  # a condition has a greatest length
            among = ", ".join(f"'{each}'" for each in ids[start : start + 64])
            stored |= {row.id for row in self.index.rows(where=f"id IN ({among}) AND digest <> ''")}
        return [row for row in rows if row.id not in stored]

    def _drop_parts_of_old_contents(self) -> None:
        """Delete parts of videos that have changed since: a shorter file has fewer of them."""
        parts = self.index.rows(where="end_seconds IS NOT NULL")
        self.index.delete([row.id for row in parts if self._digests.get(row.uri, "") not in ("", row.digest)])


@dataclass(frozen=True)
class IndexResult:
    """What building an index has come to.

    Attributes:
        table: Name of the table.
        column: The column.
        kind: Name of the index, or `exact` where searching everything is faster.
        rows: Number of vectors.
        recall: Share of the true 10 nearest rows that a search finds, between 0 and 1.
        seconds: Duration.
    """

    table: str
    column: str
    kind: str
    rows: int
    recall: float
    seconds: float


def build_index(place: str, column: str = COLUMN) -> IndexResult:
    """Build an approximate index of a column where it pays, and measure what it finds.

    Args:
        place: Place of a table, as `open_index` takes it.
        column: A column with one vector per row.

    Raises:
        ConfigError: There is no such table or column, or it does not hold one vector per row.
    """
    started = time.monotonic()
    with open_index(place) as index:
        built = index.build_index(column)
    return IndexResult(index.name, column, built.kind, built.rows, built.recall, round(time.monotonic() - started, 3))
