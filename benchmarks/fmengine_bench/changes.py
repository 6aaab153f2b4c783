"""Compares two reports of `fmengine bench`: what changed by more than noise."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmengine.errors import DataError

from .bench import SCHEMA

COMPARABLE = (SCHEMA, "fmengine.bench/4")  # which has no `processes`
NOISE = 0.05  # a change within this share is none, whatever the intervals are
SAME_MACHINE = (
    "cpu", "cores", "governor", "backend backend", "backend threads", "workers", "backend device", "backend driver"
)  # fmt: skip


@dataclass(frozen=True)
class Change:
    """One figure in both reports. `worse` and `better` are beyond noise."""

    name: str
    before: float
    after: float
    better: bool
    worse: bool


def load(path: Path) -> dict[str, Any]:
    """Read a report.

    Raises:
        DataError: if it is none, or of another schema.
    """
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}; expected what `fmengine bench --output` wrote") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema not in COMPARABLE:
        raise DataError(f"{path} has the schema {schema!r}; expected {SCHEMA!r}: measure again with this version")
    if not document["passed"]:
        raise DataError(f"{path} holds no figures: its parity verdict is broken")
    report: dict[str, Any] = document
    return report


def compare_reports(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    """Compare every figure in both; a change has intervals that lie apart, and is over `NOISE`."""
    changes = []
    new = dict(_list_figures(after))
    for name, old in _list_figures(before):
        if name in new:
            changes.append(_compare_figure(name, old, new[name]))
    return changes


def list_differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """List the differences of machine and settings, for which the two may not be comparable."""
    return [
        f"{key}: {before['about'].get(key)} before, {after['about'].get(key)} after"
        for key in SAME_MACHINE
        if before["about"].get(key) != after["about"].get(key)
    ]


# A figure: its value, the ends of its interval, and whether more of it is better.
Measured = tuple[float, float, float, bool]


def _list_figures(document: dict[str, Any]) -> Iterator[tuple[str, Measured]]:
    on_gpu = bool(document["serial"]["device"])
    for batch, rate in document["offline"].items():
        yield f"offline, batch {batch}, pictures/s", _read_median(rate, True)
    yield "server, pictures/s", _read_median(document["server"]["rate"], True)
    for name, row in document["single_stream"].items():
        for head in ("p50", "p99"):
            yield f"single stream, {name}, {head}, ms", _read_percentile(row, head)
    for stage, row in document["serial"]["stages"].items():
        yield f"stage {stage}, p50, ms", _read_percentile(row, "p50")
    for part, row in document["serial"]["device"].items():
        yield f"on the GPU, {part}, p50, ms", _read_percentile(row, "p50")
    for line in document["rooflines"]:
        if on_gpu or line["batch"] > 1:  # on a CPU, single stream has that of one picture
            part = "the network alone" if line["part"] == "network" else line["part"]
            yield f"{part}, batch {line['batch']}, ms", _read_median(line["measured"], False)
    if document["pictures_a_joule"]:
        yield "pictures a joule", _read_median(document["pictures_a_joule"], True)
    for way in document["ways_on_gpu"]:
        yield f"on the GPU, {way['name']}, pictures/s", _read_median(way["rate"], True)
        for batch, time in way["network"].items():
            yield f"on the GPU, {way['name']}, the network alone, batch {batch}, ms", _read_median(time, False)


def _read_median(figure: dict[str, float], more_is_better: bool) -> Measured:
    return figure["median"], figure["low"], figure["high"], more_is_better


def _read_percentile(row: dict[str, Any], head: str) -> Measured:
    low, high = row["intervals"][head]
    return row[head], low, high, False


def _compare_figure(name: str, old: Measured, new: Measured) -> Change:
    (before, low, high, more_is_better), (after, new_low, new_high, _) = old, new
    apart = new_high < low or new_low > high
    beyond = apart and abs(after - before) > NOISE * before
    improved = (after > before) == more_is_better
    return Change(name, before, after, beyond and improved, beyond and not improved)


def as_text(changes: list[Change]) -> str:
    """Format the changes as a table for a terminal."""
    lines = [f"{'':<70}{'before':>12}{'after':>12}{'change':>9}"]
    for c in changes:
        mark = "  WORSE" if c.worse else "  better" if c.better else ""
        share = (c.after - c.before) / c.before if c.before else 0.0
        lines.append(f"{c.name:<70}{c.before:12,.3f}{c.after:12,.3f}{share:+9.1%}{mark}")
    return "\n".join(lines)
