"""A run's folder: where to go on, the metrics so far, and the optimizer's state as plain tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from stjepa_cli.checkpoint import list_checkpoints, optimizer_path, read_header, read_tensors
from stjepa_cli.config import RunConfig
from stjepa_cli.errors import CheckpointError, storage_errors
from stjepa_cli.files import write_atomic

# what may change between the sessions of one run: places, machines and where to stop
_FREE = ("data_root", "cache", "checkpoints", "device", "workers", "memory_gb", "max_steps")


class Metrics:
    """`metrics.jsonl` in a run's folder: one JSON object a step."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.jsonl"

    def keep_until(self, step: int) -> None:
        """Drop the lines of steps that will be taken again."""
        if self.path.is_file():
            kept = [line for line in self.path.read_text().splitlines() if _step_of(line) in range(1, step + 1)]
            write_atomic(self.path, "".join(line + "\n" for line in kept).encode())

    def write(self, steps: Sequence[Mapping[str, Tensor | float]]) -> dict[str, float]:
        """Append steps, reading them from the device; returns the figures of the last."""
        lines = [{name: _number(value) for name, value in figures.items()} for figures in steps]
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
        return lines[-1]

    def losses(self) -> list[float]:
        """The loss of every step so far."""
        return [float(json.loads(line)["loss"]) for line in self.path.read_text().splitlines()]


def resume_point(run: RunConfig, cache_digest: str) -> tuple[Path, int] | None:
    """The newest whole checkpoint of the run's folder and its step; None where there is none.

    Raises:
        CheckpointError: the folder holds another run, or none of its checkpoints can be read.
    """
    found = list_checkpoints(run.checkpoints)
    if not found:
        return None
    path = next((path for path in reversed(found) if optimizer_path(path).is_file()), found[-1])
    header = read_header(path)
    for name, old, new in _differences(header.run, run) + _differ("cache", header.cache_digest, cache_digest):
        raise CheckpointError(
            f"{run.checkpoints} holds another run: {name} differs",
            got=old,
            expected=new,
            fix="Choose another folder with --checkpoints, or replace that run with --fresh.",
        )
    return path, header.step


def start_over(folder: Path) -> None:
    """Remove the run that a folder holds: its checkpoints, optimizer states and metrics, and nothing else."""
    with storage_errors(folder):
        for path in list_checkpoints(folder):
            optimizer_path(path).unlink(missing_ok=True)
            path.unlink()
        (folder / "metrics.jsonl").unlink(missing_ok=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as tensors named `<parameter>.<state>`."""
    return {
        f"{name}.{key}": torch.as_tensor(value)
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, module: nn.Module, checkpoint: Path) -> None:
    """Put back the state that lies beside a checkpoint.

    Raises:
        CheckpointError: missing or damaged.
    """
    tensors = read_tensors(optimizer_path(checkpoint))
    for name, parameter in module.named_parameters():
        mine = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.rpartition(".")[0] == name}
        if mine:
            optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in mine.items()}


def _differences(old: RunConfig, new: RunConfig) -> list[tuple[str, object, object]]:
    a, b = asdict(old), asdict(new)
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
