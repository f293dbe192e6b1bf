"""Attentive pooling: one cross-attention block with a learned query and a linear layer, with fixed settings.

The learning rate is 1e-3 and the weight decay 0.01. One block instead of four costs V-JEPA 2's models 1.6 points (arXiv 2506.09985).
"""

from __future__ import annotations

from stjepa_cli.evaluation.probes._attention import AttentiveProbeBase, AttentiveSettings, Setting

SETTING = Setting(1e-3, 0.01)


class AttentivePoolProbe(AttentiveProbeBase):
    """Cross-attention with a learned query over the tokens, then one linear layer."""

    settings = AttentiveSettings(num_blocks=0, grid=(SETTING,), unchosen=SETTING)


plugin = AttentivePoolProbe
