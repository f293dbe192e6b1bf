"""One page about an evaluation: its figures, what they were made of, and where the encoder is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from stjepa_cli.evaluation import report_clips
from stjepa_cli.evaluation.confusion import ClassStats, by_class, most_frequent, percent, worst_first
from stjepa_cli.evaluation.evaluate import EvaluationResult
from stjepa_cli.viz import html
from stjepa_cli.viz.images import Sheet

MAX_CONFUSIONS = 20
MAX_SHOWN = 20  # classes at each end, and failed videos, before the rest is folded
MAX_FAILED = 200  # on the page; metrics.json has all

Intervals = Mapping[str, tuple[float, float]]
"""95 % intervals over test videos, by protocol, of its first figure."""


@dataclass(frozen=True)
class Verdict:
    """What one protocol says of the test videos.

    Attributes:
        protocol: its name.
        counts: int64 (C, C), videos of class `row` that it takes for class `column`.
        matrix: the same as a PNG picture.
    """

    protocol: str
    counts: Tensor
    matrix: bytes

    @property
    def right(self) -> float:
        """Share of the videos that are right."""
        return float(self.counts.trace()) / float(self.counts.sum())


@dataclass(frozen=True)
class PictureSection:
    """Pictures.

    Attributes:
        sheets: rows of them.
        absent: why there are none, a sentence.
    """

    sheets: tuple[Sheet, ...] = ()
    absent: str = ""


def page(
    result: EvaluationResult,
    verdict: Verdict | None,
    hardest: PictureSection,
    neighbours: PictureSection,
    *,
    command: str,
    intervals: Intervals,
) -> str:
    """The whole document, HTML.

    Args:
        result: what was found.
        verdict: of the protocol that classes are judged by; None if none scores classes.
        hardest: the videos that it is most wrong about.
        neighbours: test videos beside the train videos nearest to them.
        command: what makes it again, empty if no command did.
        intervals: for the figures.
    """
    encoder = Path(result.checkpoint)
    title = f"{result.dataset} split {result.split}: {encoder.stem if encoder.suffix == '.safetensors' else encoder.name}"
    body = [
        html.heading(title, 1),
        *_figures(result, verdict, intervals),
        *_origin(result, command),
        *_classes(result, verdict),
        *_confusions(result, verdict),
        *_hardest(hardest, verdict),
        *_neighbours(neighbours),
    ]
    return html.page(title, body)


def _figures(result: EvaluationResult, verdict: Verdict | None, intervals: Intervals) -> Iterator[str]:
    if verdict is not None:
        known = intervals.get(verdict.protocol)
        told = f"{verdict.protocol}: {verdict.right:.1%}" + (" [{:.1%}, {:.1%}]".format(*known) if known else "")
        told += f" of {len(result.ids):,} test videos right; blind guessing {percent(result.chance)}."
        yield html.paragraph(told, big=True)
    yield html.heading("Figures")
    rows = []
    for name, probe in result.probes.items():
        for i, (figure, value) in enumerate(probe.figures.items()):
            known = intervals.get(name) if i == 0 else None
            rows.append((f"{name} {figure}", f"{value:.1%}", "{:.1%} to {:.1%}".format(*known) if known else ""))
    rows.append(("blind guessing", percent(result.chance), ""))
    caption = "Shares of the test videos." + (" Brackets and last column: bootstrap over test videos." if intervals else "")
    yield html.wrapped(("figure", "value", "95 % interval"), rows, widths=(36, 20, 44), numbers=(1, 2), caption=caption)


def _origin(result: EvaluationResult, command: str) -> Iterator[str]:
    yield html.heading("What it was made of")
    failed = f"; {len(result.failed):,} that could not be used are left out of both" if result.failed else "; none failed"
    block = "the encoder's own output" if result.layer is None else f"block {result.layer}"
    facts = {
        "encoder": result.checkpoint,
        "data set": f"{result.dataset}, split {result.split}, {len(result.classes):,} classes",
        "videos": f"{result.num_train:,} train, {len(result.ids):,} test{failed}",
        "remark": result.remark,
        "clips": f"{result.clips} (frames x temporal x spatial), {result.sampling}",
        **{f"clips of {name}": clips for name, clips in result.own_clips.items()},
        "features": f"{result.pool} of the tokens of {block}",
        **{f"{name} settings": _settings(probe.chosen) for name, probe in result.probes.items()},
        **{f"sha256, {name}": value for name, value in result.digests.items()},
    }
    yield html.pairs({name: value for name, value in facts.items() if value})
    if command:
        yield html.paragraph("The same again:")
        yield html.command(command)
    yield from _failed(result)


def _settings(chosen: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in chosen.items())


def _failed(result: EvaluationResult) -> Iterator[str]:
    rows = [(f"{failure.id} ({failure.side})" if failure.side else failure.id, failure.error) for failure in result.failed]
    if not rows:
        return
    table = html.wrapped(("video", "why"), rows[:MAX_FAILED], widths=(35, 65), numbers=())
    if len(rows) > MAX_FAILED:
        table += html.paragraph(f"And {len(rows) - MAX_FAILED:,} more, in metrics.json.")
    yield html.heading("Videos that could not be used", 3)
    yield table if len(rows) <= MAX_SHOWN else html.folded(f"{len(rows):,} videos and why", [table])


def _classes(result: EvaluationResult, verdict: Verdict | None) -> Iterator[str]:
    yield html.heading("Classes")
    if verdict is None:
        yield html.paragraph("No protocol scored classes.")
        return
    tallies = by_class(verdict.counts)
    order = worst_first(tallies)
    yield html.paragraph(
        f"How many test videos of each class {verdict.protocol} is right about, the worst class first. Bars reach from none to all "
        "of them; the last column is the wrong class that most of the others were taken for. per_class.csv has every protocol.",
        quiet=True,
    )
    untried = [result.classes[tally.label] for tally in tallies if not tally.videos]
    if untried:
        more = f" and {len(untried) - MAX_SHOWN:,} more" if len(untried) > MAX_SHOWN else ""
        yield html.paragraph(f"Without a test video: {', '.join(untried[:MAX_SHOWN])}{more}.")
    if len(order) <= 2 * MAX_SHOWN + 2:
        yield _bars(order, result.classes)
        return
    middle = order[MAX_SHOWN:-MAX_SHOWN]
    yield _bars(order[:MAX_SHOWN], result.classes, f"The {MAX_SHOWN} worst")
    yield html.folded(f"The {len(middle):,} classes between them", [_bars(middle, result.classes)])
    yield _bars(order[-MAX_SHOWN:], result.classes, f"The {MAX_SHOWN} best")


def _bars(tallies: Sequence[ClassStats], classes: Sequence[str], caption: str = "") -> str:
    rows = [
        (
            classes[tally.label],
            f"{tally.right / tally.videos:.0%} ({tally.right:,}/{tally.videos:,})",
            "" if tally.taken_for is None else f"{classes[tally.taken_for]} ({tally.times:,})",
        )
        for tally in tallies
    ]
    shares = [tally.right / tally.videos for tally in tallies]
    columns = ("class", "right", "most often taken for")
    return html.wrapped(columns, rows, widths=(38, 26, 36), numbers=(1,), shares=shares, caption=caption)


def _confusions(result: EvaluationResult, verdict: Verdict | None) -> Iterator[str]:
    yield html.heading("Confusions")
    if verdict is None:
        yield html.paragraph("No protocol scored classes.")
        return
    name = verdict.protocol
    alternative = f"Confusion matrix of {len(result.classes):,} classes by {name}; the commonest confusions are in the table below it"
    yield html.figure(
        html.picture("image/png", verdict.matrix, alternative),
        f"Rows are the truth, columns what {name} says, the colour is the share of the row; what is right lies on the diagonal.",
    )
    found = most_frequent(verdict.counts, MAX_CONFUSIONS)
    if not found:
        yield html.paragraph("No test video is taken for another class.")
        return
    rows = [(result.classes[one.truth], result.classes[one.guess], f"{one.times:,} of {one.videos:,}") for one in found]
    yield html.wrapped(
        ("truth", "taken for", "videos"),
        rows,
        widths=(40, 38, 22),
        numbers=(2,),
        caption="The most frequent confusions, and how many videos the true class has.",
    )


def _hardest(gallery: PictureSection, verdict: Verdict | None) -> Iterator[str]:
    yield html.heading("Hardest videos")
    if verdict is None or not gallery.sheets:
        yield html.paragraph(gallery.absent)
        return
    yield html.paragraph(
        f"Where {verdict.protocol} was most wrongly sure: the test videos whose true class got the smallest share of its belief, at "
        f"most {report_clips.MAX_OF_A_CLASS} of a class. In brackets are both shares. Frames are of the centre clip and of the square that "
        "the encoder sees, in the order of time.",
        quiet=True,
    )
    yield from report_clips.sheets_html(gallery.sheets, report_clips.FEW[report_clips.MAX_FRAMES])


def _neighbours(gallery: PictureSection) -> Iterator[str]:
    yield html.heading("Nearest neighbours")
    if not gallery.sheets:
        yield html.paragraph(gallery.absent)
        return
    yield html.paragraph(
        f"Test videos, and the {report_clips.NUM_NEIGHBOURS} train videos nearest to each by the cosine of their features, "
        "without the mean of their set, as in retrieval. They are not picked for their looks: classes evenly spread over all, "
        "and of each the middle video by name. Each is shown by its middle frame. ✓ and a solid frame: of the same class; "
        "✗ and a broken frame: of another.",
        quiet=True,
    )
    yield from report_clips.sheets_html(gallery.sheets, report_clips.FEW[1 + report_clips.NUM_NEIGHBOURS])
