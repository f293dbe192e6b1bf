"""The curves of a run: reads `metrics.jsonl` and draws charts with explanations. Tolerates whatever it finds in that file."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from stjepa_cli.viz import html
from stjepa_cli.viz.charts import Point, Series, line_chart, number

Curves = dict[str, tuple[Point, ...]]

NO_CURVES = ("step", "epoch")
RECENT_DIVISOR = 40  # a recent value is the mean over the last fortieth of a run, as the bold lines are

MAX_WAIT = 0.1
LARGEST = 1e30


@dataclass(frozen=True)
class ChartSpec:
    """A chart that is drawn if the run has values for it.

    Attributes:
        title: Title of the chart.
        keys: Keys of `metrics.jsonl` to draw.
        unit: Unit of the values as drawn.
        factor: Factor from the value in the file to the unit.
        about: How to read the chart, shown below it.
        rule: A reference level, in the unit, and its name.
        zero: Include 0 on the vertical axis.
    """

    title: str
    keys: tuple[str, ...]
    unit: str = ""
    factor: float = 1.0
    about: str = ""
    rule: tuple[float, str] | None = None
    zero: bool = True


LOSS = ChartSpec(
    "Loss",
    ("loss", "val_loss", "constant_loss", "val_constant_loss", "val_position_loss"),
    zero=False,
    about="constant_loss is the loss of answering every token with the mean target of the batch. The student has learned something "
    "about the clip at hand only where its loss is below that. Curves named val_… are measured on held-out clips; val_position_loss is the "
    "loss of answering with the mean target of each position.",
)
SPECS = (
    ChartSpec("Learning rate", ("lr",)),
    ChartSpec("Gradient norm", ("grad_norm",), about="Before clipping. Growing spikes often precede a loss that is not finite."),
    ChartSpec(
        "Spread of features",
        ("feature_std",),
        about="Spread of the unit features of held-out clips: 1 if they point in all directions, 0 if they all point the same way "
        "(collapse).",
    ),
    ChartSpec(
        "Spread of tokens in a batch",
        ("token_std",),
        about="Mean standard deviation of the student's visible tokens. Near 0 they are all the same (collapse).",
    ),
    ChartSpec(
        "Effective rank",
        ("effective_rank",),
        unit="dimensions",
        about="Number of directions that the features of held-out clips use. A fall towards 1 means collapse.",
    ),
    ChartSpec(
        "Waiting for data",
        ("data_wait",),
        unit="% of the time",
        factor=100,
        about="Fraction of the time that training waited for clips.",
        rule=(100 * MAX_WAIT, "too high above this line"),
    ),
    ChartSpec("Speed", ("clips_per_second",), unit="clips/s"),
    ChartSpec("GPU utilisation", ("mfu",), unit="% of its peak", factor=100, about="Model FLOPs utilisation (MFU)."),
    ChartSpec("Memory", ("memory_gb",), unit="GB"),
    ChartSpec("Time per step", ("seconds",), unit="s"),
)


def read_metrics(path: Path) -> tuple[Curves, int]:
    """Read the numbers of a `metrics.jsonl`.

    If a step occurs twice, before and after a crash, its last occurrence counts. Lines that are cut short, have no step or are not
    objects are skipped, and so are values that are not numbers. A missing file counts as empty.

    Returns:
        The curves, (step, value) by ascending step for each name, and the number of lines in the file.
    """
    found: dict[str, dict[int, float]] = defaultdict(dict)
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    for line in lines:
        for step, name, value in _parse(line):
            found[name][step] = value
    return {name: tuple(sorted(values.items())) for name, values in found.items()}, len(lines)


def _parse(line: str) -> Iterator[tuple[int, str, float]]:
    try:
        data = json.loads(line)
        step = data["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return
    if not isinstance(step, int):
        return
    for name, value in data.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= step < 2**53:
            yield step, name, _plain(value)


def _plain(value: float) -> float:
    """Return a value that can be drawn: numbers beyond `LARGEST` count as infinite."""
    if value != value or abs(value) < LARGEST:
        return float(value) if not abs(value) < 1 / LARGEST else 0.0
    return math.inf if value > 0 else -math.inf


def charts(curves: Mapping[str, tuple[Point, ...]]) -> Iterator[str]:
    """Yield charts of everything that was measured, the loss first and larger."""
    loss = _chart(LOSS, curves, wide=True)
    if loss:
        yield loss
    known = {key for spec in (LOSS, *SPECS) for key in spec.keys} | set(NO_CURVES)
    others = [ChartSpec(name, (name,), zero=False) for name in sorted(set(curves) - known)]
    small = [chart for spec in (*SPECS, *others) if (chart := _chart(spec, curves))]
    if small:
        yield f'<div class="charts">{"".join(small)}</div>'


def loss_chart(curves: Mapping[str, tuple[Point, ...]]) -> str:
    """Return the chart of the losses, an `<svg>` element; empty if there are none."""
    return _draw(LOSS, curves)


def overlaid(runs: Mapping[str, Curves]) -> Iterator[str]:
    """Yield a chart for each metric, with a line for each run; the held-out loss first.

    Args:
        runs: Curves of each run by its name.
    """
    keys = {key for found in runs.values() for key in found} - set(NO_CURVES)
    known = [
        replace(spec, title=_title(spec, key), keys=(key,), about="" if len(spec.keys) > 1 else spec.about)
        for spec in (LOSS, *SPECS)
        for key in spec.keys
        if key in keys
    ]
    others = [ChartSpec(key, (key,), zero=False) for key in sorted(keys - {spec.keys[0] for spec in known})]
    last = max((points[-1][0] for found in runs.values() for points in found.values()), default=0)
    first = [spec for spec in known if spec.keys == ("val_loss",)]
    parts = []
    for spec in [*first, *(spec for spec in known if spec not in first), *others]:
        lines = [Series(name, _scaled(found[spec.keys[0]], spec)) for name, found in runs.items() if found.get(spec.keys[0])]
        parts.append(html.figure(line_chart(spec.title, lines, unit=spec.unit, rule=spec.rule, zero=spec.zero, last=last), spec.about))
    if parts:
        yield f'<div class="charts">{"".join(parts)}</div>'


def _title(spec: ChartSpec, key: str) -> str:
    names = {"loss": "Training loss", "val_loss": "Loss on held-out clips", "constant_loss": "Constant answer, training clips"}
    names |= {"val_constant_loss": "Constant answer, held-out clips", "val_position_loss": "Per-position answer, held-out clips"}
    return names.get(key, key if len(spec.keys) > 1 else spec.title)


@dataclass(frozen=True)
class Verdict:
    """Comparison of the student on held-out clips with answers that need no look at the clip.

    Attributes:
        text: The verdict in words.
        good: True if it does, False if it does not; None if no clips were held out.
    """

    text: str
    good: bool | None


def verdict(curves: Mapping[str, tuple[Point, ...]]) -> Verdict:
    """Judge a run by its last validation."""
    loss, constant, position = (_last(curves, name) for name in ("val_loss", "val_constant_loss", "val_position_loss"))
    if loss is None:
        return Verdict("No clips were held out, so it is unknown whether the student predicts clips that it was not trained on.", None)
    rivals = {"a constant answer": constant, "the mean latent of each position": position}
    known = {name: value for name, value in rivals.items() if value is not None}
    text = f"On held-out clips the loss is {number(loss)}"
    if not known:
        return Verdict(f"{text}.", None)
    told = " and ".join(f"{name} has {number(value)}" for name, value in known.items())
    beaten = [name for name, value in known.items() if not loss < value]
    if not math.isfinite(loss) or beaten:
        missed = " and ".join(beaten) if beaten else "anything"
        return Verdict(f"{text}; {told}. The student does not yet do better than {missed}, which needs no look at the clip.", False)
    return Verdict(f"{text}; {told}. The student does better: it has learned something about the clip at hand.", True)


def _last(curves: Mapping[str, tuple[Point, ...]], name: str) -> float | None:
    return curves[name][-1][1] if curves.get(name) else None


def summary(curves: Mapping[str, tuple[Point, ...]]) -> str:
    """Summarise the training curves in a few sentences."""
    loss, constant, wait = (recent(curves.get(name, ())) for name in ("loss", "constant_loss", "data_wait"))
    if not curves.get("loss"):
        return "No step has been taken yet, so there are no curves."
    if loss is None:
        return "The last losses are not finite (red marks). Resume from an earlier checkpoint with a lower --lr."
    text = f"The training loss is {number(loss)} (mean of the last steps)"
    text += f"; a constant answer would have {number(constant)}." if constant is not None else "."
    if wait is not None and wait > MAX_WAIT:
        text += f" {wait:.0%} of the time is spent waiting for data: build the cache with --frames, or raise --workers."
    num_nonfinite = sum(not math.isfinite(value) for _, value in curves["loss"])
    return text + (f" {num_nonfinite} losses are not finite (red marks)." if num_nonfinite else "")


def recent(points: tuple[Point, ...]) -> float | None:
    """Return the mean of the last finite values, or None if there are none."""
    values = [value for _, value in points[-max(1, len(points) // RECENT_DIVISOR) :] if math.isfinite(value)]
    return sum(values) / len(values) if values else None


def last_values(curves: Mapping[str, tuple[Point, ...]]) -> str:
    """Return an HTML table of every metric: its first and last value and its extremes."""
    rows = []
    for name in sorted(set(curves) - set(NO_CURVES)):
        points = curves[name]
        finite = [value for _, value in points if math.isfinite(value)]
        extremes = (number(min(finite)), number(max(finite))) if finite else ("-", "-")
        rows.append((name, number(points[-1][1]), *extremes, number(points[0][1]), f"{points[-1][0]:,}", f"{len(points):,}"))
    columns = ("metric", "last", "lowest", "highest", "first", "last step", "values")
    return html.table(columns, rows, caption="Values as in metrics.jsonl.")


def _chart(spec: ChartSpec, curves: Mapping[str, tuple[Point, ...]], *, wide: bool = False) -> str:
    svg = _draw(spec, curves)
    return html.figure(svg, spec.about, wide=wide) if svg else ""


def _draw(spec: ChartSpec, curves: Mapping[str, tuple[Point, ...]]) -> str:
    present = [key for key in spec.keys if curves.get(key)]
    series = [Series(key, _scaled(curves[key], spec)) for key in present]
    last = max((points[-1][0] for points in curves.values()), default=0)
    return line_chart(spec.title, series, unit=spec.unit, rule=spec.rule, zero=spec.zero, last=last) if series else ""


def _scaled(points: Iterable[Point], spec: ChartSpec) -> tuple[Point, ...]:
    return tuple((step, value * spec.factor) for step, value in points)
