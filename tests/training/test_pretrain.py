"""Pretraining: reproducible, resumable, without the teacher's library, and clear when something is wrong."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stjepa_cli.cache.build import BuildRequest, build
from stjepa_cli.core.config import OptimizerConfig, PredictorConfig, RunConfig, StudentConfig
from stjepa_cli.core.errors import CacheError, CheckpointError, StjepaError
from stjepa_cli.core.progress import SILENT, Task
from stjepa_cli.core.serialization import read_toml
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.data.loader import ClipFeed, Request, batch_rows, steps_per_epoch
from stjepa_cli.data.sampling import views_of
from stjepa_cli.data.training_clips import CachedClips
from stjepa_cli.data.video import read_clip
from stjepa_cli.models.checkpoint import checkpoint_path, list_checkpoints, optimizer_path, read_header
from stjepa_cli.models.student import load_student
from stjepa_cli.models.tensor_file import read_tensors
from stjepa_cli.store.latent_store import LatentStore
from stjepa_cli.training.objectives.base import with_all_settings
from stjepa_cli.training.optim import learning_rate
from stjepa_cli.training.pretrain import pretrain
from stjepa_cli.training.recipes import resolve_run

SPEC = ClipSpec(num_frames=4, size_px=32, tubelet=2, patch_px=16)


@pytest.fixture(scope="module")
def cache(tiny_ssv2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("training") / "cache"
    build(BuildRequest.of(tiny_ssv2, path, teacher="hog", clip=SPEC, latent_dim=16))
    return path


@pytest.fixture
def run(tiny_ssv2: Path, cache: Path, tmp_path: Path) -> RunConfig:
    return RunConfig(
        tiny_ssv2,
        cache,
        tmp_path / "run",
        epochs=3,
        batch_size=4,
        mask_ratio=0.5,
        device="cpu",
        workers=2,
        student=StudentConfig(32, 1, 1, 2),
        predictor=PredictorConfig(24, 1, 2),
        optimizer=OptimizerConfig(lr=3e-3),
    )


def weights(run: RunConfig, step: int) -> dict[str, torch.Tensor]:
    return read_tensors(checkpoint_path(run.checkpoints, step))


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def losses(run: RunConfig) -> list[float]:
    return [json.loads(line)["loss"] for line in (run.checkpoints / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_a_checkpoint_before_the_first_step_and_after_every_epoch(run: RunConfig) -> None:
    result = pretrain(run)
    names = [path.name for path in list_checkpoints(run.checkpoints)]
    assert names == [f"checkpoint_step{step}.safetensors" for step in (0, 3, 6, 9)]
    assert all(optimizer_path(path).is_file() for path in list_checkpoints(run.checkpoints))
    assert (result.steps, result.epochs, result.checkpoint) == (9, 3, str(checkpoint_path(run.checkpoints, 9)))
    assert (result.loss_first, result.loss_last) == (losses(run)[0], losses(run)[-1])


def test_the_loss_falls(run: RunConfig) -> None:
    found = losses(run) if pretrain(replace(run, epochs=15)) else []
    assert sum(found[-5:]) < 0.9 * sum(found[:5])


def test_one_seed_gives_equal_losses_and_weights_and_another_does_not(run: RunConfig, tmp_path: Path) -> None:
    runs = [replace(run, checkpoints=tmp_path / name, seed=seed, workers=workers, memory_gb=memory)
            for name, seed, workers, memory in (("a", 1, 1, 2.0), ("b", 1, 3, 0.0), ("c", 2, 1, 2.0))]  # fmt: skip
    for one in runs:
        pretrain(one)
    assert losses(runs[0]) == losses(runs[1]) != losses(runs[2])
    assert equal(weights(runs[0], 9), weights(runs[1], 9))


def test_a_run_that_was_stopped_and_went_on_is_the_run_that_was_not(run: RunConfig, tmp_path: Path) -> None:
    whole, parts = replace(run, checkpoints=tmp_path / "whole"), replace(run, checkpoints=tmp_path / "parts")
    pretrain(whole)
    for stop in (2, 5, None):
        pretrain(replace(parts, max_steps=stop))
    assert equal(weights(whole, 9), weights(parts, 9))
    assert losses(whole) == losses(parts)


def test_a_finished_run_is_left_alone(run: RunConfig) -> None:
    first = pretrain(run)
    stamp = Path(first.checkpoint).stat().st_mtime_ns
    again = pretrain(run)
    assert Path(first.checkpoint).stat().st_mtime_ns == stamp
    assert (again.steps, again.loss_first, again.loss_last, again.clips_per_second) == (9, first.loss_first, first.loss_last, 0.0)


def test_a_finished_run_whose_metrics_are_lost_says_that_its_losses_are_unknown(run: RunConfig) -> None:
    whole = pretrain(run)
    (run.checkpoints / "metrics.jsonl").write_bytes(b"\xff\xfe[[[")
    again = pretrain(run)
    assert (again.steps, again.checkpoint) == (whole.steps, whole.checkpoint)
    assert (again.loss_first, again.loss_last, again.val_loss) == (None, None, None)


def test_another_run_in_the_folder_is_refused_by_name_and_replaced_when_asked(run: RunConfig) -> None:
    pretrain(run)
    other = replace(run, seed=5)
    with pytest.raises(CheckpointError, match=r"holds another run: seed differs: got 0, expected 5.*--fresh"):
        pretrain(other)
    (run.checkpoints / "notes.txt").write_text("mine")
    pretrain(replace(other, epochs=1), fresh=True)
    assert [path.name for path in list_checkpoints(run.checkpoints)] == [f"checkpoint_step{step}.safetensors" for step in (0, 3)]
    assert (run.checkpoints / "notes.txt").read_text() == "mine"


def test_the_resolved_run_is_saved_and_repeats_it(run: RunConfig, tmp_path: Path) -> None:
    pretrain(run)
    again = resolve_run({}, file=run.checkpoints / "run.toml", flags={"checkpoints": tmp_path / "again"})
    assert replace(again, checkpoints=run.checkpoints) == with_all_settings(run)
    pretrain(again)
    assert losses(again) == losses(run)
    assert read_toml(run.checkpoints / "run.toml")["optimizer"]["lr"] == 3e-3


def test_training_needs_neither_transformers_nor_zarr(run: RunConfig) -> None:
    code = (
        "import sys\n"
        "for name in ('transformers', 'huggingface_hub', 'zarr', 'rich', 'typer'): sys.modules[name] = None\n"
        "from pathlib import Path; from stjepa_cli.training.recipes import resolve_run; from stjepa_cli.training.pretrain import pretrain\n"
        f"print(pretrain(resolve_run({{}}, file=Path({str(run.checkpoints / 'in.toml')!r}))).steps)"
    )
    from stjepa_cli.core.serialization import write_toml

    write_toml(run.checkpoints / "in.toml", run)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()})
    assert done.stdout.strip() == "9", done.stderr


def test_the_teacher_is_not_imported_for_training() -> None:
    code = "import sys, stjepa_cli.training.pretrain; sys.exit('stjepa_cli.teachers.base' in sys.modules or 'torchcodec' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": os.getcwd()})


def test_the_student_of_a_checkpoint_takes_clips_of_the_cache_and_is_frozen(run: RunConfig) -> None:
    student, header = load_student(Path(pretrain(run).checkpoint), torch.device("cpu"))
    assert (header.step, header.clip, header.latent_dim, header.dataset) == (9, SPEC, 16, "ssv2/train")
    assert header.teacher.name == "hog"
    assert not any(p.requires_grad for p in student.parameters())
    assert student(torch.zeros(2, 4, 3, 32, 32, dtype=torch.uint8)).shape == (2, 8, 32)


def test_an_epoch_sees_every_clip_once_in_an_order_of_its_own() -> None:
    rows = list(range(100, 120))
    clips = views_of(rows, 1)
    passes = [[row for step in range(epoch * 5, epoch * 5 + 5) for row in batch_rows(clips, 4, 0, step)] for epoch in (0, 1)]
    assert sorted(passes[0]) == sorted(passes[1]) == rows
    assert passes[0] != passes[1]
    assert steps_per_epoch(3, 64) == 1
    assert sorted(batch_rows([[1], [2], [3]], 64, 0, 7)) == [1, 2, 3]


def test_an_epoch_takes_one_view_of_each_clip_and_the_epochs_together_all_that_are_there() -> None:
    clips = views_of([0, 1, 2, 3, 5, 9, 10, 11], 3)  # of the second clip one view failed, of the third all did
    assert clips == [(0, 1, 2), (3, 5), (9, 10, 11)]
    seen = set()
    for epoch in range(20):
        rows = batch_rows(clips, 3, 0, epoch)
        assert sorted(row // 3 for row in rows) == [0, 1, 3]
        seen |= set(rows)
    assert seen == {0, 1, 2, 3, 5, 9, 10, 11}


def test_the_feed_gives_the_pixels_that_the_teacher_saw_with_their_latents(tiny_ssv2: Path, cache: Path) -> None:
    store = LatentStore.open(cache)
    feed = ClipFeed(CachedClips(store, tiny_ssv2), num_workers=2, memory_bytes=30_000)
    batch = next(feed.batches([Request(store.usable_rows()[3:8], 0, 5)]))
    for row, clip, latents in zip(batch.rows.tolist(), batch.clips, batch.latents, strict=True):
        assert torch.equal(clip, read_clip(tiny_ssv2 / store.clips[row].video, SPEC).pixels)
        assert torch.equal(latents, torch.from_numpy(store.read([row])[0]))


def test_the_learning_rate_rises_then_falls_to_its_floor() -> None:
    config = OptimizerConfig(lr=1.0, warmup=0.1, final_lr=0.01)
    rates = [learning_rate(step, 100, config, 64) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == 1.0
    assert rates[10:] == sorted(set(rates[10:]), reverse=True)
    assert rates[10] < 1.0
    assert rates[-1] == 0.01


@pytest.mark.parametrize(("warmup", "total_steps"), [(0.1, 2), (0.0, 3), (0.99, 10), (0.5, 12)])
def test_the_last_step_has_the_final_rate_however_short_the_run(warmup: float, total_steps: int) -> None:
    config = OptimizerConfig(lr=1.0, warmup=warmup, final_lr=0.01)
    rates = [learning_rate(step, total_steps, config, 64) for step in range(total_steps)]
    assert (max(rates), rates[-1]) == (1.0, 0.01)
    assert learning_rate(0, 1, config, 64) == 1.0  # a single step learns


def test_the_schedule_of_earlier_runs_ends_one_step_before_its_final_rate() -> None:
    config = OptimizerConfig(lr=1.0, warmup=0.1, final_lr=0.01)
    rates = [learning_rate(step, 100, config, 64, schedule=1) for step in range(101)]
    assert rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.505)
    assert rates[99] > rates[100] == 0.01


def test_a_run_says_its_schedule_and_goes_on_with_the_one_that_it_began_with(run: RunConfig) -> None:
    earlier = replace(run, schedule=1)
    pretrain(replace(earlier, max_steps=1))
    result = pretrain(run)
    assert read_header(Path(result.checkpoint)).run.schedule == 1
    assert "schedule = 1\n" in (run.checkpoints / "run.toml").read_text()
    assert read_header(Path(pretrain(run, fresh=True).checkpoint)).run.schedule == 2
    last = [json.loads(line) for line in (run.checkpoints / "metrics.jsonl").read_text().splitlines() if '"lr"' in line][-1]
    assert last["lr"] == pytest.approx(run.optimizer.peak_lr(run.batch_size) * run.optimizer.final_lr)


def test_an_empty_cache_a_missing_one_and_missing_videos_are_told(run: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"there is no cache at .* `stjepa cache build`"):
        pretrain(replace(run, cache=tmp_path / "none"))
    with pytest.raises(CacheError, match=r"12 of the 12 cached clips have no video below .*--data-root"):
        pretrain(replace(run, data_root=tmp_path))
    assert list_checkpoints(run.checkpoints) == []


def test_a_video_that_changed_since_the_teacher_saw_it_stops_the_run(run: RunConfig, tiny_ssv2: Path, tmp_path: Path) -> None:
    import shutil

    root = tmp_path / "changed"
    shutil.copytree(tiny_ssv2, root)
    videos = sorted(root.rglob("*.webm"))
    videos[0].write_bytes(videos[1].read_bytes())
    with pytest.raises(CacheError, match="no longer has the pixels that the teacher saw"):
        pretrain(replace(run, data_root=root))
    videos[0].write_bytes(b"")
    with pytest.raises(CacheError, match=r"cannot be used any more \(the file is empty\)"):
        pretrain(replace(run, data_root=root), fresh=True)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_saved(run: RunConfig) -> None:
    pretrain(replace(run, max_steps=3))
    path = checkpoint_path(run.checkpoints, 3)
    from stjepa_cli.models.checkpoint import read_header, write_checkpoint

    broken = {name: torch.full_like(tensor, math.nan) for name, tensor in read_tensors(path).items()}
    write_checkpoint(path, read_header(path), broken, read_tensors(optimizer_path(path)))
    with pytest.raises(StjepaError, match="the loss is not finite at step"):
        pretrain(run)
    assert list_checkpoints(run.checkpoints)[-1] == path


def test_a_damaged_newest_checkpoint_is_told_and_the_one_before_it_taken(run: RunConfig, tmp_path: Path) -> None:
    whole = replace(run, checkpoints=tmp_path / "whole")
    pretrain(whole)
    pretrain(replace(run, max_steps=6))
    path = checkpoint_path(run.checkpoints, 6)
    path.write_bytes(path.read_bytes()[:100])
    notes = Notes()
    assert pretrain(run, progress=notes).steps == 9
    assert any("checkpoint_step6.safetensors is damaged" in note for note in notes.notes)
    assert any("resuming from" in note and "checkpoint_step3" in note for note in notes.notes)
    assert equal(weights(whole, 9), weights(run, 9))
    for path in list_checkpoints(run.checkpoints):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"can be resumed from.*--fresh"):
        pretrain(run)


class Notes:
    """A listener that remembers what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def task(self, name: str, *, total: int | None, unit: str = "clips", completed: int = 0) -> AbstractContextManager[Task]:
        return SILENT.task(name, total=total, unit=unit)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.cuda
def test_a_run_on_the_gpu_learns_too(run: RunConfig) -> None:
    result = pretrain(replace(run, device="cuda", epochs=6))
    assert result.device.startswith("cuda")
    assert losses(run)[-1] < losses(run)[0]
