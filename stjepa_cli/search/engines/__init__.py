"""What runs the encoder: each module is an engine, found by its name."""
