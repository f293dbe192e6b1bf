"""The student and what is trained beside it, as modules and as files.

What lives here: student, predictor, layers, masks, checkpoints, releases and exports.
What does not: losses, optimizers and data loading (`training/`), features and scores (`encoders/`, `evaluation/`).
May import: `core`.
"""
