"""What the retrieval protocols share: test videos are queries, train videos the gallery."""

from __future__ import annotations

from abc import abstractmethod

import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.encoders.features import Features
from stjepa_cli.evaluation.probes._nearest import nearest
from stjepa_cli.evaluation.probes.base import Probe, ProbeResult

RECALLS = (1, 5, 10, 20, 50)


class RetrievalProbeBase(Probe):
    """Fraction of test videos with a train video of their class among the k nearest by cosine similarity."""

    def _fit_score(self, train: Features, test: Features, num_classes: int, seed: int) -> ProbeResult:
        gallery, queries = self.centred(train.values, test.values)
        _, rows = nearest(F.normalize(queries, dim=1), F.normalize(gallery, dim=1), max(RECALLS))
        hits = train.labels[rows] == test.labels[:, None]
        metrics = {f"r{k}": hits[:, :k].any(dim=1).double().mean().item() for k in RECALLS}
        return ProbeResult(metrics, hits=hits[:, 0].double().cpu())

    @abstractmethod
    def centred(self, train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
        """Subtract a mean from the features (R, F) of train and (Q, F) of test."""
