"""Frozen models that make latents: one module per family, found by its name.

What lives here: loading, pre-processing and `encode((B,T,3,S,S) uint8) -> (B,N,E)`.
What does not: projections and storage (`store/`), how students are built and trained (`models/`, `training/`).
May import: `models` (a student can be a teacher), `core`.
"""
