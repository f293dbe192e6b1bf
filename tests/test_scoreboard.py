"""Several encoders and splits in one table: a real tiny UCF-101, tiny students, and the baselines."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from stjepa_cli.commands.infer import DATASETS
from stjepa_cli.config import StudentConfig
from stjepa_cli.contenders import open_contender
from stjepa_cli.datasets.base import Dataset, open_dataset
from stjepa_cli.encoders import Encoder, StudentEncoder
from stjepa_cli.errors import CheckpointError, ConfigError, TeacherError
from stjepa_cli.features import Extraction, FeatureStore
from stjepa_cli.nouns import ClipSpec
from stjepa_cli.pixels import PixelEncoder
from stjepa_cli.plugins import load
from stjepa_cli.scoreboard import Scoreboard, bootstrap, contest
from stjepa_cli.student import Student

CPU = torch.device("cpu")
SPEC = ClipSpec(num_frames=4, size_px=16, tubelet=2, patch_px=8)


def tiny(_: ClipSpec | None) -> Encoder:
    config = StudentConfig(dim=32, num_factorized=1, num_joint=1, num_heads=2)
    return StudentEncoder(Student(config, SPEC, torch.Generator().manual_seed(0)), "tiny")


def named(name: str) -> Callable[[ClipSpec | None], Encoder]:
    return lambda clip: open_contender(name, device=CPU, run=Path("nowhere"), clip=clip)


@pytest.fixture(scope="module")
def dataset(tiny_ucf101: Path) -> Dataset:
    return open_dataset("ucf101", tiny_ucf101)


def store(encoder: Encoder, folder: Path | None = None) -> FeatureStore:
    return FeatureStore(encoder, "ucf101", Extraction(folder=folder), device=CPU)


@pytest.fixture(scope="module")
def board(dataset: Dataset) -> Scoreboard:
    return contest([tiny, named("hog"), named("pixels")], dataset, store, protocols=["knn", "retrieval"], command="stjepa infer")


def test_encoders_stand_in_the_order_in_which_they_were_named(board: Scoreboard) -> None:
    found = board.to_json()
    assert [entry["checkpoint"] for entry in found["entries"]] == ["tiny", "hog", "pixels"]
    assert (found["dataset"], found["split"], found["command"], found["resamples"]) == ("ucf101", 1, "stjepa infer", 1000)
    assert json.loads(json.dumps(found)) == found


def test_baselines_take_the_clips_of_the_first(board: Scoreboard) -> None:
    assert {entry.results[0].clips for entry in board.entries} == {"4x1x1"}


def test_every_line_carries_what_it_was_made_from(board: Scoreboard) -> None:
    digests = [entry.results[0].digests for entry in board.entries]
    assert len({found["encoder"] for found in digests}) == len({found["features"] for found in digests}) == 3
    assert len({found["lists"] for found in digests}) == 1


def test_intervals_are_of_the_first_figure_of_each_protocol_and_hold_it(dataset: Dataset) -> None:
    (entry,) = contest([tiny], dataset, store, protocols=["knn", "linear", "retrieval", "fewshot"]).entries
    assert list(entry.intervals) == ["knn", "linear", "retrieval", "fewshot"]
    for name, (low, high) in entry.intervals.items():
        first = next(iter(entry.figures()[name].values()))
        assert 0 <= low <= first <= high <= 1
        assert low < high or first in (0, 1)


def test_all_splits_give_mean_and_deviation_and_share_their_features(dataset: Dataset, tmp_path: Path) -> None:
    entry = contest([tiny], dataset, partial(store, folder=tmp_path), split="all", protocols=["knn"]).entries[0]
    found = entry.to_json()
    shares = [part["knn"]["top1"] for part in found["splits"]]
    mean = sum(shares) / 3
    assert (found["split"], [part["split"] for part in found["splits"]]) == ("all", [1, 2, 3])
    assert found["knn"]["top1"] == pytest.approx(mean)
    assert found["deviations"]["knn"]["top1"] == pytest.approx(math.sqrt(sum((share - mean) ** 2 for share in shares) / 2))
    kept = store(tiny(None), tmp_path)
    assert len(kept) == 12  # 3 classes of 4 groups, each encoded once for the three splits


def test_one_encoder_on_one_split_keeps_the_shape_of_an_evaluation(dataset: Dataset) -> None:
    found = contest([tiny], dataset, store, split="2", protocols=["knn"]).to_json()
    assert {"dataset", "split", "checkpoint", "videos", "knn", "chance", "intervals"} <= set(found)
    assert found["split"] == 2


def test_the_same_call_twice_gives_the_same_numbers(dataset: Dataset, board: Scoreboard) -> None:
    again = contest([tiny, named("hog"), named("pixels")], dataset, store, protocols=["knn", "retrieval"])
    for entry, other in zip(board.entries, again.entries, strict=True):
        assert (entry.figures(), entry.intervals) == (other.figures(), other.intervals)
        assert entry.results[0].digests == other.results[0].digests


def test_an_unknown_split_is_refused(dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match="unknown split of UCF-101"):
        contest([tiny], dataset, store, split="validation")


def test_the_bootstrap_agrees_with_the_binomial_it_samples() -> None:
    hits = torch.arange(400) < 100
    low, high = bootstrap([hits], seed=0)
    error = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert low == pytest.approx(0.25 - error, abs=0.006)
    assert high == pytest.approx(0.25 + error, abs=0.006)
    narrow = bootstrap([hits, hits, hits], seed=0)
    assert narrow[1] - narrow[0] < (high - low) / 1.5
    assert bootstrap([torch.ones(9, dtype=torch.bool)], seed=0) == (1.0, 1.0)


class TestPixels:
    def test_blocks_of_time_and_space_are_averaged(self) -> None:
        clips = torch.zeros(2, 8, 3, 32, 32, dtype=torch.uint8)
        clips[0, 2:4, :, 2:4, :2] = 255  # block (1, 1, 0)
        clips[1, 0] = 255  # half of the first time step
        tokens = PixelEncoder(ClipSpec(num_frames=8, size_px=32, patch_px=16)).encode(clips)
        assert tokens.shape == (2, 1, 1024)
        first, second = tokens.view(2, 4, 16, 16)
        assert first[1, 1, 0] == pytest.approx(1.0)
        assert first.sum() == pytest.approx(1.0)
        assert second[0].eq(second[0, 0, 0]).all()
        assert second[0, 0, 0] == pytest.approx(0.5)

    def test_short_and_small_clips_have_as_many_values(self) -> None:
        assert PixelEncoder(SPEC).encode(torch.zeros(1, 2, 3, 8, 8, dtype=torch.uint8)).shape == (1, 1, 1024)


class TestContenders:
    def test_names_that_nothing_has_are_one_sentence(self) -> None:
        with pytest.raises(CheckpointError, match="there is no checkpoint in nowhere"):
            named("untrained")(None)
        with pytest.raises(TeacherError):
            named("./no/such/folder")(None)

    def test_pixels_and_hog_take_any_clips(self) -> None:
        for name in ("pixels", "hog"):
            assert named(name)(SPEC).clip == SPEC
            assert named(name)(None).clip == ClipSpec()


def test_commands_offer_the_splits_that_their_data_sets_have() -> None:
    for name, scored in DATASETS.items():
        pairs = tuple(load("datasets", name).pairs)
        assert scored.splits == ((*pairs, "all") if len(pairs) > 2 else pairs)
