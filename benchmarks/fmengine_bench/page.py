"""Writes an evaluation as one self-contained HTML page with plots."""

import html
import io
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fmengine.engine import Engine
from fmengine.system.files import write_file

from .evaluate import Evaluation, as_text
from .robustness import Robustness

mpl.rcParams["svg.fonttype"] = "none"  # text stays text: it can be searched, and follows the page's font

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
pre { overflow-x: auto; font-size: 0.85rem; }
figure { margin: 1rem 0; overflow-x: auto; background: #fff; border-radius: 8px; }
svg { max-width: 100%; height: auto; }
"""


def write_page(path: Path, engine: Engine, evaluations: list[Evaluation]) -> None:
    """Write the page.

    Raises:
        OutputError: if it cannot be written.
    """
    spec = engine.spec
    title = f"{spec.name}.{spec.precision}"
    about = ", ".join(f"{key} {value}" for key, value in engine.backend.describe().items())
    sections = "".join(
        f"<h2>{html.escape(evaluation.data)}</h2><figure>{plot_evaluation(evaluation)}</figure>"
        f"<pre>{html.escape(as_text(evaluation))}</pre>"
        for evaluation in evaluations
    )
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style>'
        f"<h1>{html.escape(title)}</h1><p>{html.escape(about)}; file sha256 {spec.file_sha256[:12]}…</p>{sections}"
    )
    write_file(path, page)


def plot_evaluation(evaluation: Evaluation) -> str:
    """Plot reliability, coverage, and corruptions if there are any, side by side, as SVG."""
    found = evaluation.robustness
    figure = Figure(figsize=(5 * (3 if found else 2), 4), layout="constrained")
    axes = figure.subplots(1, 3 if found else 2)
    _plot_reliability(axes[0], evaluation)
    _plot_coverage(axes[1], evaluation)
    if found:
        _plot_corruptions(axes[2], found)
    return format_svg(figure)


def format_svg(figure: Figure) -> str:
    """Format a figure as an SVG element for a page."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]  # without the prologue of a file of its own


def _plot_reliability(axes: Axes, evaluation: Evaluation) -> None:
    confidence, accuracy, count = zip(*evaluation.report.reliability, strict=True)
    axes.plot([0.5, 1], [0.5, 1], color="gray", linewidth=1, label="as sure as right")
    axes.scatter(confidence, accuracy, s=[8 + 200 * n / sum(count) for n in count], label="answers, by number")
    axes.set(xlabel="mean confidence", ylabel="accuracy", title=f"calibration error {evaluation.report.ece:.4f}")
    axes.legend()


def _plot_coverage(axes: Axes, evaluation: Evaluation) -> None:
    coverage = evaluation.report.coverage
    axes.plot(list(coverage), list(coverage.values()), marker="o")
    axes.set(xlabel="share answered, the surest", ylabel="accuracy", title="answering only where it is sure")
    axes.invert_xaxis()


def _plot_corruptions(axes: Axes, found: Robustness) -> None:
    for name, row in found.accuracy.items():
        axes.plot([0, *range(1, len(row) + 1)], [found.clean, *row], label=name)
    axes.set(xlabel="severity", ylabel="accuracy", title=f"corrupted: {found.mean:.1%} on average")
    axes.legend(fontsize="small", ncols=2)
