"""Replacing a cache: the new one is built beside the old one, which stays until the new one is complete."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from stjepa_cli.core.errors import CacheError
from stjepa_cli.core.progress import Progress
from stjepa_cli.store.folder import cache_exists, foreign_files, replace_cache, work_folder
from stjepa_cli.store.locks import CREATION, holding

NUM_NAMED = 3


class Replacement:
    """The old cache at a local path, and the place beside it where its replacement is built.

    Args:
        path: The path that the user named; a symbolic link is followed and stays.

    Attributes:
        old: The folder of the old cache.
        new: The folder of the new one until it is complete.

    Raises:
        CacheError: The folder is no cache, holds other files too, cannot be replaced as a whole, or is being built now.
    """

    def __init__(self, path: Path) -> None:
        self.old = path.resolve()
        self.new = self.old.with_name(f"{self.old.name}.overwrite")
        self._check()

    @staticmethod
    def is_due(path: Path) -> bool:
        """Return whether there is an old cache at a path, or a new one whose swap was interrupted."""
        real = path.resolve()
        return cache_exists(real) or cache_exists(real.with_name(f"{real.name}.overwrite"))

    def _check(self) -> None:
        if not self.old.exists():  # a kill in the middle of a swap
            return
        if not (self.old / "clips.jsonl").is_file():
            raise CacheError(f"{self.old} is not a cache of stjepa", fix="Choose another --cache, or empty that folder yourself.")
        if os.path.ismount(self.old):
            what = f"{self.old} is a mount point, so the cache in it cannot be replaced as a whole"
            raise CacheError(what, fix="Name a folder in it with --cache.")
        if foreign := foreign_files(self.old):
            names = ", ".join(foreign[:NUM_NAMED]) + (f" and {len(foreign) - NUM_NAMED} more" if len(foreign) > NUM_NAMED else "")
            what = f"the folder of the cache {self.old} holds files that are no part of it"
            raise CacheError(what, got=names, fix="Move them elsewhere first; nothing was changed.")
        if work_folder(self.old).exists():  # a build may be going on in it
            with self._held():
                pass

    def swap(self, progress: Progress) -> None:
        """Put the new cache in the place of the old one and remove that.

        Raises:
            CacheError: Another process is building the old cache, or other files have come into its folder meanwhile.
            StjepaError: The folders cannot be renamed; both are as they were.
        """
        self._check()
        with self._held() if self.old.exists() else nullcontext():
            left = replace_cache(self.old, self.new)
        if left:
            progress.note(left)

    def _held(self) -> AbstractContextManager[bool]:
        return holding(work_folder(self.old) / "lock", range(CREATION), f"the cache {self.old}")
