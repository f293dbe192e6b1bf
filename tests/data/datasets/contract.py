"""The contract of a data set, as a class; `test_base.py` runs it for every plug-in of the folder."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stjepa_cli.core.errors import ConfigError, DatasetError
from stjepa_cli.core.locations import Location, is_local
from stjepa_cli.data.datasets.base import Dataset, open_dataset
from tests.media import upload


class DatasetContract:
    """Inherit it and say which plug-in it is, and where a small whole example of it lies."""

    @pytest.fixture
    @abstractmethod
    def name(self) -> str:
        """Return the name of the plug-in."""

    @pytest.fixture
    @abstractmethod
    def root(self) -> Path:
        """Return the root of a small example, in the official layout, with every listed video."""

    @pytest.fixture
    def dataset(self, name: str, root: Path) -> Dataset:
        """Open the example."""
        return open_dataset(name, root)

    def test_it_says_what_it_is(self, dataset: Dataset, name: str) -> None:
        assert dataset.name == name
        assert dataset.title
        assert dataset.how_to_get
        assert dataset.__doc__ != Dataset.__doc__
        assert set(dataset.optional_splits) < set(dataset.splits)
        assert {split for pair in dataset.pairs.values() for split in pair} <= set(dataset.splits)

    def test_pairs_are_of_known_labelled_splits_that_share_nothing(self, dataset: Dataset) -> None:
        assert dataset.pair() == next(iter(dataset.pairs.items()))
        for pair in dataset.pairs:
            train, test = (dataset.videos(split) for split in dataset.pair(pair)[1])
            assert all(item.label is not None for item in (*train, *test))
            assert not {item.id for item in train} & {item.id for item in test}
        with pytest.raises(ConfigError, match="unknown split of"):
            dataset.pair("holdout")

    def test_labels_are_dense(self, dataset: Dataset) -> None:
        labels = {item.label for split in dataset.splits for item in dataset.videos(split)} - {None}
        assert labels == set(range(len(dataset.classes)))

    def test_every_listed_video_is_there(self, dataset: Dataset) -> None:
        for split in dataset.splits:
            assert dataset.videos(split)
            assert all(item.path.is_file() for item in dataset.videos(split))

    def test_ids_are_unique_in_a_split(self, dataset: Dataset) -> None:
        for split in dataset.splits:
            items = dataset.videos(split)
            assert len({item.id for item in items}) == len(items)

    def test_a_remote_root_gives_the_items_of_a_local_one(self, dataset: Dataset, root: Path, bucket: Location) -> None:
        remote = open_dataset(dataset.name, upload(root, bucket / "root"))
        assert remote.classes == dataset.classes
        for split in dataset.splits:
            items = dataset.videos(split)
            moved = [replace(item, path=bucket / "root" / item.path.relative_to(root).as_posix()) for item in items if is_local(item.path)]
            assert remote.videos(split) == tuple(moved)
            assert len(moved) == len(items)

    def test_two_readings_are_equal(self, dataset: Dataset) -> None:
        again = open_dataset(dataset.name, dataset.root)
        assert [again.videos(split) for split in again.splits] == [dataset.videos(split) for split in dataset.splits]

    def test_an_unknown_split_is_refused(self, dataset: Dataset) -> None:
        with pytest.raises(ConfigError, match=r"unknown split .* expected one of train"):
            dataset.videos("holdout")

    def test_a_missing_root_is_named_with_what_to_do(self, name: str, tmp_path: Path, dataset: Dataset) -> None:
        with pytest.raises(DatasetError, match="is not a folder") as caught:
            open_dataset(name, tmp_path / "nowhere")
        assert str(tmp_path / "nowhere") in str(caught.value)
        assert dataset.how_to_get in str(caught.value)
        assert dataset.homepage in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_missing_remote_root_is_the_same_sentence(self, name: str, bucket: Location, dataset: Dataset) -> None:
        with pytest.raises(DatasetError, match="is not a folder") as caught:
            open_dataset(name, bucket / "nowhere")
        assert f"{bucket}/nowhere is not a folder" in str(caught.value)
        assert dataset.how_to_get in str(caught.value)

    def test_a_server_that_refuses_is_one_sentence(self, name: str, bucket: Location, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any, **__: Any) -> Any:
            raise RuntimeError("unable to locate credentials")

        assert not is_local(bucket)
        monkeypatch.setattr(bucket.fs, "isdir", refuse)
        monkeypatch.setattr(bucket.fs, "info", refuse)
        with pytest.raises(DatasetError, match=r"cannot be reached at memory://.*unable to locate credentials.*credentials of its server"):
            open_dataset(name, bucket)

    def test_an_empty_root_says_what_is_missing(self, name: str, tmp_path: Path, dataset: Dataset) -> None:
        with pytest.raises(DatasetError, match=r"lacks a list: there is no |there is no video in") as caught:
            open_dataset(name, tmp_path)
        assert (dataset.homepage or dataset.how_to_get) in str(caught.value)

    def test_a_root_that_is_a_file_is_refused(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(DatasetError, match="is not a folder"):
            open_dataset(name, tmp_path / "file")
