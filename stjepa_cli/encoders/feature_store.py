"""Features of the videos of a data set: extracted once, kept on disk, and reused by every probe and every command.

Rows are found by the id of a video and the fingerprint of its file. So every list of a data set (each split, any limit) reuses what
another list has extracted, an interrupted extraction resumes where it stopped, and a file that was replaced is extracted again.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from stjepa_cli.core.errors import storage_errors
from stjepa_cli.core.locations import Location, is_local
from stjepa_cli.core.prefetch import ordered_map
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.data.datasets.base import VideoItem
from stjepa_cli.encoders.base import Encoder, Failure, encode_videos
from stjepa_cli.encoders.extraction import DEFAULT, Extraction
from stjepa_cli.encoders.feature_files import FeatureFolder, FeatureSpec, Key, Row
from stjepa_cli.encoders.features import Features
from stjepa_cli.encoders.fingerprints import fingerprint
from stjepa_cli.encoders.resolve import at_layer
from stjepa_cli.models.tensor_file import read_tensors

SHARD_VIDEOS = 512
SHARD_BYTES = 1 << 28
SHARD_SECONDS = 2.0
LOST_FRACTION = 0.05
"""A killed process loses at most `SHARD_SECONDS`, or this fraction of the time that it had run."""

MANY_FILES = 2000
"""Fingerprints of more files than this are shown as a task of their own."""

IN_MEMORY_BYTES = 1 << 30
"""Tokens of one list up to this size are held in memory."""


class FeatureStore:
    """Features of one data set by one encoder: in memory, and also on disk if the extraction names a folder.

    Args:
        encoder: A frozen encoder on the device of `runtime`.
        dataset: Name of the data set.
        extraction: How features are extracted, and where they are kept.
        runtime: Device, batch size, decoding threads and progress. None of them decides a feature.

    Attributes:
        encoder: The encoder, giving the tokens of the block that was asked for.
        clips: The clips of a video, with the number of frames that the encoder takes.
        clip: How a clip is cut.
        spec: Everything that decides the features.
        folder: Folder of the files, or None.

    Raises:
        ConfigError: The encoder has no such block, or takes clips of another length.
    """

    def __init__(self, encoder: Encoder, dataset: str, extraction: Extraction = DEFAULT, runtime: Runtime = Runtime()) -> None:
        self.encoder, self.extraction, self.runtime = at_layer(encoder, extraction.layer), extraction, runtime
        self.clips, self.clip = extraction.cut(encoder.clip)
        kind = runtime.torch_device.type
        self.spec = FeatureSpec(
            encoder=encoder.digest,
            dataset=dataset,
            clip=self.clip,
            plan=str(self.clips),
            pool=extraction.pool,
            arithmetic=f"{kind} {'bfloat16' if kind == 'cuda' else 'float32'}",
            layer=self.encoder.layer,
            schema=2 if self.clip.sampling == "dense" else 1,  # 2: short videos are taken whole, where 1 repeated their ends
        )
        self._files = None if extraction.folder is None else FeatureFolder(extraction.folder, self.spec)
        self.folder = None if self._files is None else self._files.path
        self._rows: dict[Key, Tensor] = {}
        self._errors: dict[Key, str] = {}
        self._fingerprints: dict[Location, str] = {}
        self._loaded = False

    @property
    def pool(self) -> str:
        """How tokens become features."""
        return self.extraction.pool

    def __len__(self) -> int:
        """Return the number of videos with features."""
        self._load()
        return len(self._rows)

    def extract(self, items: Sequence[VideoItem], task_name: str = "features") -> tuple[Features, tuple[Failure, ...]]:
        """Return the features of videos and the videos that failed, each in the order of the list.

        Features are averaged over the clips of a video. Tokens of the clips of a video stand side by side, (C * N, D). What is not
        there yet is extracted and kept, even if the extraction is interrupted.

        Raises:
            StjepaError: A feature is not finite, or the disk is full.
        """
        self._load()
        keys = {item.id: (item.id, mark) for item, mark in zip(items, self.fingerprints(items), strict=True)}
        self._extract([item for item in items if not self._knows(keys[item.id])], keys, task_name)
        features = self._gathered([item for item in items if keys[item.id] in self._rows], keys)
        failed = [item for item in items if keys[item.id] in self._errors]
        return features, tuple(Failure(item.id, f"{item.path}: {self._errors[keys[item.id]]}") for item in failed)

    def fingerprints(self, items: Sequence[VideoItem]) -> list[str]:
        """Return the fingerprints of the files of videos, in their order. Each file is read once."""
        new = list(dict.fromkeys(item.path for item in items if item.path not in self._fingerprints))
        if len(new) > MANY_FILES:
            with self.runtime.progress.task("fingerprints of files", total=len(new), unit="files") as task:
                for path, mark in zip(new, ordered_map(fingerprint, new, num_workers=self.runtime.workers), strict=True):
                    self._fingerprints[path] = mark
                    task.advance(1)
        else:
            self._fingerprints |= {path: fingerprint(path) for path in new}
        return [self._fingerprints[item.path] for item in items]

    def _gathered(self, items: Sequence[VideoItem], keys: dict[str, Key]) -> Features:
        rows = [self._rows[keys[item.id]] for item in items]
        clips = torch.stack([row.float() if row.ndim == 2 else row.float().mean(dim=1) for row in rows]) if rows else torch.zeros(0, 1, 0)
        features = Features(
            values=clips.mean(dim=1),
            labels=torch.tensor([-1 if item.label is None else item.label for item in items], dtype=torch.int64),
            groups=tuple(item.group or item.id for item in items),
            ids=tuple(item.id for item in items),
            tokens=self._side_by_side(rows) if rows and self.pool == "tokens" else None,
            clips=clips if clips.shape[1] > 1 else None,
        )
        features.refuse_broken_tokens()
        return features

    def _side_by_side(self, rows: Sequence[Tensor]) -> Tensor:
        """Return tokens (C, N, D) of videos as one tensor (R, C * N, D), in an unnamed file if they are too many for memory."""
        shape = (len(rows), rows[0].shape[0] * rows[0].shape[1], rows[0].shape[2])
        num_bytes = math.prod(shape) * rows[0].element_size()
        table = _unnamed(self.folder, shape, rows[0].dtype) if num_bytes > IN_MEMORY_BYTES else torch.empty(shape, dtype=rows[0].dtype)
        for i, row in enumerate(rows):
            table[i] = row.flatten(0, 1)
        return table

    def _knows(self, key: Key) -> bool:
        return key in self._rows or key in self._errors

    def _extract(self, items: Sequence[VideoItem], keys: dict[str, Key], task_name: str) -> None:
        if not items:
            return
        new: list[Row] = []
        started, written, num_bytes = time.monotonic(), time.monotonic(), 0
        encoded = encode_videos(self.encoder, items, self.clips, pool=self.pool, runtime=self.runtime)
        with self.runtime.progress.task(task_name, total=len(keys), completed=len(keys) - len(items), unit="videos") as task:
            try:
                for item, found in encoded:
                    row = (keys[item.id], found if isinstance(found, Tensor) else found.reason)
                    self._remember(*row)
                    if isinstance(found, Tensor) or is_local(item.path):  # a server that failed now may answer the next time
                        new.append(row)
                    num_bytes += found.nbytes if isinstance(found, Tensor) else 0
                    task.advance(1, failed=len(self._errors))
                    now = time.monotonic()
                    overdue = now - written > max(SHARD_SECONDS, LOST_FRACTION * (now - started))
                    if overdue or len(new) >= SHARD_VIDEOS or num_bytes >= SHARD_BYTES:
                        self._write(new)
                        new, written, num_bytes = [], time.monotonic(), 0
            finally:
                self._write(new)

    def _remember(self, key: Key, found: Tensor | str) -> None:
        if isinstance(found, str):
            self._errors.setdefault(key, found)
        else:
            self._rows.setdefault(key, found)

    def _write(self, new: Sequence[Row]) -> None:
        if self._files is None or not new:
            return
        path = self._files.write(new, self.encoder.name)
        if self.pool == "tokens":  # too large for memory: from now on they are pages of the file, which the system may drop
            keys = [key for key, found in new if isinstance(found, Tensor)]
            self._rows |= dict(zip(keys, read_tensors(path)["values"], strict=True))

    def _load(self) -> None:
        """Read the kept features, once."""
        if self._files is not None and not self._loaded:
            for key, found in self._files.read(self.runtime.progress):
                self._remember(key, found)
        self._loaded = True


def _unnamed(folder: Path | None, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return a tensor in a file that disappears as soon as nothing uses it."""
    place = folder or Path(tempfile.gettempdir())
    with storage_errors(place):
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place) as file:
            os.posix_fallocate(file.fileno(), 0, math.prod(shape) * dtype.itemsize)  # so that a full disk raises an error, not SIGBUS
            return torch.from_file(file.name, shared=True, size=math.prod(shape), dtype=dtype).view(shape)
