"""The databases that hold a table of vectors: each module is one, found by its name."""
