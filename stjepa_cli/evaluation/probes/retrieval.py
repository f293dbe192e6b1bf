"""Video retrieval: the mean of train is subtracted from all features, so that nothing is computed from the test set."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.evaluation.probes._nearest import nearest
from stjepa_cli.evaluation.probes._retrieval import RetrievalProbeBase


class RetrievalProbe(RetrievalProbeBase):
    """Retrieval with features centred by the mean of train."""

    def centred(self, train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
        mean = train.mean(dim=0)
        return train - mean, test - mean


def rank(train: Tensor, test: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k nearest train videos of each test video, as the protocol does.

    Args:
        train: float32 (R, F).
        test: float32 (Q, F).
        k: Number of neighbours.

    Returns:
        Cosine similarities float32 (Q, k) and rows of train int64 (Q, k), the nearest first.
    """
    gallery, queries = RetrievalProbe().centred(train, test)
    return nearest(F.normalize(queries, dim=1), F.normalize(gallery, dim=1), k)


plugin = RetrievalProbe
