"""stjepa: compact video encoders learned from the cached latents of large frozen ones."""

__version__ = "0.1.0"
