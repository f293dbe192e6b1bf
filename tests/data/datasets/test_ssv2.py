"""Something-Something v2: the folders that are found in practice, and every way in which a list can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stjepa_cli.core.errors import DatasetError
from stjepa_cli.core.locations import Location
from stjepa_cli.data.datasets.base import open_dataset
from tests.media import MOTIONS, plain, ssv2_entry, upload, write_json


def lay_out(root: Path, *, lists: str = "", videos: str = "", prefix: str = "") -> Path:
    """Lists and one empty file: listing looks at names only, so no video is encoded."""
    (root / lists).mkdir(parents=True, exist_ok=True)
    (root / videos).mkdir(parents=True, exist_ok=True)
    write_json(root / lists / f"{prefix}labels.json", {plain(template): str(k) for k, template in enumerate(MOTIONS)})
    for split, first in {"train": 1, "validation": 4}.items():
        entries = [ssv2_entry(str(first + k), template) for k, template in enumerate(MOTIONS)]
        write_json(root / lists / f"{prefix}{split}.json", entries)
    write_json(root / lists / f"{prefix}test.json", [{"id": "7"}])
    (root / videos / "2.webm").write_bytes(b"")
    return root


def test_the_official_layout(tiny_ssv2: Path) -> None:
    dataset = open_dataset("ssv2", tiny_ssv2)
    assert dataset.classes == ("Moving something right", "Moving something left", "Pulling something somewhere")
    train = dataset.videos("train")
    assert [item.id for item in train] == [str(i) for i in range(1, 13)]
    assert [item.label for item in train] == [0, 1, 2] * 4
    assert [item.group for item in train] == [None] * 12
    assert len(dataset.videos("validation")) == 4
    assert [item.label for item in dataset.videos("test")] == [None, None]


@pytest.mark.parametrize("lists", ["", "labels"])
@pytest.mark.parametrize("videos", ["", "20bn-something-something-v2", "videos"])
@pytest.mark.parametrize("prefix", ["", "something-something-v2-"])
def test_every_known_layout_is_found(tmp_path: Path, lists: str, videos: str, prefix: str) -> None:
    dataset = open_dataset("ssv2", lay_out(tmp_path, lists=lists, videos=videos, prefix=prefix))
    assert [item.path for item in dataset.videos("train")] == [tmp_path / videos / f"{i}.webm" for i in (1, 2, 3)]


@pytest.mark.parametrize(("lists", "videos"), [("", ""), ("labels", "videos")])
def test_layouts_are_found_at_a_url(tmp_path: Path, bucket: Location, lists: str, videos: str) -> None:
    dataset = open_dataset("ssv2", upload(lay_out(tmp_path, lists=lists, videos=videos), bucket))
    assert [str(item.path) for item in dataset.videos("train")] == [str(bucket / videos / f"{i}.webm") for i in (1, 2, 3)]
    assert "/./" not in str(dataset.list_file("train"))  # to an object store that is another name


def test_absent_videos_keep_the_place_where_they_should_be(tmp_path: Path) -> None:
    root = lay_out(tmp_path, videos="videos")
    (root / "videos" / "2.webm").unlink()
    assert open_dataset("ssv2", root).videos("train")[0].path == root / "20bn-something-something-v2" / "1.webm"


def test_entries_keep_the_order_of_the_list(tmp_path: Path) -> None:
    root = lay_out(tmp_path)
    write_json(root / "train.json", [ssv2_entry(video, MOTIONS[0]) for video in ("30", "4", "100")])
    assert [item.id for item in open_dataset("ssv2", root).videos("train")] == ["30", "4", "100"]


def test_labels_are_dense_and_ordered_by_class_id(tmp_path: Path) -> None:
    root = lay_out(tmp_path)
    write_json(root / "labels.json", {plain(MOTIONS[0]): "70", plain(MOTIONS[1]): "9", plain(MOTIONS[2]): "100"})
    dataset = open_dataset("ssv2", root)
    assert dataset.classes == tuple(plain(MOTIONS[i]) for i in (1, 0, 2))
    assert [item.label for item in dataset.videos("train")] == [1, 0, 2]


def test_numbers_are_taken_for_ids(tmp_path: Path) -> None:
    root = lay_out(tmp_path)
    write_json(root / "test.json", [{"id": 5}])
    assert open_dataset("ssv2", root).videos("test")[0].id == "5"


BAD_LISTS: dict[str, tuple[str, str]] = {
    "zero bytes": ("", "is empty"),
    "no entries": ("[]", "is empty: got []"),
    "malformed": ('[{"id": "1"', "is not valid JSON"),
    "binary": ("\x00\x01", "is not valid JSON"),
    "an object": ('{"1": "Moving something right"}', "another shape: got a JSON dict"),
    "a number": ("3", "another shape: got a JSON int"),
    "null": ("null", "another shape: got a JSON NoneType"),
    "ids only": ('["1", "2"]', "another shape: got 1"),
    "no id": ('[{"template": "Moving [something] right"}]', "another shape"),
    "no template": ('[{"id": "1"}]', "another shape"),
    "unknown template": ('[{"id": "1", "template": "Eating [something]"}]', "the template 'Eating [something]'"),
    "path for an id": ('[{"id": "../1", "template": "Moving [something] right"}]', "another shape"),
    "a video twice": (json.dumps([ssv2_entry("1", MOTIONS[0])] * 2), "lists video 1 twice"),
}


@pytest.mark.parametrize("name", BAD_LISTS)
def test_a_bad_list_is_one_sentence_that_names_the_file(tmp_path: Path, name: str) -> None:
    root, (text, message) = lay_out(tmp_path), BAD_LISTS[name]
    (root / "train.json").write_text(text)
    with pytest.raises(DatasetError) as caught:
        open_dataset("ssv2", root).videos("train")
    assert message in str(caught.value)
    assert str(root / "train.json") in str(caught.value)
    assert caught.value.fix
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value", [[], {}, ["Moving something right"], {"Moving something right": "zero"}, {"a": "1", "b": "1"}, {"a": None}]
)
def test_bad_labels_are_refused(tmp_path: Path, value: Any) -> None:
    root = lay_out(tmp_path)
    write_json(root / "labels.json", value)
    with pytest.raises(DatasetError, match=r"labels\.json"):
        open_dataset("ssv2", root)


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    root = lay_out(tmp_path)
    (root / "validation.json").unlink()
    with pytest.raises(DatasetError, match=r"there is no .*validation\.json.*qualcomm\.com"):
        open_dataset("ssv2", root).videos("validation")
