"""Protocols that score frozen features, one module per protocol. A new module is found by its name."""
