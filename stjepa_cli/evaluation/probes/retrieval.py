"""Video retrieval, the UCF-101 protocol: test videos ask, train videos answer (CoCLR, arXiv 2010.09709)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.core.errors import StjepaError
from stjepa_cli.encoders.features import Features
from stjepa_cli.evaluation.probes.base import Probe, ProbeResult, nearest

RECALLS = (1, 5, 10, 20, 50)


class RetrievalProbe(Probe):
    """Share of test videos that find a train video of their class among the k nearest."""

    def _fit_score(self, train: Features, test: Features, num_classes: int, seed: int) -> ProbeResult:
        if len(test) < 2:
            raise StjepaError("retrieval subtracts the mean of the test set", got="a test set of 1 video", expected="2 or more")
        _, rows = nearest(centred(test.values), centred(train.values), max(RECALLS))
        hits = train.labels[rows] == test.labels[:, None]
        figures = {f"r{k}": hits[:, :k].any(dim=1).double().mean().item() for k in RECALLS}
        return ProbeResult(figures, hits=hits[:, 0].double().cpu())


def centred(values: Tensor) -> Tensor:
    """Features (R, F) without the mean of their set, as unit rows."""
    return F.normalize(values - values.mean(dim=0), dim=1)


plugin = RetrievalProbe
