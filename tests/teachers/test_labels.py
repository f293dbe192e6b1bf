"""Whether labels were used to train a teacher, as far as its configuration tells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stjepa_cli.core import plugins
from stjepa_cli.models.checkpoint import read_header
from stjepa_cli.store.latent_store import LatentStore
from stjepa_cli.store.records import header_difference
from stjepa_cli.teachers.base import open_teacher

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "2026-11-21"
NAMES = {"0": "abseiling", "1": "air drumming"}


@pytest.mark.parametrize(
    ("kind", "config", "expected"),
    [
        ("hog", {}, "no"),
        ("videomae", {"architectures": ["VideoMAEForVideoClassification"]}, "yes"),
        ("videomae", {"architectures": ["VideoMAEModel"], "id2label": NAMES}, "yes"),
        ("videomae", {"architectures": ["VideoMAEForPreTraining"], "id2label": {"0": "LABEL_0"}}, "no"),
        ("videomae", {"architectures": ["VideoMAEModel"]}, "unknown"),
        ("videomae", {}, "unknown"),
        ("vjepa2", {"architectures": ["VJEPA2Model"]}, "no"),
        ("vjepa2", {"architectures": ["VJEPA2ForVideoClassification"]}, "unknown"),
        ("dinov2", {"architectures": ["Dinov2Model"]}, "no"),
        ("dinov2", {"architectures": ["Dinov2ForImageClassification"]}, "unknown"),
        ("dinov3", {"architectures": ["DINOv3ViTModel"]}, "no"),
    ],
)
def test_a_configuration_tells(kind: str, config: dict[str, Any], expected: str) -> None:
    assert plugins.load("teachers", kind).saw_labels(config) == expected


def test_an_open_teacher_has_it_on_its_card() -> None:
    assert open_teacher("hog").card.saw_labels == "no"
    assert open_teacher(str(GOLDEN / "checkpoints" / "checkpoint_step2.safetensors")).card.saw_labels == "unknown"  # an old header


def test_it_is_no_part_of_the_identity_of_a_cache() -> None:
    old = LatentStore.open(GOLDEN / "cache").header
    assert old.teacher.saw_labels is None
    new = replace(old, teacher=replace(old.teacher, saw_labels="no"))
    assert new.digest == old.digest == read_header(GOLDEN / "checkpoints" / "checkpoint_step2.safetensors").cache_digest
    assert header_difference(old, new) is None
