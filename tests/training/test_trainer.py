"""Stopping and going on at any point, several processes, recipes, and what a run says when something is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stjepa_cli.core.config import OptimizerConfig, PredictorConfig, RunConfig, StudentConfig
from stjepa_cli.core.errors import ConfigError, NotReadyError, StjepaError
from stjepa_cli.core.serialization import write_toml
from stjepa_cli.data.loader import Batch
from stjepa_cli.models.checkpoint import checkpoint_path, list_checkpoints, optimizer_path
from stjepa_cli.models.student import load_student
from stjepa_cli.models.tensor_file import read_tensors
from stjepa_cli.training.objectives.base import Loss
from stjepa_cli.training.objectives.latent import LatentObjective
from stjepa_cli.training.pretrain import PretrainResult, open_clips, pretrain
from stjepa_cli.training.throughput import peak_of_name
from stjepa_cli.training.validation import alarm, hold_out, statistics
from tests.caches import make_cache
from tests.training.test_pretrain import Notes, equal, weights

ENV = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 clips with frames: no videos are needed."""
    path = tmp_path_factory.mktemp("trainer") / "cache"
    make_cache(path, num_clips=30, frames=True, finite=True)
    return path


@pytest.fixture
def run(cache: Path, tmp_path: Path) -> RunConfig:
    return RunConfig(
        Path("nowhere"),
        cache,
        tmp_path / "run",
        epochs=2,
        batch_size=4,
        mask_ratio=0.5,
        device="cpu",
        workers=2,
        val_fraction=0.2,
        student=StudentConfig(32, 1, 1, 2),
        predictor=PredictorConfig(24, 1, 2),
        optimizer=OptimizerConfig(lr=3e-3),
    )


def lines(run: RunConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.checkpoints / "metrics.jsonl").read_text().splitlines()]


def steps(run: RunConfig) -> list[int]:
    return [int(path.stem.removeprefix("checkpoint_step")) for path in list_checkpoints(run.checkpoints)]


# ---- stopping and going on ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_stopped_in_the_middle_of_an_epoch_goes_on_to_equal_weights(run: RunConfig, tmp_path: Path, optimizer: str) -> None:
    run = replace(run, optimizer=replace(run.optimizer, name=optimizer, final_weight_decay=0.2))
    whole = replace(run, checkpoints=tmp_path / "whole")
    last = pretrain(whole).steps
    stops = iter([False, False, True])
    stopped = pretrain(run, stop=lambda: next(stops))
    assert (stopped.stopped, stopped.steps, last) == (True, 3, 12)
    assert pretrain(run).steps == last
    assert equal(weights(whole, last), weights(run, last))
    assert equal(
        read_tensors(optimizer_path(checkpoint_path(whole.checkpoints, last))),
        read_tensors(optimizer_path(checkpoint_path(run.checkpoints, last))),
    )
    kept = ("step", "loss", "lr", "val_loss", "effective_rank")
    assert [[line.get(name) for name in kept] for line in lines(whole)] == [[line.get(name) for name in kept] for line in lines(run)]


def test_checkpoints_come_every_so_many_steps_and_minutes_are_understood(run: RunConfig) -> None:
    pretrain(replace(run, checkpoint_every="5"))
    assert steps(run) == [0, 5, 6, 10, 12]
    assert replace(run, checkpoint_every="30m").checkpoint_interval() == (0, 1800.0)
    assert replace(run, checkpoint_every="2min").checkpoint_interval() == (0, 120.0)
    with pytest.raises(ConfigError, match="checkpoint_every is steps or minutes"):
        replace(run, checkpoint_every="often")


def test_old_checkpoints_are_removed_but_never_the_best_the_newest_or_the_untrained(run: RunConfig) -> None:
    pretrain(replace(run, epochs=6, keep=2))
    validations = {line["step"]: line["val_loss"] for line in lines(run) if "val_loss" in line}
    best = min(validations, key=lambda step: validations[step])
    assert set(steps(run)) == {0, best, 30, 36}
    assert not optimizer_path(checkpoint_path(run.checkpoints, 6)).exists() or best == 6


def command(run: RunConfig, *more: str) -> list[str]:
    write_toml(run.checkpoints.parent / "in.toml", run)
    return [sys.executable, "-m", "stjepa_cli", "pretrain", "--config", str(run.checkpoints.parent / "in.toml"), *more]


def wait_for(run: RunConfig, count: int) -> None:
    deadline = time.monotonic() + 120
    path = run.checkpoints / "metrics.jsonl"
    while time.monotonic() < deadline:
        if path.is_file() and len(path.read_text().splitlines()) >= count:
            return
        time.sleep(0.01)
    raise AssertionError("the run does not get going")


@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_terminated_or_killed_goes_on_to_the_same_weights(run: RunConfig, tmp_path: Path, kill: signal.Signals) -> None:
    run = replace(run, epochs=30, checkpoint_every="7", keep=3)
    whole = replace(run, checkpoints=tmp_path / "whole")
    torch.set_num_threads(1)
    last = pretrain(whole).steps
    process = subprocess.Popen(command(run), env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(run, 20)
    process.send_signal(kill)
    out, err = process.communicate(timeout=120)
    if kill == signal.SIGTERM:
        assert process.returncode == 0, err
        assert "Stopped and saved" in out
        assert f"Resume with: stjepa pretrain --config {run.checkpoints / 'run.toml'}" in err
    assert steps(run)[-1] < last
    assert pretrain(run).steps == last
    assert equal(weights(whole, last), weights(run, last))


# ---- several processes, micro-batches -------------------------------------------------------------------------------


def distance(a: RunConfig, b: RunConfig, step: int) -> float:
    """Relative distance of what two students say of random clips.

    Not of their weights: the bias of a key has no gradient but rounding errors, which AdamW scales up to whole steps.
    """
    students = [load_student(checkpoint_path(run.checkpoints, step), torch.device("cpu"))[0] for run in (a, b)]
    clips = torch.randint(0, 256, (4, 4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    one, other = (student(clips) for student in students)
    return float((one - other).norm() / one.norm())


def test_micro_batches_and_recomputed_activations_give_the_same_student(run: RunConfig, tmp_path: Path) -> None:
    run = replace(run, batch_size=6, masks_per_clip=2, objective={"name": "latent", "visible_weight": 0.5})
    last = pretrain(run).steps
    for name, change in (("parts", {"accumulate": 4}), ("again", {"activation_checkpointing": True})):
        other = replace(run, checkpoints=tmp_path / name, **change)
        pretrain(other)
        assert distance(run, other, last) < 1e-3, name


def test_two_processes_train_the_student_of_one(run: RunConfig, tmp_path: Path) -> None:
    last = pretrain(run).steps
    two = replace(run, checkpoints=tmp_path / "two" / "run")
    two.checkpoints.parent.mkdir()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    done = subprocess.run([*torchrun, *command(two, "--json")[2:]], env=ENV, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert (found["steps"], found["processes"]) == (last, 2)
    assert distance(run, two, last) < 1e-3
    single = [line["loss"] for line in lines(run) if "loss" in line]
    double = [line["loss"] for line in lines(two) if "loss" in line]
    assert single == pytest.approx(double, abs=1e-3)


def failing(run: RunConfig, script: Path, condition: str) -> list[str]:
    """A command for torchrun: the program, in which one process fails in its third step."""
    write_toml(script.parent / "in.toml", run)
    script.write_text(
        "import os, sys\n"
        "from pathlib import Path\n"
        "from stjepa_cli.training import trainer\n"
        "from stjepa_cli.core.errors import StjepaError\n"
        "real = trainer.Trainer._finish_step\n"
        "def fail(self, micro):\n"
        f"    if {condition} and os.environ['RANK'] == '1' and self.step == 2: raise StjepaError('this one broke')\n"
        "    real(self, micro)\n"
        "trainer.Trainer._finish_step = fail\n"
        f"sys.argv = ['stjepa', 'pretrain', '--config', {str(script.parent / 'in.toml')!r}]\n"
        "from stjepa_cli.main import main\n"
        "main()\n"
    )
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1", str(script)]


def test_one_process_that_fails_ends_all_with_its_error(run: RunConfig, tmp_path: Path) -> None:
    command = failing(run, tmp_path / "fails.py", "True")
    command.remove("--max-restarts")
    command.remove("1")
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=200)
    assert done.returncode != 0
    assert "error: this one broke" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(3))
def test_processes_that_are_restarted_go_on_from_the_last_checkpoint(run: RunConfig, tmp_path: Path, attempt: int) -> None:
    run = replace(run, checkpoint_every="2")
    command = failing(run, tmp_path / "fails.py", "os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'")
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "going on with" in done.stderr
    assert steps(run)[-1] == 12


def test_a_step_with_fewer_clips_than_processes_and_parts_is_refused(run: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"too few clips: got 4 clips for 1 processes x 5 micro-batches"):
        pretrain(replace(run, accumulate=5))


def test_a_world_without_an_address_is_told(run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"WORLD_SIZE is 2 but RANK, MASTER_ADDR, MASTER_PORT is not set\. Start it with torchrun"):
        pretrain(run)


# ---- recipes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"objective": {"name": "latent", "loss": "smooth_l1"}},
        {"objective": {"name": "latent", "loss": "l1"}},
        {"objective": {"name": "latent", "visible_weight": 1.0}},
        {"objective": {"name": "latent", "visible_predictor_weight": 1.0}},
        {"objective": {"name": "latent", "visible_weight": 1.0, "dense_fraction": 0.5}},
        {"objective": {"name": "latent", "dense_fraction": 1.0}},
        {"objective": {"name": "pixels"}},
        {"mask_sampler": "multiblock"},
        {"masks_per_clip": 2},
        {"ema": 0.0},
    ],
    ids=str,
)
def test_every_recipe_learns(run: RunConfig, change: dict[str, Any]) -> None:
    pretrain(replace(run, epochs=12, **change))
    losses = [line["loss"] for line in lines(run) if "loss" in line]
    assert sum(losses[-6:]) < 0.97 * sum(losses[:6])


def test_the_average_is_what_is_released(run: RunConfig, tmp_path: Path) -> None:
    path = Path(pretrain(run).checkpoint)
    student, average = read_tensors(path, "student"), read_tensors(path, "ema")
    assert student.keys() == average.keys()
    assert not equal(student, average)
    released = load_student(path, torch.device("cpu"))[0].state_dict()
    assert equal(dict(released), average)
    untrained = checkpoint_path(run.checkpoints, 0)
    assert equal(read_tensors(untrained, "student"), read_tensors(untrained, "ema"))
    plain = replace(run, checkpoints=tmp_path / "plain", ema=0.0)
    path = Path(pretrain(plain).checkpoint)
    assert read_tensors(path, "ema") == {}
    assert equal(dict(load_student(path, torch.device("cpu"))[0].state_dict()), student)


def test_rates_follow_the_batch_and_decay_its_path() -> None:
    config = OptimizerConfig(lr=1.0, lr_batch=64)
    assert [replace(config, lr_scaling=kind).peak_lr(16) for kind in ("sqrt", "linear", "none")] == [0.5, 0.25, 1.0]
    from stjepa_cli.training.optim import weight_decay

    path = [weight_decay(step, 10, replace(config, weight_decay=0.1, final_weight_decay=0.5)) for step in range(10)]
    assert path[0] == pytest.approx(0.1)
    assert path[-1] == pytest.approx(0.5)
    assert path == sorted(path)
    with pytest.raises(ConfigError, match="unknown optimizer"):
        OptimizerConfig(name="sgd")


def test_a_step_that_does_not_fit_into_memory_is_taken_in_parts(run: RunConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = replace(run, checkpoints=tmp_path / "whole")
    pretrain(whole)
    forward = LatentObjective.forward

    def with_room_for_two(self: LatentObjective, batch: Batch, generator: torch.Generator) -> Loss:
        if len(batch.clips) > 2 and self.training:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, batch, generator)

    monkeypatch.setattr(LatentObjective, "forward", with_room_for_two)
    notes = Notes()
    assert pretrain(run, progress=notes).steps == 12
    assert [note for note in notes.notes if "memory" in note] == [
        "the step does not fit into the GPU's memory: continuing with --accumulate 2"
    ]
    found, expected = ([line["loss"] for line in lines(each) if "loss" in line] for each in (run, whole))
    assert found == pytest.approx(expected, abs=1e-4)


def test_blocks_that_cannot_be_compiled_are_run_as_they_are(run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def refuse(self: Any, *_: Any, **__: Any) -> None:
        def call(*_: Any, **__: Any) -> None:
            raise TorchDynamoException("no compiler")

        self._compiled_call_impl = call

    monkeypatch.setattr(torch.nn.Module, "compile", refuse)
    notes = Notes()
    assert pretrain(replace(run, compile="on"), progress=notes).steps == 12
    assert sum("cannot be compiled here" in note for note in notes.notes) == 1


# ---- seeing ---------------------------------------------------------------------------------------------------------


def test_every_step_and_every_validation_has_its_figures(run: RunConfig) -> None:
    result = pretrain(run)
    trained = [line for line in lines(run) if "loss" in line]
    assert [line["step"] for line in trained] == list(range(1, 13))
    wanted = {
        "epoch",
        "loss",
        "hidden",
        "constant_loss",
        "position_loss",
        "token_std",
        "lr",
        "weight_decay",
        "grad_norm",
        "clips_per_second",
        "data_wait",
    }
    assert all(wanted <= line.keys() for line in trained)
    assert all(0 <= line["data_wait"] <= 1 for line in trained)
    validated = [line for line in lines(run) if "val_loss" in line]
    assert [(line["step"], line["epoch"]) for line in validated] == [(6, 1), (12, 2)]
    assert {"val_constant_loss", "feature_std", "effective_rank"} <= validated[0].keys()
    assert (result.val_loss, result.held_out, result.clips) == (validated[-1]["val_loss"], 5, 24)


def test_the_clips_held_out_are_the_same_for_every_seed_and_are_never_trained_on(run: RunConfig) -> None:
    source = open_clips(run)
    train, held = hold_out(source, 0.2)
    assert (len(train), len(held)) == (24, 5)
    assert sorted(train + held) == source.clips
    assert hold_out(source, 0.0) == (source.clips, [])


def test_features_that_are_all_the_same_raise_an_alarm() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(50, 10, 16, generator=generator)
    assert statistics(spread)["feature_std"] == pytest.approx(1, abs=0.05)
    assert statistics(spread)["effective_rank"] == pytest.approx(16, abs=0.5)
    assert alarm(statistics(spread)) is None
    same = torch.ones(50, 10, 16)
    assert statistics(same)["feature_std"] == pytest.approx(0, abs=1e-6)
    assert statistics(same)["effective_rank"] == pytest.approx(0, abs=1.1)
    line = torch.randn(50, 10, 1, generator=generator) * torch.ones(1, 16)
    for collapsed in (same, line, same + 1e-3 * spread):
        assert "collapsing" in (alarm(statistics(collapsed)) or "")


def test_features_that_know_only_their_position_raise_an_alarm_of_their_own() -> None:
    generator = torch.Generator().manual_seed(0)
    position = torch.randn(1, 10, 16, generator=generator).expand(50, 10, 16)
    content = torch.randn(50, 10, 16, generator=generator)
    assert statistics(position + 0.05 * content)["content_fraction"] < 0.01
    assert "where a token lies" in (alarm(statistics(position + 0.05 * content)) or "")
    assert statistics(content)["content_fraction"] == pytest.approx(1, abs=0.05)
    assert alarm(statistics(position + content)) is None


def test_a_clip_that_makes_the_loss_infinite_is_named_and_the_state_is_saved(tmp_path: Path, run: RunConfig) -> None:
    make_cache(tmp_path / "bad", num_clips=30, frames=True)  # row 3 holds NaNs
    bad = replace(run, cache=tmp_path / "bad", val_fraction=0.0, epochs=3)
    with pytest.raises(StjepaError, match=r"the loss is not finite at step \d+: got clip 1003\. The state at step \d+ is saved"):
        pretrain(bad)
    newest = list_checkpoints(bad.checkpoints)[-1]
    assert all(bool(tensor.isfinite().all()) for tensor in read_tensors(newest).values())


def test_waiting_for_clips_is_told_once_with_what_to_do(run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from stjepa_cli.training.throughput import ThroughputMeter

    monkeypatch.setattr(ThroughputMeter, "mean_wait", 0.4)
    notes = Notes()
    pretrain(run, progress=notes)
    assert [note for note in notes.notes if "waited for clips 40% of the time: raise --workers" in note] != []
    assert sum("waited for clips" in note for note in notes.notes) == 1


def test_tensorboard_is_an_extra(run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    with pytest.raises(NotReadyError, match=r"stjepa\[tensorboard\]"):
        pretrain(replace(run, tensorboard=True))


def test_a_finished_result_says_how_it_went(run: RunConfig) -> None:
    result: PretrainResult = pretrain(run)
    assert (result.stopped, result.processes, result.epochs) == (False, 1, 2)
    assert 0 <= result.data_wait <= 1
    assert result.clips_per_second > 0


@pytest.mark.cuda
@pytest.mark.parametrize(
    "change", [{"compile": "off"}, {"compile": "auto"}, {"activation_checkpointing": True}, {"accumulate": 2}], ids=str
)
def test_a_run_on_the_gpu_learns_from_pinned_batches(run: RunConfig, change: dict[str, Any]) -> None:
    result = pretrain(replace(run, device="cuda", epochs=10, **change))
    assert result.device.startswith("cuda")
    losses = [line["loss"] for line in lines(run) if "loss" in line]
    assert sum(losses[-6:]) < sum(losses[:6])
    assert all("memory_gb" in line for line in lines(run) if "loss" in line)


@pytest.mark.cuda
def test_the_batches_on_the_gpu_are_those_on_the_host(run: RunConfig) -> None:
    from stjepa_cli.data.loader import ClipFeed, Request, on_device
    from stjepa_cli.data.training_clips import CachedClips
    from stjepa_cli.store.latent_store import LatentStore

    assert run.cache is not None

    store = LatentStore.open(run.cache)
    rows = store.usable_rows()
    requests = [Request(rows[i : i + 4], 0, 4) for i in range(0, 24, 4)]
    found = []
    for pinned, device in ((False, "cpu"), (True, "cuda")):
        feed = ClipFeed(CachedClips(store, run.data_root), num_workers=2, memory_bytes=0, pinned=pinned)
        found.append([(b.clips.cpu().clone(), b.latents.cpu().clone()) for b in on_device(feed.batches(requests), torch.device(device))])
    for (clips, latents), (others, other_latents) in zip(*found, strict=True):
        assert torch.equal(clips, others)
        assert torch.equal(latents, other_latents)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA RTX A4000 Laptop GPU", None),
        ("NVIDIA A40-48Q", 150e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA A10G", None),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA H100 NVL", 835e12),
        ("Tesla T40", None),
        ("NVIDIA RTX 6000 Ada Generation", 364e12),
        ("Quadro RTX 6000", None),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("Tesla T4", 65e12),
    ],
)
def test_the_peak_of_a_gpu_is_found_by_its_whole_name(name: str, peak: float | None) -> None:
    assert peak_of_name(name) == peak
