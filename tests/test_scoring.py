"""Encoders on a data set, with a folder of reports for each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stjepa_cli.errors import ConfigError
from stjepa_cli.evaluation import EvaluationResult
from stjepa_cli.prediction import predict
from stjepa_cli.scoring import ScoreRequest, report_folders, score_all

CPU = torch.device("cpu")


@pytest.fixture
def request_(tiny_folder: Path, tmp_path: Path) -> ScoreRequest:
    """Two baselines that need no weights, on nine train videos."""
    return ScoreRequest(
        "folder", tiny_folder, teacher="hog", compare=("pixels",), protocols=("knn", "linear"), out=tmp_path / "out", save_head=True
    )


def test_each_encoder_has_a_folder_with_its_report_and_head(request_: ScoreRequest, tiny_folder: Path) -> None:
    board = score_all(replace(request_, command="stjepa infer"), device=CPU)
    assert request_.out is not None
    assert [entry.encoder for entry in board.entries] == ["hog", "pixels"]
    for name in ("hog", "pixels"):
        folder = request_.out / f"folder_splittest_{name}"
        assert {"metrics.json", "predictions.csv", "report.html", "head_linear.safetensors"} <= {path.name for path in folder.iterdir()}
        assert json.loads((folder / "metrics.json").read_text())["checkpoint"] == name
        assert f'href="folder_splittest_{name}/report.html"' in (request_.out / "report.html").read_text()
    assert json.loads((request_.out / "metrics.json").read_text()) == board.to_json()
    video = next((tiny_folder / "test").rglob("*.mp4"))
    answers = [predict([video], request_.out / f"folder_splittest_{name}", device=CPU).encoder for name in ("hog", "pixels")]
    assert answers == ["hog", "pixels"]


def made(checkpoint: str, digest: str) -> EvaluationResult:
    return EvaluationResult("ucf101", 1, checkpoint, "mean", ("a",), 1, (), (), (), {}, 0.0, digests={"encoder": digest})


def test_reports_of_two_runs_never_overwrite_each_other(tmp_path: Path) -> None:
    results = [made("a/step8.safetensors", "1" * 64), made("b/step8.safetensors", "2" * 64), made("hog", "3" * 64)]
    names = [folder.name for folder in report_folders(results, tmp_path)]
    assert names == ["ucf101_split1_step8_11111111", "ucf101_split1_step8_22222222", "ucf101_split1_hog"]
    beside = report_folders(results, None)
    assert [folder.parent for folder in beside] == [Path("a/reports"), Path("b/reports"), Path("checkpoints/reports")]
    assert report_folders(results[:1], tmp_path) == [tmp_path]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpoint": Path("x.safetensors")}, "one encoder at a time: got --checkpoint and --teacher"),
        ({"protocols": ("knn",)}, "no protocol has a head to save: got knn"),
        ({"split": "validation"}, "unknown split"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(request_: ScoreRequest, change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        score_all(replace(request_, **change), device=CPU)  # type: ignore[arg-type]
    assert request_.out is not None
    assert not request_.out.exists()
