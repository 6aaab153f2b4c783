"""Formats a report of `fmengine bench` as one self-contained HTML page with plots."""

import io
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
from cycler import cycler
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fmengine.pages.page import TONES, load_template

from .bench import Report
from .bench_text import as_text
from .processes import Usage

MAX_NAMED = 16  # processes that there is room for the names of
# Colours that stand for those of the page, which are others in the dark.
COLORS = {"#010101": "var(--ink)", "#020202": "var(--line)"} | {f"#03030{n}": f"var(--t{n})" for n in range(TONES)}
INK, LINE, *CYCLE = COLORS
LOOK: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, that can be searched
    "axes.prop_cycle": cycler(color=CYCLE),
    "axes.edgecolor": LINE,
    "legend.frameon": False,
} | dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK)


def format_page(report: Report) -> str:
    """Format the page: the verdict above, plots, every figure, and what it was measured on."""
    return load_template("bench.html").render(
        title=f"fmengine bench: {report.about['model']} on {report.about['backend backend']}",
        passed=report.verdict.passed,
        verdict=report.verdict.as_text(),
        warnings=report.warnings,
        plots=_draw_plots(report) if report.verdict.passed else [],
        text=as_text(report),
        about=report.about,
    )


def draw_plot(draw: Callable[[Axes], None]) -> Markup:
    """Draw a plot as an SVG element, in the colours of the page."""
    with mpl.rc_context(LOOK):
        figure = Figure(figsize=(5, 4), layout="constrained")
        draw(figure.subplots())
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]  # without the prologue of a file of its own
    for color, variable in COLORS.items():
        svg = svg.replace(color, variable)
    return Markup(svg)  # matplotlib escapes its texts


def _draw_plots(report: Report) -> list[Markup]:
    found: list[Callable[[Axes], None]] = [
        lambda axes: _plot_stages(axes, report),
        lambda axes: _plot_offline(axes, report),
        lambda axes: _plot_server(axes, report),
    ]
    if (usage := report.processes) is not None:
        found.append(lambda axes: _plot_usage(axes, usage))
    if any(contender.accuracy for contender in report.contenders):
        found.append(lambda axes: _plot_accuracies(axes, report))
    return [draw_plot(draw) for draw in found]


def _plot_stages(axes: Axes, report: Report) -> None:
    assert report.serial
    left = 0.0
    for name, stage in report.serial.stages.items():
        axes.barh(0, stage.mean, left=left, label=name)
        left += stage.mean
    axes.set(xlabel="milliseconds, mean", title="one picture at a time", yticks=[], ylim=(-0.5, 1.2))
    axes.legend(ncols=3, fontsize="small", loc="upper left")


def _plot_offline(axes: Axes, report: Report) -> None:
    batches = list(report.offline)
    rates = list(report.offline.values())
    errors = _compute_errors([(r.median, r.low, r.high) for r in rates])
    axes.errorbar(batches, [r.median for r in rates], errors, marker="o", capsize=3)
    axes.set(xlabel="batch", ylabel="pictures a second", title="offline, from files", xscale="log", ylim=(0, None))
    axes.set_xticks(batches, [str(batch) for batch in batches])


def _plot_server(axes: Axes, report: Report) -> None:
    assert report.server
    finite = [(rate, late) for rate, late in report.server.tried if late != float("inf")]
    axes.plot([rate for rate, _ in finite], [late for _, late in finite], "o", markersize=4, label="tried")
    axes.axhline(report.server.deadline, color="gray", linewidth=1, label="deadline")
    if found := report.server.rate.median:
        axes.axvspan(report.server.rate.low, report.server.rate.high, alpha=0.2, label=f"{found:,.0f} pictures/s")
    axes.set(xlabel="pictures a second sent", ylabel="p99, ms", title="server, Poisson arrivals", yscale="log")
    axes.legend()


def _plot_usage(axes: Axes, usage: Usage) -> None:
    names, shares = list(usage.shares), list(usage.shares.values())
    errors = _compute_errors([(share.median, share.low, share.high) for share in shares])
    axes.barh(range(len(names)), [share.median for share in shares], xerr=errors, capsize=3, ecolor=INK)
    axes.axvline(1, color="gray", linewidth=1)
    axes.invert_yaxis()
    title = f"CPU of each process, batch {usage.batch}: {usage.held_by}-bound"
    axes.set(xlabel="of a core", title=title, xlim=(0, None))
    step = -(-len(names) // MAX_NAMED)
    axes.set_yticks(range(0, len(names), step), names[::step], fontsize="small")


def _plot_accuracies(axes: Axes, report: Report) -> None:
    for c in report.contenders:
        if c.accuracy is None:
            continue
        cost, right = 1e3 / c.rate.median, 100 * c.accuracy.share
        across = _compute_errors([(cost, 1e3 / c.rate.high, 1e3 / c.rate.low)])
        up = _compute_errors([(right, 100 * c.accuracy.low, 100 * c.accuracy.high)])
        axes.errorbar(cost, right, up, across, marker="o", capsize=3)
        axes.annotate(c.name, (cost, right), (5, 5), textcoords="offset points")
    axes.set(xlabel="milliseconds a picture", ylabel="accuracy, %", title="accuracy against cost", xscale="log")
    axes.margins(0.2)


def _compute_errors(figures: list[tuple[float, float, float]]) -> list[list[float]]:
    """Compute how far below and above each value its interval reaches; matplotlib takes no value below 0."""
    below = [max(0.0, value - low) for value, low, _ in figures]
    return [below, [max(0.0, high - value) for value, _, high in figures]]
