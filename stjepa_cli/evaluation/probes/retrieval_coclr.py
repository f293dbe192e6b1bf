"""Video retrieval as published for UCF-101: each set is centred by its own mean (CoCLR, arXiv 2010.09709).

Figures of papers are computed in this way. It uses the test set as a whole, so a single test video cannot be scored.
"""

from __future__ import annotations

from torch import Tensor

from stjepa_cli.core.errors import StjepaError
from stjepa_cli.evaluation.probes._retrieval import RetrievalProbeBase


class CoclrRetrievalProbe(RetrievalProbeBase):
    """Retrieval with train and test features centred by their own means."""

    def centred(self, train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
        if len(test) < 2:
            raise StjepaError("retrieval_coclr subtracts the mean of the test set", got="a test set of 1 video", expected="2 or more")
        return train - train.mean(dim=0), test - test.mean(dim=0)


plugin = CoclrRetrievalProbe
