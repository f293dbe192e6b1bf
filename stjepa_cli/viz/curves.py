"""The curves of a run: what `metrics.jsonl` says, as charts with words. Reads what is there, whatever wrote it."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from stjepa_cli.viz import html
from stjepa_cli.viz.charts import Point, Series, line_chart, number

Curves = dict[str, tuple[Point, ...]]

NO_CURVES = ("step", "epoch")
LAST_SHARE = 40  # the last figures are means over the last 1/40 of the values, as the bold lines are

HIGH_WAIT = 0.1
LARGEST = 1e30


@dataclass(frozen=True)
class Plan:
    """A chart to draw if there is anything for it.

    Attributes:
        title: over it.
        keys: of `metrics.jsonl`.
        unit: of the values.
        factor: from the value in the file to the unit.
        about: how to read it, below.
        rule: a level to compare with, in the unit, and its name.
        zero: whether the values are read against 0.
    """

    title: str
    keys: tuple[str, ...]
    unit: str = ""
    factor: float = 1.0
    about: str = ""
    rule: tuple[float, str] | None = None
    zero: bool = True


LOSS = Plan(
    "Loss",
    ("loss", "val_loss", "constant_loss", "val_constant_loss"),
    zero=False,
    about="constant_loss is what one constant answer, the mean target of the batch, would cost. Only below it has the student "
    "learned something of the clip at hand. The names that begin with val are those of clips which are not trained on.",
)
PLANS = (
    Plan("Learning rate", ("lr",)),
    Plan("Gradient norm", ("grad_norm",), about="Before clipping. Ever higher spikes come before a loss that is not finite."),
    Plan(
        "Spread of features",
        ("feature_std",),
        about="Of unit features of held-out clips: 1 when they point everywhere, 0 when all point the same way, which is collapse.",
    ),
    Plan(
        "Spread of tokens in a batch",
        ("token_std",),
        about="Mean standard deviation of the student's visible tokens. Towards 0 all of them are the same: collapse.",
    ),
    Plan(
        "Effective rank",
        ("effective_rank",),
        unit="dimensions",
        about="How many directions the features of held-out clips really use. Falling towards 1 is collapse.",
    ),
    Plan(
        "Waiting for data",
        ("data_wait",),
        unit="% of the time",
        factor=100,
        about="Share of a step in which nothing was there to compute on.",
        rule=(100 * HIGH_WAIT, "too high from here"),
    ),
    Plan("Speed", ("clips_per_second",), unit="clips/s"),
    Plan("Use of the processor", ("mfu",), unit="% of its peak", factor=100, about="Model FLOPs utilisation."),
    Plan("Memory", ("memory_gb",), unit="GB"),
    Plan("Time of a step", ("seconds",), unit="s"),
)


def read_metrics(path: Path) -> tuple[Curves, int]:
    """The numbers of a `metrics.jsonl` by name, as (step, value) in order of steps, and how many lines it has.

    A step that was taken twice, before and after a crash, counts as it was taken last. Lines that are cut short, have no step
    or are no objects are left out, and so are values that are no numbers; a missing file is an empty one.
    """
    found: dict[str, dict[int, float]] = defaultdict(dict)
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    for line in lines:
        for step, name, value in _figures(line):
            found[name][step] = value
    return {name: tuple(sorted(values.items())) for name, values in found.items()}, len(lines)


def _figures(line: str) -> Iterator[tuple[int, str, float]]:
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
    """A value that can be drawn: what is beyond all measure counts as infinite."""
    if value != value or abs(value) < LARGEST:
        return float(value) if not abs(value) < 1 / LARGEST else 0.0
    return math.copysign(math.inf, value)


def charts(curves: Mapping[str, tuple[Point, ...]]) -> Iterator[str]:
    """Figures of everything that was measured, the loss first and larger."""
    loss = _chart(LOSS, curves, wide=True)
    if loss:
        yield loss
    known = {key for plan in (LOSS, *PLANS) for key in plan.keys} | set(NO_CURVES)
    others = [Plan(name, (name,), zero=False) for name in sorted(set(curves) - known)]
    small = [chart for plan in (*PLANS, *others) if (chart := _chart(plan, curves))]
    if small:
        yield f'<div class="charts">{"".join(small)}</div>'


def loss_chart(curves: Mapping[str, tuple[Point, ...]]) -> str:
    """The chart of the losses, an `<svg>` element; empty without any."""
    return _draw(LOSS, curves)


def summary(curves: Mapping[str, tuple[Point, ...]]) -> str:
    """What the curves say, in sentences."""
    loss, constant, wait = (recent(curves.get(name, ())) for name in ("loss", "constant_loss", "data_wait"))
    if not curves.get("loss"):
        return "No step has been taken yet: there is nothing to draw."
    if loss is None:
        return "The last losses are not finite: red marks. Go on from an earlier checkpoint with a lower --lr."
    text = f"The loss is {number(loss)} (mean of the last steps)."
    if constant is not None:
        verdict = "the student does better" if loss < constant else "the student does not do better yet"
        text += f" One constant answer to everything would cost {number(constant)}: {verdict}."
    if curves.get("val_loss"):
        text += f" On held-out clips it is {number(curves['val_loss'][-1][1])}."
    if wait is not None and wait > HIGH_WAIT:
        text += f" {wait:.0%} of the time is spent waiting for data: keep frames in the cache (cache build --frames) or add --workers."
    strange = sum(not math.isfinite(value) for _, value in curves["loss"])
    return text + (f" {strange} losses are not finite: red marks." if strange else "")


def recent(points: tuple[Point, ...]) -> float | None:
    """The mean of the last finite values; None if there are none."""
    values = [value for _, value in points[-max(1, len(points) // LAST_SHARE) :] if math.isfinite(value)]
    return sum(values) / len(values) if values else None


def last_values(curves: Mapping[str, tuple[Point, ...]]) -> str:
    """A table of every number: its first and last value, and its extremes."""
    rows = []
    for name in sorted(set(curves) - set(NO_CURVES)):
        points = curves[name]
        finite = [value for _, value in points if math.isfinite(value)]
        extremes = (number(min(finite)), number(max(finite))) if finite else ("-", "-")
        rows.append((name, number(points[-1][1]), *extremes, number(points[0][1]), f"{points[-1][0]:,}", f"{len(points):,}"))
    columns = ("figure", "last", "lowest", "highest", "first", "last step", "values")
    return html.table(columns, rows, caption="As in the file, in its units.")


def _chart(plan: Plan, curves: Mapping[str, tuple[Point, ...]], *, wide: bool = False) -> str:
    svg = _draw(plan, curves)
    return html.figure(svg, plan.about, wide=wide) if svg else ""


def _draw(plan: Plan, curves: Mapping[str, tuple[Point, ...]]) -> str:
    there = [key for key in plan.keys if curves.get(key)]
    series = [Series(key, tuple((step, value * plan.factor) for step, value in curves[key])) for key in there]
    last = max((points[-1][0] for points in curves.values()), default=0)
    return line_chart(plan.title, series, unit=plan.unit, rule=plan.rule, zero=plan.zero, last=last) if series else ""
