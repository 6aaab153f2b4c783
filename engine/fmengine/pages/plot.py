"""Draw plots as SVG: lines and points over two linear axes, in the colours of the page around them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup

from .page import TONES, load_template

WIDTH, HEIGHT = 380, 300  # of a plot, in the pixels that its text is measured in
LEFT, RIGHT, TOP, BOTTOM = 58, 20, 30, 44  # margins around the axes
LEGEND_ROW, LEGEND_COLUMNS = 18, 3
STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)  # between ticks, times a power of ten


@dataclass(frozen=True)
class Axis:
    """An axis.

    Attributes:
        name: what it shows.
        low, high: where it begins and ends; from right to left, or downwards, where the first is the larger.
        form: of the ticks, as `format` takes it.
    """

    name: str
    low: float
    high: float
    form: str = ".0%"

    def place(self, value: float) -> float:
        """Return how far along the axis a value is, 0 to 1."""
        return (value - self.low) / (self.high - self.low)

    def list_ticks(self, most: int = 6) -> list[tuple[float, str]]:
        """List round values within the axis, at most so many, with their texts."""
        low, high = sorted((self.low, self.high))
        least = (high - low) / (most - 1)
        power = 10.0 ** math.floor(math.log10(least))
        step = next(power * times for times in STEPS if power * times >= least * (1 - 1e-9))
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        return [(number * step, format(number * step, self.form)) for number in range(first, last + 1)]


class Point(NamedTuple):
    """A point, its radius in pixels (0 for none), and what is said of it where the pointer rests."""

    x: float
    y: float
    radius: float = 3.5
    text: str = ""


@dataclass(frozen=True)
class Series:
    """Points that belong together, joined by a line or not; `guide` is a thin line to compare with."""

    name: str
    points: Sequence[Point]
    joined: bool = True
    guide: bool = False


@dataclass(frozen=True)
class Plot:
    """A plot of one or more series; with more than one they are named below it."""

    title: str
    x: Axis
    y: Axis
    series: Sequence[Series]

    @property
    def height(self) -> int:
        """Return the height in pixels, with the names of the series."""
        rows = -(-len(self.series) // self._columns) if len(self.series) > 1 else 0
        return HEIGHT + rows * LEGEND_ROW

    def place_x(self, value: float) -> float:
        """Return the pixel of a value from the left."""
        return round(LEFT + self.x.place(value) * (WIDTH - LEFT - RIGHT), 2)

    def place_y(self, value: float) -> float:
        """Return the pixel of a value from above."""
        return round(HEIGHT - BOTTOM - self.y.place(value) * (HEIGHT - TOP - BOTTOM), 2)

    def place_name(self, number: int) -> tuple[float, float]:
        """Return where the name of a series begins."""
        row, column = divmod(number, self._columns)
        return LEFT + column * (WIDTH - LEFT) / self._columns, HEIGHT + 6 + row * LEGEND_ROW

    @property
    def _columns(self) -> int:
        return min(LEGEND_COLUMNS, len(self.series))


def draw_plots(plots: Sequence[Plot]) -> list[Markup]:
    """Draw each plot as an SVG element for a page whose style has `plot.css`."""
    return [Markup(load_template("plot.xml").render(_list_values(plot))) for plot in plots]


def format_svg(plots: Sequence[Plot]) -> str:
    """Format plots, side by side, as an SVG file of its own."""
    values = {"plots": plots, "drawn": draw_plots(plots), "width": WIDTH, "height": max(p.height for p in plots)}
    return load_template("plots.xml").render(values)


def _list_values(plot: Plot) -> dict[str, object]:
    edges = {"left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM}
    return {"plot": plot, "width": WIDTH, "tones": TONES} | edges
