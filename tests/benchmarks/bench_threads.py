"""What thread numbers cost where other processes want the cores: pretraining, cache build and feature extraction, idle and busy.

    python -m tests.benchmarks.bench_threads [--quick] [--json] [--only pretrain,build,infer] [--policies ours,1,spin] [--rounds 1]

Each policy has processes of its own, since OpenMP decides once in a process how it waits; such a process does one kind of work after
the other. *Idle* is the machine as it is; *busy* has two processes beside it that do nothing but compute, on the same cores. Policies:
`ours` is what `stjepa` decides by itself, a number is so many intra-op threads with OpenMP's own way of waiting, `spin` is all cores with
OpenMP's own way of waiting, `passive` all cores without spinning. One round takes about two minutes; policies and states take turns. Run
on two cores (`taskset -c 0,1 python -m ...`) to compare with the log.

Aims: busy, `ours` at least 0.8 of `1`; idle, `ours` no slower than `spin`.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from tests.benchmarks.common import Row, parser, report

NUM_BUSY = 2
WORK = ("pretrain", "build", "infer")
SPINNER = "while True: pass"
NUM_CLIPS = 160
PRETRAIN_SECONDS = 6.0  # with opening the run, which is not counted


def environment(policy: str) -> dict[str, str]:
    """Return the variables of a policy."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "MKL_"))}
    if policy == "ours":
        return kept
    if policy.isdecimal():
        return kept | {"OMP_NUM_THREADS": policy, "GOMP_SPINCOUNT": "300000"}
    cores = str(len(os.sched_getaffinity(0)))
    if policy.startswith("spin"):
        return kept | {"OMP_NUM_THREADS": cores, "GOMP_SPINCOUNT": policy.removeprefix("spin") or "300000"}
    return kept | {"OMP_NUM_THREADS": cores, "OMP_WAIT_POLICY": "passive"}


@contextmanager
def busy_neighbours(count: int) -> Iterator[None]:
    """Run processes that compute for ever beside the block."""
    others = [subprocess.Popen([sys.executable, "-c", SPINNER]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def measure(folder: Path, works: Sequence[str], policy: str, num_busy: int) -> list[float]:
    """Return the clips per second of each kind of work, in one process."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_threads", "--child", ",".join(works), str(folder)]
    with busy_neighbours(num_busy):
        done = subprocess.run(command, env=environment(policy), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{policy}, {num_busy} busy:\n{done.stderr}")
    return [float(line) for line in done.stdout.splitlines()[-len(works) :]]


def prepare(folder: Path, num_clips: int) -> None:
    """Write generated clips, and the demo's cache of them."""
    from stjepa_cli.demo.layouts import write_ssv2
    from stjepa_cli.demo.scenes import GeneratedClips

    write_ssv2(folder / "ssv2", GeneratedClips("8", num_clips, 0), num_validation=0 if num_clips < 65 else 64)
    build(folder, "cache")


def build(folder: Path, name: str) -> float:
    """Build a cache with the demo's teacher; returns clips per second, with what is done once."""
    from stjepa_cli.cache.build import build as build_cache
    from stjepa_cli.cache.request import BuildRequest
    from stjepa_cli.core.runtime import Runtime

    teacher = str(files("stjepa_cli.demo") / "assets" / "tiny_videomae_motion")
    started = time.perf_counter()
    built = build_cache(BuildRequest.of(folder / "ssv2", folder / name, teacher=teacher, latent_dim=96), Runtime("cpu", workers=2))
    return built.clips / (time.perf_counter() - started)


def child(work: str, folder: Path) -> float:
    """Do the work in this process; returns clips per second."""
    from stjepa_cli.core import threads

    threads.prepare_environment()
    if work == "build":
        with tempfile.TemporaryDirectory(dir=folder) as place:
            return build(folder, f"{Path(place).name}/cache")
    if work == "pretrain":
        return _pretrain(folder)
    return _infer(folder)


def _pretrain(folder: Path) -> float:
    from stjepa_cli.training.pretrain import pretrain
    from stjepa_cli.training.recipes import resolve_run

    with tempfile.TemporaryDirectory(dir=folder) as place:
        places = {"data_root": folder / "ssv2", "cache": folder / "cache", "checkpoints": Path(place) / "run"}
        flags = {"epochs": 1000, "batch_size": 32, "preset": "tiny", "workers": 2, "device": "cpu", "recipe": "mixed", "mask_ratio": 0.5}
        end = time.monotonic() + PRETRAIN_SECONDS
        return pretrain(resolve_run(places, flags=flags), stop=lambda: time.monotonic() > end).clips_per_second


def _infer(folder: Path) -> float:
    import torch

    from stjepa_cli.core.runtime import Runtime
    from stjepa_cli.core.threads import use_threads
    from stjepa_cli.data.datasets.base import open_dataset
    from stjepa_cli.data.eval_clips import EvalClips
    from stjepa_cli.encoders.base import encode_videos
    from stjepa_cli.encoders.teacher_encoder import TeacherEncoder
    from stjepa_cli.teachers.base import open_teacher

    teacher = open_teacher(str(files("stjepa_cli.demo") / "assets" / "tiny_videomae_motion"), device=torch.device("cpu"))
    use_threads(teacher.card.dim, decoders=2)
    items = open_dataset("ssv2", folder / "ssv2").videos("train")
    started = time.perf_counter()
    found = list(encode_videos(TeacherEncoder(teacher), items, EvalClips(), runtime=Runtime("cpu", workers=2, batch_size=64)))
    return len(found) / (time.perf_counter() - started)


def main() -> None:
    """Measure, and print a table."""
    if sys.argv[1:2] == ["--child"]:
        for work in sys.argv[2].split(","):
            print(child(work, Path(sys.argv[3])))
        return
    options = parser(__doc__)
    options.add_argument("--only", default=",".join(WORK))
    options.add_argument("--policies", default="ours,1,spin")
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--keep", type=Path, help="folder of the clips and the cache, to use them again")
    chosen = options.parse_args()
    works, policies = chosen.only.split(","), chosen.policies.split(",")
    with tempfile.TemporaryDirectory() as place:
        folder = chosen.keep or Path(place)
        if not (folder / "cache").exists():
            prepare(folder, 48 if chosen.quick else NUM_CLIPS)
        found: dict[tuple[str, str, int], list[float]] = {}
        for number in range(chosen.rounds):
            for policy in policies if number % 2 == 0 else reversed(policies):
                for num_busy in (0, NUM_BUSY):
                    for work, speed in zip(works, measure(folder, works, policy, num_busy), strict=True):
                        found.setdefault((work, policy, num_busy), []).append(speed)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    note = f"{len(os.sched_getaffinity(0))} cores; busy: {NUM_BUSY} other processes; load at the end: {load}"
    report("Thread numbers", _rows(found, works, policies), as_json=chosen.json, notes=[note])


def _rows(found: Mapping[tuple[str, str, int], Sequence[float]], works: Sequence[str], policies: Sequence[str]) -> list[Row]:
    """Return a row per kind of work and policy: clips per second, and `ours` over this policy within a round."""
    rows: list[Row] = []
    for work in works:
        for policy in policies:
            row: dict[str, object] = {"work": work, "threads": policy}
            for state, num_busy in (("idle", 0), ("busy", NUM_BUSY)):
                speeds, ours = found[work, policy, num_busy], found.get((work, "ours", num_busy), [])
                row[f"{state} clips/s"] = statistics.median(speeds)
                row[f"ours / this, {state}"] = statistics.median(a / b for a, b in zip(ours, speeds, strict=True)) if ours else None
            rows.append(row)
    return rows


if __name__ == "__main__":
    main()
