"""Scores of frozen encoders on labelled videos, comparisons, predictions for single files, and report pages.

What lives here: `evaluate` (one encoder, one split), `infer` (several encoders on a data set), `compare`, `predict`, `probes/`.
What does not: how features are computed and kept (`encoders/`).
May import: `encoders`, `training`, `data`, `models`, `teachers`, `store`, `viz`, `core`.
"""
