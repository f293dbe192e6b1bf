"""Protocols that score frozen features: one module per probe, found by its name."""
