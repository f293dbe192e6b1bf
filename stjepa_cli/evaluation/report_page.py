"""The HTML page of an evaluation: metrics, their origin, classes, confusions, mistakes and neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from stjepa_cli.evaluation import report_clips
from stjepa_cli.evaluation.confusion import ClassStats, class_stats, most_frequent, percent, worst_first
from stjepa_cli.evaluation.intervals import Differences
from stjepa_cli.evaluation.results import EvaluationResult
from stjepa_cli.viz import html
from stjepa_cli.viz.images import Sheet

MAX_CONFUSIONS = 20
MAX_SHOWN = 20  # classes at each end, and failed videos; the rest is folded
MAX_FAILED = 200  # on the page; metrics.json lists all

Intervals = Mapping[str, tuple[float, float]]
"""95 % bootstrap interval of the first metric of each protocol."""


@dataclass(frozen=True)
class ShownProbe:
    """The protocol that tables of classes are made from.

    Attributes:
        protocol: Name of the protocol.
        counts: int64 (C, C), the number of videos of class `row` that it predicts as class `column`.
        matrix: The same as a PNG picture.
    """

    protocol: str
    counts: Tensor
    matrix: bytes

    @property
    def accuracy(self) -> float:
        """Fraction of the videos that are predicted correctly."""
        return float(self.counts.trace()) / float(self.counts.sum())


@dataclass(frozen=True)
class PictureSection:
    """Pictures of a section of the page.

    Attributes:
        sheets: Rows of pictures.
        absent: A sentence that says why there are none.
    """

    sheets: tuple[Sheet, ...] = ()
    absent: str = ""


def page(
    result: EvaluationResult,
    shown: ShownProbe | None,
    mistakes: PictureSection,
    neighbours: PictureSection,
    *,
    command: str,
    intervals: Intervals,
    differences: Differences | None = None,
) -> str:
    """Return the whole HTML document.

    Args:
        result: The result of the evaluation.
        shown: The protocol for the tables of classes, or None if no protocol scores classes.
        mistakes: Pictures of its most confident mistakes.
        neighbours: Pictures of test videos beside the nearest train videos.
        command: The command that repeats the evaluation, or an empty string.
        intervals: 95 % bootstrap intervals.
        differences: Paired differences from another encoder, or None.
    """
    encoder = Path(result.encoder)
    title = f"{result.dataset} split {result.split}: {encoder.stem if encoder.suffix == '.safetensors' else encoder.name}"
    body = [
        html.heading(title, 1),
        *_metrics(result, shown, intervals),
        *_differences(differences),
        *_origin(result, command),
        *_classes(result, shown),
        *_confusions(result, shown),
        *_mistakes(mistakes, shown),
        *_neighbours(neighbours),
    ]
    return html.page(title, body)


def _metrics(result: EvaluationResult, shown: ShownProbe | None, intervals: Intervals) -> Iterator[str]:
    if shown is not None:
        interval = intervals.get(shown.protocol)
        text = f"{shown.protocol}: {shown.accuracy:.1%}" + (" [{:.1%}, {:.1%}]".format(*interval) if interval else "")
        text += f" of {len(result.ids):,} test videos right; chance {percent(result.chance)}."
        yield html.paragraph(text, big=True)
    yield html.heading("Metrics")
    rows = []
    for name, probe in result.probes.items():
        for i, (metric, value) in enumerate(probe.metrics.items()):
            interval = intervals.get(name) if i == 0 else None
            rows.append((f"{name} {metric}", f"{value:.1%}", "{:.1%} to {:.1%}".format(*interval) if interval else ""))
    rows.append(("chance", percent(result.chance), ""))
    columns = ("metric", "value", "95 % bootstrap interval")
    yield html.wrapped(columns, rows, widths=(36, 20, 44), numbers=(1, 2), caption="Fractions of the test videos.")


def _differences(differences: Differences | None) -> Iterator[str]:
    if differences is None:
        return
    yield html.heading(f"Difference from {Path(differences.reference).name}", 3)
    rows = [
        (name, f"{100 * one.value:+.1f}", "{:+.1f} to {:+.1f}".format(*(100 * end for end in one.interval)))
        for name, one in differences.metrics.items()
    ]
    caption = "Percentage points of the first metric of each protocol, on the same videos."
    columns = ("protocol", "difference", "paired 95 % bootstrap interval")
    yield html.wrapped(columns, rows, widths=(36, 20, 44), numbers=(1, 2), caption=caption)


def _origin(result: EvaluationResult, command: str) -> Iterator[str]:
    yield html.heading("How they were computed")
    failed = f"; {len(result.failed):,} could not be used and count nowhere" if result.failed else "; none failed"
    block = "the output of the encoder" if result.layer is None else f"block {result.layer}"
    facts = {
        "encoder": result.encoder,
        "saw labels": result.saw_labels,
        "data set": f"{result.dataset}, split {result.split}, {len(result.classes):,} classes",
        "videos": f"{result.num_train:,} train, {len(result.ids):,} test{failed}",
        "remark": result.remark,
        "clips": f"{result.clips} (frames x temporal x spatial), {result.sampling}",
        **{f"clips of {name}": clips for name, clips in result.own_clips.items()},
        "features": f"{result.pool} of the tokens, {block}",
        **{f"{name} settings": _settings(probe.chosen) for name, probe in result.probes.items()},
        **{f"sha256, {name}": value for name, value in result.digests.items()},
    }
    yield html.pairs({name: value for name, value in facts.items() if value != ""})
    if command:
        yield html.paragraph("Command that repeats this:")
        yield html.command(command)
    yield from _failed(result)


def _settings(chosen: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.1%}" if name.endswith("_top1") else f"{name} {value:g}" for name, value in chosen.items())


def _failed(result: EvaluationResult) -> Iterator[str]:
    rows = [(f"{failure.id} ({failure.side})" if failure.side else failure.id, failure.error) for failure in result.failed]
    if not rows:
        return
    table = html.wrapped(("video", "reason"), rows[:MAX_FAILED], widths=(35, 65), numbers=())
    if len(rows) > MAX_FAILED:
        table += html.paragraph(f"{len(rows) - MAX_FAILED:,} more are listed in metrics.json.")
    yield html.heading("Videos that could not be used", 3)
    yield table if len(rows) <= MAX_SHOWN else html.folded(f"{len(rows):,} videos with reasons", [table])


def _classes(result: EvaluationResult, shown: ShownProbe | None) -> Iterator[str]:
    yield html.heading("Classes")
    if shown is None:
        yield html.paragraph("No protocol scored classes.")
        return
    stats = class_stats(shown.counts)
    order = worst_first(stats)
    yield html.paragraph(
        f"Accuracy of {shown.protocol} for each class, the lowest first. A full bar is 100 %. The last column is the most frequent wrong "
        "prediction. per_class.csv lists every protocol.",
        quiet=True,
    )
    untested = [result.classes[one.label] for one in stats if not one.videos]
    if untested:
        more = f" and {len(untested) - MAX_SHOWN:,} more" if len(untested) > MAX_SHOWN else ""
        yield html.paragraph(f"Without a test video: {', '.join(untested[:MAX_SHOWN])}{more}.")
    if len(order) <= 2 * MAX_SHOWN + 2:
        yield _bars(order, result.classes)
        return
    middle = order[MAX_SHOWN:-MAX_SHOWN]
    yield _bars(order[:MAX_SHOWN], result.classes, f"The {MAX_SHOWN} worst")
    yield html.folded(f"The {len(middle):,} classes between them", [_bars(middle, result.classes)])
    yield _bars(order[-MAX_SHOWN:], result.classes, f"The {MAX_SHOWN} best")


def _bars(stats: Sequence[ClassStats], classes: Sequence[str], caption: str = "") -> str:
    rows = [
        (
            classes[one.label],
            f"{one.right / one.videos:.0%} ({one.right:,}/{one.videos:,})",
            "" if one.taken_for is None else f"{classes[one.taken_for]} ({one.times:,})",
        )
        for one in stats
    ]
    accuracies = [one.right / one.videos for one in stats]
    columns = ("class", "right", "most often taken for")
    return html.wrapped(columns, rows, widths=(38, 26, 36), numbers=(1,), bars=accuracies, caption=caption)


def _confusions(result: EvaluationResult, shown: ShownProbe | None) -> Iterator[str]:
    yield html.heading("Confusions")
    if shown is None:
        yield html.paragraph("No protocol scored classes.")
        return
    name = shown.protocol
    alternative = f"Confusion matrix of {len(result.classes):,} classes by {name}; the most frequent confusions are in the table below"
    yield html.figure(
        html.picture("image/png", shown.matrix, alternative, drawn=True),
        f"Rows are true classes, columns are predictions of {name}. The colour is the fraction of the row.",
    )
    found = most_frequent(shown.counts, MAX_CONFUSIONS)
    if not found:
        yield html.paragraph("No test video is taken for another class.")
        return
    rows = [(result.classes[one.label], result.classes[one.guess], f"{one.times:,} of {one.videos:,}") for one in found]
    yield html.wrapped(
        ("class", "taken for", "videos"),
        rows,
        widths=(40, 38, 22),
        numbers=(2,),
        caption="The most frequent confusions, with the number of videos of the true class.",
    )


def _mistakes(section: PictureSection, shown: ShownProbe | None) -> Iterator[str]:
    name = "" if shown is None else f" of the {shown.protocol} probe"
    yield html.heading(f"Most confident mistakes{name}")
    if shown is None or not section.sheets:
        yield html.paragraph(section.absent)
        return
    yield html.paragraph(
        "Test videos whose true class got the lowest probability, at most "
        f"{report_clips.MAX_PER_CLASS} per class, with the probabilities of the true and the predicted class. Frames are from the centre "
        "clip, cut to the square that the encoder sees, in temporal order.",
        quiet=True,
    )
    yield from report_clips.sheets_html(section.sheets, report_clips.NARROW_COLUMNS[report_clips.MAX_FRAMES])


def _neighbours(section: PictureSection) -> Iterator[str]:
    yield html.heading("Nearest neighbours")
    if not section.sheets:
        yield html.paragraph(section.absent)
        return
    yield html.paragraph(
        f"Test videos and the {report_clips.NUM_NEIGHBOURS} train videos with the highest cosine similarity, after subtracting the mean "
        "of train as in retrieval. The test videos are chosen by a fixed rule: classes evenly spread over all, and of each class the "
        "middle video by name. Each video is shown by its middle frame. ✓ and a solid border mark the same class, ✗ and a dashed border "
        "another.",
        quiet=True,
    )
    yield from report_clips.sheets_html(section.sheets, report_clips.NARROW_COLUMNS[1 + report_clips.NUM_NEIGHBOURS])
