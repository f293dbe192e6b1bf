"""Names of encoders: what is read from headers before loading, and whether labels were used to train an encoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stjepa_cli.core.errors import CheckpointError, ConfigError
from stjepa_cli.encoders.base import LabelUse
from stjepa_cli.encoders.extraction import Extraction
from stjepa_cli.encoders.resolve import NamedEncoder, card_of
from stjepa_cli.models.checkpoint import read_header, write_checkpoint
from stjepa_cli.models.tensor_file import read_tensors

CPU = torch.device("cpu")
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "2026-11-21" / "checkpoints" / "checkpoint_step2.safetensors"


def relabelled(folder: Path, saw_labels: str | None, step: int = 2) -> NamedEncoder:
    """A checkpoint whose teacher saw labels, or not."""
    header = read_header(GOLDEN)
    path = folder / f"checkpoint_step{step}.safetensors"
    write_checkpoint(path, replace(header, step=step, teacher=replace(header.teacher, saw_labels=saw_labels)), read_tensors(GOLDEN), {})
    return NamedEncoder(str(path), folder)


@pytest.mark.parametrize("name", ["pixels", "hog", "untrained", str(GOLDEN), str(GOLDEN.parent)])
def test_a_card_says_what_the_encoder_says(name: str) -> None:
    named = NamedEncoder(name, GOLDEN)
    assert named.card() == card_of(named.open(CPU))


def test_a_card_is_read_without_weights(tmp_path: Path) -> None:
    damaged = bytearray(GOLDEN.read_bytes())
    damaged[-1000:] = bytes(1000)
    (tmp_path / GOLDEN.name).write_bytes(damaged)
    card = NamedEncoder(str(tmp_path / GOLDEN.name), tmp_path).card()
    assert card.is_student
    Extraction(layer=card.num_blocks).check(card)
    with pytest.raises(ConfigError, match="no such block"):
        Extraction(layer=(card.num_blocks or 0) + 1).check(card)
    with pytest.raises(ConfigError, match="only students give the tokens of a block: got layer 1 of hog"):
        Extraction(layer=1).check(NamedEncoder("hog", tmp_path).card())


def test_a_checkpoint_that_is_not_there_is_no_teacher(tmp_path: Path) -> None:
    for call in (NamedEncoder.card, lambda named: named.open(CPU)):
        with pytest.raises(CheckpointError, match="there is no checkpoint"):
            call(NamedEncoder(str(tmp_path / "checkpoint_step9.safetensors"), tmp_path))


@pytest.mark.parametrize(
    ("saw_labels", "text"),
    [
        ("yes", "no, its teacher did"),
        ("no", "no, nor its teacher"),
        ("unknown", "no, its teacher: unknown"),
        (None, "no, its teacher: unknown"),
    ],
)
def test_a_student_says_whether_its_teacher_saw_labels(saw_labels: str | None, text: str, tmp_path: Path) -> None:
    encoder = relabelled(tmp_path, saw_labels).open(CPU)
    assert encoder.saw_labels == LabelUse("no", saw_labels or "unknown")
    assert str(encoder.saw_labels) == text


def test_before_the_first_step_nothing_was_learned_from_a_teacher(tmp_path: Path) -> None:
    for named in (relabelled(tmp_path, "yes", step=0), NamedEncoder("untrained", GOLDEN), NamedEncoder("pixels", GOLDEN)):
        assert str(named.open(CPU).saw_labels) == "no"
