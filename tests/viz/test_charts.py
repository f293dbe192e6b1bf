"""Charts, curves and pages: spikes stay, odd numbers do no harm, and the text is well formed."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from stjepa_cli.viz import curves, html
from stjepa_cli.viz.charts import MAX_POINTS, Series, as_file, axis, line_chart, number, running_mean, step_axis, thin

SVG = "{http://www.w3.org/2000/svg}"
WAVE = tuple((float(step), math.sin(step / 500)) for step in range(1, 20_001))


def parsed(chart: str) -> ElementTree.Element:
    return ElementTree.fromstring(chart)


def words(chart: str) -> list[str]:
    return ["".join(element.itertext()) for element in parsed(chart).iter(f"{SVG}text")]


def test_thinning_keeps_spikes_ends_and_what_is_not_finite() -> None:
    points = list(WAVE)
    points[7_003], points[7_004], points[15_500] = (7_004.0, 50.0), (7_005.0, -50.0), (15_501.0, math.nan)
    thinned = thin(points)
    assert len(thinned) <= MAX_POINTS
    assert thinned[0] == points[0]
    assert thinned[-1] == points[-1]
    assert {points[7_003], points[7_004]} <= set(thinned)
    assert [step for step, value in thinned if math.isnan(value)] == [15_501.0]
    assert all(a[0] < b[0] for a, b in pairwise(thinned))


@pytest.mark.parametrize("count", [0, 1, 2, 999, 1000, 1001, 1003])
def test_short_runs_are_kept_whole_and_long_ones_within_the_limit(count: int) -> None:
    thinned = thin(WAVE[:count])
    assert len(thinned) <= MAX_POINTS
    assert count > MAX_POINTS or thinned == WAVE[:count]


def test_a_running_mean_leaves_out_what_is_not_finite() -> None:
    points = [(1.0, 1.0), (2.0, math.nan), (3.0, 3.0), (4.0, 5.0)]
    assert running_mean(points, 3) == ((1.0, 1.0), (2.0, 2.0), (3.0, 4.0), (4.0, 4.0))
    assert running_mean([(1.0, math.inf)], 3) == ()


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.61, 0.98], (0.6, 0.7, 0.8, 0.9, 1.0)),
        ([0.0, 6e-4], (0.0, 2e-4, 4e-4, 6e-4)),
        ([13.4], (5.0, 10.0, 15.0, 20.0, 25.0)),
        ([-3.0, 2.0], (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0)),
        ([0.0], (-1.0, -0.5, 0.0, 0.5, 1.0)),
        ([], (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)),
    ],
)
def test_ticks_are_round_and_hold_the_values(values: list[float], ticks: tuple[float, ...]) -> None:
    found = axis(values)
    assert found.ticks == pytest.approx(ticks)
    assert all(0 <= found.place(value) <= 1 for value in values)


def test_a_spike_makes_the_axis_logarithmic_and_a_low_beginning_does_not() -> None:
    assert axis([0.3, 0.4, 0.5, 4000.0]).log
    assert axis([0.3, 0.4, 0.5, 4000.0]).place(4000.0) < 1
    assert not axis([1e-7, 6e-4, 6e-4, 6e-4]).log
    assert axis([60.0, 80.0], zero=True).low == 0


def test_the_axis_of_steps_ends_with_the_last_step() -> None:
    assert step_axis(12_000).ticks == tuple(range(0, 12_001, 2000))
    assert (step_axis(12_345).high, step_axis(1).high, step_axis(0).high) == (12_345, 1, 1)


def test_numbers_are_for_people() -> None:
    figures = (2604, 0.53774, 2e-5, 0, 3, 1234567890123, math.nan, -0.25, 0.001)
    assert [number(figure) for figure in figures] == ["2,604", "0.5377", "2e-5", "0", "3", "1.23e+12", "nan", "-0.25", "0.001"]


def test_a_chart_has_axes_a_legend_and_words_for_the_blind() -> None:
    chart = line_chart("Data wait", [Series("share", ((1, 0.5), (2, 0.25)))], unit="%", rule=(10.0, "too high"))
    tree = parsed(chart)
    assert (tree.get("role"), tree.findtext(f"{SVG}title")) == ("img", "Data wait (%)")
    about = tree.findtext(f"{SVG}desc")
    assert about == "share: 0.5 at step 1, 0.25 at step 2, lowest 0.25 at step 2, highest 0.5 at step 1"
    assert {"Data wait (%)", "step", "share", "too high", "10"} <= set(words(chart))
    named = (tree.get("aria-labelledby") or "").split()
    assert [element.get("id") for element in (tree.find(f"{SVG}title"), tree.find(f"{SVG}desc")) if element is not None] == named


def test_values_that_are_not_finite_break_the_line_and_are_marked() -> None:
    points = ((1.0, 1.0), (2.0, 2.0), (3.0, math.nan), (4.0, math.inf), (5.0, 1.0), (6.0, 2.0))
    chart = line_chart("Loss", [Series("loss", points)])
    line = next(path.get("d") or "" for path in parsed(chart).iter(f"{SVG}path") if path.get("class") == "line s0")
    assert (line.count("M"), line.count("L")) == (2, 2)
    assert chart.count("not finite at step") == 2
    assert "2 values not finite" in chart
    assert "nan" not in line


@pytest.mark.parametrize(
    "series",
    [
        [],
        [Series("a", ())],
        [Series("a", ((1, math.nan),))],
        [Series("a", ((7, 0.0),))],
        [Series("a", ((0, 3.0), (1, 3.0)))],
        [Series("a", ((1, 1e-30), (2, 1e29)))],
        [Series(f"a long name of number {i}", ((1, i),)) for i in range(9)],
    ],
)
def test_odd_series_make_well_formed_charts(series: list[Series]) -> None:
    chart = line_chart("odd", series)
    parsed(chart)
    assert "nan" not in chart.replace("not finite", "")


def test_names_are_escaped_and_a_chart_can_stand_alone() -> None:
    chart = as_file(line_chart("<b>&", [Series('"><script>', ((1, 1),))]))
    tree = parsed(chart)
    assert tree.findtext(f"{SVG}title") == "<b>&"
    assert "<script>" not in chart
    assert tree[0].tag == f"{SVG}style"


def write_lines(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_metrics_are_read_whatever_stands_there(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "metrics.jsonl",
        {"step": 1, "loss": 1.0, "ok": True, "why": "text", "parts": {"a": 1}},
        {"step": 2, "loss": math.nan, "queue": 3},
        {"step": 2, "loss": 0.5},
        {"step": 2, "epoch": 1, "val_loss": 0.7},
        {"step": "3", "loss": 9.0},
        {"loss": 9.0},
        [1, 2],
        "null",
        "",
        {"step": 3, "loss": 1e300},
        '{"step": 4, "lo',
    )
    found, lines = curves.read_metrics(path)
    assert lines == 11
    assert found["loss"] == ((1, 1.0), (2, 0.5), (3, math.inf))
    assert (found["val_loss"], found["queue"]) == (((2, 0.7),), ((2, 3.0),))
    assert found.keys() == {"step", "loss", "queue", "epoch", "val_loss"}
    assert curves.read_metrics(tmp_path / "none") == ({}, 0)


def test_every_number_has_a_chart_and_the_units_are_for_people(tmp_path: Path) -> None:
    lines = [{"step": i, "loss": 1 / i, "constant_loss": 0.8, "data_wait": 0.5, "brand_new": i} for i in range(1, 9)]
    found, _ = curves.read_metrics(write_lines(tmp_path / "metrics.jsonl", *lines))
    drawn = "".join(curves.charts(found))
    assert drawn.count("<svg") == 3
    assert "Waiting for data (% of the time)" in drawn
    assert "data_wait: 50 at step 1" in drawn
    assert "brand_new" in drawn
    assert "too high above this line" in drawn
    assert "50% of the time is spent waiting for data" in curves.summary(found)
    assert "a constant answer would have 0.8" in curves.summary(found)


def test_the_verdict_needs_both_trivial_answers_beaten() -> None:
    def judged(**last: float) -> bool | None:
        return curves.verdict({name: ((1.0, 9.0), (2.0, value)) for name, value in last.items()}).good

    assert judged(loss=0.1) is None
    assert judged(val_loss=0.1) is None
    assert judged(val_loss=0.3, val_constant_loss=0.4) is True
    assert judged(val_loss=0.3, val_constant_loss=0.4, val_position_loss=0.3) is False
    assert judged(val_loss=0.3, val_constant_loss=0.4, val_position_loss=0.35) is True
    assert judged(val_loss=math.nan, val_constant_loss=0.4) is False


def test_runs_are_overlaid_one_chart_for_each_metric() -> None:
    runs: dict[str, curves.Curves] = {
        "a": {"loss": ((1.0, 2.0),), "val_loss": ((1.0, 2.0),)},
        "b": {"loss": ((1.0, 3.0),), "brand_new": ((5.0, 1.0),)},
    }
    (drawn,) = curves.overlaid(runs)
    assert drawn.count("<svg") == 3
    assert drawn.index("Loss on held-out clips") < drawn.index("Training loss") < drawn.index("brand_new")
    assert list(curves.overlaid({"a": {}})) == []


def test_no_metrics_are_said_and_only_strange_ones_do_no_harm() -> None:
    assert curves.summary({}).startswith("No step has been taken yet")
    assert list(curves.charts({})) == []
    strange = {"loss": ((1.0, math.nan),), "constant_loss": ((1.0, math.inf),)}
    assert "The last losses are not finite" in curves.summary(strange)
    assert len(list(curves.charts(strange))) == 1
    assert "nan" in curves.last_values(strange)


def test_pages_escape_text_and_forbid_what_is_outside() -> None:
    text = '<script>"&'
    body = [html.heading(text), html.paragraph(text), html.command(text), html.pairs({text: text}), html.table((text,), [(text,)])]
    body += [html.wrapped((text,), [(text,)], widths=(100,), numbers=(), bars=(0.5,), caption=text), html.folded(text, [])]
    body += [html.picture("image/png", b"x", text), html.tiles([html.Tile(("image/png", b"x"), text, (text,), True)], few=3)]
    page = html.page(text, [*body, html.strip(text, text, [("image/png", b"x")], [text])])
    assert "<script>" not in page
    assert "default-src 'none'" in page
