"""Features of a data set's videos: extracted once, kept on disk, reused by every probe and every command.

```text
<folder>/<digest of the spec>/<digest of the content>.safetensors     videos that were extracted together; any number of files
```

Rows are found by a video's id and the fingerprint of its file, so that every list of a data set (each split, a limit) takes what
another one has extracted, a stopped extraction goes on where it was, and a file that was replaced is extracted again. What
failed is kept as failed in the same way.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stjepa_cli.core.config import to_dict
from stjepa_cli.core.errors import CheckpointError, ConfigError, storage_errors
from stjepa_cli.core.locations import Location, is_local
from stjepa_cli.core.prefetch import ordered_map
from stjepa_cli.core.progress import SILENT, Progress
from stjepa_cli.core.types import ClipSpec, digest, software_versions
from stjepa_cli.data.datasets.base import VideoItem
from stjepa_cli.data.eval_clips import ONE_CLIP, EvalClips
from stjepa_cli.encoders.base import POOLS, Decoded, Encoder, Failure, encode_videos
from stjepa_cli.encoders.features import Features
from stjepa_cli.encoders.resolve import at_layer
from stjepa_cli.models.checkpoint import read_metadata, read_tensors, write_tensors

SHARD_VIDEOS = 512
SHARD_BYTES = 1 << 28
MANY = 2000
"""Files that are looked at without a word."""
SHARD_SECONDS = 2.0
LOST_SHARE = 0.05
"""A process that is killed loses at most `SHARD_SECONDS`, or this share of the time that it took so far."""
HEADER = "stjepa_features"
ABSENT = "absent"

IN_MEMORY_BYTES = 1 << 30
"""Tokens of one list up to this size are held in memory."""

_SAMPLE_BYTES = 1 << 14
Key = tuple[str, str]


@dataclass(frozen=True)
class Extraction:
    """How features are made, and where they are kept.

    Attributes:
        pool: `mean` of all tokens (F = D), or `time`: mean over space, time steps side by side (F = t * D); `tokens`: all of
            them for the probes that take tokens, and their mean for the others.
        plan: which clips of each video.
        layer: block of a student whose tokens are taken, from 1 or, negative, from the end; None for the last.
        folder: where features are kept and looked for, None for memory alone.
        batch_size: clips that the encoder sees at once; changes no figure.
        workers: threads that decode; likewise.

    Raises:
        ConfigError: an unknown pool, or a size below 1.
    """

    pool: str = "mean"
    plan: EvalClips = ONE_CLIP
    layer: int | None = None
    folder: Path | None = None
    batch_size: int = 8
    workers: int = 2

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise ConfigError("unknown pool", got=repr(self.pool), expected="one of " + ", ".join(POOLS))
        if min(self.batch_size, self.workers) < 1:
            raise ConfigError("batch size and workers must be at least 1", got=f"{self.batch_size} and {self.workers}")


DEFAULT = Extraction()


@dataclass(frozen=True)
class FeatureSpec:
    """What decides the features of a video besides its file; its digest names their folder.

    Attributes:
        encoder: digest of the weights and geometry.
        dataset: name of the data set.
        clip: how a clip is cut.
        plan: which clips, `16x5x3`.
        pool: how tokens became features.
        layer: block that gave the tokens, None for the encoder's own.
        arithmetic: kind of device and its precision.
        schema: of the files.
    """

    encoder: str
    dataset: str
    clip: ClipSpec
    plan: str
    pool: str
    arithmetic: str
    layer: int | None = None
    schema: int = 1


class FeatureStore:
    """Features of one data set by one encoder: in memory, and on disk too if a folder is named.

    Args:
        encoder: frozen, on `device`.
        dataset: name of the data set.
        extraction: how features are made, and where they are kept.
        device: where the encoder is.
        progress: listener; told of files that cannot be used.

    Attributes:
        encoder: giving the tokens of the block that was asked for.
        plan: which clips, with the number of frames that the encoder takes.
        clip: how a clip is cut.
        spec: what decides the features.

    Raises:
        ConfigError: the encoder has no such block, or takes clips of another length.
    """

    def __init__(
        self,
        encoder: Encoder,
        dataset: str,
        extraction: Extraction = DEFAULT,
        *,
        device: torch.device,
        progress: Progress = SILENT,
    ) -> None:
        self.encoder, self.extraction, self.device, self.progress = at_layer(encoder, extraction.layer), extraction, device, progress
        self.plan, self.pool = extraction.plan.fit(encoder.clip), extraction.pool
        self.clip = self.plan.cut(encoder.clip)
        arithmetic = f"{device.type} {'bfloat16' if device.type == 'cuda' else 'float32'}"
        self.spec = FeatureSpec(encoder.digest, dataset, self.clip, str(self.plan), self.pool, arithmetic, self.encoder.layer)
        self.folder = None if extraction.folder is None else extraction.folder / digest(to_dict(self.spec))
        self._rows: dict[Key, Tensor] = {}
        self._errors: dict[Key, str] = {}
        self._marks: dict[Location, str] = {}
        self._loaded = False

    def __len__(self) -> int:
        """Videos that it has features of."""
        self._load()
        return len(self._rows)

    def take(self, items: Sequence[VideoItem], name: str = "features") -> tuple[Features, tuple[Failure, ...]]:
        """Features of videos, averaged over the clips of each, in the order of the list; and the videos that failed.

        Tokens of a video's clips stand side by side, (C * N, D) of each, and the features beside them are their means.

        What is not there yet is extracted and kept, even if the extraction is then stopped.

        Raises:
            StjepaError: a feature is not finite, or the disk is full.
        """
        self._load()
        marks = self.fingerprints(items)
        keys = {item.id: (item.id, mark) for item, mark in zip(items, marks, strict=True)}
        self._extract([item for item in items if not self._knows(keys[item.id])], keys, name)
        kept = [item for item in items if keys[item.id] in self._rows]
        rows = [self._rows[keys[item.id]] for item in kept]
        clips = torch.stack([row.float() if row.ndim == 2 else row.float().mean(dim=1) for row in rows]) if rows else torch.zeros(0, 1, 0)
        features = Features(
            clips.mean(dim=1),
            torch.tensor([-1 if item.label is None else item.label for item in kept], dtype=torch.int64),
            tuple(item.group or item.id for item in kept),
            tuple(item.id for item in kept),
            self._side_by_side(rows) if rows and self.pool == "tokens" else None,
            clips if clips.shape[1] > 1 else None,
        )
        features.refuse_broken_tokens()
        failed = [item for item in items if keys[item.id] in self._errors]
        return features, tuple(Failure(item.id, f"{item.path}: {self._errors[keys[item.id]]}") for item in failed)

    def fingerprints(self, items: Sequence[VideoItem]) -> list[str]:
        """Those of the videos' files, in their order; each file is read once."""
        new = list(dict.fromkeys(item.path for item in items if item.path not in self._marks))
        if len(new) > MANY:
            with self.progress.task("looking at files", total=len(new), unit="files") as task:
                for path, mark in zip(new, ordered_map(fingerprint, new, num_workers=self.extraction.workers), strict=True):
                    self._marks[path] = mark
                    task.advance(1)
        else:
            self._marks |= {path: fingerprint(path) for path in new}
        return [self._marks[item.path] for item in items]

    def _side_by_side(self, rows: Sequence[Tensor]) -> Tensor:
        """Tokens (C, N, D) of videos as one tensor (R, C * N, D): in a file without a name where they are too many for memory."""
        shape = (len(rows), rows[0].shape[0] * rows[0].shape[1], rows[0].shape[2])
        num_bytes = math.prod(shape) * rows[0].element_size()
        table = _unnamed(self.folder, shape, rows[0].dtype) if num_bytes > IN_MEMORY_BYTES else torch.empty(shape, dtype=rows[0].dtype)
        for place, row in enumerate(rows):
            table[place] = row.flatten(0, 1)
        return table

    def _knows(self, key: Key) -> bool:
        return key in self._rows or key in self._errors

    def _extract(self, items: Sequence[VideoItem], keys: dict[str, Key], name: str) -> None:
        if not items:
            return
        new: list[tuple[Key, Tensor | str]] = []
        started, written, num_bytes = time.monotonic(), time.monotonic(), 0
        with self.progress.task(name, total=len(items), unit="videos") as task:
            try:
                for item, found in self._encode(items):
                    row = (keys[item.id], found if isinstance(found, Tensor) else found.reason)
                    self._remember(*row)
                    if isinstance(found, Tensor) or is_local(item.path):  # a server that did not answer may the next time
                        new.append(row)
                    num_bytes += found.nbytes if isinstance(found, Tensor) else 0
                    task.advance(1, failed=len(self._errors))
                    now = time.monotonic()
                    overdue = now - written > max(SHARD_SECONDS, LOST_SHARE * (now - started))
                    if overdue or len(new) >= SHARD_VIDEOS or num_bytes >= SHARD_BYTES:
                        self._write(new)
                        new, written, num_bytes = [], time.monotonic(), 0
            finally:
                self._write(new)

    def _encode(self, items: Sequence[VideoItem]) -> Iterator[Decoded]:
        return encode_videos(
            self.encoder,
            items,
            self.plan,
            pool=self.pool,
            batch_size=self.extraction.batch_size,
            workers=self.extraction.workers,
            device=self.device,
        )

    def _remember(self, key: Key, found: Tensor | str) -> None:
        if isinstance(found, str):
            self._errors.setdefault(key, found)
        else:
            self._rows.setdefault(key, found)

    def _write(self, new: Sequence[tuple[Key, Tensor | str]]) -> None:
        if self.folder is None or not new:
            return
        rows = [(key, found) for key, found in new if isinstance(found, Tensor)]
        values = torch.stack([row for _, row in rows]) if rows else torch.zeros(0, self.plan.num_clips, 0)
        header = {
            "spec": to_dict(self.spec),
            "rows": [key for key, _ in rows],
            "failed": [[*key, found] for key, found in new if isinstance(found, str)],
        }
        content = _content(header, values)
        header |= {"digest": content, "encoder": self.encoder.name, "software": software_versions()}
        path = self.folder / f"{content[:16]}.safetensors"
        write_tensors(path, {"values": values}, {HEADER: json.dumps(header, sort_keys=True)})
        path.chmod(self.folder.stat().st_mode & 0o666)  # safetensors makes files for their owner only
        if self.pool == "tokens":  # from now on they are the file's pages, which the system may drop
            self._rows |= {key: row for (key, _), row in zip(rows, read_tensors(path)["values"], strict=True)}

    def _load(self) -> None:
        """Take what is kept, once."""
        for path in sorted(self.folder.glob("*.safetensors")) if self.folder and not self._loaded else ():
            self._load_file(path)
        self._loaded = True

    def _load_file(self, path: Path) -> None:
        """Take the rows of a file, or say why it is not used."""
        try:
            header, values = self._checked(path)
        except (CheckpointError, KeyError, ValueError, TypeError) as error:
            reason = error.got if isinstance(error, CheckpointError) and error.got else error
            self.progress.note(f"{path} is removed, and its videos are extracted again where they are asked for: {reason}")
            with storage_errors(path):
                path.unlink(missing_ok=True)
            return
        for (name, mark), row in zip(header["rows"], values, strict=True):
            self._remember((name, mark), row)
        for name, mark, reason in header["failed"]:
            self._remember((name, mark), str(reason))

    def _checked(self, path: Path) -> tuple[dict[str, Any], Tensor]:
        header = json.loads(read_metadata(path)[HEADER])
        if header["spec"] != to_dict(self.spec):
            raise ValueError("it holds features of something else")
        values = read_tensors(path)["values"]
        if header["digest"] != _content({part: header[part] for part in ("spec", "rows", "failed")}, values):
            raise ValueError("its digest does not match what it holds")
        return header, values


def fingerprint(path: Location) -> str:
    """What tells that a file was replaced: its size and the sha256 of its ends and middle, 16 hex digits; a URL stands for its file.

    All of it would take as long as extracting, and a stamp of time changes with every copy.
    """
    if not is_local(path):
        return digest(str(path))[:16]
    found = hashlib.sha256()
    try:
        size = path.stat().st_size
        found.update(f"{size} ".encode())
        with path.open("rb") as file:
            for start in (0, size // 2, max(0, size - _SAMPLE_BYTES)):  # headers and indices alone may be those of another video
                file.seek(start)
                found.update(file.read(_SAMPLE_BYTES))
    except OSError:
        return ABSENT
    return found.hexdigest()[:16]


def list_digest(items: Sequence[VideoItem]) -> str:
    """sha256 over ids, labels and groups of a list, in its order, 64 hex digits."""
    return digest([[item.id, item.label, item.group] for item in items])


def features_digest(*sides: Features) -> str:
    """sha256 over the values of features and whose they are, 64 hex digits."""
    found = hashlib.sha256()
    for side in sides:
        found.update(json.dumps([side.ids, side.labels.tolist(), side.groups]).encode())
        for part in (side.values, side.clips, side.tokens):
            if part is not None:
                found.update(part.contiguous().numpy().data)
    return found.hexdigest()


def _unnamed(folder: Path | None, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor in a file that is gone as soon as nobody uses it."""
    place = folder or Path(tempfile.gettempdir())
    with storage_errors(place):
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place) as file:
            os.posix_fallocate(file.fileno(), 0, math.prod(shape) * dtype.itemsize)  # a full disk is told now, not by a signal
            return torch.from_file(file.name, shared=True, size=math.prod(shape), dtype=dtype).view(shape)


def _content(header: dict[str, Any], values: Tensor) -> str:
    """sha256 over what a file holds, 64 hex digits."""
    found = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    found.update(f"{values.dtype} {tuple(values.shape)}".encode())
    found.update(values.contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
