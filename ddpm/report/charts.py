"""Charts as inline SVG: their colours come from the page, so that they are dark on a dark one.

A chart is small in its own units, as a phone shows it at about that size: its text is then as large as the page's.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from ddpm.report.metrics import Metric

Value = float | str | None

_WIDTH, _HEIGHT = 360, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 14, 36
_LOG_ABOVE = 8  # values that differ by more than this factor are shown on a logarithmic axis
_AXIS_WIDTH = 118  # of parallel coordinates


@dataclass(frozen=True)
class Curve:
    """A named line of a chart; ``marked``: with a dot at each point."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    marked: bool = True


@dataclass(frozen=True)
class Point:
    """A run in a scatter chart: ``run`` is its number from 0; y with its 95 % interval (value, low, high)."""

    run: int
    name: str
    x: float
    y: tuple[float, float, float]


@dataclass(frozen=True)
class Axis:
    """One of parallel coordinates. values: of each run, None where it has none. measured: a metric, no parameter."""

    name: str
    values: Sequence[Value]
    measured: bool = False


class Scale:
    """Where values stand on an axis from ``start`` to ``end``, in units of the chart; logarithmic where it pays."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, margin: float = 0.06) -> None:
        low, high = min(values), max(values)
        self.log = low > 0 and high > _LOG_ABOVE * low
        low, high = self._inner(low), self._inner(high)
        space = (high - low) * margin if high > low else abs(high) * 0.1 or 1.0
        self.low, self.high, self.start, self.end = low - space, high + space, start, end

    def __call__(self, value: float) -> float:
        """The place of a value."""
        return self.start + (self._inner(value) - self.low) / (self.high - self.low) * (self.end - self.start)

    def _inner(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def ticks(self) -> list[float]:
        """Round values inside of the axis, three to seven of them where there are so many."""
        if self.log:
            decades = range(math.floor(self.low), math.ceil(self.high) + 1)
            for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
                found = [factor * 10.0**decade for decade in decades for factor in factors]
                inside = [value for value in found if self.low <= math.log10(value) <= self.high]
                if len(inside) >= 3:
                    break
            return inside[:: math.ceil(len(inside) / 7)]
        rough = (self.high - self.low) / 4
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [number * step for number in range(first, last + 1)]


def short(value: float) -> str:
    """A number in four significant digits, thousands separated."""
    if isinstance(value, int) or abs(value) >= 1e4:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def line_chart(curves: Sequence[Curve], x_label: str, y_label: str, description: str) -> str:
    """Curves over a common x, which begins at 0."""
    x = Scale([0.0, *(value for curve in curves for value in curve.x)], _LEFT, _WIDTH - _RIGHT, margin=0.02)
    y = Scale([value for curve in curves for value in curve.y], _HEIGHT - _BOTTOM, _TOP)
    parts = [_axes(x, y, x_label, y_label)]
    for number, curve in enumerate(curves):
        places = [(x(a), y(b)) for a, b in zip(curve.x, curve.y, strict=True)]
        parts.append(f'<g class="curve s{number}">{_path(places)}')
        if curve.marked:
            parts += [_dot(*place, f"{curve.name}, {short(b)}") for place, b in zip(places, curve.y, strict=True)]
        parts.append("</g>")
    return _svg(parts, _WIDTH, _HEIGHT, description)


def scatter_chart(points: Sequence[Point], x_label: str, y_label: str, description: str) -> str:
    """Runs as numbered dots with the interval of y as a whisker; the numbers count from 1."""
    x = Scale([point.x for point in points], _LEFT, _WIDTH - _RIGHT, margin=0.12)
    y = Scale([end for point in points for end in point.y], _HEIGHT - _BOTTOM, _TOP)
    parts = [_axes(x, y, x_label, y_label)]
    for point in points:
        value, low, high = point.y
        across, said = x(point.x), f"{point.name}: {short(value)} ({short(low)} to {short(high)}) at {short(point.x)}"
        parts.append(
            f'{_run(point.run)}<path class="whisker" d="M{across:.1f} {y(low):.1f}V{y(high):.1f}"/>'
            f"{_dot(across, y(value), said, 4)}"
            f"{_text(across, y(high) - 4, str(point.run + 1))}</g>"
        )
    return _svg(parts, _WIDTH, _HEIGHT, description)


def parallel_coordinates(axes: Sequence[Axis], names: Sequence[str], description: str) -> str:
    """One vertical axis a parameter or metric, one line a run; a run's line is broken where it lacks a value."""
    top, bottom = 44, _HEIGHT - 14
    frame, lines, ticks, columns = [], [], [], []
    for number, axis in enumerate(axes):
        across = _AXIS_WIDTH * (number + 0.5)
        places, labels = _along(axis.values, bottom, top)
        columns.append([None if value is None else (across, places[value]) for value in axis.values])
        section, _, name = axis.name.rpartition(".")
        frame.append(f'<g class="{"measured" if axis.measured else "given"}"><path class="axis" d="M{across:.1f} {top}')
        frame += [f'V{bottom}"/>', _text(across, 12, section), _text(across, 26, name, "name"), "</g>"]
        ticks += [_text(across + 4, place - 4, label, "tick", "start") for place, label in labels]
    for number, name in enumerate(names):
        path, drawn = "", False
        for place in (column[number] for column in columns):
            path += "" if place is None else f"{'L' if drawn else 'M'}{place[0]:.1f} {place[1]:.1f}"
            drawn = place is not None
        dots = [_dot(*place, name) for column in columns if (place := column[number])]
        title = f"<title>{escape(name)}</title>"
        lines += [f'{_run(number)}<path class="line" d="{path}">{title}</path>', *dots, "</g>"]
    return _svg([*frame, *lines, *ticks], _AXIS_WIDTH * len(axes), _HEIGHT, description)


def whisker(metric: Metric) -> str:
    """A metric's 95 % interval as a bar with its value, and ticks for real images and the floor; "" without one."""
    if metric.interval is None:
        return ""
    others = {"real": metric.real, "floor": metric.floor}
    there = {name: value for name, value in others.items() if value is not None}
    x = Scale([*metric.interval, *there.values()], 4, 156, margin=0.02)
    value, low, high = map(x, metric.interval)
    parts = ['<path class="axis" d="M4 11H156"/>']
    parts += [f'<path class="{name}" d="M{x(place):.1f} 4V18"/>' for name, place in there.items()]
    parts.append(f'<path class="interval" d="M{low:.1f} 11H{high:.1f}"/><circle cx="{value:.1f}" cy="11" r="4"/>')
    said = [f"{short(metric.value)} between {short(metric.interval[1])} and {short(metric.interval[2])}"]
    said += [f"{name} {short(place)}" for name, place in there.items()]
    return _svg(parts, 160, 22, ", ".join(said), "whisker-bar")


def _along(values: Sequence[Value], bottom: float, top: float) -> tuple[Mapping[Value, float], list[tuple[float, str]]]:
    """The place of each value on a vertical axis, and its labels: numbers to scale, other values evenly spaced."""
    there = list(dict.fromkeys(value for value in values if value is not None))
    numbers = [value for value in there if not isinstance(value, str)]
    if numbers and len(numbers) == len(there):
        scale = Scale(numbers, bottom, top)
        ends = sorted({min(numbers), max(numbers)})
        return {value: scale(value) for value in numbers}, [(scale(value), short(value)) for value in ends]
    step = (bottom - top) / max(1, len(there))
    places: dict[Value, float] = {value: bottom - step * (number + 0.5) for number, value in enumerate(there)}
    return places, [(place, str(value)) for value, place in places.items()]


def _axes(x: Scale, y: Scale, x_label: str, y_label: str) -> str:
    left, right, top, bottom = _LEFT, _WIDTH - _RIGHT, _TOP, _HEIGHT - _BOTTOM
    across = [(x(value), short(value)) for value in x.ticks()]
    up = [(y(value), short(value)) for value in y.ticks()]
    middle = (top + bottom) / 2
    return "".join(
        [
            '<g class="axes">',
            *(f'<path class="grid" d="M{place:.1f} {top}V{bottom}"/>' for place, _ in across),
            *(f'<path class="grid" d="M{left} {place:.1f}H{right}"/>' for place, _ in up),
            *(_text(place, bottom + 13, label) for place, label in across),
            *(_text(left - 5, place + 3.5, label, "", "end") for place, label in up),
            _text((left + right) / 2, _HEIGHT - 6, x_label, "name"),
            f'<text class="name" text-anchor="middle" transform="translate(11 {middle:.1f}) rotate(-90)">'
            f"{escape(y_label)}</text></g>",
        ]
    )


def _svg(parts: Sequence[str], width: float, height: float, description: str, kind: str = "chart") -> str:
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f'<svg class="{kind}" {size} role="img" aria-label="{escape(description)}">{"".join(parts)}</svg>'


def _run(number: int) -> str:
    """The beginning of a group that belongs to a run; the page's script finds it by its number."""
    return f'<g class="run" data-run="{number}" style="--run: {number}">'


def _path(places: Sequence[tuple[float, float]]) -> str:
    return f'<path class="line" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in places)}"/>' if places else ""


def _dot(x: float, y: float, title: str, radius: float = 2.5) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}"><title>{escape(title)}</title></circle>'


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "middle") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
