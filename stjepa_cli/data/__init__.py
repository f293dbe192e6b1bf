"""From video files to batches of clips: decoding, crops, views, data-set layouts and the training loader.

What lives here: everything that turns files or cached rows into uint8 clips.
What does not: the cache format (`store/`), and everything that is computed from clips.
May import: `store`, `core`.
"""
