"""The latent cache on disk: checksummed Zarr shards, read and written without going through zarr-python.

What lives here: the format, its reader, its crash-safe writer, locks, quantization, kept frames and the projection.
What does not: teachers, students, decisions about what to build (`cache/`) or train (`training/`).
May import: `core`.
"""
