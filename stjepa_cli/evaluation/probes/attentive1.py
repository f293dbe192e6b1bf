"""The cheap attentive probe: one cross-attention block, one setting, nothing chosen.

Learning rate 1e-3 and weight decay 0.01; one block instead of four costs V-JEPA 2's models (arXiv 2506.09985) 1.6 points.
"""

from __future__ import annotations

from stjepa_cli.evaluation.probes._attention import AttentiveProbeBase, AttentiveSettings, Setting

SETTING = Setting(1e-3, 0.01)


class AttentiveOneProbe(AttentiveProbeBase):
    """A learned query over the tokens, then one linear layer."""

    settings = AttentiveSettings(num_blocks=0, grid=(SETTING,), unchosen=SETTING)


plugin = AttentiveOneProbe
