"""Build, check and describe a latent cache: the only room where a teacher runs over a data set.

What lives here: build, dry run, verify, preflight (`download-check`), inspect, and `engines/`, which say where shards are computed.
What does not: the bytes on disk (`store/`), decoding (`data/`), models (`teachers/`).
May import: `data`, `store`, `teachers`, `core`.
"""
