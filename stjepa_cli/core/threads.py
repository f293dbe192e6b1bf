"""Thread numbers, decided in one place: cores of the affinity mask and of the cgroup quota, and how OpenMP waits.

OpenMP's threads spin while they wait for each other. On cores that other processes or our own decoders want, a spinning thread keeps the
one it waits for from running, and small matrices make it wait thousands of times per second.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

MIN_WIDTH = 192
"""Width of a model from which several intra-op threads gain more than they lose."""

MAX_THREADS = 1024
"""Most threads that are taken for meant."""

_SPINS = "1000"  # libgomp's own number on oversubscribed cores, about 50 microseconds; its default is 15 milliseconds
_THREADS, _WAITING = "OMP_NUM_THREADS", ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@dataclass(frozen=True)
class ThreadPlan:
    """Threads of a job.

    Attributes:
        compute: Intra-op threads of torch.
        decoders: Threads that decode.
        cores: Cores that the process may use; a cgroup quota may be a fraction of one.
        requested: True if the user chose the number of compute threads.
    """

    compute: int
    decoders: int
    cores: float
    requested: bool

    def __str__(self) -> str:
        asked = f" ({_THREADS})" if self.requested else ""
        return f"threads: {self.compute} to compute{asked}, {self.decoders} to decode, on {self.cores:g} cores (--threads overrules)"


def prepare_environment(threads: int | None = None) -> None:
    """Set how OpenMP waits, and how many threads it has if the user says so; before torch is imported, which reads both.

    Args:
        threads: Intra-op threads that the user asks for.
    """
    if threads is not None:
        os.environ[_THREADS] = str(threads)
    if not any(name in os.environ for name in _WAITING):
        os.environ["GOMP_SPINCOUNT"] = _SPINS


def plan_threads(width: int, decoders: int, *, cores: float | None = None) -> ThreadPlan:
    """Decide the threads of a job.

    Args:
        width: Width of the model that computes.
        decoders: Threads that decode beside it.
        cores: Cores that the process may use; found out if None.
    """
    cores = available_cores() if cores is None else cores
    requested = os.environ.get(_THREADS, "").partition(",")[0].strip()[:9]
    if requested.isascii() and requested.isdecimal() and int(requested) > 0:
        return ThreadPlan(min(int(requested), MAX_THREADS), decoders, cores, requested=True)
    if width < MIN_WIDTH:
        return ThreadPlan(1, decoders, cores, requested=False)
    beside = 1 if decoders and cores > 2 else 0  # decoders want a core of their own where there are several
    return ThreadPlan(max(1, int(cores) - beside), decoders, cores, requested=False)


def use_threads(width: int, decoders: int) -> ThreadPlan:
    """Give torch the threads that `plan_threads` decides, and return the plan."""
    import torch

    plan = plan_threads(width, decoders)
    if plan.compute != torch.get_num_threads():
        torch.set_num_threads(plan.compute)
    return plan


def available_cores(root: Path = Path("/")) -> float:
    """Return the cores that this process may use: those of its affinity mask, or of its cgroup's quota if that is less.

    Args:
        root: Where `proc` and `sys` are, for tests.
    """
    return min([float(len(os.sched_getaffinity(0))), *_quotas(root)])


def _quotas(root: Path) -> list[float]:
    """Return the CPU quotas of this process's cgroups and of all groups around them, in cores."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found: list[float | None] = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("" if not controllers else "cpu")
        parts = group.strip("/").split("/") if group.strip("/") else []
        found += [_quota(base.joinpath(*parts[:depth])) for depth in range(len(parts) + 1)]
    return [quota for quota in found if quota is not None]


def _quota(group: Path) -> float | None:
    """Return the quota of a cgroup, of version 2 or 1, in cores; None if it has none."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return int(quota) / int(period) if quota not in ("max", "-1") and int(period) > 0 else None
    except (OSError, ValueError):
        return None
