"""Pretrain the students of a benchmark; several at once where there is no GPU, since small ones gain nothing from a second thread."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from statistics import fmean

import torch

from stjepa_cli.core.config import RunConfig
from stjepa_cli.core.files import write_atomic
from stjepa_cli.core.progress import Progress, Task
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.core.serialization import from_dict, to_dict
from stjepa_cli.demo.processes import Job, Say, in_processes, num_cores
from stjepa_cli.training.pretrain import PretrainResult, pretrain

RECORD = "pretrain.json"
"""What a finished run gave, in its folder."""


def pretrain_all(runs: Mapping[str, RunConfig], runtime: Runtime, *, at_once: int = 0) -> dict[str, PretrainResult]:
    """Pretrain students, or resume them; those that are finished are not opened again.

    On a CPU each runs in a process of its own with a single thread, as many at once as there are cores, so that the numbers do not
    depend on the machine's number of cores.

    Args:
        runs: Descriptions by name.
        runtime: Device and progress.
        at_once: Students to pretrain at the same time on a CPU, 0 for one per available core.

    Raises:
        StjepaError: A run failed.
    """
    found = {name: _recorded(run) for name, run in runs.items()}
    todo = {name: run for name, run in runs.items() if found[name] is None}
    if runtime.torch_device.type == "cpu":
        names, at_once = list(todo), at_once or num_cores()
        for start in range(0, len(names), at_once):
            found |= _at_once({name: todo[name] for name in names[start : start + at_once]}, runtime.progress)
    else:
        for name, run in todo.items():
            runtime.progress.note(f"pretraining {name}")
            found[name] = pretrain(run, progress=runtime.progress)
    for name, run in todo.items():
        write_atomic(run.checkpoints / RECORD, (json.dumps(asdict(_there(found[name])), indent=1) + "\n").encode())
    return {name: _there(result) for name, result in found.items()}


def _recorded(run: RunConfig) -> PretrainResult | None:
    path = run.checkpoints / RECORD
    return from_dict(PretrainResult, json.loads(path.read_text()), where=str(path)) if path.is_file() else None


def _there(result: PretrainResult | None) -> PretrainResult:
    assert result is not None  # every run that was not recorded has been made
    return result


def _at_once(runs: Mapping[str, RunConfig], progress: Progress) -> dict[str, PretrainResult]:
    """Pretrain in processes that work at the same time, under one bar of all steps."""
    names, found = list(runs), dict[str, PretrainResult]()
    totals, losses, pending = dict[str, int](), dict[str, float](), 0
    with ExitStack() as stack:
        bar: Task | None = None
        for number, line in in_processes("stjepa_cli.demo.students:pretrain_one", [to_dict(run) for run in runs.values()]):
            name = names[number]
            if "note" in line:
                progress.note(f"{name}: {line['note']}")
            elif "steps" in line:
                totals[name] = line["steps"]
            elif "result" in line:
                found[name] = from_dict(PretrainResult, line["result"], where=name)
                totals.setdefault(name, 0)  # there was nothing left to do
            else:
                pending += line["advance"]
                losses |= {name: line["loss"]} if "loss" in line else {}
            if bar is None and len(totals) == len(names):
                bar = stack.enter_context(progress.task(_title(names), total=sum(totals.values()), unit="steps"))
            if bar is not None and pending:
                bar.advance(pending, **({"loss": fmean(losses.values())} if losses else {}))
                pending = 0
    return found


def _title(names: Sequence[str]) -> str:
    return "pretrain" if len(names) == 1 else f"pretrain {len(names)} students"


def pretrain_one(job: Job, say: Say) -> None:
    """Pretrain in a process of its own; say notes, the number of steps, each step, and the result."""
    torch.set_num_threads(1)
    say({"result": asdict(pretrain(from_dict(RunConfig, job, where="the job"), progress=_Said(say)))})


class _Said:
    """Progress that is said to another process."""

    def __init__(self, say: Say) -> None:
        self.say = say

    @contextmanager
    def task(self, name: str, *, total: int | None, unit: str = "clips", completed: int = 0) -> Iterator[Task]:
        if name == "pretrain":
            self.say({"steps": (total or 0) - completed})
        yield _SaidTask(self.say if name == "pretrain" else None)

    def note(self, text: str) -> None:
        self.say({"note": text})


class _SaidTask:
    def __init__(self, say: Say | None) -> None:
        self.say = say

    def advance(self, count: int = 1, **figures: float) -> None:
        if self.say is not None:
            self.say({"advance": count} | ({"loss": figures["loss"]} if "loss" in figures else {}))
