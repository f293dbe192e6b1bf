"""Scoring several encoders on a data set, with a report folder for each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from stjepa_cli.core.errors import ConfigError, StjepaError
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.data.eval_clips import EvalClips
from stjepa_cli.encoders.extraction import Extraction
from stjepa_cli.evaluation.infer import InferRequest, infer
from stjepa_cli.evaluation.predict import predict
from stjepa_cli.evaluation.probes.finetune import FinetuneSettings
from stjepa_cli.evaluation.report_folders import ReportFolders
from stjepa_cli.evaluation.results import EvaluationResult

CPU = Runtime("cpu")


@pytest.fixture
def request_(tiny_folder: Path, tmp_path: Path) -> InferRequest:
    """Two baselines that need no weights, on nine train videos."""
    return InferRequest(
        "folder", tiny_folder, teacher="hog", compare=("pixels",), protocols=("knn", "linear"), out=tmp_path / "out", save_head=True
    )


def test_each_encoder_has_a_folder_with_its_report_and_head(request_: InferRequest, tiny_folder: Path) -> None:
    comparison = infer(replace(request_, command="stjepa infer"), runtime=CPU)
    assert request_.out is not None
    assert [row.encoder for row in comparison.rows] == ["hog", "pixels"]
    for name in ("hog", "pixels"):
        folder = request_.out / f"folder_splittest_{name}_knn-linear"
        assert {"metrics.json", "predictions.csv", "report.html", "head_linear.safetensors"} <= {path.name for path in folder.iterdir()}
        assert json.loads((folder / "metrics.json").read_text())["checkpoint"] == name
        assert f'href="folder_splittest_{name}_knn-linear/report.html"' in (request_.out / "report.html").read_text()
    assert json.loads((request_.out / "metrics.json").read_text()) == comparison.to_json()
    video = next((tiny_folder / "test").rglob("*.mp4"))
    answers = [predict([video], request_.out / f"folder_splittest_{name}_knn-linear", runtime=CPU).encoder for name in ("hog", "pixels")]
    assert answers == ["hog", "pixels"]


def made(checkpoint: str, digest: str) -> EvaluationResult:
    return EvaluationResult("ucf101", 1, checkpoint, "mean", ("a",), 1, (), (), (), {}, 0.0, digests={"encoder": digest})


def test_reports_of_two_runs_never_overwrite_each_other(tmp_path: Path) -> None:
    results = [made("a/step8.safetensors", "1" * 64), made("b/step8.safetensors", "2" * 64), made("hog", "3" * 64)]
    folders = ReportFolders(tmp_path, single=False)
    assert [folders.folder(result).name for result in results] == [
        "ucf101_split1_step8",
        "ucf101_split1_step8_22222222",
        "ucf101_split1_hog",
    ]
    beside = ReportFolders(None, single=False)
    assert [beside.folder(result).parent for result in results] == [Path("a/reports"), Path("b/reports"), Path("checkpoints/reports")]
    assert ReportFolders(tmp_path, single=True).folder(results[0]) == tmp_path


def test_the_report_of_some_videos_does_not_replace_that_of_all(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STJEPA_CHECKPOINTS", str(tmp_path))
    whole = InferRequest("folder", tiny_folder, teacher="pixels")
    for request in (whole, replace(whole, limit=3), replace(whole, protocols=("knn",)), replace(whole, extraction=Extraction("time"))):
        infer(request, runtime=CPU)
    names = sorted(path.name for path in (tmp_path / "reports").iterdir())
    assert names == [f"folder_splittest_pixels{key}" for key in ("", "_knn", "_limit3", "_time")]
    found = json.loads((tmp_path / "reports" / names[0] / "metrics.json").read_text())
    assert found["videos"]["train"] == 9


def test_the_key_of_a_request_names_what_differs_from_the_defaults(tiny_folder: Path) -> None:
    request = InferRequest("folder", tiny_folder)
    assert request.key == ""
    clips = EvalClips(5, 3, 16, "dense", 2)
    settings = {"finetune": FinetuneSettings(epochs=3, lr=0.002)}
    changed = replace(request, protocols=("knn", "finetune"), limit=50, extraction=Extraction("mean", clips, -2), settings=settings, seed=7)
    assert changed.key == "knn-finetune_limit50_16x5x3_dense_stride2_layer-2_epochs3_lr0.002_seed7"
    assert len(replace(changed, protocols=("attentive_pool",) * 20).key) == 109
    assert replace(request, out=Path("x"), save_head=True, compare=("hog",)).key == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpoint": Path("x.safetensors")}, "one encoder at a time: got --checkpoint and --teacher"),
        ({"protocols": ("knn",)}, "no protocol has a head to save: got knn"),
        ({"split": "validation"}, "unknown split"),
        ({"settings": {"finetune": None}}, "settings of a protocol that does not run: got finetune. Type `--protocol finetune`"),
        ({"extraction": Extraction(clips=EvalClips(stride=2))}, "a stride is for dense sampling: got stride 2. Type `--sampling dense`"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(request_: InferRequest, change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        infer(replace(request_, **change), runtime=CPU)  # type: ignore[arg-type]
    assert request_.out is not None
    assert not list(request_.out.glob("*"))


def test_a_place_that_cannot_hold_reports_is_reported_before_any_work(request_: InferRequest, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StjepaError, match=r"cannot write a report to .*: got a file, expected a folder"):
        infer(replace(request_, out=tmp_path / "file"), runtime=CPU)


@pytest.mark.parametrize("name", ["hmdb51", "kinetics", "ssv2", "ucf101"])
def test_every_data_set_is_scored_in_the_same_way(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(f"tiny_{name}")
    comparison = infer(InferRequest(name, root, teacher="pixels", protocols=("knn",), split="all", out=tmp_path), runtime=CPU)
    splits = [result.split for result in comparison.rows[0].results]
    assert splits == {"hmdb51": [1, 2, 3], "kinetics": ["val", "test"], "ssv2": ["validation"], "ucf101": [1, 2, 3]}[name]
    assert all(not result.failed and len(result.ids) >= 3 for result in comparison.rows[0].results)
