"""stjepa: compact video encoders learned from the cached latents of large frozen ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stjepa_cli.search.encoder import Encoder as Encoder
    from stjepa_cli.search.udf import EmbedVideos as EmbedVideos

__version__ = "0.1.0"

__all__ = ["EmbedVideos", "Encoder", "__version__"]

_HOMES = {"Encoder": "stjepa_cli.search.encoder", "EmbedVideos": "stjepa_cli.search.udf"}


def __getattr__(name: str) -> Any:
    """Import the Python API on first use, so that the package and `stjepa --help` stay light."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
