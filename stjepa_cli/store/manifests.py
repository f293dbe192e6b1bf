"""The manifests of a cache: one small file per finished shard, `marks/<shard>.json`, written after the shard is safe."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from stjepa_cli.core.errors import CacheError, storage_errors
from stjepa_cli.core.files import sync, write_atomic
from stjepa_cli.core.locations import Location, driver_errors, is_local, names
from stjepa_cli.store.errors import ForeignManifestError, check_closely, unreadable
from stjepa_cli.store.records import CacheHeader, ClipRow, ShardManifest

FOLDER = "marks"
_SET_ASIDE = ".bad"


class Manifests:
    """Reads, checks, writes and discards the manifests of one cache.

    Args:
        cache: The cache.
        header: Its header.
        clips: Its clip list.
    """

    def __init__(self, cache: Location, header: CacheHeader, clips: Sequence[ClipRow]) -> None:
        self.cache, self.header, self.clips = cache, header, clips
        self._read: dict[int, ShardManifest] = {}

    @cached_property
    def _columns(self) -> set[str]:
        return {column.name for column in self.header.columns}

    def path(self, shard: int) -> Location:
        """Return the file of the manifest of a shard."""
        return self.cache / FOLDER / f"{shard}.json"

    def done(self) -> set[int]:
        """Return the shards that have a manifest.

        Raises:
            UnreadableError: The folder cannot be read.
        """
        try:
            found = {name.removesuffix(".json") for name in names(self.cache / FOLDER) if name.endswith(".json")}
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise unreadable(f"the folder {self.cache / FOLDER}", error) from error
        return {int(name) for name in found if name.isdecimal() and int(name) < self.header.num_shards}

    def is_done(self, shard: int) -> bool:
        """Return whether a shard has a manifest.

        Raises:
            UnreadableError: The system does not say.
        """
        try:
            with driver_errors():
                return self.path(shard).is_file()
        except OSError as error:
            raise unreadable(self.path(shard), error) from error

    def get(self, shard: int) -> ShardManifest:
        """Return the manifest of a shard, from memory if it was read before.

        Raises:
            CacheError: As for `read`.
        """
        return self._read.get(shard) or self.read(shard)

    def read(self, shard: int) -> ShardManifest:
        """Read the manifest of a shard from disk and check it.

        Raises:
            CacheError: The shard is not finished, or its manifest is damaged.
            ForeignManifestError: The manifest belongs to another shard or another cache.
            UnreadableError: The manifest cannot be read.
        """
        path, fix = self.path(shard), check_closely(self.cache)
        try:
            with driver_errors():
                data = path.read_bytes()
        except FileNotFoundError as error:
            raise CacheError(f"shard {shard} of {self.cache} is not finished", fix="Type `stjepa cache build` to resume.") from error
        except OSError as error:
            raise unreadable(f"the manifest {path}", error) from error
        try:
            manifest = ShardManifest.from_json(data)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CacheError(f"the manifest {path} is damaged", got=str(error), fix=fix) from error
        self._check(manifest, shard)
        self._read[shard] = manifest
        return manifest

    def _check(self, manifest: ShardManifest, shard: int) -> None:
        path, fix = self.path(shard), check_closely(self.cache)
        expected = [divmod(row, self.header.num_views) for row in self.header.rows_of(shard)]
        if manifest.shard != shard or [(row.id, row.view) for row in manifest.rows] != [(self.clips[i].id, view) for i, view in expected]:
            raise ForeignManifestError(f"the manifest {path} belongs to another shard", got=f"shard {manifest.shard}", fix=fix)
        if manifest.cache != self.header.digest:
            got, wanted = str(manifest.cache)[:12], self.header.digest[:12]
            raise ForeignManifestError(f"the manifest {path} belongs to another cache", got=got, expected=wanted, fix=fix)
        if any(row.error is None and row.chunks.keys() != self._columns for row in manifest.rows):
            got = "rows without all of " + ", ".join(sorted(self._columns))
            raise CacheError(f"the manifest {path} is damaged", got=got, fix=fix)

    def write(self, manifest: ShardManifest) -> None:
        """Declare a shard finished; a copy of an earlier manifest that was set aside is removed."""
        path = self.path(manifest.shard)
        write_atomic(path, manifest.to_json())
        with storage_errors(path), driver_errors():
            self._aside(manifest.shard).unlink(missing_ok=True)

    def discard(self, shard: int) -> None:
        """Declare a shard not finished, so that the next build writes it again."""
        self._read.pop(shard, None)
        path = self.path(shard)
        with storage_errors(path), driver_errors():
            path.unlink(missing_ok=True)
            self._sync()

    def set_aside(self, shard: int) -> None:
        """Do the same as `discard`, but keep the file as `<shard>.json.bad` until the shard is built again."""
        self._read.pop(shard, None)
        path, aside = self.path(shard), self._aside(shard)
        with storage_errors(path), driver_errors():
            if not path.is_file():
                return
            if is_local(path):
                path.replace(str(aside))
            else:
                aside.write_bytes(path.read_bytes())
                path.unlink()
            self._sync()

    def _aside(self, shard: int) -> Location:
        return self.cache / FOLDER / f"{shard}.json{_SET_ASIDE}"

    def _sync(self) -> None:
        """Sync the folder: after a power cut the manifest would otherwise be back beside other rows."""
        folder = self.cache / FOLDER
        if is_local(folder) and folder.is_dir():
            sync(folder)
