"""The report of an evaluation: correct tables, self-contained pages, the same bytes twice, and a sentence for everything missing."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from stjepa_cli.core.config import StudentConfig
from stjepa_cli.core.errors import ConfigError, StjepaError
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.data.datasets.base import open_dataset
from stjepa_cli.encoders.base import Failure
from stjepa_cli.encoders.student_encoder import StudentEncoder
from stjepa_cli.evaluation.evaluate import evaluate
from stjepa_cli.evaluation.probes.base import ProbeResult
from stjepa_cli.evaluation.report import FILES, confusion, shown_protocol, write_report
from stjepa_cli.evaluation.results import EvaluationInputs, EvaluationResult
from stjepa_cli.models.student import Student
from stjepa_cli.viz import html
from tests.browser import BROWSER, look, measure

CPU = Runtime("cpu")
SPEC = ClipSpec(num_frames=4, size_px=16, tubelet=2, patch_px=8)
ODD = ("Jump <b>&amp;", 'Run, "fast"', "Sit\nand stay")
WITHOUT_PICTURES = ["metrics.json", "predictions.csv", "per_class.csv", "confusion.png", "report.html"]


@pytest.fixture(scope="module")
def result(tiny_ucf101: Path) -> EvaluationResult:
    config = StudentConfig(dim=32, num_factorized=1, num_joint=1, num_heads=2)
    encoder = StudentEncoder(Student(config, SPEC, torch.Generator().manual_seed(0)), "tiny")
    return evaluate(encoder, open_dataset("ucf101", tiny_ucf101), split=1, protocols=["knn", "retrieval"], runtime=CPU)


@pytest.fixture(scope="module")
def wrong(result: EvaluationResult) -> EvaluationResult:
    """The same with two mistakes."""
    mistaken = torch.tensor([[0.1, 0.7, 0.2], [0.0, 1.0, 0.0], [0.6, 0.15, 0.25]])
    return replace(result, probes=result.probes | {"linear": ProbeResult({"top1": 1 / 3}, mistaken)})


def made(
    probes: dict[str, ProbeResult],
    classes: Sequence[str] = ODD,
    labels: Sequence[int] = (0, 1, 1),
    inputs: EvaluationInputs | None = None,
) -> EvaluationResult:
    ids = tuple("abcdefgh"[: len(labels)])
    return EvaluationResult("ucf101", 1, "c", "mean", tuple(classes), 5, ids, tuple(labels), (), probes, 1.0, inputs=inputs)


def scores() -> Tensor:
    return torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def knn() -> EvaluationResult:
    return made({"knn": ProbeResult({"top1": 2 / 3}, scores())})


def names(files: Sequence[Path]) -> list[str]:
    return [path.name for path in files]


class Checked(HTMLParser):
    """A document whose elements are closed in turn, with its headings and what it refers to."""

    EMPTY = ("meta", "img", "br", "col", "wbr")

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.levels: list[int] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(page.read_text())
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found: Mapping[str, str | None] = dict(attrs)
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        assert not any(name.startswith("on") for name in found)
        self.links += [value for name in ("src", "href", "srcset", "poster", "action") if (value := found.get(name)) is not None]
        if tag == "img":
            assert "alt" in found
        if re.fullmatch("h[1-6]", tag):
            self.levels.append(int(tag[1]))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


class TestFiles:
    def test_all_of_a_report_is_written(self, wrong: EvaluationResult, tmp_path: Path) -> None:
        files = write_report(wrong, tmp_path / "out")
        assert names(files) == list(FILES)
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES)
        assert json.loads(files[0].read_text()) == wrong.to_json()
        for path in files:
            if path.suffix in (".png", ".jpg"):
                with Image.open(path) as picture:
                    picture.verify()

    def test_predictions_agree_with_the_metrics(self, result: EvaluationResult, tmp_path: Path) -> None:
        rows = list(csv.DictReader(write_report(result, tmp_path, pictures=False)[1].read_text().splitlines()))
        right = sum(row["knn_class1"] == row["truth"] for row in rows) / len(rows)
        assert right == pytest.approx(result.probes["knn"].metrics["top1"])
        assert {row["truth"] for row in rows} == set(result.classes)

    def test_predictions_leave_out_classes_with_score_0(self, tmp_path: Path) -> None:
        write_report(knn(), tmp_path)
        with (tmp_path / "predictions.csv").open(newline="") as file:
            _, first, second, third = csv.reader(file)
        assert first[:8] == ["a", ODD[0], ODD[0], "0.500000", ODD[1], "0.250000", ODD[2], "0.250000"]
        assert second == ["b", ODD[1], ODD[0], "1.000000", *[""] * 8]
        assert third[:4] == ["c", ODD[1], ODD[1], "1.000000"]

    def test_classes_have_a_line_each_with_every_protocol(self, tmp_path: Path) -> None:
        linear = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        write_report(made({"knn": ProbeResult({}, scores()), "linear": ProbeResult({}, linear)}), tmp_path)
        with (tmp_path / "per_class.csv").open(newline="") as file:
            head, *rows = csv.reader(file)
        assert head == ["class", "videos", *(f"{name}_{what}" for name in ("knn", "linear") for what in ("right", "accuracy", "taken_for"))]
        assert rows == [
            [ODD[0], "1", "1", "1.000000", "", "0", "0.000000", ODD[1]],
            [ODD[1], "2", "1", "0.500000", ODD[0], "1", "0.500000", ODD[2]],
            [ODD[2], "0", "0", "", "", "0", "", ""],
        ]

    def test_confusion_is_of_one_protocol_and_linear_is_shown_first(self) -> None:
        assert confusion(knn(), "knn").tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
        with pytest.raises(ConfigError, match="no scores of classes: got linear"):
            confusion(knn(), "linear")
        of_classes, without = ProbeResult({}, scores()), ProbeResult({})
        assert shown_protocol(made({"knn": of_classes, "linear": of_classes})) == "linear"
        assert shown_protocol(made({"attentive": of_classes, "linear": without})) == "attentive"
        assert shown_protocol(made({"retrieval": without})) is None

    def test_nothing_of_an_earlier_report_stays(self, wrong: EvaluationResult, tmp_path: Path) -> None:
        write_report(wrong, tmp_path)
        (tmp_path / "mine.txt").write_text("mine")
        assert names(write_report(knn(), tmp_path)) == WITHOUT_PICTURES
        files = write_report(made({"retrieval": ProbeResult({"r1": 1.0})}), tmp_path)
        assert names(files) == ["metrics.json", "predictions.csv", "report.html"]
        assert {path.name for path in tmp_path.iterdir()} == {*names(files), "mine.txt"}
        assert files[1].read_text().splitlines()[0] == "video,truth"

    def test_the_same_result_gives_the_same_bytes(self, wrong: EvaluationResult, tmp_path: Path) -> None:
        for name in ("one", "two"):
            write_report(wrong, tmp_path / name, command="stjepa infer", intervals={"linear": (0.1, 0.6)})
        for name in FILES:
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name

    def test_a_folder_that_is_a_file_is_one_sentence(self, result: EvaluationResult, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("mine")
        for out in (tmp_path / "out", tmp_path / "out" / "below"):
            with pytest.raises(StjepaError, match="cannot write"):
                write_report(result, out)
        assert (tmp_path / "out").read_text() == "mine"

    def test_names_that_are_no_text_are_written_all_the_same(self, tmp_path: Path) -> None:
        odd = replace(knn(), ids=("\udcff", "b", "c"), classes=("\udcfe", *ODD[1:]))
        files = write_report(odd, tmp_path)
        assert names(files) == WITHOUT_PICTURES
        assert files[1].read_text().splitlines()[1].startswith("\\udcff,\\udcfe")


class TestPage:
    def page(self, result: EvaluationResult, out: Path, **options: Any) -> Checked:
        write_report(result, out, **options)
        return Checked(out / "report.html")

    def test_it_needs_nothing_but_itself(self, wrong: EvaluationResult, tmp_path: Path) -> None:
        page = self.page(wrong, tmp_path)
        assert {link[:16] for link in page.links} == {"data:image/png;b", "data:image/jpeg;"}
        raw = (tmp_path / "report.html").read_text()
        assert "default-src 'none'" in raw
        assert not re.search(r"https?://|@import|url\(", raw)
        assert page.levels[0] == 1
        assert all(after - before <= 1 for before, after in zip(page.levels, page.levels[1:], strict=False))
        assert page.levels.count(1) == 1

    def test_it_holds_metrics_intervals_and_the_command_that_repeats_it(self, wrong: EvaluationResult, tmp_path: Path) -> None:
        failed = replace(wrong, failed=(Failure("v<1>", "it is cut short"),), remark="not official", layer=2)
        command = "stjepa infer ucf101 --data-root '/a & b'"
        text = self.page(failed, tmp_path, command=command, intervals={"linear": (0.125, 0.75)}, pictures=False).text
        for part in (
            "ucf101 split 1: tiny",
            "linear: 33.3% [12.5%, 75.0%] of 3 test videos right; chance 33.3%.",
            "12.5% to 75.0%",
            "9 train, 3 test; 1 could not be used and count nowhere",
            "v<1>",
            "it is cut short",
            "not official",
            "block 2",
            command,
            *failed.digests.values(),
        ):
            assert part in text, part

    def test_names_are_text_and_never_markup(self, tmp_path: Path) -> None:
        page = self.page(knn(), tmp_path)
        for name in ODD:
            assert name in page.text
        assert "<b>&amp;" not in (tmp_path / "report.html").read_text()

    def test_mistakes_and_neighbours_are_shown(self, wrong: EvaluationResult, tmp_path: Path) -> None:
        page = self.page(wrong, tmp_path)
        hardest, near = page.text.split("Nearest neighbours")
        found = re.findall(r"is (\w+) \((.*?)\), taken for (\w+) \((.*?)\)", hardest)
        names = wrong.classes
        assert found == [(names[0], "10.0%", names[1], "70.0%"), (names[2], "25.0%", names[0], "60.0%")]
        assert near.count("✓") + near.count("✗") == 2 + 3 * 5  # the words on how to read them have both
        assert len(page.links) == 1 + 2 * 4 + 3 * 6

    def test_what_is_missing_is_said(self, result: EvaluationResult, tmp_path: Path) -> None:
        assert "does not hold the videos and features" in self.page(knn(), tmp_path).text
        assert "No pictures were asked for." in self.page(result, tmp_path, pictures=False).text
        only = self.page(made({"retrieval": ProbeResult({"r1": 0.5})}), tmp_path)
        assert only.text.count("No protocol scored classes") == 3
        assert only.links == []
        assert "retrieval r1" in only.text

    def test_retrieval_alone_still_has_neighbours(self, result: EvaluationResult, tmp_path: Path) -> None:
        files = write_report(replace(result, probes={"retrieval": result.probes["retrieval"]}), tmp_path)
        assert names(files) == ["metrics.json", "predictions.csv", "neighbours.jpg", "report.html"]

    def test_no_mistake_one_class_and_one_video_are_fine(self, result: EvaluationResult, tmp_path: Path) -> None:
        assert result.inputs is not None
        right = replace(result, probes={"linear": ProbeResult({"top1": 1.0}, torch.eye(3)[list(result.labels)])})
        assert "None: linear is right about every test video." in self.page(right, tmp_path).text
        first, train = result.inputs.test.rows(torch.tensor([0])), result.inputs.train
        alike = replace(result.inputs, test=first, train=replace(train, labels=torch.zeros_like(train.labels)))
        one = made({"knn": ProbeResult({"top1": 1.0}, torch.ones(1, 1))}, ("only",), (0,), alike)
        text = self.page(one, tmp_path).text
        assert "No test video is taken for another class." in text
        assert "Nearest neighbours" in text

    def test_a_class_without_a_test_video_is_named_and_has_no_bar(self, tmp_path: Path) -> None:
        page = self.page(knn(), tmp_path)
        assert f"Without a test video: {ODD[2]}." in page.text
        assert (tmp_path / "report.html").read_text().count('<div class="bar"') == 2

    def test_many_classes_are_folded_between_the_worst_and_the_best(self, tmp_path: Path) -> None:
        classes, labels = [f"Class{i:03}" for i in range(60)], [i for i in range(60) for _ in range(2)]
        guesses = torch.eye(60)[[label if i % 120 < 2 * label else 0 for i, label in enumerate(labels)]]
        many = replace(made({"linear": ProbeResult({}, guesses)}, classes, [0]), ids=tuple(map(str, range(120))), labels=tuple(labels))
        write_report(many, tmp_path)
        raw = (tmp_path / "report.html").read_text()
        assert raw.count('<div class="bar"') == 60
        assert "<summary>The 20 classes between them</summary>" in raw

    def test_videos_that_vanished_since_are_sentences(self, wrong: EvaluationResult, tmp_path: Path) -> None:
        assert wrong.inputs is not None
        moved = {name: replace(item, path=tmp_path / "moved" / f"{name}.avi") for name, item in wrong.inputs.items.items()}
        lost = replace(wrong.inputs, items=moved)
        gone = replace(wrong, probes={"linear": ProbeResult({"top1": 0.0}, torch.eye(3).roll(1, 0))}, inputs=lost)
        files = write_report(gone, tmp_path / "out")
        assert names(files) == list(FILES)
        page = Checked(tmp_path / "out" / "report.html")
        assert page.text.count("It cannot be shown: ") == 3
        assert page.text.count("no picture") == 18
        assert len(page.links) == 1


@pytest.fixture(scope="module")
def page(wrong: EvaluationResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a result with long names of every kind."""
    classes = ("Pretending to put something onto something but missing so it falls off", "HandstandPushups" * 4, "B" * 90)
    failed = tuple(Failure("v_" + "x" * 60, "/data/" + "y" * 200 + ".avi: it is cut short") for _ in range(3))
    folder = tmp_path_factory.mktemp("page")
    odd = replace(wrong, classes=classes, encoder="/runs/" + "checkpoint" * 9 + ".safetensors", failed=failed)
    write_report(odd, folder, command="stjepa infer ucf101 " + "z" * 200, intervals={"linear": (0.0, 1.0), "knn": (0.0, 1.0)})
    return folder / "report.html"


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")
class TestBrowser:
    @pytest.mark.parametrize("width", [320, 390, 1280])
    def test_it_fits_every_screen_and_every_picture_is_seen(self, page: Path, tmp_path: Path, width: int) -> None:
        found = measure(page, tmp_path, width)
        assert found["inner"] == width
        assert found["scroll"] <= width
        assert found["out"] == []
        assert found["images"] == found["shown"] == 1 + 2 * 4 + 3 * 6
        assert found["height"] > 2000

    def test_the_confusion_matrix_is_dark_on_a_dark_screen(self, wrong: EvaluationResult, tmp_path: Path) -> None:
        write_report(wrong, tmp_path, pictures=False)
        picture = re.search(r'<img class="picture drawn"[^>]*>', (tmp_path / "report.html").read_text())
        assert picture is not None
        (tmp_path / "page.html").write_text(html.page("matrix", [picture[0]]))
        light, dark = (
            look(tmp_path / "page.html", tmp_path / str(dark), dark=dark)[:, 40:140, 40:140].float().mean() for dark in (False, True)
        )
        assert light > 180
        assert dark < 90

    def test_it_is_light_or_dark_as_the_screen_asks(self, page: Path, tmp_path: Path) -> None:
        light, dark = look(page, tmp_path / "light"), look(page, tmp_path / "dark", dark=True)
        for seen, paper in ((light, (255, 255, 255)), (dark, (20, 24, 29))):
            assert tuple(seen[:, 2, 2].tolist()) == paper
            assert len(torch.unique(seen[1])) > 20  # something is written on it
