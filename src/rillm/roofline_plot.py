"""The roofline of a benchmark as SVG, alone or in an HTML page. No library: a board has none.

x: multiply-accumulates for each byte of weights read, which grows with the tokens of a step;
y: multiply-accumulates per second. Under the roof, left is bound by memory, right by multiplying.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from rillm.bench import BenchResult
from rillm.errors import RillmError

SUFFIXES = (".html", ".svg")
_WIDTH, _HEIGHT, _MARGIN = 860, 520, 70
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#222}.grid{stroke:#ddd}.roof{fill:none;"
    "stroke:#b33;stroke-width:2}.point{fill:#1565c0}.axis{font-weight:600}"
)


class _Axes:
    """Logarithmic axes that hold all of the points and the knee of the roof."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float]) -> None:
        self.x0, self.x1 = math.floor(math.log10(min(xs))), math.ceil(math.log10(max(xs)))
        self.y0, self.y1 = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
        self.x1, self.y1 = max(self.x1, self.x0 + 1), max(self.y1, self.y0 + 1)

    def x(self, value: float) -> float:
        share = (math.log10(value) - self.x0) / (self.x1 - self.x0)
        return _MARGIN + share * (_WIDTH - 2 * _MARGIN)

    def y(self, value: float) -> float:
        share = (math.log10(value) - self.y0) / (self.y1 - self.y0)
        return _HEIGHT - _MARGIN - share * (_HEIGHT - 2 * _MARGIN)


def roofline_svg(results: Sequence[BenchResult]) -> str:
    """One SVG element with the roof of each thread count and a point for each result."""
    roofs = {r.num_threads: (r.bandwidth, r.multiply_peak) for r in results}
    points = [(r.intensity, r.tokens_per_second * r.macs_per_token, r) for r in results]
    knees = [peak / bandwidth for bandwidth, peak in roofs.values()]
    xs = [x for x, _, _ in points] + [2 * max(knees), 0.5 * min(knees)]
    axes = _Axes(xs, [y for _, y, _ in points] + [peak for _, peak in roofs.values()])
    low_x, high_x = 10.0**axes.x0, 10.0**axes.x1
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'role="img" aria-label="roofline"><style>{_STYLE}</style>'
    ]
    for power in range(axes.x0, axes.x1 + 1):
        x = axes.x(10.0**power)
        parts.append(_line(x, _MARGIN, x, _HEIGHT - _MARGIN, "grid"))
        parts.append(_text(x, _HEIGHT - _MARGIN + 18, f"{10.0**power:g}", "middle"))
    for power in range(axes.y0, axes.y1 + 1):
        y = axes.y(10.0**power)
        parts.append(_line(_MARGIN, y, _WIDTH - _MARGIN, y, "grid"))
        parts.append(_text(_MARGIN - 8, y + 4, f"{10.0 ** (power - 9):g}", "end"))
    for threads, (bandwidth, peak) in roofs.items():
        left = max(low_x, 10.0**axes.y0 / bandwidth)
        corners = [(left, bandwidth * left), (peak / bandwidth, peak), (high_x, peak)]
        path = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in corners)
        parts.append(f'<polyline class="roof" points="{path}"/>')
        label = f"{threads} threads: {bandwidth / 1e9:.1f} GB/s, {peak / 1e9:.0f} GMAC/s"
        parts.append(_text(axes.x(high_x) - 4, axes.y(peak) - 6, label, "end"))
    for x, y, result in points:
        parts.append(f'<circle class="point" cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="4"/>')
        label = f"{result.test} t{result.num_threads}: {result.tokens_per_second:.1f} t/s"
        parts.append(_text(axes.x(x) + 7, axes.y(y) + 14, label, "start"))
    first = results[0]
    title = f"{first.model} on {first.cpu}, {first.variant}"
    parts.append(_text(_WIDTH / 2, 30, title, "middle", "axis"))
    middle = _HEIGHT / 2
    parts.append(_text(_WIDTH / 2, _HEIGHT - 20, "MAC / byte of weights", "middle", "axis"))
    parts.append(
        f'<text class="axis" text-anchor="middle" transform="translate(18 {middle}) '
        'rotate(-90)">GMAC/s</text></svg>'
    )
    return "\n".join(parts) + "\n"


def write_plot(results: Sequence[BenchResult], path: Path) -> None:
    """Writes the roofline to an .html or .svg file. Raises RillmError for another suffix."""
    if path.suffix.lower() not in SUFFIXES:
        raise RillmError(f"{path}: a plot is written as {' or '.join(SUFFIXES)}")
    svg = roofline_svg(results)
    if path.suffix.lower() == ".html":
        svg = f'<!doctype html><meta charset="utf-8"><title>rillm bench</title>\n{svg}'
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(svg, encoding="utf-8")
    temporary.replace(path)


def _line(x0: float, y0: float, x1: float, y1: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    name = f' class="{kind}"' if kind else ""
    return f'<text{name} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
