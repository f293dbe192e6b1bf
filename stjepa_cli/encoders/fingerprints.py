"""Digests that identify video files, lists of videos, and features."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from stjepa_cli.core.locations import Location, is_local
from stjepa_cli.core.types import digest
from stjepa_cli.data.datasets.base import VideoItem
from stjepa_cli.encoders.features import Features

ABSENT = "absent"
_SAMPLE_BYTES = 1 << 14


def fingerprint(path: Location) -> str:
    """Return a fingerprint of a file that changes when the file is replaced, 16 hex digits, or `ABSENT`.

    It covers the size and the sha256 of both ends and the middle. Hashing whole files would take as long as extracting features,
    and modification times change with every copy. A URL is identified by its address.
    """
    if not is_local(path):
        return digest(str(path))[:16]
    found = hashlib.sha256()
    try:
        size = path.stat().st_size
        found.update(f"{size} ".encode())
        with path.open("rb") as file:
            for start in (0, size // 2, max(0, size - _SAMPLE_BYTES)):  # two videos can share their header and index
                file.seek(start)
                found.update(file.read(_SAMPLE_BYTES))
    except OSError:
        return ABSENT
    return found.hexdigest()[:16]


def list_digest(items: Sequence[VideoItem]) -> str:
    """Return the sha256 over ids, labels and groups of a list in its order, 64 hex digits."""
    return digest([[item.id, item.label, item.group] for item in items])


def features_digest(*sides: Features) -> str:
    """Return the sha256 over features, their videos and their labels, 64 hex digits."""
    found = hashlib.sha256()
    for side in sides:
        found.update(json.dumps([side.ids, side.labels.tolist(), side.groups]).encode())
        for part in (side.values, side.clips, side.tokens):
            if part is not None:
                found.update(part.contiguous().numpy().data)
    return found.hexdigest()
