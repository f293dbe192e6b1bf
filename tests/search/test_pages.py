"""Pages about tables: one file each, that fits every screen, runs nothing but its own script, and survives videos that are gone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from stjepa_cli.core.errors import ConfigError
from stjepa_cli.core.progress import SILENT
from stjepa_cli.search.find import find
from stjepa_cli.search.indexes.base import open_index
from stjepa_cli.search.overview.gathered import Duplicates, Gathered, find_duplicates, gather
from stjepa_cli.search.pages.found import write_found
from stjepa_cli.search.pages.groups import write_groups
from stjepa_cli.search.pages.vector_map import colours_of, write_map
from stjepa_cli.search.records import Row
from stjepa_cli.viz.scatter import MOST_GROUPS, STEPS
from tests.browser import BROWSER, look, measure
from tests.search.tables import FOLDERS, RUNTIME, embed_folder, write_videos

ODD = "odd </script><script>alert(1)</script> & 'name' " + "x" * 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos, two of them twice, one with a name that no page should run, and one that will be gone."""
    folder = tmp_path_factory.mktemp("odd")
    write_videos(folder)
    shutil.copy(folder / "left" / "0.mp4", folder / "right" / "copy.mp4")
    shutil.copy(folder / "down" / "1.mp4", folder / f"{ODD.replace('/', '')}.mp4")
    shutil.copy(folder / "down" / "0.mp4", folder / "gone.mp4")
    return folder


@pytest.fixture(scope="module")
def odd_table(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("lancedb")
    place = str(tmp_path_factory.mktemp("tables") / "odd")
    embed_folder(folder, place)
    (folder / "gone.mp4").unlink()
    return place


@pytest.fixture(scope="module")
def gathered(odd_table: str) -> Gathered:
    with open_index(odd_table) as index:
        return gather(index)


@pytest.fixture(scope="module")
def pages(odd_table: str, gathered: Gathered, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("pages")
    written = {name: out / f"{name}.html" for name in ("found", "groups", "map")}
    with open_index(odd_table) as index:
        found = find(index, str(folder / "down" / "1.mp4"), runtime=RUNTIME)
    assert write_found(written["found"], found, "stjepa search x", workers=2, progress=SILENT) == 1
    duplicates = find_duplicates(gathered, 0.9999)
    assert write_groups(written["groups"], duplicates, "stjepa duplicates x", workers=2, progress=SILENT) == 1
    mapped = write_map(written["map"], gathered, "stjepa map x", runtime=RUNTIME)
    assert (mapped.points, mapped.thumbnails, mapped.not_shown, mapped.left_out) == (9, 8, 1, 1)
    assert mapped.bytes == written["map"].stat().st_size
    return written


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="points">(.*?)</script>', page.read_text())
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


@pytest.mark.parametrize("name", ["found", "groups", "map"])
class TestEveryPage:
    def test_it_loads_nothing_and_runs_nothing_of_others(self, pages: dict[str, Path], name: str) -> None:
        text = pages[name].read_text()
        assert not re.search(r"(src|href|srcset)=\"(?!data:)", text)
        assert "<script>alert" not in text
        scripts = re.findall(r"<script(?! type=\"application/json\")", text)
        assert len(scripts) == (1 if name == "map" else 0)
        assert ("script-src 'sha256-" in text) == (name == "map")
        assert "default-src 'none'" in text

    @pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")
    @pytest.mark.parametrize("width", [320, 390, 1280])
    def test_it_fits_every_screen_and_every_picture_is_seen(self, pages: dict[str, Path], tmp_path: Path, name: str, width: int) -> None:
        found = measure(pages[name], tmp_path, width)
        assert found["inner"] == width
        assert found["scroll"] <= width
        assert found["out"] == []
        assert found["images"] == found["shown"] == {"found": 9, "groups": 5, "map": 0}[name]

    @pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")
    def test_it_is_light_or_dark_as_the_screen_asks(self, pages: dict[str, Path], tmp_path: Path, name: str) -> None:
        light, dark = look(pages[name], tmp_path / "light"), look(pages[name], tmp_path / "dark", dark=True)
        for seen, paper in ((light, (255, 255, 255)), (dark, (20, 24, 29))):
            assert tuple(seen[:, 2, 2].tolist()) == paper
            assert len(torch.unique(seen[1])) > 20


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")
def test_the_script_of_the_map_runs_under_the_policy_of_the_page(pages: dict[str, Path], tmp_path: Path) -> None:
    page = pages["map"]
    changed = tmp_path / "changed.html"
    changed.write_text(page.read_text().replace('"use strict";', '"use strict"; '))  # a script of another digest
    drawn, blocked = look(page, tmp_path / "as written"), look(changed, tmp_path / "changed")
    colour = torch.tensor([0x00, 0x72, 0xB2]).view(3, 1, 1)  # the first of the palette

    def dots(seen: torch.Tensor) -> int:
        return int(((seen.int() - colour).abs().amax(0) < 45)[:620].sum())  # the map, above its legend

    assert dots(drawn) > 100 > dots(blocked)


def test_the_page_of_a_search_names_what_it_shows(pages: dict[str, Path]) -> None:
    text = pages["found"].read_text()
    assert "Videos like 1.mp4" in text
    assert text.count("no picture") == 1
    assert "1 cannot be shown" in text
    assert "gone.mp4" in text
    assert "prefers-reduced-motion" in text
    assert "stjepa search x" in text


def test_a_map_holds_places_groups_neighbours_and_pictures(pages: dict[str, Path], gathered: Gathered) -> None:
    data = data_of(pages["map"])
    count = len(gathered.rows)
    assert len(data["x"]) == len(data["y"]) == len(data["names"]) == len(data["near"]) == count
    assert (min(data["x"]), max(data["x"]), min(data["y"]), max(data["y"])) == (0, data["size"], 0, data["size"])
    assert sorted(i for rows in data["rows"] for i in rows) == list(range(count))
    assert sum(not picture for picture in data["thumbnails"].values()) == 1
    names = {row.uri: i for i, row in enumerate(gathered.rows)}
    left, copy = (next(i for uri, i in names.items() if uri.endswith(end)) for end in ("/left/0.mp4", "/right/copy.mp4"))
    assert copy == data["near"][left][0]
    assert (data["x"][left], data["y"][left]) == (data["x"][copy], data["y"][copy])
    assert f"{ODD.replace('/', '')}.mp4" in data["names"]


def test_fewer_pictures_than_videos_are_drawn_by_lot_and_said(gathered: Gathered, tmp_path: Path) -> None:
    mapped = write_map(tmp_path / "map.html", gathered, "x", most_thumbnails=3, runtime=RUNTIME)
    assert mapped.thumbnails + mapped.not_shown == 3
    assert f"{mapped.thumbnails} of 9" in (tmp_path / "map.html").read_text()
    none = write_map(tmp_path / "map.html", gathered, "x", most_thumbnails=0, runtime=RUNTIME)
    assert data_of(tmp_path / "map.html")["thumbnails"] == {}
    assert none.thumbnails == 0


@pytest.mark.parametrize(("options", "message"), [({"color": "vector"}, "nothing to colour by"), ({"method": "tsne"}, "pca, umap")])
def test_a_map_of_something_else_is_one_sentence(gathered: Gathered, tmp_path: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        write_map(tmp_path / "map.html", gathered, "x", runtime=RUNTIME, **options)  # type: ignore[arg-type]
    assert not (tmp_path / "map.html").exists()


def rows_of(**values: list[Any]) -> list[Row]:
    (name, found), *_ = values.items()
    return [Row(f"/a/{i}.mp4", **{name: value}) for i, value in enumerate(found)]


def test_texts_get_a_colour_each_and_the_rest_share_one() -> None:
    assert colours_of(rows_of(status=["ok", "error", "ok", ""]), "status").names == ["ok", "none", "error"]
    many = colours_of(rows_of(strategy=[f"s{i // 2:02}" for i in range(2 * MOST_GROUPS + 4)]), "strategy")
    assert len(many.names) == MOST_GROUPS
    assert many.groups[-4:] == [MOST_GROUPS] * 4


def test_numbers_are_cut_into_steps_of_as_many_rows() -> None:
    found = colours_of(rows_of(duration_seconds=[None, *(float(i * i) for i in range(70))]), "duration_seconds")
    assert found.ordered
    assert len(found.names) == STEPS
    assert found.groups[0] == STEPS
    assert [found.groups.count(step) for step in range(STEPS)] == [10] * STEPS
    assert found.groups[1:] == sorted(found.groups[1:])
    assert colours_of(rows_of(fps=[25.0, 25.0]), "fps").names == ["25"]
    assert colours_of(rows_of(fps=[None]), "fps").names == []


def test_copies_are_grouped_and_other_videos_are_not(gathered: Gathered) -> None:
    found: Duplicates = find_duplicates(gathered, 0.9999)
    groups = {frozenset(Path(member.row.uri).name for member in group) for group in found.groups}
    assert frozenset({"0.mp4", "copy.mp4"}) in groups
    assert frozenset({"0.mp4", "gone.mp4"}) in groups
    assert len(found.groups) == 3
    assert found.superfluous == 3
    assert all(member.similarity > 0.9999 for group in found.groups for member in group)
    assert {"groups", "threshold", "duplicates", "rows", "left_out"} <= set(found.to_json())


@pytest.mark.parametrize("threshold", [0.0, -0.5, 1.01, float("nan")])
def test_a_threshold_out_of_range_is_one_sentence(gathered: Gathered, threshold: float) -> None:
    with pytest.raises(ConfigError, match="the threshold is a cosine similarity"):
        find_duplicates(gathered, threshold)


def test_rows_are_gathered_in_one_order_whatever_the_database(place: str) -> None:
    with open_index(place) as index:
        found = gather(index)
        some = gather(index, where="uri like '%/left/%'")
        with pytest.raises(ConfigError, match=r"no row of .* has a vector"):
            gather(index, where="duration_seconds > 1e6")
    assert [Path(row.uri).parts[-2:] for row in found.rows] == [(name, f"{i}.mp4") for name in sorted(FOLDERS) for i in range(2)]
    assert (len(some.rows), found.left_out, some.left_out) == (2, 1, 0)
    assert all(not row.vectors for row in found.rows)
