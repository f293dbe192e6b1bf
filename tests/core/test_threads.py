"""Thread numbers follow the cores that a process may really use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stjepa_cli.core.threads import available_cores, plan_threads, prepare_environment


@pytest.fixture(autouse=True)
def nothing_is_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)


def machine(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(cgroup)
    for name, text in files.items():
        (root / "sys" / "fs" / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "sys" / "fs" / "cgroup" / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("cgroup", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 0.5),
        ("0::/a/b\n", {"a/cpu.max": "40000 100000", "a/b/cpu.max": "max 100000"}, 0.4),
        ("0::/a/b\n", {"a/cpu.max": "max 100000", "a/b/cpu.max": "30000 100000"}, 0.3),
        ("4:memory:/x\n3:cpu,cpuacct:/a/1\n", {"cpu/a/1/cpu.cfs_quota_us": "25000", "cpu/a/1/cpu.cfs_period_us": "50000"}, 0.5),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("0::/\n", {}, None),
        ("0::/\n", {"cpu.max": "nonsense"}, None),
    ],
)  # fmt: skip
def test_cores_are_those_of_the_mask_or_of_the_quota(tmp_path: Path, cgroup: str, files: dict[str, str], quota: float | None) -> None:
    mask = len(os.sched_getaffinity(0))
    assert available_cores(machine(tmp_path, cgroup, files)) == (mask if quota is None else quota)


def test_a_system_without_cgroups_has_the_cores_of_its_mask(tmp_path: Path) -> None:
    assert available_cores(tmp_path) == len(os.sched_getaffinity(0))
    pin = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    code = pin + "from stjepa_cli.core import threads; print(threads.available_cores())"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert float(done.stdout) <= 1


@pytest.mark.parametrize(
    ("width", "decoders", "cores", "compute"),
    [(96, 2, 64, 1), (384, 2, 2, 2), (384, 4, 16, 15), (384, 0, 16, 16), (384, 4, 0.5, 1), (1280, 4, 3.7, 2), (384, 4, 1, 1)],
)
def test_small_matrices_get_one_thread_and_decoders_a_core(width: int, decoders: int, cores: float, compute: int) -> None:
    plan = plan_threads(width, decoders, cores=cores)
    assert (plan.compute, plan.requested) == (compute, False)
    assert f"{compute} to compute" in str(plan)


def test_the_user_overrules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert plan_threads(96, 2, cores=64).compute == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert plan_threads(96, 2, cores=64).compute == 1
    prepare_environment(5)
    assert plan_threads(96, 2, cores=64).requested
    assert os.environ["OMP_NUM_THREADS"] == "5"
    for typed in ("99999999999", "9" * 5000):  # torch takes a C integer
        monkeypatch.setenv("OMP_NUM_THREADS", typed)
        assert plan_threads(96, 2, cores=64).compute == 1024


def test_how_openmp_waits_is_set_unless_the_user_did(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_environment()
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    prepare_environment()
    assert "GOMP_SPINCOUNT" not in os.environ
