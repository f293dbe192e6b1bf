"""What all tests share: the tiny data sets, and the one place that decides which tests run on this machine."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from stjepa_cli.core.locations import Location, is_local, location
from tests.labelled import write_tiny_folder, write_tiny_hmdb51, write_tiny_kinetics
from tests.media import write_tiny_ssv2, write_tiny_ucf101


def pytest_configure(config: pytest.Config) -> None:
    """Choose how many inputs hypothesis makes up: the same few on every run, or many with `--slow`."""
    shared = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
    settings.register_profile("quick", shared, derandomize=True, max_examples=50)
    settings.register_profile("slow", shared, max_examples=1000)
    settings.load_profile("slow" if config.getoption("--slow") else "quick")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--slow`."""
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip slow tests unless they were asked for."""
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: runs with --slow"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip the tests of a GPU where there is none, or fail them where one must be."""
    if "cuda" in item.keywords and not torch.cuda.is_available():
        if os.environ.get("FAIL_WITHOUT_CUDA") == "1":
            pytest.fail("FAIL_WITHOUT_CUDA=1 and torch finds no CUDA device")
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def tiny_ssv2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root of Something-Something v2: 12 train, 4 validation, 2 test videos, 3 classes; to read, not to change."""
    return write_tiny_ssv2(tmp_path_factory.mktemp("data") / "ssv2")


@pytest.fixture(scope="session")
def tiny_ucf101(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root of UCF-101: 3 classes x 4 groups, 9 train and 3 test videos a split; to read, not to change."""
    return write_tiny_ucf101(tmp_path_factory.mktemp("data") / "ucf101")


@pytest.fixture(scope="session")
def tiny_hmdb51(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root of HMDB-51: 3 classes, 6 train and 3 test videos a split; to read, not to change."""
    return write_tiny_hmdb51(tmp_path_factory.mktemp("data") / "hmdb51")


@pytest.fixture(scope="session")
def tiny_kinetics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root of Kinetics-style lists: 3 classes, 6 train, 3 validation and 3 test videos; to read, not to change."""
    return write_tiny_kinetics(tmp_path_factory.mktemp("data") / "kinetics")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of class folders: 3 classes, 9 train and 3 test videos; to read, not to change."""
    return write_tiny_folder(tmp_path_factory.mktemp("data") / "folder")


@pytest.fixture
def bucket() -> Iterator[Location]:
    """An empty place of its own on fsspec's in-process file system, which answers as an object store does."""
    place = location(f"memory://{uuid.uuid4().hex}")
    yield place
    if not is_local(place) and place.exists():
        place.fs.rm(place.path, recursive=True)
