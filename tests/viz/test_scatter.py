"""A map of points: its data are inert, its legend counts, and degenerate points do no harm."""

from __future__ import annotations

import json
import re
from typing import Any
from xml.etree import ElementTree

import pytest

from stjepa_cli.viz import html
from stjepa_cli.viz.scatter import SCRIPT, SIZE, STYLE, Points, scatter

THREE = Points([(0.0, 0.0), (1.0, 2.0), (0.5, -2.0)], ["a", "b", "c"], ["", "", "note"], [0, 1, 2], ["<left>", "right"], meaning="folder")


def data_of(text: str) -> dict[str, Any]:
    found = re.search(r'id="points">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_coordinates_fill_the_map_with_y_upwards() -> None:
    data = data_of(scatter(THREE, "map"))
    assert data["x"] == [0, SIZE, round(SIZE / 2)]
    assert data["y"] == [SIZE - round(SIZE / 2), 0, SIZE]
    assert data["rows"] == [[0], [1], [2]]


@pytest.mark.parametrize("xy", [[], [(1.0, 1.0)], [(1.0, 1.0), (1.0, 1.0)], [(0.0, 1.0), (5.0, 1.0)]])
def test_points_without_extent_are_drawn_in_the_middle(xy: list[tuple[float, float]]) -> None:
    names = [""] * len(xy)
    data = data_of(scatter(Points(xy, names, names, [0] * len(xy), []), "map"))
    assert data["y"] == [SIZE - SIZE // 2] * len(xy)
    assert len(data["x"]) == len(xy)


def test_the_legend_counts_its_entries_and_the_rest() -> None:
    legend = re.findall(r"(?:</svg>)([^<]*) <i>([0-9,]+)</i>", scatter(THREE, "map"))
    assert legend == [("&lt;left&gt;", "1"), ("right", "1"), ("others", "1")]


def test_no_text_can_end_the_data_or_run() -> None:
    odd = "</script><script>alert(1)</script><!-- \u2028 \ud83d\ude00"
    text = scatter(Points([(0.0, 0.0)], [odd], [odd], [0], [odd]), odd)
    assert "<script>alert" not in text
    assert data_of(text)["names"] == [odd]


def test_the_policy_of_a_page_names_its_one_script() -> None:
    plain, scripted = html.page("a", []), html.page("a", [scatter(THREE, "map")], style=STYLE, script=SCRIPT)
    assert "script-src" not in plain
    assert len(re.findall(r"script-src 'sha256-[A-Za-z0-9+/=]{44}'", scripted)) == 1
    assert "</script" not in SCRIPT


def test_the_signs_of_the_legend_are_well_formed() -> None:
    for sign in re.findall(r"<svg.*?</svg>", scatter(THREE, "map")):
        assert ElementTree.fromstring(sign).tag == "svg"
