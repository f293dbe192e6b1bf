"""How good frozen features are: protocols, comparisons, predictions of one file, and the report pages.

What lives here: `evaluate` (one encoder, one split), `infer` (encoders on a data set), `compare`, `predict`, reports, and `probes/`.
What does not: how features are computed (`encoders/`).
May import: `encoders`, `training`, `data`, `models`, `teachers`, `store`, `viz`, `core`.
"""
