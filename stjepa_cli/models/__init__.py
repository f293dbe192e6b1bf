"""The student and the modules trained with it, in memory and on disk.

What lives here: student, predictor, layers, masks, checkpoints, releases and exports.
What does not: losses, optimizers and data loading (`training/`), features and scores (`encoders/`, `evaluation/`).
May import: `core`.
"""
