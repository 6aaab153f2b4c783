"""Formats a report of `fmengine bench` as one self-contained HTML page with plots."""

import html

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .bench import Report
from .bench_text import as_text
from .page import STYLE, format_svg
from .processes import Usage

MAX_NAMED = 16  # processes that there is room for the names of


def format_page(report: Report) -> str:
    """Format the page: the verdict above, plots, every figure, and what it was measured on."""
    verdict = report.verdict
    rows = "".join(
        f"<tr><th>{html.escape(key)}</th><td>{html.escape(value)}</td></tr>" for key, value in report.about.items()
    )
    plots = f"<figure>{format_svg(_plot_report(report))}</figure>" if verdict.passed else ""
    title = f"fmengine bench: {report.about['model']} on {report.about['backend backend']}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}'
        "th { text-align: left; padding-right: 1rem; font-weight: normal; vertical-align: top } "
        "td { overflow-wrap: anywhere }</style>"
        f"<h1>{html.escape(title)}</h1><p><strong>{html.escape(verdict.as_text())}</strong></p>"
        f"{plots}<pre>{html.escape(as_text(report))}</pre><h2>Measured on</h2><table>{rows}</table>"
    )


def _plot_report(report: Report) -> Figure:
    scored = any(c.accuracy for c in report.contenders)
    watched = report.processes is not None
    count = 3 + watched + scored
    figure = Figure(figsize=(5 * min(count, 2), 4 * -(-count // 2)), layout="constrained")
    axes = list(figure.subplots(-(-count // 2), 2).flat)
    _plot_stages(axes[0], report)
    _plot_offline(axes[1], report)
    _plot_server(axes[2], report)
    if report.processes is not None:
        _plot_usage(axes[3], report.processes)
    if scored:
        _plot_accuracies(axes[3 + watched], report)
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure


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
    axes.barh(range(len(names)), [share.median for share in shares], xerr=errors, capsize=3)
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
