"""Writes an evaluation as an HTML page: figures, plots, and every picture, the surest mistakes first."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fmengine.cli.console import track, warn
from fmengine.engine import Engine
from fmengine.image.faults import as_source_error
from fmengine.jobs.explain import draw_explanation
from fmengine.jobs.report import make_card
from fmengine.jobs.rows import decode_path
from fmengine.jobs.thumbnails import THUMBNAIL, add_thumbnails, encode_thumbnail
from fmengine.pages.cards import Card, write_cards
from fmengine.pages.plot import Axis, Plot, Point, Series, draw_plots, format_svg

from .by_group import GroupReport, list_findings
from .evaluate import Evaluation, as_text
from .metrics import Report
from .robustness import Robustness

LARGEST = 14  # pixels: the radius of a bin that holds every answer


def write_page(path: Path, engine: Engine, evaluations: list[Evaluation], explained: int = 0) -> Path | None:
    """Write the page; result and errors as of `write_cards`.

    Args:
        path: of the page.
        engine: that answered.
        evaluations: to show.
        explained: how many mistakes are shown with what the answer rests on, the surest.
    """
    spec = engine.spec

    def make_values() -> dict[str, Any]:
        return {
            "title": f"{spec.name} {spec.precision}",
            "about": ", ".join(f"{key} {value}" for key, value in engine.backend.describe().items()),
            "sha256": spec.file_sha256,
            "labels": spec.labels,
            "evaluations": [_describe(evaluation) for evaluation in evaluations],
            "total": sum(len(evaluation.rows) for evaluation in evaluations),
            "filters": _list_filters(evaluations),
        }

    return write_cards(path, "evaluation.html", _make_cards(engine, evaluations, explained), make_values)


def format_plots(evaluation: Evaluation) -> str:
    """Format the plots of an evaluation as an SVG file."""
    return format_svg(_make_plots(evaluation))


def _make_cards(engine: Engine, evaluations: list[Evaluation], explained: int) -> Iterator[Card]:
    maps = _draw_maps(engine, evaluations, explained) if explained else {}
    for number, evaluation in enumerate(evaluations):
        for row, jpeg in add_thumbnails(evaluation.rows, engine.limits):
            card = make_card(row, engine.spec.labels) | {"data": number, "expected": row["expected"]}
            card |= {} if row["error"] else {"verdict": "right" if row["right"] else "wrong"}
            yield card | {"image": jpeg, "map": maps.get(row["path"], b"")}


def _draw_maps(engine: Engine, evaluations: list[Evaluation], most: int) -> dict[str, bytes]:
    """Draw what the surest mistakes rest on, as JPEG, by the paths of their rows."""
    rows = [row for evaluation in evaluations for row in evaluation.rows if row["right"] is False]
    rows.sort(key=lambda row: -row["confidence"])
    maps = {}
    for row in track(rows[:most], min(most, len(rows)), "pictures", caption="explaining"):
        try:
            drawn = draw_explanation(engine, decode_path(row), THUMBNAIL)
        except Exception as error:  # it has changed since; its card then says no more than others
            warn(f"{row['path']}: not explained: {as_source_error(error).message}")
            continue
        maps[row["path"]] = encode_thumbnail(drawn)
    return maps


def _describe(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "data": evaluation.data,
        "report": evaluation.report,
        "robustness": evaluation.robustness,
        "failures": evaluation.failures,
        "plots": draw_plots(_make_plots(evaluation)),
        "groups": _describe_groups(evaluation.groups),
        "text": as_text(evaluation),
    }


def _describe_groups(report: GroupReport | None) -> list[dict[str, Any]]:
    if report is None:
        return []
    return [{"column": column, "findings": list_findings(column, report)} for column in report.columns]


def _list_filters(evaluations: list[Evaluation]) -> list[dict[str, Any]]:
    """List a button each for wrong, right and failed pictures, where there are any."""
    failed = sum(len(evaluation.failures) for evaluation in evaluations)
    right = sum(bool(row["right"]) for evaluation in evaluations for row in evaluation.rows)
    wrong = sum(len(evaluation.rows) for evaluation in evaluations) - right - failed
    filters = [
        {"key": "verdict", "value": "wrong", "text": "wrong", "count": wrong, "tone": "tone2"},
        {"key": "verdict", "value": "right", "text": "right", "count": right, "tone": "tone3"},
        {"key": "error", "value": "", "text": "failed", "count": failed, "tone": "aside"},
    ]
    return [filter for filter in filters if filter["count"]]


def _make_plots(evaluation: Evaluation) -> list[Plot]:
    plots = [_plot_reliability(evaluation.report), _plot_coverage(evaluation.report)]
    return plots + ([_plot_corruptions(evaluation.robustness)] if evaluation.robustness else [])


def _plot_reliability(report: Report) -> Plot:
    low = _round_down([1 / len(report.labels)])
    bottom = _round_down([low, *(accuracy for _, accuracy, _ in report.reliability)])
    bins = [
        Point(
            confidence,
            accuracy,
            2 + LARGEST * (count / report.count) ** 0.5,
            f"{count:,} answers: {accuracy:.1%} right at a confidence of {confidence:.1%}",
        )
        for confidence, accuracy, count in report.reliability
    ]
    return Plot(
        f"calibration error {report.ece:.4f}",
        Axis("mean confidence", low, 1),
        Axis("accuracy", bottom, 1),
        [
            Series("answers, by number", bins, joined=False),
            Series("as sure as right", [Point(low, low, 0), Point(1, 1, 0)], guide=True),
        ],
    )


def _plot_coverage(report: Report) -> Plot:
    points = [
        Point(share, accuracy, text=f"{accuracy:.2%} of the surest {share:.0%}")
        for share, accuracy in report.coverage.items()
    ]
    return Plot(
        "answering only where it is sure",
        Axis("share answered, the surest", 1, min(report.coverage)),
        Axis("accuracy", _round_down(report.coverage.values()), 1),
        [Series("accuracy", points)],
    )


def _plot_corruptions(found: Robustness) -> Plot:
    lines = {name: [found.clean, *row] for name, row in found.accuracy.items()}
    return Plot(
        f"corrupted: {found.mean:.1%} on average",
        Axis("severity", 0, max(len(line) for line in lines.values()) - 1, ".0f"),
        Axis("accuracy", _round_down(share for line in lines.values() for share in line), 1),
        [
            Series(name, [Point(n, share, 2.5, f"{name} {n}: {share:.1%}") for n, share in enumerate(line)])
            for name, line in lines.items()
        ],
    )


def _round_down(shares: Iterable[float]) -> float:
    """Round the least of some shares down to a twentieth, and to less than 1: where an axis begins."""
    return min(0.95, math.floor(min(shares) * 20) / 20)
