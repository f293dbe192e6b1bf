"""The demo in miniature: what it leaves, what it says, and that it resumes."""

from __future__ import annotations

import json
import resource
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from stjepa_cli.core.errors import StjepaError
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.demo.run import RESULT_FILE, DemoResult, demo_plan, demonstrate
from stjepa_cli.demo.sizes import SIZES
from stjepa_cli.models.checkpoint import list_checkpoints
from stjepa_cli.models.tensor_file import read_tensors
from stjepa_cli.search.embed import EmbedRequest, embed
from stjepa_cli.search.find import find
from stjepa_cli.search.indexes.base import open_index
from tests.demo.plans import Interrupter, tiny_demo

REPOSITORY = Path(__file__).resolve().parents[2]
MODELS = ["untrained student", "pretrained student", "student of hog", "hog", "teacher"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DemoResult]:
    """A tiny demo."""
    out = tmp_path_factory.mktemp("demo") / "out"
    return out, demonstrate(tiny_demo(out), runtime=Runtime(workers=1))


def _same_students(one: Path, other: Path) -> bool:
    """Whether the last checkpoints of all students hold the same numbers."""
    folders = sorted(folder.name for folder in one.glob("checkpoints*"))
    pairs = [(list_checkpoints(one / name)[-1], list_checkpoints(other / name)[-1]) for name in folders]
    for first, second in pairs:
        a, b = read_tensors(first), read_tensors(second)
        if first.name != second.name or a.keys() != b.keys() or not all(torch.equal(a[name], b[name]) for name in a):
            return False
    return len(pairs) == 2


def test_the_table_has_every_model_and_chance(finished: tuple[Path, DemoResult]) -> None:
    _, result = finished
    assert [row.model for row in result.table] == [*MODELS, "chance"]
    assert result.table[-1].figures == {"knn": 0.125, "linear": 0.125, "r1": 0.125}
    assert {row.model: row.saw_labels for row in result.table} == {
        "untrained student": "no",
        "pretrained student": "no; its teacher did",
        "student of hog": "no",
        "hog": "no; it has no weights",
        "teacher": "yes: fine-tuned on motion labels",
        "chance": "-",
    }
    assert result.verify.ok
    assert result.build.clips == 40


def test_its_json_has_the_keys_that_were_released(finished: tuple[Path, DemoResult]) -> None:
    out, result = finished
    data = json.loads((out / RESULT_FILE).read_text())
    assert data == json.loads(json.dumps(asdict(result), default=str))
    assert {"out", "build", "verify", "pretrain", "infer", "table", "seconds"} <= data.keys()
    assert list(data["infer"]) == MODELS
    assert data["table"][1].keys() == {"model", "saw_labels", "figures"}
    assert data["pretrain"] == data["students"]["pretrained student"]


def test_checkpoints_reports_and_scored_videos_stay_and_all_else_goes(finished: tuple[Path, DemoResult]) -> None:
    out, _ = finished
    assert sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) == [
        "checkpoints", "checkpoints_hog", "demo.json", "reports", "ucf101"
    ]  # fmt: skip
    assert sorted(path.name for path in (out / "reports").iterdir()) == sorted(name.replace(" ", "_") for name in MODELS)
    assert (out / "reports" / "hog" / "report.html").is_file()


def test_it_ends_with_the_command_that_searches_its_videos(finished: tuple[Path, DemoResult]) -> None:
    pytest.importorskip("lancedb")
    _, result = finished
    embed_command, _, search_command = result.search.partition(" && ")
    _, name, source, _, model, _, table = shlex.split(embed_command)
    assert name == "embed"
    embedded = embed(EmbedRequest((source,), model, table, num_frames=None), Runtime("cpu", 2))
    assert (len(embedded.failed), embedded.rows) == (0, len(list(Path(source).rglob("*.avi"))))
    _, name, place, clip, _, page = shlex.split(search_command)
    assert (name, place) == ("search", table)
    with open_index(place) as index:
        assert find(index, clip, top=1, runtime=Runtime("cpu", 2)).hits[0].row.uri == str(Path(clip).absolute())
    assert not Path(page).exists()
    assert shlex.split(result.map)[:3] == ["stjepa", "map", table]
    shutil.rmtree(table)


@pytest.mark.parametrize(("task", "after"), [("cache", 8), ("pretrain", 3)])
def test_stopped_and_started_again_it_resumes_and_ends_with_the_same_students(
    finished: tuple[Path, DemoResult], tmp_path: Path, task: str, after: int
) -> None:
    out, result = finished
    place = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        demonstrate(tiny_demo(place), runtime=Runtime(workers=1, progress=Interrupter(task, after)))
    videos = {path: path.stat().st_mtime_ns for path in (place / "ssv2").rglob("*.webm")}
    listener = Interrupter()
    again = demonstrate(tiny_demo(place), keep=True, runtime=Runtime(workers=1, progress=listener))
    assert listener.notes[0] == f"resuming the demo in {place}"
    assert videos == {path: path.stat().st_mtime_ns for path in (place / "ssv2").rglob("*.webm")}
    assert _same_students(place, out)
    assert again.table == result.table
    assert any(name.startswith("pretrain") for name in listener.tasks)


def test_a_finished_demo_is_replaced_and_a_demo_of_someone_else_is_left_alone(finished: tuple[Path, DemoResult], tmp_path: Path) -> None:
    out, _ = finished
    stranger = tmp_path / "theirs"
    (stranger / "checkpoints").mkdir(parents=True)
    (stranger / RESULT_FILE).write_text((out / RESULT_FILE).read_text())
    (stranger / "checkpoints" / "mine.txt").write_text("keep me")
    with pytest.raises(StjepaError, match="holds something else"):
        demonstrate(tiny_demo(stranger))
    assert (stranger / "checkpoints" / "mine.txt").read_text() == "keep me"
    with pytest.raises(KeyboardInterrupt):
        demonstrate(tiny_demo(out), runtime=Runtime(progress=Interrupter("generate", 1)))
    assert not (out / "checkpoints").exists()


def test_a_disk_that_takes_no_more_is_one_sentence(tmp_path: Path) -> None:
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from stjepa_cli.core.errors import StjepaError\n"
        "from stjepa_cli.demo.run import demonstrate\n"
        "from tests.demo.plans import tiny_demo\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (2500, {resource.RLIM_INFINITY}))\n"
        "try:\n"
        f"    demonstrate(tiny_demo(Path({str(tmp_path / 'out')!r})))\n"
        "except StjepaError as error:\n"
        "    sys.exit(error.sentence())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.stderr.count("\n") == 1, done.stderr
    assert "cannot write" in done.stderr
    assert "Free some space" in done.stderr


def test_all_rows_add_the_published_recipe_and_pixels(tmp_path: Path) -> None:
    plan = demo_plan(tmp_path, all_rows=True)
    assert [row.recipe for row in plan.students].count("st-jepa") == 2
    assert list(plan.baselines) == ["pixels", "hog", "teacher"]
    assert plan.size == SIZES["minutes"]
    plan.check()


def test_what_cannot_be_is_told_before_anything_is_written(tmp_path: Path) -> None:
    plan = tiny_demo(tmp_path / "out")
    twice = replace(plan, students=plan.students[:1] * 2)
    with pytest.raises(StjepaError, match="two students have one name"):
        demonstrate(twice)
    with pytest.raises(StjepaError, match="unknown recipe: got 'best'"):
        demonstrate(replace(plan, students=(replace(plan.students[0], recipe="best"),)))
    with pytest.raises(StjepaError, match="nowhere"):
        demonstrate(replace(plan, students=(replace(plan.students[0], teacher="./nowhere"),)))
    assert not (tmp_path / "out").exists()
