"""Frames of mistakes and neighbours in a report, and a sentence where there are none."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stjepa_cli.core.types import ClipSpec
from stjepa_cli.data.datasets.base import Dataset, VideoItem, open_dataset
from stjepa_cli.data.eval_clips import ONE_CLIP
from stjepa_cli.data.video import Video, read_clips
from stjepa_cli.encoders.features import Features
from stjepa_cli.evaluation.confusion import Mistake
from stjepa_cli.evaluation.report_clips import (
    FRAME_PX,
    NEIGHBOUR_PX,
    ShownVideos,
    mistake_sheets,
    neighbour_sheets,
    query_neighbours,
    sheets_html,
)
from tests.media import truncate

SPEC = ClipSpec(num_frames=4, size_px=16, tubelet=2, patch_px=8)


@pytest.fixture(scope="module")
def dataset(tiny_ucf101: Path) -> Dataset:
    return open_dataset("ucf101", tiny_ucf101)


def videos_of(items: Sequence[VideoItem], spec: ClipSpec = SPEC) -> ShownVideos:
    return ShownVideos({item.id: item for item in items}, spec)


def features(values: Tensor, labels: Sequence[int], prefix: str) -> Features:
    ids = tuple(f"{prefix}{i}" for i in range(len(values)))
    return Features(values, torch.tensor(labels), ids, ids)


def test_frames_of_a_mistake_are_those_of_the_centre_clip(dataset: Dataset) -> None:
    item = dataset.videos("test1")[1]
    (frames,) = videos_of([item]).clip_frames([item.id])
    expected = read_clips(item.path, replace(SPEC, size_px=FRAME_PX, patch_px=FRAME_PX), ONE_CLIP)[0]
    assert isinstance(frames, Tensor)
    assert torch.equal(frames, expected)
    long = ClipSpec(num_frames=16, size_px=16, tubelet=2, patch_px=8, sampling="dense", stride=1)
    (eight,) = videos_of([item], long).clip_frames([item.id])
    sixteen = read_clips(item.path, replace(long, size_px=FRAME_PX, patch_px=FRAME_PX), ONE_CLIP)[0]
    assert isinstance(eight, Tensor)
    assert torch.equal(eight, sixteen[1::2])


def test_a_neighbour_is_shown_by_its_middle_frame(dataset: Dataset) -> None:
    item = dataset.videos("test1")[0]
    for spec in (SPEC, replace(SPEC, sampling="dense", stride=9)):
        (frame,) = videos_of([item], spec).middle_frames([item.id])
        assert isinstance(frame, Tensor)
        assert frame.shape == (1, 3, NEIGHBOUR_PX, NEIGHBOUR_PX)
        with Video(item.path) as video:
            count = video.num_frames
        every = read_clips(item.path, ClipSpec(count, NEIGHBOUR_PX, 1, NEIGHBOUR_PX), ONE_CLIP)[0]
        assert any(torch.equal(every[middle], frame[0]) for middle in {(count - 1) // 2, count // 2})


def test_videos_that_vanished_or_broke_are_sentences(tiny_ucf101: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(tiny_ucf101, tmp_path / "ucf101"))
    items = open_dataset("ucf101", root).videos("test1")
    Path(str(items[0].path)).unlink()
    truncate(Path(str(items[1].path)))
    mistakes = [Mistake(row, 0, 1, 0.1, 0.7) for row in range(3)]
    ids, classes = tuple(item.id for item in items), ("Jump", "Run <fast>", "Sit")
    gone, cut, whole = mistake_sheets(mistakes, ids, classes, videos_of(items))
    assert (len(gone.tiles), len(cut.tiles), len(whole.tiles)) == (0, 0, 4)
    assert gone.lines[1] == "is Jump (10.0%), taken for Run <fast> (70.0%)"
    assert gone.lines[2].endswith("there is no such file")
    assert "it is cut short" in cut.lines[2]
    text = "".join(sheets_html([gone, cut, whole], narrow_columns=4))
    assert text.count("<img") == 4
    assert "Run &lt;fast&gt;" in text


def test_neighbours_are_those_of_brute_force_on_centred_features() -> None:
    generator = torch.Generator().manual_seed(0)
    train = features(torch.randn(30, 6, generator=generator) + 5, [i % 3 for i in range(30)], "train")
    test = features(torch.randn(12, 6, generator=generator) - 3, [i % 3 for i in range(12)], "test")
    found = query_neighbours(train, test)
    assert len(found) == 8
    assert [one.label for one in found] == sorted(one.label for one in found)
    for one in found:
        query = test.values[test.ids.index(one.query)] - train.values.mean(dim=0)
        cosines = torch.cosine_similarity(train.values - train.values.mean(dim=0), query, dim=1)
        order = cosines.argsort(descending=True)[:5]
        assert one.ids == tuple(train.ids[row] for row in order)
        assert one.labels == tuple(train.labels[order].tolist())
        assert one.cosines == pytest.approx(cosines[order].tolist(), abs=1e-5)
        assert one.num_right == sum(label == one.label for label in one.labels)


def test_the_choice_does_not_depend_on_the_order_of_videos() -> None:
    generator = torch.Generator().manual_seed(1)
    train = features(torch.randint(0, 2, (20, 3), generator=generator).float(), [i % 4 for i in range(20)], "train")  # many ties
    test = features(torch.randn(9, 3, generator=generator), [i % 4 for i in range(9)], "test")
    turned = torch.arange(19, -1, -1)
    found, again = query_neighbours(train, test), query_neighbours(train.rows(turned), test.rows(turned[-9:]))
    assert [(one.query, one.ids) for one in again] == [(one.query, one.ids) for one in found]


def test_answers_are_marked_by_more_than_colour(dataset: Dataset, tmp_path: Path) -> None:
    train, test = dataset.videos("train1"), dataset.videos("test1")
    lost = replace(train[0], path=tmp_path / "lost.avi")
    found = query_neighbours(
        Features(torch.eye(9), *_named(train)),
        Features(torch.eye(9)[:3] * 2, *_named(test)),
    )
    shown = videos_of([*test, lost, *train[1:]])
    sheets = neighbour_sheets(found, dataset.classes, shown)
    text = "".join(sheets_html(sheets, narrow_columns=3))
    right = sum(one.num_right for one in found)
    assert (text.count('class="tile right"'), text.count("✓")) == (right, right)
    assert (text.count('class="tile wrong"'), text.count("✗")) == (15 - right, 15 - right)
    assert text.count("no picture") == sum(lost.id in one.ids for one in found) > 0
    assert f"{lost.id} cannot be shown: " in text
    assert text.count("query") >= 3


def _named(items: Sequence[VideoItem]) -> tuple[Tensor, tuple[str, ...], tuple[str, ...]]:
    ids = tuple(item.id for item in items)
    return torch.tensor([item.label for item in items]), ids, ids
