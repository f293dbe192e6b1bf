"""Frozen encoders behind one protocol: students, teachers and raw pixels.

What lives here: the protocol, its implementations, names resolved to encoders, features and where they are kept, fitted heads.
What does not: probes and scores (`evaluation/`).
May import: `data`, `models`, `teachers`, `store`, `core`.
"""
