"""Pretraining: from a cache and a configuration to checkpoints and curves.

What lives here: the trainer, optimizers, validation, the run folder, the report of a run, and `objectives/`.
What does not: teachers, which never run in training, and encoders; neither is imported here.
May import: `data`, `store`, `models`, `viz`, `core`.
"""
