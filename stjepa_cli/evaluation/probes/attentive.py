"""V-JEPA 2's attentive probe: three self-attention blocks, then a cross-attention block with a learned query (arXiv 2506.09985).

The 20 settings, 5 learning rates by 4 weight decays, are fitted in one pass over the tokens. V-JEPA 2 reports the best of them on
the very set that it reports. Here the setting is chosen on held-out groups of train, and the probe is fitted again on all of train.
"""

from __future__ import annotations

from stjepa_cli.evaluation.probes._attention import AttentiveProbeBase, AttentiveSettings, Setting

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 5e-3)
DECAYS = (0.01, 0.1, 0.4, 0.8)


class AttentiveProbe(AttentiveProbeBase):
    """Four attention blocks on the tokens, then one linear layer."""

    settings = AttentiveSettings(
        num_blocks=3,
        grid=tuple(Setting(lr, decay) for lr in RATES for decay in DECAYS),
        unchosen=Setting(1e-3, 0.01),
    )


plugin = AttentiveProbe
