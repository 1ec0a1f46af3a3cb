"""Small charts as inline SVG: curves with bands, points with whiskers. Text is escaped; nothing is loaded or run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup

WIDTH, HEIGHT = 420, 360  # of the whole drawing, in its own units; it scales to the page
_LEFT, _TOP, _RIGHT, _BOTTOM = 78, 10, 16, 56  # room for ticks and names of axes
COLOURS = 5
STYLES = ("line", "step", "dashed", "points")


@dataclass(frozen=True, slots=True)
class Axis:
    """name: what it measures, with the unit; low, high: its ends, low < high."""

    name: str
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True, slots=True)
class Series:
    """One curve or set of points.

    points  (x, y) in order of x
    style   line, step (y holds until the next x), dashed, or points
    band    (x, low, high): shaded behind a curve, whiskers of points
    colour  which of the page's colours, 0 to 4; None for grey
    """

    name: str
    points: Sequence[tuple[float, float]]
    style: str = "line"
    band: Sequence[tuple[float, float, float]] = ()
    colour: int | None = 0


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart with its legend. diagonal: a dashed line from corner to corner; note: what to read out of it."""

    title: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    diagonal: bool = False
    note: str = ""


def draw(chart: Chart) -> "Markup":
    """The chart as one <svg>, a picture with a text alternative; what lies outside the axes is cut off."""
    from markupsafe import Markup

    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(shown(chart.title))}: '
        f'{escape(shown(chart.y.name))} against {escape(shown(chart.x.name))}">',
        *_grid(chart),
        # An <svg> within an <svg> cuts off what lies outside it
        f'<svg x="{_LEFT}" y="{_TOP}" width="{_inner()[0]}" height="{_inner()[1]}">',
    ]
    if chart.diagonal:
        parts.append(f'<line class="chance" x1="0" y1="{_inner()[1]}" x2="{_inner()[0]}" y2="0"/>')
    for series in chart.series:
        if series.style != "points":
            parts += _curve(chart, series)
    parts += ["</svg>", f'<g transform="translate({_LEFT} {_TOP})">']  # a point on the frame is drawn whole
    for series in chart.series:
        if series.style == "points":
            parts += _points(chart, series)
    return Markup("\n".join([*parts, "</g>", "</svg>"]))  # every text in it is escaped above


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from low to high, at most `most` of them: steps of 1, 2, 2.5 or 5 times a power of ten."""
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return [low]
    power = 10.0 ** math.floor(math.log10(span / most))
    for step in (power * k for k in (1, 2, 2.5, 5, 10, 20)):
        places = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
        if len(places) <= most:
            break
    return [round(place * step, 12) for place in places]


def shown(text: str) -> str:
    """Text with control characters written out."""
    from .report import visible

    return str(visible(text))


def _grid(chart: Chart) -> list[str]:
    width, height = _inner()
    parts = []
    for value in ticks(chart.x.low, chart.x.high):
        x = _LEFT + _place(chart.x, value) * width
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_TOP + height}"/>')
        parts.append(f'<text x="{x:.1f}" y="{_TOP + height + 20}" text-anchor="middle">{_number(value)}</text>')
    for value in ticks(chart.y.low, chart.y.high):
        y = _TOP + (1 - _place(chart.y, value)) * height
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{_LEFT + width}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 5:.1f}" text-anchor="end">{_number(value)}</text>')
    parts.append(f'<rect class="frame" x="{_LEFT}" y="{_TOP}" width="{width}" height="{height}"/>')
    middle = f'x="{_LEFT + width / 2:.1f}" y="{HEIGHT - 8}" text-anchor="middle"'
    parts.append(f"<text {middle}>{escape(shown(chart.x.name))}</text>")
    turned = f'transform="translate(16 {_TOP + height / 2:.1f}) rotate(-90)" text-anchor="middle"'
    parts.append(f"<text {turned}>{escape(shown(chart.y.name))}</text>")
    return parts


def _curve(chart: Chart, series: Series) -> list[str]:
    colour = _colour(series)
    points = _stepped(series.points) if series.style == "step" else list(series.points)
    parts = []
    if series.band:
        low = [(x, y) for x, y, _ in series.band]
        high = [(x, y) for x, _, y in series.band]
        edges = [_stepped(edge) if series.style == "step" else edge for edge in (low, high)]
        outline = _path(chart, [*edges[0], *reversed(edges[1])])
        parts.append(f'<polygon class="band" points="{outline}" style="fill: {colour}"/>')
    dashes = "; stroke-dasharray: 6 4" if series.style == "dashed" else ""
    parts.append(f'<polyline points="{_path(chart, points)}" style="stroke: {colour}{dashes}"/>')
    return parts


def _points(chart: Chart, series: Series) -> list[str]:
    (width, height), colour = _inner(), _colour(series)
    parts = []
    for x, low, high in series.band:
        middle = _place(chart.x, x) * width
        y1, y2 = ((1 - _place(chart.y, end)) * height for end in (low, high))
        parts.append(
            f'<line x1="{middle:.1f}" y1="{y1:.1f}" x2="{middle:.1f}" y2="{y2:.1f}" style="stroke: {colour}"/>'
        )
    for x, y in series.points:
        at = f'cx="{_place(chart.x, x) * width:.1f}" cy="{(1 - _place(chart.y, y)) * height:.1f}"'
        parts.append(f'<circle {at} r="4" style="fill: {colour}"/>')
    joined = _path(chart, list(series.points))
    return [f'<polyline class="thin" points="{joined}" style="stroke: {colour}"/>', *parts]


def _colour(series: Series) -> str:
    return "var(--quiet)" if series.colour is None else f"var(--c{series.colour % COLOURS})"


def _stepped(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The corners of the steps that hold each y until the next x."""
    corners = list(points[:1])
    for x, y in points[1:]:
        corners += [(x, corners[-1][1]), (x, y)]
    return corners


def _path(chart: Chart, points: Sequence[tuple[float, float]]) -> str:
    width, height = _inner()
    return " ".join(f"{_place(chart.x, x) * width:.1f},{(1 - _place(chart.y, y)) * height:.1f}" for x, y in points)


def _place(axis: Axis, value: float) -> float:
    """Where a value lies on its axis, 0 to 1; far outside it, no further than needed to be cut off."""
    return min(2.0, max(-1.0, (value - axis.low) / (axis.high - axis.low)))


def _inner() -> tuple[int, int]:
    return WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM


def _number(value: float) -> str:
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")
