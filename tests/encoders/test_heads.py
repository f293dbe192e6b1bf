"""Saved heads: the same predictions after a round trip, and never for another encoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stjepa_cli.core.errors import CheckpointError, StjepaError
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.encoders.features import Features
from stjepa_cli.encoders.heads import Head, HeadCard, load_head, read_card, save_head
from stjepa_cli.evaluation.probes._attention import AttentiveProbeBase
from stjepa_cli.evaluation.probes.attentive_pool import AttentivePoolProbe
from stjepa_cli.evaluation.probes.base import Probe
from stjepa_cli.evaluation.probes.linear import LinearProbe
from stjepa_cli.models.tensor_file import write_tensors

SPEC = ClipSpec(num_frames=4, size_px=32, tubelet=2, patch_px=16)
CARD = HeadCard("runs/a.safetensors", "a" * 64, SPEC, "mean", ("cut", "fold", "pour", "unseen"))
PROBES: list[type[Probe]] = [LinearProbe, AttentivePoolProbe]


def fitted(probe: type[Probe]) -> tuple[Head, torch.Tensor, torch.Tensor]:
    """A head of three classes, two of which train has; features that it takes; and the probe's scores of them."""
    tokens, labels = torch.randn(24, 3, 6), torch.arange(24) % 2 * 2
    names = tuple(f"v{i:02d}" for i in range(24))
    side = Features(tokens.mean(dim=1), labels, names, names, tokens)
    made = probe()
    if isinstance(made, AttentiveProbeBase):
        made.settings = replace(made.settings, min_steps=100)
    result = made.fit_score(side, side, 4, seed=0)
    assert result.head is not None
    assert result.scores is not None
    return result.head, tokens if probe.takes_tokens else side.values, result.scores


@pytest.mark.parametrize("probe", PROBES)
class TestHead:
    def test_it_says_what_the_probe_said_before_and_after_a_file(self, probe: type[Probe], tmp_path: Path) -> None:
        head, features, scores = fitted(probe)
        assert torch.allclose(head.predict(features), scores, atol=1e-6)
        save_head(tmp_path / "head.safetensors", replace(head, card=CARD))
        loaded = load_head(tmp_path / "head.safetensors", "runs/a.safetensors", "a" * 64)
        assert torch.equal(loaded.predict(features), head.predict(features))
        assert loaded.card == read_card(tmp_path / "head.safetensors") == CARD

    def test_one_video_gets_one_row_and_absent_classes_nothing(self, probe: type[Probe]) -> None:
        head, features, scores = fitted(probe)
        probabilities = head.predict(features[5])
        assert probabilities.shape == (4,)
        assert torch.allclose(probabilities, scores[5], atol=1e-6)
        assert probabilities[[1, 3]].tolist() == [0, 0]

    def test_a_head_of_another_encoder_is_refused_by_name(self, probe: type[Probe], tmp_path: Path) -> None:
        path = tmp_path / "head.safetensors"
        save_head(path, replace(fitted(probe)[0], card=CARD))
        wanted = r"fitted on another encoder: got runs/b \(bbbbbbbbbbbb\), expected runs/a.safetensors \(aaaaaaaaaaaa\)"
        with pytest.raises(CheckpointError, match=wanted):
            load_head(path, "runs/b", "b" * 64)

    def test_features_of_another_shape_are_refused(self, probe: type[Probe]) -> None:
        head, features, _ = fitted(probe)
        with pytest.raises(StjepaError, match="cannot take these features: got"):
            head.logits(features[..., :5])

    def test_it_is_saved_with_a_name_for_each_class_only(self, probe: type[Probe], tmp_path: Path) -> None:
        head = fitted(probe)[0]
        with pytest.raises(StjepaError, match="names of its classes: got no card, expected 4 names"):
            save_head(tmp_path / "head.safetensors", head)
        with pytest.raises(StjepaError, match="got 1 names"):
            save_head(tmp_path / "head.safetensors", replace(head, card=replace(CARD, classes=("one",))))


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("damage", ["labels", "missing", "rows", "nan"])
def test_a_damaged_head_is_one_sentence(probe: type[Probe], damage: str, tmp_path: Path) -> None:
    head, path = replace(fitted(probe)[0], card=CARD), tmp_path / "head.safetensors"
    name = "bias" if head.kind == "linear" else "out.bias"
    weights = {
        "missing": {other: weight for other, weight in head.weights.items() if other != name},
        "rows": head.weights | {name: head.weights[name][:-1]},
        "nan": head.weights | {name: head.weights[name] * torch.nan},
    }.get(damage, head.weights)
    save_head(path, replace(head, weights=weights, labels=head.labels + 3 if damage == "labels" else head.labels))
    with pytest.raises(CheckpointError, match=r"head.safetensors is a damaged head.*--save-head"):
        load_head(path, "runs/a.safetensors", "a" * 64)


def test_what_is_no_head_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.safetensors", {"mean": torch.zeros(2)}, {})
    with pytest.raises(CheckpointError, match="but not a head"):
        read_card(tmp_path / "x.safetensors")
    write_tensors(tmp_path / "y.safetensors", {"mean": torch.zeros(2)}, {"stjepa_head": "{"})
    with pytest.raises(CheckpointError, match="cannot be understood"):
        read_card(tmp_path / "y.safetensors")
    with pytest.raises(CheckpointError, match=r"there is no saved head .*--save-head"):
        read_card(tmp_path / "z.safetensors")
