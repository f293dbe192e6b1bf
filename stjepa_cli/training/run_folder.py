"""The folder of a run: where to resume, which checkpoints to keep, and the metrics so far."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from stjepa_cli.core.config import RunConfig
from stjepa_cli.core.errors import CacheError, CheckpointError, NotReadyError, how_to_install, storage_errors
from stjepa_cli.core.files import remove_leftovers, write_atomic
from stjepa_cli.data.training_clips import TrainingClips
from stjepa_cli.models.checkpoint import CheckpointHeader, check_checkpoint, list_checkpoints, optimizer_path
from stjepa_cli.store.locks import holding, is_held
from stjepa_cli.training.objectives.base import with_all_settings

# fields that may differ between sessions of the same run: places, hardware, how often to save and where to stop; and the schedule, which is
# that of the first session
_MAY_DIFFER = (
    "data_root", "cache", "second_cache", "checkpoints", "device", "workers", "memory_gb", "max_steps", "schedule", "recipe",
    "accumulate", "compile", "activation_checkpointing", "checkpoint_every", "keep", "tensorboard",
)  # fmt: skip


_LOCK = "run.lock"

LARGEST = 1e300
"""Largest number that is taken from `metrics.jsonl`; whatever is larger, or not a number, is damage."""


class Metrics:
    """The file `metrics.jsonl` of a run: a JSON object per step, and one per validation.

    Args:
        folder: Folder of the run.
        tensorboard: Also write TensorBoard events beside the file.

    Raises:
        NotReadyError: `tensorboard` is set and TensorBoard is not installed.
    """

    def __init__(self, folder: Path, *, tensorboard: bool = False) -> None:
        self.path = folder / "metrics.jsonl"
        self._events: Any = _event_writer(folder / "tensorboard") if tensorboard else None

    def keep_until(self, step: int) -> None:
        """Drop the lines of steps after `step`, which will be taken again."""
        if self.path.is_file():
            kept = [line for line in self._texts() if _parsed(line).get("step", 0) in range(1, step + 1)]
            write_atomic(self.path, "".join(line + "\n" for line in kept).encode())

    def write(self, steps: Sequence[Mapping[str, Tensor | float]]) -> list[dict[str, float]]:
        """Append a line per step, copying values from the device; returns the lines as written."""
        lines = [{name: _number(value) for name, value in metrics.items()} for metrics in steps]
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
        """Return the finite numbers of all lines so far, without lines that are damaged or that a crash cut short."""
        return [numbers for line in self._texts() if (numbers := _parsed(line))]

    def losses(self) -> dict[int, float]:
        """Return the loss by step, as far as the file has it."""
        return {int(line["step"]): line["loss"] for line in self.lines() if "loss" in line}

    def _texts(self) -> list[str]:
        return self.path.read_text(errors="replace").splitlines() if self.path.is_file() else []

    def last_validation(self) -> dict[str, float]:
        """Return the metrics of the last validation; empty without one."""
        return next((line for line in reversed(self.lines()) if "val_loss" in line), {})

    def validations(self) -> dict[int, float]:
        """Return the validation loss by step."""
        return {int(line["step"]): float(line["val_loss"]) for line in self.lines() if "val_loss" in line}

    def close(self) -> None:
        """Flush and close the TensorBoard events."""
        if self._events:
            self._events.close()


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint that a run resumes from.

    Attributes:
        path: Newest checkpoint that is intact.
        header: Its header.
        damaged: Newer checkpoints that are not intact.
    """

    path: Path
    header: CheckpointHeader
    damaged: tuple[Path, ...] = ()


def resume_point(run: RunConfig, source: TrainingClips) -> ResumePoint | None:
    """Find the checkpoint to resume from; None if the folder holds no checkpoint.

    The newest checkpoint is taken whose two files are complete and have the digests that were written with them.

    Raises:
        CheckpointError: The folder holds another run, or all of its checkpoints are damaged.
        UnreadableError: A checkpoint cannot be read. It is not passed over, since it may be intact.
    """
    found = list_checkpoints(run.checkpoints)
    if not found:
        return None
    intact = ((path, header) for path in reversed(found) if (header := _check(path)) is not None)
    path, header = next(intact, (None, None))
    if path is None or header is None:
        raise CheckpointError(
            f"no checkpoint in {run.checkpoints} can be resumed from",
            got=f"{len(found)} that are damaged or lack their optimizer's state",
            fix="Start over with --fresh.",
        )
    second = source.stores[1].header.digest if len(source.stores) > 1 else ""
    caches = _differ("cache", header.cache_digest, source.digest) + _differ("second_cache", header.second_cache_digest, second)
    for name, old, new in _differences(header.run, run) + caches:
        raise CheckpointError(
            f"{run.checkpoints} holds another run: {name} differs",
            got=old,
            expected=new,
            fix="Choose another folder with --checkpoints, or replace that run with --fresh.",
        )
    return ResumePoint(path, header, tuple(found[found.index(path) + 1 :]))


@contextmanager
def hold_run(folder: Path) -> Iterator[None]:
    """Hold the folder of a run while the block runs, and remove what writers that were killed left in it.

    Raises:
        CheckpointError: Another process trains in this folder; the message says which one.
    """
    file, is_new = folder / _LOCK, not folder.exists()
    with ExitStack() as stack:
        try:
            stack.enter_context(holding(file, range(1), f"the run {folder}"))
        except CacheError as error:
            fix = "Wait for it, or choose another folder with --checkpoints."
            raise CheckpointError(f"another process trains in {folder}", got=error.got, fix=fix) from error
        remove_leftovers(folder)
        try:
            yield
        finally:
            with suppress(OSError):
                file.unlink(missing_ok=True)  # while it is held: whoever opened it meanwhile sees that it is gone and opens a new one
                if is_new:
                    folder.rmdir()  # only if the run wrote nothing


def is_training(folder: Path) -> bool:
    """Return whether a process trains in a folder at this moment."""
    return is_held(folder / _LOCK, range(1))


def start_over(folder: Path) -> None:
    """Remove the run in a folder: its checkpoints, optimizer states and metrics, and nothing else."""
    with storage_errors(folder):
        for path in list_checkpoints(folder):
            _remove(path)
        (folder / "metrics.jsonl").unlink(missing_ok=True)


def prune(folder: Path, keep: int, validations: Mapping[int, float]) -> None:
    """Remove all checkpoints except the newest ones, the best one and the untrained one.

    Args:
        folder: Folder of the run.
        keep: Number of newest checkpoints to keep; 0 keeps all.
        validations: Validation loss by step, which decides the best one.
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
    """Remove a checkpoint and then its optimizer's state, which is ignored without a checkpoint."""
    with storage_errors(checkpoint):
        checkpoint.unlink(missing_ok=True)
        optimizer_path(checkpoint).unlink(missing_ok=True)


def _check(path: Path) -> CheckpointHeader | None:
    """Return the header of a checkpoint, or None if it is damaged or lacks its optimizer's state."""
    with suppress(CheckpointError):
        return check_checkpoint(path)
    return None


def _event_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise NotReadyError("TensorBoard is not installed", fix=how_to_install(extra="tensorboard")) from error
    return SummaryWriter(str(folder))


def _differences(old: RunConfig, new: RunConfig) -> list[tuple[str, object, object]]:
    """Return name, old and new value of the settings that differ, those of tables as `table.name`."""
    a, b = _settings(old), _settings(new)
    names = [name for name in dict.fromkeys([*a, *b]) if name not in _MAY_DIFFER]
    return [entry for name in names for entry in _differ(name, a.get(name, "none"), b.get(name, "none"))]


def _settings(run: RunConfig) -> dict[str, object]:
    tables = asdict(with_all_settings(run)).items()
    return {f"{table}.{name}" if name else table: value for table, part in tables for name, value in _items(part)}


def _items(part: object) -> list[tuple[str, object]]:
    return list(part.items()) if isinstance(part, dict) else [("", part)]


def _differ(name: str, old: object, new: object) -> list[tuple[str, object, object]]:
    return [(name, old, new)] if old != new else []


def _number(value: Tensor | float) -> float:
    return value.item() if isinstance(value, Tensor) else value


def _parsed(line: str) -> dict[str, float]:
    """Return the finite numbers of a line; empty without a step, as for a line that is damaged or was cut short."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(data, dict):
        return {}
    found = {name: value for name, value in data.items() if type(value) in (int, float) and abs(value) <= LARGEST}
    return found if isinstance(found.get("step"), int) and found["step"] >= 1 else {}
