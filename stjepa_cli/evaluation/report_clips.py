"""Test videos as pictures: what the hardest ones look like, and which train videos lie nearest to some of them."""

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
from stjepa_cli.evaluation.probes.base import nearest
from stjepa_cli.evaluation.probes.retrieval import centred
from stjepa_cli.viz import html
from stjepa_cli.viz.images import Sheet, Tile, encode_picture

MAX_HARDEST, MAX_OF_A_CLASS = 12, 2
MAX_FRAMES = 8  # of a contact sheet
FRAME_PX = 128
NUM_QUERIES = 8
NUM_NEIGHBOURS = 5
NEIGHBOUR_PX = 160
FEW = {MAX_FRAMES: 4, 1 + NUM_NEIGHBOURS: 3}  # in a row on a narrow screen
DECODERS = 2  # threads; so many videos and as many again are open or waiting at a time


@dataclass(frozen=True)
class ShownVideos:
    """Where frames come from.

    Attributes:
        items: videos by id.
        clip: how a clip is cut.
    """

    items: Mapping[str, VideoItem]
    clip: ClipSpec

    def sheets(self, ids: Iterable[str]) -> Iterator[Tensor | str]:
        """Of each video up to 8 frames of its centre clip, uint8 (t, 3, S, S), or why there are none."""
        spec = replace(self.clip, size_px=FRAME_PX, patch_px=FRAME_PX)
        steps = evenly(range(spec.num_frames), MAX_FRAMES)
        return self._decoded(ids, spec, steps)

    def middles(self, ids: Iterable[str]) -> Iterator[Tensor | str]:
        """Of each video its middle frame, uint8 (1, 3, S, S), or why there is none."""
        spec = replace(self.clip, num_frames=1, tubelet=1, size_px=NEIGHBOUR_PX, patch_px=NEIGHBOUR_PX)
        return self._decoded(ids, spec, [0])

    def _decoded(self, ids: Iterable[str], spec: ClipSpec, steps: list[int]) -> Iterator[Tensor | str]:
        def frames(name: str) -> Tensor | str:
            try:
                return read_clips(self.items[name].path, spec, ONE_CLIP)[0][steps]
            except (StjepaError, OSError) as error:  # it was there when its features were made; the figures stand all the same
                return " ".join(str(error).split())

        return ordered_map(frames, ids, num_workers=DECODERS, look_ahead=2 * DECODERS)


@dataclass(frozen=True)
class QueryNeighbours:
    """A test video and the train videos nearest to it.

    Attributes:
        query: its id.
        label: its class.
        ids: those of its neighbours, the nearest first.
        labels: their classes.
        cosines: of their features with its own, each without the mean of its set.
    """

    query: str
    label: int
    ids: tuple[str, ...]
    labels: tuple[int, ...]
    cosines: tuple[float, ...]

    @property
    def num_right(self) -> int:
        """Neighbours of its class."""
        return sum(label == self.label for label in self.labels)


def neighbourhoods(train: Features, test: Features) -> tuple[QueryNeighbours, ...]:
    """Of up to 8 test videos, spread over the classes by a fixed rule, the 5 nearest train videos as in retrieval.

    Args:
        train: at least one row.
        test: at least two, since their mean is subtracted.
    """
    gallery = replace(train, tokens=None, clips=None).rows(train.by_id())  # ties fall as in the protocol
    rows = spread_over_classes(test.labels.tolist(), test.ids, NUM_QUERIES)
    cosines, places = nearest(centred(test.values.cpu())[rows], centred(gallery.values.cpu()), NUM_NEIGHBOURS)
    found = []
    for row, near, values in zip(rows, places.tolist(), cosines.tolist(), strict=True):
        ids, labels = tuple(gallery.ids[i] for i in near), tuple(int(gallery.labels[i]) for i in near)
        found.append(QueryNeighbours(test.ids[row], int(test.labels[row]), ids, labels, tuple(values)))
    return tuple(found)


def contact_sheets(
    mistakes: Sequence[Mistake], ids: Sequence[str], classes: Sequence[str], footage: ShownVideos, progress: Progress = SILENT
) -> list[Sheet]:
    """The frames of videos that were taken for another class; a video without frames is a sentence.

    Args:
        mistakes: which videos.
        ids: names of all test videos.
        classes: C names.
        footage: where frames come from.
        progress: listener.
    """
    sheets = []
    with progress.task("hardest videos", total=len(mistakes), unit="videos") as task:
        names = [ids[mistake.row] for mistake in mistakes]
        for mistake, name, frames in zip(mistakes, names, footage.sheets(names), strict=True):
            told = (
                name,
                f"is {classes[mistake.truth]} ({percent(mistake.truth_share)}), "
                f"taken for {classes[mistake.guess]} ({percent(mistake.guess_share)})",
            )
            if isinstance(frames, str):
                sheets.append(Sheet((*told, f"It cannot be shown: {frames}"), ()))
            else:
                sheets.append(Sheet(told, tuple(Tile(frame.clone()) for frame in frames)))
            task.advance()
    return sheets


def neighbour_sheets(
    found: Sequence[QueryNeighbours], classes: Sequence[str], footage: ShownVideos, progress: Progress = SILENT
) -> list[Sheet]:
    """Test videos, each beside its neighbours; a video without a frame is an empty tile and a sentence.

    Args:
        found: which videos.
        classes: C names.
        footage: where frames come from.
        progress: listener.
    """
    names = list(dict.fromkeys(name for one in found for name in (one.query, *one.ids)))
    frames: dict[str, Tensor | str] = {}
    with progress.task("neighbours", total=len(names), unit="videos") as task:
        for name, frame in zip(names, footage.middles(names), strict=True):
            frames[name] = frame
            task.advance()
    return [_neighbour_sheet(one, classes, frames) for one in found]


def _neighbour_sheet(one: QueryNeighbours, classes: Sequence[str], frames: Mapping[str, Tensor | str]) -> Sheet:
    def tile(name: str, *words: str, right: bool | None = None) -> Tile:
        frame = frames[name]
        return Tile(None if isinstance(frame, str) else frame[0], (*words, name), right)

    told = [one.query, f"{classes[one.label]}; of its class among the {len(one.ids)} nearest: {one.num_right}"]
    faults = [(name, frames[name]) for name in dict.fromkeys((one.query, *one.ids))]
    told += [f"{name} cannot be shown: {fault}" for name, fault in faults if isinstance(fault, str)]
    answers = [
        tile(name, classes[label], f"{'same' if label == one.label else 'other'} class, {cosine:.2f}", right=label == one.label)
        for name, label, cosine in zip(one.ids, one.labels, one.cosines, strict=True)
    ]
    return Sheet(tuple(told), (tile(one.query, classes[one.label], "asks"), *answers))


def sheets_html(sheets: Sequence[Sheet], few: int) -> Iterator[str]:
    """Sheets as parts of a page, `few` pictures in a row on a narrow screen."""
    for sheet in sheets:
        name, *others = sheet.lines
        yield html.heading(name, 3)
        for line in others:
            yield html.paragraph(line)
        if sheet.tiles:
            alternative = f"{len(sheet.tiles)} frames of {name}"
            yield html.tiles([_cell(tile, alternative if i == 0 else "") for i, tile in enumerate(sheet.tiles)], few=few)


def _cell(tile: Tile, alternative: str) -> html.Tile:
    shown = None if tile.pixels is None else ("image/jpeg", encode_picture(tile.pixels, "JPEG"))
    return html.Tile(shown, f"Frame of {tile.words[-1]}" if tile.words else alternative, tile.words, tile.right)
