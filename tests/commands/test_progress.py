"""Progress: a line that fits its terminal, with a speed and a time left that agree."""

from __future__ import annotations

import re
import time

import pytest

from stjepa_cli.commands.progress import Meter, PlainProgress, Several, bar_line, duration

METRICS = {"epoch": 2.0, "loss": 0.43211, "lr": 3.4e-4, "clips_per_second": 571.23, "data_wait": 0.012, "mfu": 0.41, "memory_gb": 12.2}


def meter(total: int | None = 99_990, done: int = 300, completed: int = 33_330) -> Meter:
    found = Meter("pretrain", total, "steps", completed)
    time.sleep(0.06)
    found.advance(done, METRICS)
    return found


@pytest.mark.parametrize("columns", range(40, 200, 3))
@pytest.mark.parametrize("total", [99_990, None])
def test_the_line_fits_any_terminal(columns: int, total: int | None) -> None:
    assert bar_line(meter(total), columns).cell_len <= columns


def test_80_columns_show_name_bar_count_speed_time_left_and_loss() -> None:
    shown = bar_line(meter(), 79).plain
    assert re.fullmatch(r"pretrain ━{10,}  33,630/99,990 steps  [\d,.]+/s  [\d.]+ (s|min) left  loss 0\.4321", shown)
    wider = bar_line(meter(), 140).plain
    assert "lr 0.00034" in wider
    assert "clips/s 571.2" in wider
    assert bar_line(meter(), 79, plain=True).plain.isascii()


def test_the_time_left_is_what_is_left_at_the_speed_that_is_shown() -> None:
    found = Meter("x", 1000, "steps", completed=900)
    time.sleep(0.2)
    found.advance(10, {})
    rate = found.rate
    assert rate is not None
    assert 20 < rate < 51  # 10 units in 0.2 s; the 900 of the earlier session do not count
    assert found.left() in {f"{duration(90 / speed)} left" for speed in (rate, found.rate or rate)}
    assert found.count() == "910/1,000 steps"


def test_slow_work_is_told_in_seconds_for_each_and_finished_work_in_the_time_it_took() -> None:
    found = Meter("x", 3, "videos")
    time.sleep(1.1)
    found.advance(1, {})
    assert re.search(r"1\.1\d? s each", found.line())
    found.advance(2, {})
    assert "left" not in found.line()
    assert re.fullmatch(r"x: 3/3 videos in 1\.\d s, 2\.\d+/s", found.summary())


def test_unknown_totals_show_the_time() -> None:
    found = Meter("linear probe", None, "steps")
    assert found.line() == "linear probe: 0.0 s"
    assert found.summary() == "linear probe: 0.0 s"
    assert "linear probe" in bar_line(found, 79).plain


def test_plain_lines_come_now_and_then_and_once_at_the_end() -> None:
    lines: list[str] = []
    other: list[str] = []
    both = Several([PlainProgress(lines.append, 0.05), PlainProgress(other.append, 60)])
    with both.task("work", total=10, unit="steps", completed=4) as task:
        for _ in range(6):
            time.sleep(0.02)
            task.advance(loss=1.0)
    both.note("done")
    assert 3 <= len(lines) <= 5
    assert lines[0].startswith("work: ")
    assert lines[-2].startswith("work: 10/10 steps in 0.")
    assert [line.split(" in ")[0] for line in other] == ["work: 10/10 steps", "done"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.96, "10 s"), (42, "42 s"), (700, "12 min"), (12_000, "3 h 20 min"), (187_200, "2 d 4 h")]
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
