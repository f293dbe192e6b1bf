"""The clips of a training run: rows of a latent cache with their exact pixels, or videos of a data set without any cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from stjepa_cli.core.errors import CacheError, DatasetError, VideoError
from stjepa_cli.core.locations import Location, is_local
from stjepa_cli.core.progress import SILENT, Progress
from stjepa_cli.core.types import ClipSpec, TeacherCard, digest
from stjepa_cli.data.datasets.base import VideoItem
from stjepa_cli.data.sampling import views_of
from stjepa_cli.data.video import decode, read_clip
from stjepa_cli.store.latent_store import LatentStore
from stjepa_cli.store.shard_format import checksum

MAX_STAND_INS = 8


class TrainingClips(ABC):
    """Clips by row, with the origin that checkpoints record.

    Attributes:
        clips: Rows of each clip; with K views a clip has up to K rows.
        stores: Caches whose latents are targets, all of the same clips; none for an objective that needs no latents.
        teacher: Card of the teacher that made the targets, with the geometry of the clips.
        dataset: Name and split, `ssv2/train`.
        digest: Identity of the clips and their targets, 64 hex digits.
        decodes_videos: Clips come from video files, not from frames that a cache keeps.
    """

    clips: list[tuple[int, ...]]
    stores: tuple[LatentStore, ...]
    teacher: TeacherCard
    dataset: str
    digest: str
    decodes_videos: bool

    @property
    def spec(self) -> ClipSpec:
        """Return the geometry of the clips."""
        return self.teacher.clip

    @abstractmethod
    def id_of(self, row: int) -> str:
        """Return the id of the clip of a row; views of a clip share it."""

    @abstractmethod
    def name_of(self, row: int) -> str:
        """Return the name of a row for messages."""

    @abstractmethod
    def read_pixels(self, row: int, into: Tensor) -> None:
        """Fill `into`, uint8 (T, 3, S, S), with the clip of a row.

        Raises:
            CacheError: The pixels that the teacher saw are gone.
            VideoError: The video cannot be decoded.
        """


class CachedClips(TrainingClips):
    """Rows of a cache, from the frames that it keeps or else from the videos it was built from.

    Args:
        store: Cache of the targets.
        data_root: Folder or URL of the videos.
        second: Another cache of the same clips.
        reads_latents: The objective needs the latents; else only the clips are read.
        progress: Receives a message if rows are left out.

    Raises:
        CacheError: The cache is empty, its videos are gone, or the second cache has other clips.
    """

    def __init__(
        self,
        store: LatentStore,
        data_root: Location,
        *,
        second: LatentStore | None = None,
        reads_latents: bool = True,
        progress: Progress = SILENT,
    ) -> None:
        self.store, self.data_root = store, data_root
        self.stores = () if not reads_latents else (store,) if second is None else (store, second)
        self.teacher, self.digest = store.header.teacher, store.header.digest
        self.dataset = f"{store.header.dataset}/{store.header.split}"
        self.decodes_videos = not store.header.frames
        rows = store.usable_rows() if second is None else _rows_in_both(store, second)
        if not rows:
            raise CacheError(f"the cache {store.path} holds no latents yet", fix="Type `stjepa cache build`.")
        if len(rows) < store.header.num_rows:
            failed = len(store.failures())
            left = store.header.num_rows - len(rows) - failed
            progress.note(f"the cache holds {len(rows)} of {store.header.num_rows} rows ({failed} failed, {left} not built yet)")
        self.clips = views_of(rows, store.header.num_views)
        self._refuse_missing_videos()

    def _refuse_missing_videos(self) -> None:
        """Refuse, before the first step, a cache whose videos are gone."""
        if not self.decodes_videos or not is_local(self.data_root):
            return
        videos = [self.data_root / self.store.clip_of(views[0])[0].video for views in self.clips]
        gone = [video for video in videos if not video.is_file()]
        if gone:
            raise CacheError(
                f"{len(gone)} of the {len(self.clips)} cached clips have no video below {self.data_root}",
                got=f"no {gone[0]}",
                fix="Name the folder that the cache was built from with --data-root.",
            )

    def id_of(self, row: int) -> str:
        return self.store.clip_of(row)[0].id

    def name_of(self, row: int) -> str:
        return self.store.record(row).name

    def read_pixels(self, row: int, into: Tensor) -> None:
        if self.store.header.frames:
            self.store.read_frames([row], into.unsqueeze(0), threads=1)
        else:
            into.copy_(self._decode(row))

    def _decode(self, row: int) -> Tensor:
        """Decode the pixels that the teacher saw."""
        ref = self.store.ref(row, self.data_root)
        try:
            clip = decode(ref)
        except VideoError as error:
            raise CacheError(
                f"the video of clip {self.store.record(row).name} cannot be used any more ({error.reason})",
                got=ref.path,
                fix="Name the folder that the cache was built from with --data-root.",
            ) from error
        if checksum(clip.numpy()) != self.store.record(row).pixels_crc:
            raise CacheError(
                f"clip {self.store.record(row).name} no longer has the pixels that the teacher saw",
                got=ref.path,
                fix="The file or the decoder has changed: put the old one back, or build the cache again with --overwrite.",
            )
        return clip


class VideoClips(TrainingClips):
    """Videos of a data set, a centre clip of each; no cache, no teacher.

    Args:
        items: Videos.
        spec: Geometry of the clips.
        dataset: Name and split, `ssv2/train`.
        progress: Receives a message for each video that cannot be decoded.

    Raises:
        DatasetError: The list is empty.
    """

    decodes_videos = True
    stores = ()

    def __init__(self, items: Sequence[VideoItem], spec: ClipSpec, dataset: str, progress: Progress = SILENT) -> None:
        if not items:
            raise DatasetError(f"{dataset} lists no video")
        self.items, self.dataset, self.progress = tuple(items), dataset, progress
        self._failed: set[int] = set()
        self.clips = [(row,) for row in range(len(items))]
        self.digest = digest({"dataset": dataset, "videos": [item.id for item in items], "clip": digest(spec)})
        dim, algorithm = spec.tubelet * spec.patch_px**2 * 3, digest({"pixels": 1})
        self.teacher = TeacherCard("pixels", "pixels", "1", algorithm, "none (no teacher)", dim, spec, token_norm="none")

    def id_of(self, row: int) -> str:
        return self.items[row].id

    def name_of(self, row: int) -> str:
        return str(self.items[row].path)

    def read_pixels(self, row: int, into: Tensor) -> None:
        """Fill `into` with the clip of a row; the next video of the list stands in for one that cannot be decoded."""
        for attempt in range(MAX_STAND_INS):
            place = (row + attempt) % len(self.items)
            try:
                into.copy_(read_clip(self.items[place].path, self.spec).pixels)
                return
            except VideoError as error:
                if place not in self._failed:
                    self._failed.add(place)
                    self.progress.note(f"{error}: the next video of the list stands in for it")
                failure = error
        raise failure


def _rows_in_both(first: LatentStore, second: LatentStore) -> list[int]:
    """Return the rows that both caches hold.

    Raises:
        CacheError: They hold different clips.
    """
    fix = f"Build {second.path} from the same list, with the same clips."
    for name in ("dataset", "split", "clips_digest", "num_views", "view_seed"):
        mine, theirs = getattr(first.header, name), getattr(second.header, name)
        if mine != theirs:
            raise CacheError(f"the two caches hold different clips: {name} differs", got=theirs, expected=mine, fix=fix)
    mine, theirs = first.header.teacher.clip, second.header.teacher.clip
    if mine != theirs:
        raise CacheError("the two caches hold clips of different geometry", got=theirs, expected=mine, fix=fix)
    return sorted(set(first.usable_rows()) & set(second.usable_rows()))
