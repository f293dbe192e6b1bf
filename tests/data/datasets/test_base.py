"""Every data set keeps the contract of `Dataset`, and `spread` samples fairly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stjepa_cli.core import plugins
from stjepa_cli.core.errors import ConfigError, DatasetError
from stjepa_cli.core.locations import Location, is_local
from stjepa_cli.data.datasets.base import Dataset, VideoItem, open_dataset, spread
from tests.media import upload

NAMES = plugins.names("data.datasets")
LISTED = [name for name in NAMES if name != "folder"]  # the others have an official page and lists


@pytest.fixture(params=NAMES)
def dataset(request: pytest.FixtureRequest) -> Dataset:
    root: Path = request.getfixturevalue(f"tiny_{request.param}")
    return open_dataset(request.param, root)


def test_all_data_sets_are_found() -> None:
    assert {"folder", "hmdb51", "kinetics", "ssv2", "ucf101"} <= set(NAMES)


def test_pairs_are_of_known_labelled_splits_that_share_nothing(dataset: Dataset) -> None:
    assert dataset.pair() == next(iter(dataset.pairs.items()))
    for name in dataset.pairs:
        train, test = (dataset.videos(split) for split in dataset.pair(name)[1])
        assert all(item.label is not None for item in (*train, *test))
        assert not {item.id for item in train} & {item.id for item in test}
    with pytest.raises(ConfigError, match="unknown split of"):
        dataset.pair("holdout")


def test_labels_are_dense(dataset: Dataset) -> None:
    labels = {item.label for split in dataset.splits for item in dataset.videos(split)} - {None}
    assert labels == set(range(len(dataset.classes)))


def test_every_listed_video_of_a_whole_data_set_is_there(dataset: Dataset) -> None:
    for split in dataset.splits:
        assert dataset.videos(split)
        assert all(item.path.is_file() for item in dataset.videos(split))


def test_a_remote_root_gives_the_items_of_a_local_one(dataset: Dataset, bucket: Location) -> None:
    root = dataset.root
    assert is_local(root)
    remote = open_dataset(dataset.name, upload(root, bucket / "root"))
    assert remote.classes == dataset.classes
    for split in dataset.splits:
        items = dataset.videos(split)
        moved = [replace(item, path=bucket / "root" / item.path.relative_to(root).as_posix()) for item in items if is_local(item.path)]
        assert remote.videos(split) == tuple(moved)
        assert len(moved) == len(items)


def test_two_readings_are_equal(dataset: Dataset) -> None:
    again = open_dataset(dataset.name, dataset.root)
    assert [again.videos(split) for split in again.splits] == [dataset.videos(split) for split in dataset.splits]


def test_an_unknown_split_is_refused(dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match=r"unknown split .* expected one of train"):
        dataset.videos("holdout")


@pytest.mark.parametrize("name", LISTED)
def test_a_missing_root_names_the_official_page(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match=r"is not a folder.*https://") as caught:
        open_dataset(name, tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(caught.value)


@pytest.mark.parametrize("name", LISTED)
def test_a_missing_remote_root_is_the_same_sentence(bucket: Location, name: str) -> None:
    with pytest.raises(DatasetError, match=r"is not a folder.*https://") as caught:
        open_dataset(name, bucket / "nowhere")
    assert f"{bucket}/nowhere is not a folder" in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_server_that_refuses_is_one_sentence(bucket: Location, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("unable to locate credentials")

    assert not is_local(bucket)
    monkeypatch.setattr(bucket.fs, "isdir", refuse)
    monkeypatch.setattr(bucket.fs, "info", refuse)
    with pytest.raises(DatasetError, match=r"cannot be reached at memory://.*unable to locate credentials.*credentials of its server"):
        open_dataset(name, bucket)


@pytest.mark.parametrize("name", LISTED)
def test_an_empty_root_names_the_missing_list(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match=r"lacks a list: there is no .*https://"):
        open_dataset(name, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_root_that_is_a_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="is not a folder"):
        open_dataset(name, tmp_path / "file")


def test_an_unknown_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown dataset.*ssv2"):
        open_dataset("imagenet", tmp_path)


# ------------------------------------------------------------------------------------------------------------ spread


def listed(*classes: tuple[int | None, str | None]) -> list[VideoItem]:
    return [VideoItem(str(i), Path(f"{i}.webm"), label, group) for i, (label, group) in enumerate(classes)]


def chosen(items: list[VideoItem], limit: int) -> str:
    return "".join(item.id for item in spread(items, limit))


def test_spread_takes_from_each_class_in_turn_and_keeps_the_order() -> None:
    items = listed((0, None), (0, None), (0, None), (1, None), (1, None), (2, None))
    assert chosen(items, 3) == "035"
    assert chosen(items, 5) == "01345"  # class 2 has no more


def test_spread_takes_from_each_group_in_turn() -> None:
    items = listed((0, "g01"), (0, "g01"), (0, "g02"), (1, "g01"), (1, "g01"), (1, "g02"))
    assert chosen(items, 4) == "0235"


def test_a_larger_limit_contains_the_smaller_choice() -> None:
    items = listed(*((i % 7 // 2, f"g{i % 3}") for i in range(60)))
    for limit in range(1, 60):
        assert set(spread(items, limit)) < set(spread(items, limit + 1))


def test_spread_without_labels_takes_the_first() -> None:
    assert chosen(listed(*[(None, None)] * 5), 2) == "01"


def test_spread_takes_all_there_are() -> None:
    items = listed((0, None), (1, None))
    assert spread(items, 99) == spread(items, None) == tuple(items)
    assert spread([], 3) == ()


def test_spread_refuses_a_limit_below_one() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        spread([], 0)
