"""Embedding as a batch function: columns in, columns out, for Ray Data, pandas and anything that maps over batches of rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from stjepa_cli.core.errors import VideoError
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.search import pooling
from stjepa_cli.search.encoder import Encoder


class EmbedVideos:
    """A function of batches that adds a column of vectors, and one with the reasons where there is none.

    ```python
    dataset.map_batches(EmbedVideos, fn_constructor_kwargs={"model": "hog"}, concurrency=2)   # Ray Data
    frame = EmbedVideos("hog")(frame)                                                         # pandas
    ```

    The model is loaded at the first batch, once in each process.

    Args:
        model: Name of an encoder, as `Encoder.from_pretrained` takes it.
        column: Column of vectors to add; `<column>_error` says why one is missing, and is empty otherwise.
        uri_column: Column with the paths or URLs.
        pool: `mean`, `max`, `weighted` or `segments`, or `none` for tokens.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        batch_size: Clips per forward pass.
        workers: Threads that decode videos.
    """

    def __init__(
        self,
        model: str,
        column: str = "video_embedding",
        *,
        uri_column: str = "uri",
        pool: str = "mean",
        device: str = "auto",
        batch_size: int = 8,
        workers: int = 4,
    ) -> None:
        pooling.check_pool(pool)
        self.model, self.column, self.uri_column, self.pool = model, column, uri_column, pool
        self._runtime = Runtime(device, workers, batch_size)

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder, loaded on first use."""
        return Encoder.load(self.model, self._runtime)

    def __call__(self, batch: Any) -> Any:
        """Embed the videos of a batch.

        Args:
            batch: A mapping of columns to arrays or lists, or a pandas DataFrame.

        Returns:
            The same kind of batch with both columns added. In a mapping the vectors are float32 (B, D), or (B, N, D) for tokens, and
            all NaN for a video that cannot be used; in a DataFrame each is an array, or None.
        """
        vectors, errors = self.embed(batch[self.uri_column])
        if hasattr(batch, "assign"):
            return batch.assign(**{self.column: vectors, f"{self.column}_error": errors})
        return {**_columns(batch), self.column: self._stacked(vectors), f"{self.column}_error": np.array(errors, dtype=object)}

    def embed(self, uris: Iterable[Any]) -> tuple[list[np.ndarray[Any, Any] | None], list[str]]:
        """Return the vector of each video, or None, and the reason why there is none, or an empty text."""
        vectors: list[np.ndarray[Any, Any] | None] = []
        errors: list[str] = []
        for found in self.encoder.embed_or_errors((str(uri) for uri in uris), self.pool):
            failed = isinstance(found, VideoError)
            vectors.append(None if isinstance(found, VideoError) else found.numpy())
            errors.append(str(found) if failed else "")
        return vectors, errors

    def _stacked(self, vectors: list[np.ndarray[Any, Any] | None]) -> np.ndarray[Any, Any]:
        encoder = self.encoder
        width = pooling.pooled_dim(encoder.dim, self.pool)
        shape = (encoder.grid.num_tokens, width) if self.pool == pooling.NONE else (width,)
        missing = np.full(shape, np.nan, np.float32)
        return np.stack([missing if vector is None else vector for vector in vectors]) if vectors else np.zeros((0, *shape), np.float32)


def _columns(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {name: batch[name] for name in batch}
