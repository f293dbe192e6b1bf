"""A run's folder: where to go on, which checkpoints stay, and the metrics so far."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from stjepa_cli.core.config import RunConfig
from stjepa_cli.core.errors import CheckpointError, NotReadyError, storage_errors
from stjepa_cli.core.files import write_atomic
from stjepa_cli.data.training_clips import TrainingClips
from stjepa_cli.models.checkpoint import list_checkpoints, optimizer_path, read_header
from stjepa_cli.training.objectives.base import with_all_settings

# what may change between the sessions of one run: places, machines, how much is saved and where to stop
_FREE = (
    "data_root", "cache", "second_cache", "checkpoints", "device", "workers", "memory_gb", "max_steps", "recipe",
    "accumulate", "compile", "activation_checkpointing", "checkpoint_every", "keep", "tensorboard",
)  # fmt: skip


class Metrics:
    """`metrics.jsonl` in a run's folder: a JSON object for each step, and one for each validation.

    Args:
        folder: of the run.
        tensorboard: write events for TensorBoard beside it.

    Raises:
        NotReadyError: TensorBoard is asked for and not installed.
    """

    def __init__(self, folder: Path, *, tensorboard: bool = False) -> None:
        self.path = folder / "metrics.jsonl"
        self._events: Any = _event_writer(folder / "tensorboard") if tensorboard else None

    def keep_until(self, step: int) -> None:
        """Drop the lines of steps that will be taken again."""
        if self.path.is_file():
            kept = [line for line in self.path.read_text().splitlines() if _step_of(line) in range(1, step + 1)]
            write_atomic(self.path, "".join(line + "\n" for line in kept).encode())

    def write(self, steps: Sequence[Mapping[str, Tensor | float]]) -> list[dict[str, float]]:
        """Append lines, reading their figures from the device; returns them."""
        lines = [{name: _number(value) for name, value in figures.items()} for figures in steps]
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
        for line in lines if self._events else ():
            for name, value in line.items():
                if name != "step":
                    self._events.add_scalar(name, value, int(line["step"]))
        return lines

    def lines(self) -> list[dict[str, float]]:
        """All lines so far; what a crash cut short is left out."""
        if not self.path.is_file():
            return []
        return [json.loads(line) for line in self.path.read_text().splitlines() if _step_of(line)]

    def losses(self) -> list[float]:
        """The loss of every step so far."""
        return [float(line["loss"]) for line in self.lines() if "loss" in line]

    def last_validation(self) -> dict[str, float]:
        """Return the metrics of the last validation; empty without one."""
        return next((line for line in reversed(self.lines()) if "val_loss" in line), {})

    def validations(self) -> dict[int, float]:
        """The validation loss by step."""
        return {int(line["step"]): float(line["val_loss"]) for line in self.lines() if "val_loss" in line}

    def close(self) -> None:
        """Finish what is written."""
        if self._events:
            self._events.close()


@dataclass(frozen=True)
class ResumePoint:
    """Where a run goes on: its newest whole checkpoint, and the newer ones that are not whole."""

    path: Path
    step: int
    damaged: tuple[Path, ...] = ()


def resume_point(run: RunConfig, source: TrainingClips) -> ResumePoint | None:
    """Where to go on; None where the folder holds no checkpoint.

    A checkpoint counts as whole if its header and its optimizer's can be read: both files are renamed into place when they are
    on the disk, so only damage from outside makes them otherwise.

    Raises:
        CheckpointError: the folder holds another run, or none of its checkpoints can be read.
    """
    found = list_checkpoints(run.checkpoints)
    if not found:
        return None
    path = next((path for path in reversed(found) if _is_whole(path)), None)
    if path is None:
        raise CheckpointError(
            f"no checkpoint in {run.checkpoints} can be gone on from",
            got=f"{len(found)} that are damaged or lack their optimizer's state",
            fix="Start over with --fresh.",
        )
    header = read_header(path)
    second = source.stores[1].header.digest if len(source.stores) > 1 else ""
    caches = _differ("cache", header.cache_digest, source.digest) + _differ("second_cache", header.second_cache_digest, second)
    for name, old, new in _differences(header.run, run) + caches:
        raise CheckpointError(
            f"{run.checkpoints} holds another run: {name} differs",
            got=old,
            expected=new,
            fix="Choose another folder with --checkpoints, or replace that run with --fresh.",
        )
    return ResumePoint(path, header.step, tuple(found[found.index(path) + 1 :]))


def start_over(folder: Path) -> None:
    """Remove the run that a folder holds: its checkpoints, optimizer states and metrics, and nothing else."""
    with storage_errors(folder):
        for path in list_checkpoints(folder):
            _remove(path)
        (folder / "metrics.jsonl").unlink(missing_ok=True)


def prune(folder: Path, keep: int, validations: Mapping[int, float]) -> None:
    """Remove all but the `keep` newest checkpoints, the best and the untrained one; 0 keeps all.

    Args:
        folder: of the run.
        keep: how many of the newest stay.
        validations: validation loss by step, which says what is best.
    """
    found = list_checkpoints(folder)
    if not keep or len(found) <= keep:
        return
    steps = {path: int(path.stem.removeprefix("checkpoint_step")) for path in found}
    scored = [path for path in found if steps[path] in validations]
    best = {min(scored, key=lambda path: validations[steps[path]])} if scored else set()
    untrained = {path for path in found if steps[path] == 0}
    for path in found[:-keep]:
        if path not in best | untrained:
            _remove(path)


def _remove(checkpoint: Path) -> None:
    """The checkpoint first: an optimizer's state without one is never looked for."""
    with storage_errors(checkpoint):
        checkpoint.unlink(missing_ok=True)
        optimizer_path(checkpoint).unlink(missing_ok=True)


def _is_whole(path: Path) -> bool:
    with suppress(CheckpointError):
        read_header(path)
        return optimizer_path(path).is_file()
    return False


def _event_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise NotReadyError("TensorBoard is not installed", fix="Type `pip install 'stjepa[tensorboard]'`.") from error
    return SummaryWriter(str(folder))


def _differences(old: RunConfig, new: RunConfig) -> list[tuple[str, object, object]]:
    a, b = asdict(with_all_settings(old)), asdict(with_all_settings(new))
    return [entry for name in a if name not in _FREE for entry in _differ(name, a[name], b[name])]


def _differ(name: str, old: object, new: object) -> list[tuple[str, object, object]]:
    return [(name, old, new)] if old != new else []


def _number(value: Tensor | float) -> float:
    return value.item() if isinstance(value, Tensor) else value


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 0  # a line that a crash cut short
