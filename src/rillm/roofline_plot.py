"""The roofline of a benchmark, drawn as SVG, alone or in an HTML page, or as a PNG picture.

x: multiply-accumulates for each byte of weights read, which grows with the tokens of a step;
y: multiply-accumulates per second. Under the roof, left is bound by memory, right by multiplying.
SVG and HTML need no library, since a board has none; PNG needs Pillow (`rillm[plot]`).
"""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal

from rillm.bench import BenchResult
from rillm.errors import RillmError

SUFFIXES = (".html", ".svg", ".png")
_WIDTH, _HEIGHT, _MARGIN = 860, 520, 70
_FONT_SIZE, _SCALE = 13, 2  # SVG units (pixels of the page), and pixels of a PNG for one
_GRID, _ROOF, _POINT, _INK = "#dddddd", "#bb3333", "#1565c0", "#222222"

_Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True)
class _Path:
    """A line through points, in units of the drawing from its upper left corner."""

    points: list[tuple[float, float]]
    color: str
    width: int = 1


@dataclass(frozen=True)
class _Dot:
    x: float
    y: float
    radius: int = 4


@dataclass(frozen=True)
class _Text:
    """`y` is the baseline. `upright`: turned, to be read from the right."""

    x: float
    y: float
    text: str
    anchor: _Anchor
    upright: bool = False


_Shape = _Path | _Dot | _Text


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

    def grid(self) -> Iterator[_Shape]:
        for power in range(self.x0, self.x1 + 1):
            x = self.x(10.0**power)
            yield _Path([(x, _MARGIN), (x, _HEIGHT - _MARGIN)], _GRID)
            yield _Text(x, _HEIGHT - _MARGIN + 18, f"{10.0**power:g}", "middle")
        for power in range(self.y0, self.y1 + 1):
            y = self.y(10.0**power)
            yield _Path([(_MARGIN, y), (_WIDTH - _MARGIN, y)], _GRID)
            yield _Text(_MARGIN - 8, y + 4, f"{10.0 ** (power - 9):g}", "end")


def _shapes(results: Sequence[BenchResult]) -> Iterator[_Shape]:
    """The roof of each thread count and a point for each result."""
    roofs = {r.num_threads: (r.bandwidth, r.multiply_peak) for r in results}
    points = [(r.intensity, r.tokens_per_second * r.macs_per_token, r) for r in results]
    knees = [peak / bandwidth for bandwidth, peak in roofs.values()]
    xs = [x for x, _, _ in points] + [2 * max(knees), 0.5 * min(knees)]
    axes = _Axes(xs, [y for _, y, _ in points] + [peak for _, peak in roofs.values()])
    low_x, high_x = 10.0**axes.x0, 10.0**axes.x1
    yield from axes.grid()
    for threads, (bandwidth, peak) in roofs.items():
        left = max(low_x, 10.0**axes.y0 / bandwidth)
        corners = [(left, bandwidth * left), (peak / bandwidth, peak), (high_x, peak)]
        yield _Path([(axes.x(x), axes.y(y)) for x, y in corners], _ROOF, width=2)
        name = f"{threads} threads" if threads > 1 else "1 thread"
        label = f"{name}: {bandwidth / 1e9:.1f} GB/s, {peak / 1e9:.0f} GMAC/s"
        yield _Text(axes.x(high_x) - 4, axes.y(peak) - 6, label, "end")
    lowest: dict[bool, float] = {}  # baseline of the last label on either side of its point
    for x, y, result in sorted(points, key=lambda point: -point[1]):
        place = axes.x(x), axes.y(y)
        yield _Dot(*place)
        label = f"{result.test} t{result.num_threads}: {result.tokens_per_second:.1f} t/s"
        is_right = place[0] > 0.7 * _WIDTH
        baseline = max(place[1] + 14, lowest.get(is_right, 0.0) + 1.2 * _FONT_SIZE)
        lowest[is_right] = baseline
        yield _Text(place[0] + (-7 if is_right else 7), baseline, label, ("start", "end")[is_right])
    first = results[0]
    yield _Text(_WIDTH / 2, 30, f"{first.model} on {first.cpu}, {first.variant}", "middle")
    yield _Text(_WIDTH / 2, _HEIGHT - 20, "MAC / byte of weights", "middle")
    yield _Text(18, _HEIGHT / 2, "GMAC/s", "middle", upright=True)


def roofline_svg(results: Sequence[BenchResult]) -> str:
    """One SVG element."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="roofline" font-family="system-ui,sans-serif" font-size="{_FONT_SIZE}">'
    )
    return "\n".join([head, *map(_svg_element, _shapes(results)), "</svg>"]) + "\n"


def _svg_element(shape: _Shape) -> str:
    match shape:
        case _Path(points, color, width):
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            style = f'fill="none" stroke="{color}" stroke-width="{width}"'
            return f'<polyline points="{path}" {style}/>'
        case _Dot(x, y, radius):
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{_POINT}"/>'
        case _Text(x, y, text, anchor, upright):
            place = f"translate({x:.1f} {y:.1f}){' rotate(-90)' if upright else ''}"
            style = f'transform="{place}" text-anchor="{anchor}" fill="{_INK}"'
            return f"<text {style}>{escape(text)}</text>"


def roofline_png(results: Sequence[BenchResult]) -> bytes:
    """A PNG file, on white; needs Pillow."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (_WIDTH * _SCALE, _HEIGHT * _SCALE), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(_FONT_SIZE * _SCALE)
    places = {"start": "ls", "middle": "ms", "end": "rs"}  # Pillow's; s: on the baseline
    for shape in _shapes(results):
        match shape:
            case _Path(points, color, width):
                scaled = [(_SCALE * x, _SCALE * y) for x, y in points]
                draw.line(scaled, color, width * _SCALE)
            case _Dot(x, y, radius):
                draw.circle((_SCALE * x, _SCALE * y), _SCALE * radius, _POINT)
            case _Text(x, y, text, anchor, upright=False):
                draw.text((_SCALE * x, _SCALE * y), text, _INK, font, places[anchor])
            case _Text(x, y, text):
                width, height = int(font.getlength(text)) + 1, 2 * _FONT_SIZE * _SCALE
                turned = Image.new("RGB", (width, height), "white")
                line = ImageDraw.Draw(turned)
                line.text((0, height - _FONT_SIZE), text, _INK, font, "ls")
                turned = turned.rotate(90, expand=True)
                corner = (int(_SCALE * x) - height + _FONT_SIZE, int(_SCALE * y) - width // 2)
                image.paste(turned, corner)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def check_plot_path(path: Path) -> None:
    """RillmError if a plot of this name cannot be written here."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise RillmError(f"{path}: a plot is written as {', '.join(SUFFIXES)}")
    if suffix == ".png" and importlib.util.find_spec("PIL") is None:
        raise RillmError(
            f"{path}: a PNG needs Pillow: pip install 'rillm[plot]', or name it .svg or .html"
        )


def write_plot(results: Sequence[BenchResult], path: Path) -> None:
    """Writes the roofline in the form that the suffix names. RillmError for another one."""
    check_plot_path(path)
    suffix = path.suffix.lower()
    if suffix == ".png":
        content = roofline_png(results)
    else:
        text = roofline_svg(results)
        if suffix == ".html":
            text = f'<!doctype html><meta charset="utf-8"><title>rillm bench</title>\n{text}'
        content = text.encode()
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(content)
    temporary.replace(path)
