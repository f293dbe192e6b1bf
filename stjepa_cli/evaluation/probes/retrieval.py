"""Video retrieval, the UCF-101 protocol: test videos are queries, train videos the gallery (CoCLR, arXiv 2010.09709)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.core.errors import StjepaError
from stjepa_cli.encoders.features import Features
from stjepa_cli.evaluation.probes._nearest import nearest
from stjepa_cli.evaluation.probes.base import Probe, ProbeResult

RECALLS = (1, 5, 10, 20, 50)


class RetrievalProbe(Probe):
    """Fraction of test videos with a train video of their class among the k nearest."""

    def _fit_score(self, train: Features, test: Features, num_classes: int, seed: int) -> ProbeResult:
        if len(test) < 2:
            raise StjepaError("retrieval subtracts the mean of the test set", got="a test set of 1 video", expected="2 or more")
        _, rows = rank(train.values, test.values, max(RECALLS))
        hits = train.labels[rows] == test.labels[:, None]
        metrics = {f"r{k}": hits[:, :k].any(dim=1).double().mean().item() for k in RECALLS}
        return ProbeResult(metrics, hits=hits[:, 0].double().cpu())


def rank(train: Tensor, test: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k nearest train videos of each test video.

    Args:
        train: float32 (R, F).
        test: float32 (Q, F).
        k: Number of neighbours.

    Returns:
        Cosine similarities float32 (Q, k) and rows of train int64 (Q, k), the nearest first.
    """
    return nearest(centred(test), centred(train), k)


def centred(values: Tensor) -> Tensor:
    """Subtract the mean of a set from its features (R, F), and return unit vectors."""
    return F.normalize(values - values.mean(dim=0), dim=1)


plugin = RetrievalProbe
