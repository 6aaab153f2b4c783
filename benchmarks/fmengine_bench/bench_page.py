"""A report of `fmengine bench` as one self-contained HTML page with plots."""

import html

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .bench import Report
from .bench_text import as_text
from .page import STYLE, svg_of


def page_of(report: Report) -> str:
    """The page: the verdict above, plots, every figure, and what it was measured on."""
    verdict = report.verdict
    rows = "".join(
        f"<tr><th>{html.escape(key)}</th><td>{html.escape(value)}</td></tr>" for key, value in report.about.items()
    )
    plots = f"<figure>{svg_of(_plots(report))}</figure>" if verdict.passed else ""
    title = f"fmengine bench: {report.about['model']} on {report.about['backend backend']}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}'
        "th { text-align: left; padding-right: 1rem; font-weight: normal; vertical-align: top } "
        "td { overflow-wrap: anywhere }</style>"
        f"<h1>{html.escape(title)}</h1><p><strong>{html.escape(verdict.as_text())}</strong></p>"
        f"{plots}<pre>{html.escape(as_text(report))}</pre><h2>Measured on</h2><table>{rows}</table>"
    )


def _plots(report: Report) -> Figure:
    scored = [c for c in report.contenders if c.accuracy is not None]
    count = 3 + bool(scored)
    figure = Figure(figsize=(5 * min(count, 2), 4 * -(-count // 2)), layout="constrained")
    axes = list(figure.subplots(-(-count // 2), 2).flat)
    _stages(axes[0], report)
    _offline(axes[1], report)
    _server(axes[2], report)
    if scored:
        for c in scored:
            axes[3].scatter(1e3 / c.rate.median, 100 * (c.accuracy or 0))
            axes[3].annotate(
                c.name, (1e3 / c.rate.median, 100 * (c.accuracy or 0)), (5, 5), textcoords="offset points"
            )
        axes[3].set(
            xlabel="milliseconds a picture", ylabel="accuracy, %", title="accuracy against cost", xscale="log"
        )
        axes[3].margins(0.2)
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure


def _stages(axes: Axes, report: Report) -> None:
    assert report.serial
    left = 0.0
    for name, stage in report.serial.stages.items():
        axes.barh(0, stage.mean, left=left, label=name)
        left += stage.mean
    axes.set(xlabel="milliseconds, mean", title="one picture at a time", yticks=[], ylim=(-0.5, 1.2))
    axes.legend(ncols=3, fontsize="small", loc="upper left")


def _offline(axes: Axes, report: Report) -> None:
    batches = list(report.offline)
    rates = list(report.offline.values())
    errors = [[r.median - r.low for r in rates], [r.high - r.median for r in rates]]
    axes.errorbar(batches, [r.median for r in rates], errors, marker="o", capsize=3)
    axes.set(xlabel="batch", ylabel="pictures a second", title="offline, from files", xscale="log", ylim=(0, None))
    axes.set_xticks(batches, [str(batch) for batch in batches])


def _server(axes: Axes, report: Report) -> None:
    assert report.server
    finite = {rate: late for rate, late in sorted(report.server.tried.items()) if late != float("inf")}
    axes.plot(list(finite), list(finite.values()), marker="o")
    axes.axhline(report.server.deadline, color="gray", linewidth=1, label="deadline")
    axes.set(
        xlabel="pictures a second asked for", ylabel="p99, ms", title="server, Poisson arrivals", yscale="log"
    )
    axes.legend()
