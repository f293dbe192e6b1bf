"""Frames of test videos for a report: the most confident mistakes, and test videos beside their nearest train videos."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from stjepa_cli.core.errors import StjepaError
from stjepa_cli.core.prefetch import ordered_map
from stjepa_cli.core.progress import SILENT, Progress
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.data.datasets.base import VideoItem
from stjepa_cli.data.eval_clips import ONE_CLIP
from stjepa_cli.data.sampling import evenly
from stjepa_cli.data.video import read_clips
from stjepa_cli.encoders.features import Features
from stjepa_cli.evaluation.confusion import Mistake, percent, spread_over_classes
from stjepa_cli.evaluation.probes.retrieval import rank
from stjepa_cli.viz import html
from stjepa_cli.viz.images import Sheet, Tile, encode_picture

MAX_MISTAKES, MAX_PER_CLASS = 12, 2
MAX_FRAMES = 8  # frames of one video
FRAME_PX = 128
NUM_QUERIES = 8
NUM_NEIGHBOURS = 5
NEIGHBOUR_PX = 160
NARROW_COLUMNS = {MAX_FRAMES: 4, 1 + NUM_NEIGHBOURS: 3}  # pictures in a row on a narrow screen
DECODERS = 2  # threads; at most twice as many videos are decoded ahead


@dataclass(frozen=True)
class ShownVideos:
    """Videos that frames are decoded from.

    Attributes:
        items: Videos by id.
        clip: How a clip is cut.
    """

    items: Mapping[str, VideoItem]
    clip: ClipSpec

    def clip_frames(self, ids: Iterable[str]) -> Iterator[Tensor | str]:
        """Yield up to 8 frames uint8 (t, 3, S, S) of the centre clip of each video, or the reason why there are none."""
        spec = replace(self.clip, size_px=FRAME_PX, patch_px=FRAME_PX)
        steps = evenly(range(spec.num_frames), MAX_FRAMES)
        return self._decoded(ids, spec, steps)

    def middle_frames(self, ids: Iterable[str]) -> Iterator[Tensor | str]:
        """Yield the middle frame uint8 (1, 3, S, S) of each video, or the reason why there is none."""
        spec = replace(self.clip, num_frames=1, tubelet=1, size_px=NEIGHBOUR_PX, patch_px=NEIGHBOUR_PX)
        return self._decoded(ids, spec, [0])

    def _decoded(self, ids: Iterable[str], spec: ClipSpec, steps: list[int]) -> Iterator[Tensor | str]:
        def frames(name: str) -> Tensor | str:
            try:
                return read_clips(self.items[name].path, spec, ONE_CLIP)[0][steps]
            except (StjepaError, OSError) as error:  # it could be read when features were extracted, so the metrics are valid
                return " ".join(str(error).split())

        return ordered_map(frames, ids, num_workers=DECODERS, look_ahead=2 * DECODERS)


@dataclass(frozen=True)
class QueryNeighbours:
    """A test video and the train videos nearest to it.

    Attributes:
        query: The id of the test video.
        label: The class of the test video.
        ids: The ids of its neighbours, the nearest first.
        labels: The classes of its neighbours.
        cosines: The cosine similarities to its neighbours, after subtracting the mean of train.
    """

    query: str
    label: int
    ids: tuple[str, ...]
    labels: tuple[int, ...]
    cosines: tuple[float, ...]

    @property
    def num_right(self) -> int:
        """Number of neighbours of the same class."""
        return sum(label == self.label for label in self.labels)


def query_neighbours(train: Features, test: Features) -> tuple[QueryNeighbours, ...]:
    """Return the 5 nearest train videos, as in retrieval, of up to 8 test videos that a fixed rule spreads over the classes.

    Args:
        train: Features of train videos, at least one row.
        test: Features of test videos.
    """
    gallery = replace(train, tokens=None, clips=None).rows(train.by_id())  # so that ties are broken as in the protocol
    rows = spread_over_classes(test.labels.tolist(), test.ids, NUM_QUERIES)
    cosines, nearest = rank(gallery.values.cpu(), test.values.cpu(), NUM_NEIGHBOURS)
    found = []
    for row, near, values in zip(rows, nearest[rows].tolist(), cosines[rows].tolist(), strict=True):
        ids, labels = tuple(gallery.ids[i] for i in near), tuple(int(gallery.labels[i]) for i in near)
        found.append(QueryNeighbours(test.ids[row], int(test.labels[row]), ids, labels, tuple(values)))
    return tuple(found)


def mistake_sheets(
    mistakes: Sequence[Mistake], ids: Sequence[str], classes: Sequence[str], videos: ShownVideos, progress: Progress = SILENT
) -> list[Sheet]:
    """Return the frames of videos that were taken for another class, or a sentence for a video without frames.

    Args:
        mistakes: The mistakes.
        ids: Names of all test videos.
        classes: Names of the C classes.
        videos: Videos that frames are decoded from.
        progress: Receives progress.
    """
    sheets = []
    with progress.task("pictures of mistakes", total=len(mistakes), unit="videos") as task:
        names = [ids[mistake.row] for mistake in mistakes]
        for mistake, name, frames in zip(mistakes, names, videos.clip_frames(names), strict=True):
            lines = (
                name,
                f"is {classes[mistake.label]} ({percent(mistake.label_score)}), "
                f"taken for {classes[mistake.guess]} ({percent(mistake.guess_score)})",
            )
            if isinstance(frames, str):
                sheets.append(Sheet((*lines, f"It cannot be shown: {frames}"), ()))
            else:
                sheets.append(Sheet(lines, tuple(Tile(frame.clone()) for frame in frames)))
            task.advance()
    return sheets


def neighbour_sheets(
    found: Sequence[QueryNeighbours], classes: Sequence[str], videos: ShownVideos, progress: Progress = SILENT
) -> list[Sheet]:
    """Return test videos beside their neighbours. A video without a frame is an empty tile and a sentence.

    Args:
        found: The test videos and their neighbours.
        classes: Names of the C classes.
        videos: Videos that frames are decoded from.
        progress: Receives progress.
    """
    names = list(dict.fromkeys(name for one in found for name in (one.query, *one.ids)))
    frames: dict[str, Tensor | str] = {}
    with progress.task("pictures of neighbours", total=len(names), unit="videos") as task:
        for name, frame in zip(names, videos.middle_frames(names), strict=True):
            frames[name] = frame
            task.advance()
    return [_neighbour_sheet(one, classes, frames) for one in found]


def _neighbour_sheet(one: QueryNeighbours, classes: Sequence[str], frames: Mapping[str, Tensor | str]) -> Sheet:
    def tile(name: str, *words: str, right: bool | None = None) -> Tile:
        frame = frames[name]
        return Tile(None if isinstance(frame, str) else frame[0], (*words, name), right)

    lines = [one.query, f"{classes[one.label]}; {one.num_right} of the {len(one.ids)} nearest are of this class"]
    shown = [(name, frames[name]) for name in dict.fromkeys((one.query, *one.ids))]
    lines += [f"{name} cannot be shown: {error}" for name, error in shown if isinstance(error, str)]
    answers = [
        tile(name, classes[label], f"{'same' if label == one.label else 'other'} class, {cosine:.2f}", right=label == one.label)
        for name, label, cosine in zip(one.ids, one.labels, one.cosines, strict=True)
    ]
    return Sheet(tuple(lines), (tile(one.query, classes[one.label], "query"), *answers))


def sheets_html(sheets: Sequence[Sheet], narrow_columns: int) -> Iterator[str]:
    """Yield sheets as parts of a page, with `narrow_columns` pictures in a row on a narrow screen."""
    for sheet in sheets:
        name, *others = sheet.lines
        yield html.heading(name, 3)
        for line in others:
            yield html.paragraph(line)
        if sheet.tiles:
            alternative = f"{len(sheet.tiles)} frames of {name}"
            yield html.tiles([_cell(tile, alternative if i == 0 else "") for i, tile in enumerate(sheet.tiles)], few=narrow_columns)


def _cell(tile: Tile, alternative: str) -> html.Tile:
    shown = None if tile.pixels is None else ("image/jpeg", encode_picture(tile.pixels, "JPEG"))
    return html.Tile(shown, f"Frame of {tile.words[-1]}" if tile.words else alternative, tile.words, tile.right)
