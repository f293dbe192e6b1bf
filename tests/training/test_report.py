"""The page of a run: whole in itself, the same twice, and honest about what is not there."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from stjepa_cli.cache.build import BuildRequest, build
from stjepa_cli.core.config import OptimizerConfig, PredictorConfig, RunConfig, StudentConfig
from stjepa_cli.core.errors import CheckpointError, ConfigError
from stjepa_cli.core.progress import Progress
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.models.checkpoint import list_checkpoints, newest_checkpoint, optimizer_path, read_header
from stjepa_cli.training.pretrain import pretrain
from stjepa_cli.training.report import ReportResult, load_objective, report, watch
from stjepa_cli.training.run_folder import hold_run, is_training
from tests.caches import make_cache

SPEC = ClipSpec(num_frames=4, size_px=32, tubelet=2, patch_px=16)


@pytest.fixture(scope="module")
def trained(tiny_ssv2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a cache without frames; to read, not to change."""
    folder = tmp_path_factory.mktemp("report")
    build(BuildRequest.of(tiny_ssv2, folder / "cache", teacher="hog", clip=SPEC, latent_dim=16))
    run = RunConfig(
        tiny_ssv2,
        folder / "cache",
        folder / "a <b>run",
        epochs=1,
        batch_size=4,
        mask_ratio=0.5,
        device="cpu",
        workers=2,
        student=StudentConfig(32, 1, 1, 2),
        predictor=PredictorConfig(24, 1, 2),
        optimizer=OptimizerConfig(lr=3e-3),
    )
    pretrain(run)
    return run.checkpoints


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, to change."""
    return Path(shutil.copytree(trained, tmp_path / trained.name))


def test_the_page_needs_nothing_but_itself(run: Path) -> None:
    result = report(run, clips=2)
    page = (run / "report.html").read_text()
    assert result.out == str(run / "report.html")
    assert result.bytes == len(page.encode())
    assert set(re.findall(r'(?:src|href|srcset|poster|data)="([^";,]{0,16})', page)) == {
        "data:image/png",
        "data:image/jpeg",
        "data:image/webp",
    }
    assert not re.search(r"<(script|link|iframe|object|embed|base)\b|@import|url\(", page)
    assert "https://" not in page
    assert set(re.findall(r"http://[^\"]*", page)) == {"http://www.w3.org/2000/svg"}


def test_the_same_run_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    for name in ("1.html", "2.html"):
        report(run, out=tmp_path / "out" / name, clips=3)
    assert (tmp_path / "out" / "1.html").read_bytes() == (tmp_path / "out" / "2.html").read_bytes()


def test_it_tells_where_the_run_comes_from_and_how_to_run_it_again(run: Path) -> None:
    report(run, clips=0)
    page, header = (run / "report.html").read_text(), read_header(newest_checkpoint(run))
    for text in (header.teacher.name, header.teacher.licence, header.cache_digest, header.dataset, "student.num_factorized"):
        assert text in page
    assert "stjepa pretrain --config" in page
    assert "run.toml" in page
    assert "<h1>a &lt;b&gt;run</h1>" in page
    assert "<b>run" not in page


def test_it_holds_the_figures_of_the_metrics(run: Path) -> None:
    lines = [{"step": i, "loss": 0.9 - i / 1000, "constant_loss": 0.8, "lr": 1e-4, "odd_name<i>": 7} for i in range(1, 301)]
    lines[149]["loss"] = 77.25
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 301, "lo')
    result = report(run, clips=0)
    page = (run / "report.html").read_text()
    assert (result.metric_lines, round(result.loss or 0, 3)) == (301, 0.603)
    assert "highest 77.25 at step 150" in page
    assert '<td>loss</td><td class="n">0.6</td>' in page
    assert "odd_name&lt;i&gt;" in page


@pytest.mark.parametrize("text", [None, "", "no JSON\n", '{"step": 1, "loss": NaN}\n', '{"step": 1, "loss": 0.5}\n'])
def test_metrics_that_are_missing_short_or_not_finite_do_no_harm(run: Path, text: str | None) -> None:
    (run / "metrics.jsonl").unlink()
    if text is not None:
        (run / "metrics.jsonl").write_text(text)
    report(run, clips=0)
    page = (run / "report.html").read_text()
    assert ("No step has been taken yet" in page) == (text in (None, "", "no JSON\n"))


def test_clips_are_shown_as_frames_features_and_cosines(run: Path) -> None:
    result = report(run, clips=3)
    page = (run / "report.html").read_text()
    assert len(result.clips) == 3
    assert page.count("data:image/webp") == 3  # frame, teacher and student, animated
    assert page.count("data:image/") == 3 * 2 + 3 * 5 * SPEC.grid.t  # and a still of each; frames, two maps and two of cosines over time
    assert result.left_out == ()
    assert result.cosine is not None
    assert result.constant_cosine is not None
    assert -1 <= result.cosine <= 1
    for name in result.clips:
        assert f"Clip {name}" in page


def test_kept_frames_need_no_videos_and_held_out_clips_are_preferred(tiny_ssv2: Path, run: Path, tmp_path: Path) -> None:
    header = read_header(newest_checkpoint(run))
    cache = tmp_path / "framed"
    build(BuildRequest.of(tiny_ssv2, cache, teacher="hog", clip=SPEC, latent_dim=16, frames=True))
    framed = replace(header.run, cache=cache, checkpoints=tmp_path / "framed_run", val_fraction=0.25)
    pretrain(framed)
    result = report(framed.checkpoints, clips=2, data_root=tmp_path / "nowhere")
    assert (len(result.clips), result.left_out) == (2, ())
    assert "held out from training" in Path(result.out).read_text()


def test_missing_videos_are_said_and_the_curves_are_there_all_the_same(run: Path, tmp_path: Path) -> None:
    result = report(run, clips=2, data_root=tmp_path / "nowhere")
    page = (run / "report.html").read_text()
    assert (result.clips, result.cosine, len(result.left_out)) == ((), None, 1)
    assert "No clips are shown: " in page
    assert "nowhere" in page
    assert "<svg" in page
    assert "data:image/" not in page


def test_clips_have_the_captions_of_the_data_set(run: Path, tiny_ssv2: Path) -> None:
    result = report(run, clips=2)
    page = (run / "report.html").read_text()
    labels = {entry["id"]: entry["template"] for entry in json.loads(next(tiny_ssv2.rglob("*train.json")).read_text())}
    for name in result.clips:
        assert f"{labels[name].replace('[', '').replace(']', '')} (clip {name})" in page.replace("<wbr>", "")


def test_the_verdict_comes_first_and_the_configuration_last(run: Path) -> None:
    lines = [{"step": 1, "loss": 0.9}, {"step": 1, "val_loss": 0.5, "val_constant_loss": 0.6, "val_position_loss": 0.4}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = report(run, clips=1)
    page = (run / "report.html").read_text()
    assert result.does_better is False
    assert "does not yet do better than the mean latent of each position" in result.verdict
    order = [page.index(part) for part in ('class="verdict wrong"', "<h2>Clips", "<h2>Curves", "<h2>Origin", "<h2>Configuration")]
    assert order == sorted(order)
    lines[1]["val_loss"] = 0.3
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert report(run, clips=0).does_better is True


def test_without_held_out_clips_the_verdict_says_so(run: Path) -> None:
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    result = report(run, clips=0)
    assert result.does_better is None
    assert "No clips were held out" in (run / "report.html").read_text()


def test_several_runs_are_laid_over_each_other(run: Path, tmp_path: Path) -> None:
    header = read_header(newest_checkpoint(run)).run
    other = replace(header, checkpoints=tmp_path / "other", seed=1, optimizer=OptimizerConfig(lr=1e-3))
    pretrain(other)
    result = report([run, other.checkpoints], out=tmp_path / "both.html", clips=2)
    page = (tmp_path / "both.html").read_text()
    assert (len(result.runs), len(result.clips), result.left_out) == (2, 2, ())
    assert page.count("data:image/webp") == 2
    assert "<td>optimizer.lr" in page or 'scope="row">optimizer.<wbr>lr' in page or "optimizer.lr" in page
    assert {'class="line s0', 'class="line s1'} <= set(re.findall(r'class="line s\d', page))
    with pytest.raises(ConfigError, match="the same run is named twice"):
        report([run, run])


def test_another_cache_or_none_is_said(run: Path, tmp_path: Path) -> None:
    make_cache(tmp_path / "other", num_clips=3)
    assert "is not the one of this run" in report(run, cache=tmp_path / "other").left_out[0]
    assert "there is no cache" in report(run, cache=tmp_path / "none").left_out[0]


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(run: Path) -> None:
    newest = newest_checkpoint(run)
    newest.write_bytes(newest.read_bytes()[:100])
    assert report(run, clips=1).step == read_header(list_checkpoints(run)[-2]).step


def test_a_folder_without_a_checkpoint_and_a_file_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        report(tmp_path / "empty")
    with pytest.raises(CheckpointError, match=r"the folder of a run.*expected a folder"):
        report(newest_checkpoint(run))


def test_a_report_only_reads_the_run(run: Path) -> None:
    before = {path: path.read_bytes() for path in run.iterdir()}
    report(run, clips=1)
    assert {path: path.read_bytes() for path in run.iterdir() if path.name != "report.html"} == before
    assert optimizer_path(newest_checkpoint(run)) in before


def test_the_objective_that_is_rebuilt_is_the_one_that_was_trained(run: Path) -> None:
    path = newest_checkpoint(run)
    objective = load_objective(path, read_header(path))
    assert not objective.training
    assert not any(parameter.requires_grad for parameter in objective.parameters())


# ------------------------------------------------------------------------------------------------------------- watching


def pages_seen(run: Path, seconds: float, *, spoil: bool = False) -> list[str]:
    """Watch a run that is held for so many seconds; returns every page that was written."""
    seen: list[str] = []

    def write(folders: Sequence[Path], *, reload_seconds: int | None = None, progress: Progress) -> ReportResult:
        if spoil and not seen:
            seen.append("")
            raise CheckpointError("there is no checkpoint yet")
        result = report(folders, clips=0, reload_seconds=reload_seconds, progress=progress)
        seen.append(Path(result.out).read_text())
        return result

    with ThreadPoolExecutor(1) as pool:
        with hold_run(run):
            watched = pool.submit(watch, [run], every_seconds=1, write=write)
            time.sleep(seconds)
        assert watched.result(timeout=60).step == 3
    return seen


def test_a_watched_page_reloads_itself_until_the_run_ends(run: Path) -> None:
    *during, last = pages_seen(run, 2.5)
    assert len(during) >= 2
    assert all('<meta http-equiv="refresh" content="1">' in page for page in during)
    assert 'http-equiv="refresh"' not in last


def test_watching_goes_on_where_there_is_no_checkpoint_yet(run: Path) -> None:
    first, *others = pages_seen(run, 2.0, spoil=True)
    assert first == ""
    assert 'http-equiv="refresh"' not in others[-1]


def test_a_run_that_nobody_trains_is_written_once(run: Path) -> None:
    assert not is_training(run)
    pages: list[str] = []
    watch([run], write=lambda runs, **more: pages.append("x") or report(runs, clips=0, **more))  # type: ignore[func-returns-value]
    assert pages == ["x"]


def test_a_watch_that_is_stopped_leaves_a_page_that_does_not_reload(run: Path) -> None:
    asked: list[int | None] = []

    def write(folders: Sequence[Path], *, reload_seconds: int | None = None, progress: Progress) -> ReportResult:
        asked.append(reload_seconds)
        if reload_seconds is not None:
            raise KeyboardInterrupt
        return report(folders, clips=0, progress=progress)

    with hold_run(run), pytest.raises(KeyboardInterrupt):
        watch([run], every_seconds=1, write=write)
    assert asked == [1, None]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_watch_with_a_page_that_does_not_reload(run: Path, tmp_path: Path, number: signal.Signals) -> None:
    page = tmp_path / "page.html"
    options = ["--watch", "--every", "60", "--clips", "0", "--out", str(page)]
    with hold_run(run):
        watching = subprocess.Popen([sys.executable, "-m", "stjepa_cli", "report", str(run), *options], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not page.is_file() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert 'http-equiv="refresh"' in page.read_text()
        watching.send_signal(number)
        assert watching.wait(timeout=60) == 130
    assert 'http-equiv="refresh"' not in page.read_text()
