"""Files of kept features.

```text
<root>/<digest of the spec>/<digest of the content>.safetensors     any number of files, each with the videos of one extraction
```

A row belongs to the id of a video and the fingerprint of its file. A video that failed is kept as failed in the same way.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stjepa_cli.core.errors import CheckpointError, UnreadableError
from stjepa_cli.core.progress import Progress
from stjepa_cli.core.serialization import to_dict
from stjepa_cli.core.types import ClipSpec, digest, software_versions
from stjepa_cli.models.tensor_file import read_metadata, read_tensors, write_tensors

HEADER = "stjepa_features"

Key = tuple[str, str]
"""The id of a video and the fingerprint of its file."""

Row = tuple[Key, Tensor | str]
"""The features (C, F) or tokens (C, N, D) of a video, or the reason why there are none."""


@dataclass(frozen=True)
class FeatureSpec:
    """Everything besides the file itself that decides the features of a video. Its digest names their folder.

    Attributes:
        encoder: Digest of weights and geometry.
        dataset: Name of the data set.
        clip: How a clip is cut.
        plan: The clips of a video, `16x5x3`.
        pool: How tokens became features.
        arithmetic: Kind of device and its precision.
        layer: Block that gave the tokens, or None for the output of the encoder.
        schema: Version of the file format.
    """

    encoder: str
    dataset: str
    clip: ClipSpec
    plan: str
    pool: str
    arithmetic: str
    layer: int | None = None
    schema: int = 1


class FeatureFolder:
    """The files of one spec.

    Args:
        root: Folder of all kept features.
        spec: The spec of the features.

    Attributes:
        path: The folder of this spec.
    """

    def __init__(self, root: Path, spec: FeatureSpec) -> None:
        self.spec, self.path = spec, root / digest(to_dict(spec))
        self._unreadable: set[Path] = set()

    def read(self, progress: Progress) -> Iterator[Row]:
        """Yield every row that is kept.

        A file that cannot be read is left alone. A file whose content is not what was written is set aside, by the ending
        `.damaged`. Both are reported, and their videos are extracted again.
        """
        for path in sorted(self.path.glob("*.safetensors")):
            try:
                header, values = self._checked(path)
            except (CheckpointError, UnreadableError, KeyError, ValueError, TypeError, OSError) as error:
                progress.note(self._reject(path, error))
                continue
            for (name, mark), row in zip(header["rows"], values, strict=True):
                yield (name, mark), row
            for name, mark, reason in header["failed"]:
                yield (name, mark), str(reason)

    def write(self, rows: Sequence[Row], encoder: str) -> Path:
        """Write rows into a new file and return its path.

        Args:
            rows: The rows.
            encoder: Name of the encoder, for people who read the header.

        Raises:
            StjepaError: The disk is full or cannot be written.
        """
        encoded = [(key, found) for key, found in rows if isinstance(found, Tensor)]
        failed = [(key, found) for key, found in rows if isinstance(found, str)]
        values = torch.stack([row for _, row in encoded]) if encoded else torch.zeros(0, 1, 0)
        header = {
            "spec": to_dict(self.spec),
            "rows": [key for key, _ in encoded],
            "failed": [[*key, reason] for key, reason in failed],
        }
        content = _content_digest(header, values)
        header |= {"digest": content, "encoder": encoder, "software": software_versions()}
        path = self._free_path(content[:16])
        write_tensors(path, {"values": values}, {HEADER: json.dumps(header, sort_keys=True)})
        return path

    def _free_path(self, stem: str) -> Path:
        """Return a path that does not replace a file which could not be read."""
        names = (f"{stem}{f'-{i}' if i else ''}.safetensors" for i in count())
        return next(path for name in names if (path := self.path / name) not in self._unreadable)

    def _reject(self, path: Path, error: Exception) -> str:
        """Set a damaged file aside, leave an unreadable one alone, and return what to tell the user."""
        reason = error.got if isinstance(error, CheckpointError) and error.got else error
        again = "and its videos are extracted again where they are needed"
        if not _can_be_read(path):
            self._unreadable.add(path)
            return f"{path} cannot be read and is left as it is, {again}: {reason}"
        aside = next(other for i in count() if not (other := path.with_name(f"{path.name}{f'.{i}' if i else ''}.damaged")).exists())
        try:
            path.rename(aside)
        except OSError:
            self._unreadable.add(path)
            return f"{path} is not used, {again}: {reason}"
        return f"{path} is set aside as {aside.name}, {again}: {reason}"

    def _checked(self, path: Path) -> tuple[dict[str, Any], Tensor]:
        header = json.loads(read_metadata(path)[HEADER])
        if header["spec"] != to_dict(self.spec):
            raise ValueError("it holds features of something else")
        values = read_tensors(path)["values"]
        if header["digest"] != _content_digest({part: header[part] for part in ("spec", "rows", "failed")}, values):
            raise ValueError("its digest does not match its content")
        return header, values


def _can_be_read(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            while file.read(1 << 22):
                pass
    except OSError:
        return False
    return True


def _content_digest(header: dict[str, Any], values: Tensor) -> str:
    """Return the sha256 over the content of a file, 64 hex digits."""
    found = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    found.update(f"{values.dtype} {tuple(values.shape)}".encode())
    found.update(values.contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
