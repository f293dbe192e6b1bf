"""Line charts as SVG text, with axes, a legend and a text alternative.

Standard library only. Colours are CSS classes, so that one style sheet adapts every chart of a page to dark screens; `as_file`
adds that style sheet to a chart that is to stand alone.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

MAX_POINTS = 1000
WIDTH, PLOT_HEIGHT = 480, 190
LEFT, RIGHT, TOP = 58, 14, 34
LETTER_PX = 7.4  # average width of a letter at 14 px
NUM_COLOURS = 6
MAX_DOTS = 40  # a series of at most this many points also shows each of them as a dot
MIN_TREND_POINTS = 60  # a series of at least this many points gets a running mean over its values

STYLE = """
.chart{--grid:#d9dde3;--ink:#1f2933;--c0:#0b62c4;--c1:#c2410c;--c2:#15803d;--c3:#7c3aed;--c4:#a16207;--c5:#be185d;--bad:#dc2626}
.chart text{font:14px system-ui,sans-serif;fill:var(--ink)}.chart .head{font-weight:600;font-size:15px}
.chart .grid{stroke:var(--grid);stroke-width:1}.chart .rule{stroke:var(--bad);stroke-width:1.5;stroke-dasharray:5 4}
.chart .line{fill:none;stroke-width:2;stroke-linejoin:round}.chart .raw{stroke-width:1;opacity:.35}.chart .bad{fill:var(--bad)}
@media (prefers-color-scheme:dark){
.chart{--grid:#3a424d;--ink:#e4e7eb;--c0:#60a5fa;--c1:#fb923c;--c2:#4ade80;--c3:#c4a5ff;--c4:#facc15;--c5:#f472b6;--bad:#f87171}
}
""" + "".join(f".chart .s{i}{{stroke:var(--c{i})}}.chart .d{i}{{fill:var(--c{i})}}" for i in range(NUM_COLOURS))


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        name: Name in the legend.
        points: Pairs (step, value) by ascending step. A value that is not finite leaves a gap and a mark on the axis.
    """

    name: str
    points: tuple[Point, ...]

    @property
    def finite(self) -> tuple[Point, ...]:
        """The points whose value is finite."""
        return tuple(point for point in self.points if math.isfinite(point[1]))


@dataclass(frozen=True)
class Axis:
    """A range of numbers with its ticks.

    Attributes:
        low: Value at the start.
        high: Value at the end, greater than `low`.
        ticks: Values of the ticks, ascending, between `low` and `high`.
        log: True for a logarithmic axis.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def place(self, value: float) -> float:
        """Return the position of a value, from 0 at `low` to 1 at `high`."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> tuple[Point, ...]:
    """Reduce a series to at most `limit` points, keeping the lowest and the highest of each bucket and a value that is not finite.

    Args:
        points: Pairs (step, value) by ascending step.
        limit: Maximum number of points, at least 5.
    """
    if len(points) <= limit:
        return tuple(points)
    num_buckets = (limit - 2) // 3
    kept = {0, len(points) - 1}
    for bucket in range(num_buckets):
        indices = range(bucket * len(points) // num_buckets, (bucket + 1) * len(points) // num_buckets)
        finite = [i for i in indices if math.isfinite(points[i][1])]
        if finite:
            kept |= {min(finite, key=lambda i: points[i][1]), max(finite, key=lambda i: points[i][1])}
        kept |= set([i for i in indices if not math.isfinite(points[i][1])][:1])
    return tuple(points[i] for i in sorted(kept))


def running_mean(points: Sequence[Point], window: int) -> tuple[Point, ...]:
    """Return, for each point, the mean of the finite values among the `window` points around it (fewer at both ends)."""
    sums, counts = [0.0], [0]
    for _, value in points:
        finite = math.isfinite(value)
        sums.append(sums[-1] + (value if finite else 0.0))
        counts.append(counts[-1] + finite)
    means = []
    for i, (step, _) in enumerate(points):
        first, last = max(0, i - window // 2), min(len(points), i + window // 2 + 1)
        if counts[last] > counts[first]:
            means.append((step, (sums[last] - sums[first]) / (counts[last] - counts[first])))
    return tuple(means)


def axis(values: Sequence[float], *, count: int = 5, zero: bool = False) -> Axis:
    """Choose an axis for finite values, with about `count` ticks at round numbers.

    The axis is logarithmic if all values are positive and the highest exceeds the median a hundredfold, so that a spike does not
    flatten everything else.

    Args:
        values: Values to cover; may be empty.
        count: Approximate number of ticks.
        zero: Include 0, unless the axis is logarithmic.
    """
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if low > 0 and high > 100 * statistics.median(values):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        every = -(-len(powers) // (count + 1))
        return Axis(10.0 ** powers[0], 10.0 ** powers[-1], tuple(10.0**power for power in powers[::every]), log=True)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = abs(low) / 2 or 1.0
        low, high = low - room, high + room
    step = _round_step((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Axis(first * step, last * step, tuple(i * step for i in range(first, last + 1)))


def step_axis(last: float) -> Axis:
    """Return an axis from 0 to exactly the last step."""
    every = _round_step(max(1.0, last / 6))
    return Axis(0.0, max(1.0, last), tuple(i * every for i in range(math.floor(max(1.0, last) / every) + 1)))


def number(value: float) -> str:
    """Format a number for people: 2,604, 0.538, 2e-5."""
    if not math.isfinite(value):
        return str(value)
    if value and abs(value) < 1e-3:
        digits, _, power = f"{value:.2e}".partition("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
    if abs(value) >= 1e7:
        return f"{value:.3g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    text = f"{value:.4g}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def line_chart(
    title: str, series: Sequence[Series], *, unit: str = "", rule: tuple[float, str] | None = None, zero: bool = False, last: float = 0
) -> str:
    """Draw series over training steps.

    Args:
        title: Title of the chart.
        series: Lines to draw; their order decides their colours.
        unit: Unit of the values, shown behind the title.
        rule: A reference level and its name, drawn as a dashed line.
        zero: Include 0 on the vertical axis.
        last: Last step of the whole run, so that all its charts span the same steps.

    Returns:
        An `<svg>` element; the page that it is placed in must hold `STYLE`.
    """
    values = [value for line in series for _, value in line.finite] + ([rule[0]] if rule else [])
    across = step_axis(max([last, *(step for line in series for step, _ in line.points)]))
    up = axis(values, zero=zero)
    entries, rows = _legend([line.name for line in series] + ([rule[1]] if rule else []), TOP + PLOT_HEIGHT + 50)
    height = TOP + PLOT_HEIGHT + 40 + 22 * rows
    about = "; ".join(_words(line) for line in series) or "no values"
    key = re.sub(r"\W+", "-", "-".join([title, *(line.name for line in series)]).lower()).strip("-")
    head = escape(title + (f" ({unit})" if unit else "") + (", log scale" if up.log else ""))
    body = [*_grid(across, up), *(_rule(rule[0], up) if rule else [])]
    for i, line in enumerate(series):
        body += _line(line, across, up, i % NUM_COLOURS)
    body += [_entry(text, x, y, "rule" if rule and i == len(series) else f"s{i % NUM_COLOURS}") for i, (text, x, y) in enumerate(entries)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-labelledby="{key}-title {key}-about"><title id="{key}-title">{head}</title><desc id="{key}-about">{escape(about)}</desc>'
        f'<text class="head" x="8" y="18">{head}</text>{"".join(body)}</svg>'
    )


def as_file(chart: str) -> str:
    """Return a chart as the text of an SVG file of its own, for light and dark screens."""
    return chart.replace(">", f"><style>{STYLE}</style>", 1) + "\n"


def _round_step(rough: float) -> float:
    """Round up to 1, 2, 5 or 10 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _words(line: Series) -> str:
    """Describe a series in a sentence."""
    finite = line.finite
    num_nonfinite = len(line.points) - len(finite)
    if not finite:
        return f"{line.name}: no finite value"
    least, most = min(finite, key=lambda point: point[1]), max(finite, key=lambda point: point[1])
    text = f"{line.name}: {number(finite[0][1])} at step {finite[0][0]:.0f}, {number(finite[-1][1])} at step {finite[-1][0]:.0f}"
    text += f", lowest {number(least[1])} at step {least[0]:.0f}, highest {number(most[1])} at step {most[0]:.0f}"
    return text + (f", {num_nonfinite} values not finite" if num_nonfinite else "")


def _x(fraction: float) -> float:
    return LEFT + fraction * (WIDTH - LEFT - RIGHT)


def _y(fraction: float) -> float:
    return TOP + (1 - fraction) * PLOT_HEIGHT


def _grid(across: Axis, up: Axis) -> Iterator[str]:
    """Yield the lines and numbers of both axes."""
    for tick in up.ticks:
        y = _y(up.place(tick))
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{LEFT - 6}" y="{y + 5:.1f}" text-anchor="end">{_tick(tick, up)}</text>'
    bottom = _y(0)
    for tick in across.ticks:
        x = _x(across.place(tick))
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 5}"/>'
        text = _tick(tick, across)
        inside = min(x, WIDTH - LETTER_PX * len(text) / 2)
        yield f'<text x="{inside:.1f}" y="{bottom + 20}" text-anchor="middle">{text}</text>'
    yield f'<text x="{LEFT - 16}" y="{bottom + 20}" text-anchor="end">step</text>'


def _tick(value: float, on: Axis) -> str:
    """Format the number at a tick, with as many digits as its neighbours need."""
    step = on.ticks[1] - on.ticks[0] if len(on.ticks) > 1 else abs(value) or 1.0
    if value == 0:
        return "0"
    if on.log or not 9e-5 < step < 1e4:
        power = math.floor(math.log10(abs(value)) + 1e-9)
        return number(float(f"{value:.3g}")) if abs(value) < 1e-3 or 0 <= power < 4 else _thousands(value)
    return f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def _thousands(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}" if abs(value) < 1e12 else f"{value:.0e}".replace("e+", "e")
    return f"{value:g}"


def _rule(value: float, up: Axis) -> list[str]:
    y = _y(up.place(value))
    return [f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>']


def _line(line: Series, across: Axis, up: Axis, colour: int) -> Iterator[str]:
    """Draw a series: a running mean if it is long, dots if it is short, and a mark for each value that is not finite."""
    trend = running_mean(line.points, len(line.points) // 40) if len(line.points) >= MIN_TREND_POINTS else ()
    yield f'<path class="line s{colour}{" raw" if trend else ""}" d="{_path(thin(line.points), across, up)}"/>'
    if trend:
        yield f'<path class="line s{colour}" d="{_path(thin(trend), across, up)}"/>'
    if len(line.points) <= MAX_DOTS:
        for step, value in line.finite:
            yield f'<circle class="d{colour}" r="3" cx="{_x(across.place(step)):.1f}" cy="{_y(up.place(value)):.1f}"/>'
    for step, value in thin(line.points):
        if not math.isfinite(value):
            x = _x(across.place(step))
            yield f'<path class="bad" d="M{x - 5:.1f} {TOP}h10l-5 9z"><title>not finite at step {step:.0f}</title></path>'


def _path(points: Sequence[Point], across: Axis, up: Axis) -> str:
    parts, pen = [], "M"
    for step, value in points:
        if not math.isfinite(value):
            pen = "M"
            continue
        parts.append(f"{pen}{_x(across.place(step)):.1f} {_y(up.place(value)):.1f}")
        pen = "L"
    return "".join(parts)


def _legend(names: Sequence[str], y: float) -> tuple[list[tuple[str, float, float]], int]:
    """Lay out the legend: (name, x, y) for each entry, and the number of rows."""
    entries, x, rows = [], float(LEFT), 1
    for name in names:
        shown = name if len(name) <= 48 else name[:47] + "…"
        width = 30 + LETTER_PX * len(shown) + 14
        if x > LEFT and x + width > WIDTH:
            x, rows = float(LEFT), rows + 1
        entries.append((shown, x, y + 22 * (rows - 1)))
        x += width
    return entries, rows if names else 0


def _entry(text: str, x: float, y: float, colour: str) -> str:
    kind = colour if colour == "rule" else f"line {colour}"
    return f'<path class="{kind}" d="M{x:.1f} {y - 5:.1f}h22"/><text x="{x + 28:.1f}" y="{y:.1f}">{escape(text)}</text>'
