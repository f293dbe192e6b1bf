"""Where the shards of a cache are computed: one module per engine, found by its name."""
