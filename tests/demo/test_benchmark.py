"""The benchmark in miniature: both tasks in one folder, several seeds, resumed; and its page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from stjepa_cli.core.errors import ConfigError, StjepaError
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.demo.benchmark import BenchmarkRequest, BenchmarkResult, run_benchmark
from stjepa_cli.demo.scenes import TASKS, Task
from stjepa_cli.demo.sizes import SIZES
from tests.demo.plans import TINY, Interrupter

NAME = "tiny"

Both = tuple[Path, dict[Task, BenchmarkResult], dict[Task, list[str]], dict[Task, str]]
"""Folder, results, the tasks that each run went through, and pages."""


@pytest.fixture(scope="module", autouse=True)
def tiny_size() -> Iterator[None]:
    """One more size, small enough for a test: two objects, 16 motions."""
    clip = ClipSpec(num_frames=4, size_px=16, tubelet=2, patch_px=8)
    SIZES[NAME] = replace(TINY, scenes="16", num_train=64, num_test=64, clip=clip, video_frames=4, video_px=16, teachers=("hog",))
    yield
    del SIZES[NAME]


def _request(out: Path, task: Task = "motion", **changes: object) -> BenchmarkRequest:
    return replace(BenchmarkRequest(out, task, NAME, recipes=("mixed", "videomae"), num_seeds=2), **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, tiny_size: None) -> Both:
    """Both tasks in one folder, with the tasks that each went through."""
    out, results, tasks = tmp_path_factory.mktemp("benchmark") / "out", dict[Task, BenchmarkResult](), dict[Task, list[str]]()
    pages = {}
    for task in TASKS:
        listener = Interrupter()
        results[task] = run_benchmark(_request(out, task), Runtime(workers=1, progress=listener))
        tasks[task] = listener.tasks
        pages[task] = Path(results[task].page).read_text()
    return out, results, tasks, pages


def test_the_table_has_students_baselines_intervals_and_seeds(
    both: Both,
) -> None:
    for result in both[1].values():
        assert [row.model for row in result.rows] == ["untrained student", "student of hog, mixed", "student, videomae", "pixels", "hog"]
        assert [len(row.metrics["knn"].seeds) for row in result.rows] == [2, 2, 2, 1, 1]
        for row in result.rows:
            for metric in row.metrics.values():
                assert metric.interval[0] <= metric.value <= metric.interval[1]
                assert metric.value == pytest.approx(sum(metric.seeds) / len(metric.seeds))
        assert [row.steps > 0 for row in result.rows] == [False, True, True, False, False]
        assert result.chance == 1 / 16
        assert (result.num_train, result.num_test) == (64, 64)
        json.dumps(asdict(result), allow_nan=False)


def test_the_second_task_trains_nothing_and_caches_nothing(both: Both) -> None:
    tasks = both[2]
    assert {"cache", "generate ssv2", "generate ucf101"} <= set(tasks["motion"])
    assert any(name.startswith("pretrain") for name in tasks["motion"])
    assert not [name for name in tasks["appearance"] if name == "generate ssv2" or name.startswith(("cache", "pretrain"))]
    assert "generate ucf101_appearance" in tasks["appearance"]


def test_the_same_command_again_gives_the_same_table_from_what_is_kept(
    both: Both,
) -> None:
    out, results = both[:2]
    listener = Interrupter()
    again = run_benchmark(_request(out), Runtime(workers=1, progress=listener))
    assert again.rows == results["motion"].rows
    assert not [name for name in listener.tasks if name.startswith(("generate", "cache", "pretrain", "train1", "test1"))]


def test_a_student_can_be_added_to_a_finished_folder(both: Both) -> None:
    out, results = both[:2]
    listener = Interrupter()
    more = run_benchmark(_request(out, recipes=("mixed", "st-jepa"), num_seeds=1), Runtime(workers=1, progress=listener))
    assert listener.tasks.count("pretrain") == 1  # and not two students
    mixed = next(row for row in results["motion"].rows if row.recipe == "mixed")
    assert next(row for row in more.rows if row.recipe == "mixed").metrics["knn"].value == mixed.metrics["knn"].seeds[0]


def test_another_size_or_seed_in_the_folder_is_refused(both: Both) -> None:
    with pytest.raises(StjepaError, match="holds a benchmark with other settings: got data_seed 0"):
        run_benchmark(_request(both[0], seed=5))


def test_the_page_shows_table_samples_and_reports(both: Both) -> None:
    out, results, _, pages = both
    for task, text in pages.items():
        result = results[task]
        assert result.page == str(out / f"{task}.html")
        assert "<script" not in text
        assert not re.findall(r'(?:src|href)="(?:https?:)?//', text)
        assert text.count('<div class="strip"') == 16
        row = result.rows[1]
        knn = row.metrics["knn"]
        assert "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * number for number in (knn.value, *knn.interval))) in text
        for target in re.findall(r'<a href="([^"]+)"', text):
            assert (out / target).is_file(), target
        assert ("Pretending to push something from left to right" in text) is (task == "motion")


@pytest.mark.parametrize("name", ["minutes", "hour", "gpu"])
def test_sizes_grow(name: str) -> None:
    size = SIZES[name]
    assert size.clip.grid.num_tokens >= {"minutes": 64, "hour": 256, "gpu": 1568}[name]
    assert size.clip.num_frames <= size.video_frames
    assert size.clip.size_px <= size.video_px
    assert len(size.scored_clips(0, "motion").classes) == {"minutes": 8, "hour": 16, "gpu": 24}[name]
    assert size.scored_clips(0, "motion").seed != size.pretraining_clips(0).seed


def test_wrong_requests_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown size: got 'huge', expected one of minutes, hour, gpu"):
        run_benchmark(BenchmarkRequest(tmp_path / "out", size="huge"))
    with pytest.raises(ConfigError, match="unknown recipe"):
        run_benchmark(_request(tmp_path / "out", recipes=("best",)))
    assert not (tmp_path / "out").exists()
