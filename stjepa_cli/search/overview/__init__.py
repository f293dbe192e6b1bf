"""What is computed from all vectors of a column at once: near-duplicates, neighbours, and planes for maps."""
