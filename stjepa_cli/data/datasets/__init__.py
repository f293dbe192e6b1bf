"""Data sets in their official layouts: one module per data set, found by its name."""
