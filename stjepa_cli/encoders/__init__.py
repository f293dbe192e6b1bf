"""Anything that turns a video into features: students, teachers and pixels behind one protocol.

What lives here: encoders, a name resolved to an encoder, features and their store, fitted heads.
What does not: scores (`evaluation/`).
May import: `data`, `models`, `teachers`, `store`, `core`.
"""
