"""Folders of reports, and the page that leads from several encoders to the report of each."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from stjepa_cli.core.errors import StjepaError, storage_errors
from stjepa_cli.core.files import write_atomic
from stjepa_cli.core.places import checkpoints_dir
from stjepa_cli.evaluation.compare import Comparison
from stjepa_cli.evaluation.confusion import percent
from stjepa_cli.evaluation.results import EvaluationResult
from stjepa_cli.viz import html


class ReportFolders:
    """The folder of each report: `out` itself for a single report, else named so that no two encoders share a folder.

    Args:
        out: Folder of all reports, or None for `reports` beside each checkpoint or in the default folder of checkpoints.
        single: True if there will be one report.
        key: The options of the request, so that a report never replaces that of another request; empty for the defaults.

    Attributes:
        written: Folders by the name of their encoder and split.

    Raises:
        StjepaError: `out` is a file, or cannot be written.
    """

    def __init__(self, out: Path | None, *, single: bool, key: str = "") -> None:
        self.out, self.single, self.key = out, single, key
        self.written: dict[str, Path] = {}
        self._owners: dict[Path, str] = {}
        if out is not None and out.exists() and not out.is_dir():
            raise StjepaError(f"cannot write a report to {out}", got="a file", expected="a folder")
        if out is not None:
            with storage_errors(out):
                out.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=out):
                    pass

    def folder(self, result: EvaluationResult) -> Path:
        """Return the folder for the report of a result."""
        encoder, digest = Path(result.encoder), result.digests["encoder"]
        is_checkpoint = encoder.suffix == ".safetensors"
        parts = (result.dataset, f"split{result.split}", encoder.stem if is_checkpoint else encoder.name, self.key)
        name = "_".join(part for part in parts if part)
        parent = self.out or (encoder.parent if is_checkpoint else checkpoints_dir()) / "reports"
        folder = parent if self.out is not None and self.single else parent / name
        if self._owners.setdefault(folder, digest) != digest:
            folder = folder.with_name(f"{name}_{digest[:8]}")
        self.written[f"{result.encoder}, split {result.split}"] = folder
        return folder


def _differences(comparison: Comparison, widths: tuple[int, ...]) -> list[str]:
    columns, cells = comparison.difference_table(percent=True)
    widths = (46, *widths[2:])
    if not cells:
        return []
    caption = (
        "Percentage points on the same videos, with the paired 95 % bootstrap interval. An interval without 0 tells two encoders apart."
    )
    return [
        html.heading(f"Differences from {comparison.rows[0].encoder}"),
        html.wrapped(columns, cells, widths=widths, numbers=(), caption=caption),
    ]


def write_overview(comparison: Comparison, folders: ReportFolders, out: Path) -> None:
    """Write a page with the table of all encoders and links to their reports, and the same as JSON.

    Raises:
        StjepaError: The disk is full or cannot be written.
    """
    results = [result for row in comparison.rows for result in row.results]
    first, (columns, cells) = results[0], comparison.table(percent=True)
    splits = ", ".join(dict.fromkeys(str(result.split) for result in results))
    title = f"{first.dataset}, split {splits}: {len(comparison.rows)} encoder{'s' if len(comparison.rows) > 1 else ''}"
    deviation = ", ± the deviation over splits" if len(comparison.rows[0].results) > 1 else ""
    caption = f"Share of test videos{deviation}, with the 95 % bootstrap interval. Chance: {percent(first.chance)}."
    widths = (30, 16, *[54 // (len(columns) - 2)] * (len(columns) - 2))
    body = [
        html.heading(title, 1),
        html.wrapped(columns, cells, widths=widths, numbers=(), caption=caption),
        *_differences(comparison, widths),
        html.heading("Reports"),
        html.links({name: f"{folder.name}/report.html" for name, folder in folders.written.items()}),
        *([html.paragraph("Command that repeats this:"), html.command(comparison.command)] if comparison.command else []),
    ]
    write_atomic(out / "metrics.json", (json.dumps(comparison.to_json(), indent=2) + "\n").encode())
    write_atomic(out / "report.html", html.page(title, body).encode("utf-8", "replace"))
