"""A new plug-in is tested without being listed anywhere: good and bad ones are put into a copy, and the tests are run there.

Each plug-in folder has its contract in `contract.py` beside its tests, a class that `test_base.py` runs for every plug-in.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

GOOD_TEACHER = '''
"""Mean colours of each token."""

from stjepa_cli.core.types import ClipSpec, TeacherCard
from stjepa_cli.teachers.base import Outline, Teacher


class MeanColour(Teacher):
    """The mean and the spread of each colour."""

    built_in = True

    @classmethod
    def outline(cls, config, clip):
        return Outline(clip or ClipSpec(), 6, "none (no weights)")

    @classmethod
    def load(cls, files, outline, device):
        return cls(TeacherCard("{name}", "{name}", "1", "0" * 64, outline.licence, outline.dim, outline.clip, "none"), device)

    def _encode(self, clips):
        spec, grid = self.card.clip, self.card.clip.grid
        sizes = (grid.t, spec.tubelet, 3, grid.h, spec.patch_px, grid.w, spec.patch_px)
        cells = (clips.float() / 255).reshape(len(clips), *sizes).permute(0, 1, 4, 6, 3, 2, 5, 7)
        pixels = cells.reshape(len(clips), grid.num_tokens, 3, -1)
        return {tokens}


plugin = MeanColour
'''
RIGHT, SWAPPED = (
    "__import__('torch').cat([pixels.mean(-1), pixels.std(-1)], dim=-1)",
    "__import__('torch').cat([pixels.mean(-1), pixels.std(-1)], dim=-1).flip(1)",
)
NEEDS_FILES = '''
"""A teacher that needs files."""

from stjepa_cli.teachers.dinov2 import Dinov2


class Other(Dinov2):
    """Another family of image models."""

    model_types = ("other",)


plugin = Other
'''
DATASET = '''
"""A data set without an example."""

from stjepa_cli.data.datasets.folder import Folder


class Other(Folder):
    """Another layout."""

    name = "{name}"


plugin = Other
'''
PROBE = '''
"""A probe that looks at the labels of the test set."""

import torch
import torch.nn.functional as F

from stjepa_cli.evaluation.probes.base import Probe, ProbeResult


class Cheat(Probe):
    """Knows the answer."""

    def _fit_score(self, train, test, num_classes, seed):
        return ProbeResult({{"top1": 1.0}}, F.one_hot(test.labels, num_classes).float())


plugin = Cheat
'''
OBJECTIVE = '''
"""An objective that draws its noise from anywhere."""

from dataclasses import dataclass

import torch

from stjepa_cli.training.objectives.base import Loss, Objective


class Restless(Objective):
    """The length of the tokens, under dropout."""

    @dataclass(frozen=True)
    class Settings:
        """None."""

    needs = frozenset({{"clips"}})

    def forward(self, batch, generator):
        total = torch.nn.functional.dropout(self.student(batch.clips).square(), 0.5, training=True).mean()
        return Loss(total, {{"length": total.detach()}})

    def flops(self):
        return self.student.flops()


plugin = Restless
'''
ENGINE = '''
"""An engine that does nothing."""

from stjepa_cli.cache.engines.base import Engine
from stjepa_cli.cache.shard_builder import BuildCounts


class Lazy(Engine):
    """Counts nothing, fills nothing."""

    def run(self, job, store, shards, on_batch, retry=frozenset()):
        return BuildCounts()


plugin = Lazy
'''
INDEX = '''
"""A database that nobody has said where to keep."""

from stjepa_cli.search.indexes.base import Index


class Elsewhere(Index):
    """Keeps nothing."""


plugin = Elsewhere
'''

EMBEDDER = '''
"""An engine that embeds nothing."""

from stjepa_cli.search.engines.base import Engine


class Idle(Engine):
    """Yields nothing."""

    def run(self, job):
        return iter(())


plugin = Idle
'''

PLUGINS = {
    "teachers/dropin_good": GOOD_TEACHER.replace("{tokens}", RIGHT),
    "teachers/dropin_swapped": GOOD_TEACHER.replace("{tokens}", SWAPPED),
    "teachers/dropin_files": NEEDS_FILES,
    "data/datasets/dropin_dataset": DATASET,
    "evaluation/probes/dropin_probe": PROBE,
    "training/objectives/dropin_objective": OBJECTIVE,
    "cache/engines/dropin_engine": ENGINE,
    "search/engines/dropin_embedder": EMBEDDER,
    "search/indexes/dropin_index": INDEX,
}
FOUND_OUT_BY = {
    "dropin_swapped": "test_tokens_are_in_time_height_width_order",
    "dropin_files": "tests/teachers/tiny.py must have a write_dropin_files",
    "dropin_dataset": "tests/conftest.py must have a fixture tiny_dropin_dataset",
    "dropin_probe": "test_test_labels_are_for_scoring_only",
    "dropin_objective": "test_all_randomness_comes_from_the_generator",
    "dropin_engine": "test_it_fills_the_shards",
    "dropin_embedder": "test_it_embeds_what_the_encoder_embeds_in_its_order",
    "dropin_index": "tests/search/indexes/test_base.py must say where dropin_index keeps a table",
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The output of the contract tests in a copy of the project with further plug-ins."""
    copy = tmp_path_factory.mktemp("project")
    for part in ("stjepa_cli", "tests"):
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__", "golden", "benchmarks"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    for place, source in PLUGINS.items():
        name = place.rpartition("/")[2]
        (copy / "stjepa_cli" / f"{place}.py").write_text(source.replace("{name}", name).replace("{{", "{").replace("}}", "}"))
    folders = sorted({f"tests/{place.rpartition('/')[0]}/test_base.py" for place in PLUGINS})
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "-k", "dropin", *folders]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", FOUND_OUT_BY)
def test_a_bad_plugin_fails_the_contract(report: str, name: str) -> None:
    lines = [line for line in report.splitlines() if line.startswith(("FAILED", "ERROR", "E  ")) and name in line]
    assert any(FOUND_OUT_BY[name] in line for line in lines), report[-4000:]


def test_a_good_plugin_keeps_it(report: str) -> None:
    assert not re.search(r"(FAILED|ERROR).*dropin_good", report), report[-4000:]
    assert int(re.findall(r"(\d+) passed", report)[-1]) >= 20
