"""Use case: report on a head, for programs as JSON and for people as a page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stjepa_cli.core.files import write_atomic
from stjepa_cli.judgements.fitting import FEWEST
from stjepa_cli.judgements.head_file import HeadHeader, read_header
from stjepa_cli.viz import html


@dataclass(frozen=True)
class HeadReport:
    """A report on a head.

    Attributes:
        head: File of the head.
        header: What the head is, and its figures.
    """

    head: Path
    header: HeadHeader

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-able values; figures that cannot be known are None."""
        header = self.header
        about = {"keep_raw": header.keep_raw, "kind": header.kind, "loss": header.loss, "dim": header.dim}
        origin = {"encoder_digest": header.encoder_digest, "log_digest": header.log_digest, "split_seed": header.split_seed}
        return {"mode": header.mode, **header.report, **origin, **about}

    def verdict(self) -> str:
        """Return what to do, as a sentence."""
        agreement = self.header.report["agreement"]
        if self.header.keep_raw:
            if agreement["n"] < FEWEST:
                return f"Keep raw: {agreement['n']} questions about items held out are too few to learn from; it takes {FEWEST}."
            return "Keep raw: on items that it has not seen, a head would not surely agree with the judge more often."
        low, high = agreement["interval"]
        gain = agreement["head"] - agreement["raw"]
        return (
            f"On items that it has not seen, the head agrees with the judge in {percent(agreement['head'])} of questions, the raw vectors "
            f"in {percent(agreement['raw'])}: {100 * gain:+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}."
        )


def report(path: Path) -> HeadReport:
    """Return the report on a head.

    Raises:
        ConfigError: There is no such file, or it holds no head.
    """
    return HeadReport(path, read_header(path))


def write_page(path: Path, found: HeadReport, command: str) -> None:
    """Write the page about a head.

    Args:
        path: HTML file to write.
        found: The report.
        command: Command that writes it again, for the foot of the page.

    Raises:
        StjepaError: The file cannot be written.
    """
    title = f"Head for {found.header.mode}"
    write_atomic(path, html.page(title, _body(found, title, command)).encode(errors="backslashreplace"))


def percent(share: float | None) -> str:
    """Return a share as text, a dash if it is not known."""
    return "-" if share is None else f"{100 * share:.1f} %"


def pairs(found: HeadReport) -> dict[str, str]:
    """Return names and figures for people."""
    header, figures = found.header, found.header.report
    ceiling, other = figures["ceiling"], figures["other_task"]
    counts = [f"{figures[name]:,} {name if figures[name] != 1 else name[:-1]}" for name in ("judges", "items", "triplets")]
    told = {
        "judgements": f"{figures['judgements']:,} ({', '.join(counts)})",
        "raw vectors": f"{percent(figures['agreement']['raw'])} agreement on held-out items",
        "head": f"{percent(figures['agreement']['head'])} agreement, over {figures['agreement']['n']:,} questions",
        "judge with itself": f"{percent(ceiling['repeat_consistency'])} over {ceiling['n']:,} repeated questions",
        "head over judge": percent(figures["agreement_over_ceiling"]),
        "position bias": percent(figures["position_bias"]),
        "answers 'none'": percent(figures["none_rate"]),
        "median response": "-" if figures["median_response_ms"] is None else f"{figures['median_response_ms'] / 1000:.1f} s",
        "overlap@10 with raw": percent(figures["overlap_at_10"]),
        "other mode": "-" if other is None else f"{other['name']}: raw {percent(other['raw'])}, head {percent(other['head'])}",
        "penalty": "-" if figures["lambda"] is None else f"{figures['lambda']:g}",
        "head is": f"{header.kind}, {header.input_dim:,} to {header.dim:,} channels, loss {header.loss}, seed {header.split_seed}",
        "encoder": f"{header.encoder}, column {header.column}, digest {header.encoder_digest[:12]}",
        "log digest": header.log_digest[:12],
    }
    return told


def _body(found: HeadReport, title: str, command: str) -> Iterator[str]:
    yield html.heading(title, 1)
    yield html.verdict(found.verdict(), good=None if found.header.keep_raw else True)
    yield html.pairs(pairs(found))
    yield html.paragraph(
        "Agreement is the share of questions in which the nearest candidate is one that the judge chose. Items are divided by lot, a few "
        "times; a head is asked only about items that it was not trained on, among what is left of the question. The interval resamples "
        "judgements. The strength of the penalty was chosen in half of these splits, which flatters the head a little. "
        "Position bias is how far the chosen places on the screen are from those shown, 0 % for none. Other mode: judgements of another "
        "mode in the same log, on all items.",
        quiet=True,
    )
    yield html.heading("The same again")
    yield html.command(command)
