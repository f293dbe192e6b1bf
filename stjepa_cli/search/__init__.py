"""Videos as vectors: embedded, kept in a table beside their metadata, and found again.

What lives here: the Python API for embedding, the table of vectors and the databases that hold one, search over it.
What does not: encoders themselves (`encoders/`), scores of encoders (`evaluation/`).
May import: `encoders`, `data`, `store`, `models`, `teachers`, `viz`, `core`.
"""
