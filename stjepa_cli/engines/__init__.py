"""Engines: where the shards of a cache are computed. One file each."""
