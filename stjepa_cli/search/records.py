"""The records of a table of vectors: its rows, and its columns of vectors.

```text
id  uri  digest  duration_seconds  fps  width  height  start_seconds  end_seconds  model  model_digest  strategy  status  error
    | <column>           the vectors of one model and one pooling
    | <column>_status    `ok`, `error`, or null where the column has not been filled yet
    | a further column, with its own status, beside the first
```
Model, digest, pooling and strategy belong to a column, since a table holds the vectors of several models. A row repeats them, and
its status and error, as of the column that was written last, so that a table with a single column explains itself in any tool.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import numpy as np

from stjepa_cli.core.errors import ConfigError
from stjepa_cli.core.types import digest

Vector: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.float32]]"
"""float32 (D,) in a column of kind `clip`, (K, D) in one of kind `frames` or `tokens`."""

KINDS = ("clip", "frames", "tokens")
OK, ERROR = "ok", "error"
FIXED = (
    *("id", "uri", "digest", "duration_seconds", "fps", "width", "height", "start_seconds", "end_seconds"),
    *("model", "model_digest", "strategy", "status", "error"),
)
"""The columns that every table has, in their order."""

HEAD = "head "
"""Start of the model of a column that a head has written from another column."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,57}")


@dataclass(frozen=True)
class Column:
    """A column of vectors and where they come from.

    Attributes:
        name: Letters, digits and underscores, at most 58.
        kind: `clip` for a vector (D,) per row, `frames` for (K, D) with one per frame or tubelet, `tokens` for (N, D).
        dim: Width D of a vector.
        model: Name of the encoder, as it was typed.
        model_digest: sha256 over its weights and the geometry of its clips, 64 hex digits.
        pool: Pooling of the tokens, `none` for tokens.
        strategy: Choice of the frames of a clip: `full`, `centered` or `window`.
        num_frames: Frames of a clip; 0 where they are the model's own.

    Raises:
        ConfigError: The name, kind or width cannot be used.
    """

    name: str
    kind: str
    dim: int
    model: str
    model_digest: str
    pool: str = "mean"
    strategy: str = "full"
    num_frames: int = 0

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name in FIXED or self.name.endswith("_status"):
            expected = "letters, digits and underscores, at most 58, and no name that every table has"
            raise ConfigError("a column cannot have this name", got=repr(self.name), expected=expected)
        if self.kind not in KINDS:
            raise ConfigError("unknown kind of column", got=repr(self.kind), expected="one of " + ", ".join(KINDS))
        if self.dim < 1:
            raise ConfigError("a vector must have channels", got=self.dim)

    @property
    def status(self) -> str:
        """Name of the column with the status of each vector."""
        return f"{self.name}_status"

    def metadata(self) -> dict[str, str]:
        """Return the column as text by text, to be kept beside it in a database."""
        return {key: str(value) for key, value in asdict(self).items()}

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> Column:
        """Return the column that `metadata` describes.

        Raises:
            KeyError: It does not describe a column.
        """
        texts = {key: metadata[key] for key in ("name", "kind", "model", "model_digest", "pool", "strategy")}
        return cls(dim=int(metadata["dim"]), num_frames=int(metadata.get("num_frames", 0)), **texts)

    def check_same(self, wanted: Column, table: str) -> None:
        """Refuse to write vectors of another origin into this column; the name of a model may change, its digest may not.

        Args:
            wanted: What is about to be written.
            table: Name of the table, for the message.

        Raises:
            ConfigError: They differ; the message names both.
        """
        for key in ("model_digest", "kind", "dim", "pool", "strategy"):
            mine, other = getattr(self, key), getattr(wanted, key)
            if mine == other:
                continue
            got, expected = f"{key} {other}", f"{key} {mine}"
            if key == "model_digest":
                got, expected = f"{wanted.model} (digest {other[:12]})", f"{self.model} (digest {mine[:12]})"
            fix = "Choose another --column for it."
            raise ConfigError(f"column {self.name} of {table} holds other vectors", got=got, expected=expected, fix=fix)


@dataclass(frozen=True)
class Row:
    """A video, or a part of one, and its vectors.

    Attributes:
        uri: Absolute path or URL of the video.
        digest: Fingerprint of the content of the file, or an empty string if it could not be read.
        duration_seconds: Length of the whole video, or None if it is not known.
        fps: Frames per second, or None.
        width: Width of a frame as shown, in pixels, or None.
        height: Height of a frame as shown, in pixels, or None.
        start_seconds: Start of the part; 0 for the whole video.
        end_seconds: End of the part, or None for the whole video, whatever its length; equal to the start for the moment of a window.
        model: Name of the encoder of the column that was written last.
        model_digest: Digest of that encoder.
        strategy: Choice of frames of that column.
        status: `ok`, or `error` if the video could not be embedded for that column.
        error: Reason, or None.
        vectors: Vectors by column; None where there is none.
        statuses: Statuses by column: `ok`, `error`, or None where the column is not filled yet.
    """

    uri: str
    digest: str = ""
    duration_seconds: float | None = None
    fps: float | None = None
    width: int | None = None
    height: int | None = None
    start_seconds: float = 0.0
    end_seconds: float | None = None
    model: str = ""
    model_digest: str = ""
    strategy: str = "full"
    status: str = OK
    error: str | None = None
    vectors: Mapping[str, Vector | None] = field(default_factory=dict, compare=False)
    statuses: Mapping[str, str | None] = field(default_factory=dict, compare=False)

    @property
    def id(self) -> str:
        """Key of the row, 32 hex digits: a function of uri, start and end alone."""
        return row_id(self.uri, self.start_seconds, self.end_seconds)

    def vectors_of(self, column: Column) -> Vector | None:
        """Return the vectors for a column, or None where there are none.

        Raises:
            ConfigError: They have another shape than those of the column.
        """
        vector = self.vectors.get(column.name)
        if vector is None:
            return None
        if vector.ndim != (1 if column.kind == "clip" else 2) or vector.shape[-1] != column.dim:
            got, expected = f"shape {tuple(vector.shape)}", f"width {column.dim}"
            raise ConfigError(f"{self.uri}: its vectors do not fit column {column.name}", got=got, expected=expected)
        return vector

    def fixed(self) -> dict[str, Any]:
        """Return the values of the columns that every table has, by name."""
        return {name: getattr(self, name) for name in FIXED}


def row_id(uri: str, start_seconds: float = 0.0, end_seconds: float | None = None) -> str:
    """Return the key of a row, 32 hex digits; times count to the microsecond."""
    times = [None if time is None else round(time * 1e6) for time in (start_seconds, end_seconds)]
    return digest([uri, *times])[:32]


@dataclass(frozen=True, slots=True)
class Known:
    """What an index knows about a row that a column holds a vector of.

    Attributes:
        digest: Fingerprint of the content of the file.
        strategy: Choice of frames, as in `Row.strategy`.
        duration_seconds: Length of the whole video, or None.
    """

    digest: str
    strategy: str
    duration_seconds: float | None
