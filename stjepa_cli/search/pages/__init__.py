"""Pages about a table of vectors: what a search found, near-duplicates, and a map of everything."""
