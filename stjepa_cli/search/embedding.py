"""From videos to rows of a table: what a column holds, and the rows that a run of the encoder makes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from stjepa_cli.core.errors import ConfigError
from stjepa_cli.core.types import TokenGrid
from stjepa_cli.search import pooling
from stjepa_cli.search.encoder import Encoder
from stjepa_cli.search.parts import ALL, Framing
from stjepa_cli.search.reading import Item, Reader, Reading
from stjepa_cli.search.records import ERROR, KINDS, OK, Column, Known, Row, Vector

ON_ERROR = ("null", "zero")


@dataclass(frozen=True)
class Recipe:
    """What vectors are made of a video.

    Attributes:
        column: Name of the column that holds them.
        output: `clip` for one vector, `frames` for one per time step, `tokens` for all tokens.
        pool: Recipe of `pooling`; `none` for tokens, and `mean` for frames, which are means over space.
        framing: Choice of parts and frames.
        on_error: What stands in the column for a video that cannot be used: `null`, or a `zero` vector.
        block_bytes: Bytes per request to a remote video, or None for the driver's own number.

    Raises:
        ConfigError: One of them does not exist, or they do not go together.
    """

    column: str
    output: str = "clip"
    pool: str = "mean"
    framing: Framing = ALL
    on_error: str = "null"
    block_bytes: int | None = None

    def __post_init__(self) -> None:
        pooling.check_pool(self.pool)
        if self.output not in KINDS:
            raise ConfigError("unknown output", got=repr(self.output), expected="one of " + ", ".join(KINDS))
        if self.on_error not in ON_ERROR:
            raise ConfigError("unknown way to treat errors", got=repr(self.on_error), expected="one of " + ", ".join(ON_ERROR))
        fits = {"clip": tuple(pooling.RECIPES), "frames": ("mean",), "tokens": (pooling.NONE,)}[self.output]
        if self.pool not in fits:
            raise ConfigError(f"this pooling does not make {self.output}", got=self.pool, expected=" or ".join(fits))

    def column_of(self, encoder: Encoder, model: str) -> Column:
        """Return the column that an encoder fills.

        Args:
            encoder: The encoder.
            model: Its name, as the table keeps it.
        """
        dim = pooling.pooled_dim(encoder.dim, self.pool)
        num_frames = encoder.clip.num_frames
        return Column(self.column, self.output, dim, model, encoder.digest, self.pool, self.framing.strategy, num_frames)

    def vectors(self, tokens: Tensor, grid: TokenGrid) -> Tensor:
        """Return what the column holds of tokens (P, N, D): float32 (P, D), (P, t, D) or (P, N, D)."""
        return pooling.frames(tokens, grid) if self.output == "frames" else pooling.pool(tokens, grid, self.pool)


@dataclass(frozen=True)
class Embedded:
    """What became of a video, or of some of its parts.

    Attributes:
        uri: The video.
        digest: Fingerprint of its content, or an empty string if it could not be read.
        rows: Rows to write.
        skipped: Number of parts that were done already.
        last: True for the last group of parts of a video.
    """

    uri: str
    digest: str
    rows: tuple[Row, ...]
    skipped: int
    last: bool = True


def embed_items(encoder: Encoder, column: Column, recipe: Recipe, items: Iterable[Item], known: Mapping[str, Known]) -> Iterator[Embedded]:
    """Embed those videos that are not known yet; decoding runs ahead of the encoder in threads, and memory stays bounded.

    Args:
        encoder: The encoder.
        column: The column that it fills.
        recipe: What vectors to make.
        items: The videos.
        known: Rows that are done, by id.

    Yields:
        What became of each video, in their order, once for each group of its parts.
    """
    reader = Reader(encoder.clip, recipe.framing, known, recipe.block_bytes)
    for reading, tokens in encoder.encode(reader.read_all(items, encoder.runtime)):
        rows = () if not reading.parts else tuple(_rows(reading, tokens, encoder.grid, column, recipe))
        yield Embedded(reading.item.uri, reading.digest, rows, reading.skipped, reading.last)


def _rows(reading: Reading, tokens: Tensor | None, grid: TokenGrid, column: Column, recipe: Recipe) -> Iterator[Row]:
    """Yield a row for each part that was read, or that could not be read."""
    vectors: list[Vector | None] = [_stand_in(column, recipe.on_error)] * len(reading.parts)
    if tokens is not None:
        vectors = list(recipe.vectors(tokens, grid).cpu().numpy())
    facts: dict[str, Any] = dict(reading.facts)
    for part, vector in zip(reading.parts, vectors, strict=True):
        error = reading.error
        if vector is not None and not np.isfinite(vector).all():
            vector, error = _stand_in(column, recipe.on_error), "the encoder gave numbers that are not finite"
        status = OK if error is None else ERROR
        yield Row(
            uri=reading.item.uri,
            digest=reading.digest,
            start_seconds=part.start_seconds,
            end_seconds=part.end_seconds,
            model=column.model,
            model_digest=column.model_digest,
            strategy=recipe.framing.strategy,
            status=status,
            error=error,
            vectors={column.name: vector},
            statuses={column.name: status},
            **facts,
        )


def _stand_in(column: Column, on_error: str) -> Vector | None:
    """Return what stands for the vectors of a video that cannot be used: nothing, or one zero."""
    if on_error == "null":
        return None
    return np.zeros(column.dim if column.kind == "clip" else (1, column.dim), np.float32)
