"""Compare two reports of `fmengine bench`: what changed, and whether it is more than noise."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmengine.errors import DataError

from .bench import SCHEMA

NOISE = 0.05  # a change within this share is none, whatever the intervals say
SAME_MACHINE = (
    "cpu", "cores", "governor", "backend backend", "backend threads", "backend device", "backend driver"
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
    if schema != SCHEMA:
        raise DataError(f"{path} has the schema {schema!r}; expected {SCHEMA!r}: measure again with this version")
    if not document["passed"]:
        raise DataError(f"{path} holds no figures: its parity verdict is broken")
    report: dict[str, Any] = document
    return report


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    """Compare every figure in both; it changed where intervals lie apart, and values by more than `NOISE`."""
    changes = []
    theirs = dict(_figures(after))
    for name, old in _figures(before):
        if name in theirs:
            changes.append(_change(name, old, theirs[name]))
    return changes


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """List why the two may not be comparable at all."""
    return [
        f"{key}: {before['about'].get(key)} before, {after['about'].get(key)} after"
        for key in SAME_MACHINE
        if before["about"].get(key) != after["about"].get(key)
    ]


# A figure: its value, the ends of its interval, and whether more of it is better.
Known = tuple[float, float, float, bool]


def _figures(document: dict[str, Any]) -> Iterator[tuple[str, Known]]:
    on_gpu = bool(document["serial"]["device"])
    for batch, rate in document["offline"].items():
        yield f"offline, batch {batch}, pictures/s", _known(rate, True)
    yield "server, pictures/s", _known(document["server"]["rate"], True)
    for name, row in document["single_stream"].items():
        for head in ("p50", "p99"):
            yield f"single stream, {name}, {head}, ms", _percentile(row, head)
    for stage, row in document["serial"]["stages"].items():
        yield f"stage {stage}, p50, ms", _percentile(row, "p50")
    for part, row in document["serial"]["device"].items():
        yield f"on the GPU, {part}, p50, ms", _percentile(row, "p50")
    for line in document["rooflines"]:
        if on_gpu or line["batch"] > 1:  # on a CPU, single stream has that of one picture
            yield f"the network alone, batch {line['batch']}, ms", _known(line["measured"], False)
    if document["pictures_a_joule"]:
        yield "pictures a joule", _known(document["pictures_a_joule"], True)
    for way in document["ways_on_gpu"]:
        yield f"on the GPU, {way['name']}, pictures/s", _known(way["rate"], True)
        for batch, time in way["network"].items():
            yield f"on the GPU, {way['name']}, the network alone, batch {batch}, ms", _known(time, False)


def _known(figure: dict[str, float], more_is_better: bool) -> Known:
    return figure["median"], figure["low"], figure["high"], more_is_better


def _percentile(row: dict[str, Any], head: str) -> Known:
    low, high = row["intervals"][head]
    return row[head], low, high, False


def _change(name: str, old: Known, new: Known) -> Change:
    (before, low, high, more_is_better), (after, new_low, new_high, _) = old, new
    apart = new_high < low or new_low > high
    beyond = apart and abs(after - before) > NOISE * before
    improved = (after > before) == more_is_better
    return Change(name, before, after, beyond and improved, beyond and not improved)


def as_text(changes: list[Change]) -> str:
    """Format changes as a table for a terminal."""
    lines = [f"{'':<70}{'before':>12}{'after':>12}{'change':>9}"]
    for c in changes:
        mark = "  WORSE" if c.worse else "  better" if c.better else ""
        share = (c.after - c.before) / c.before if c.before else 0.0
        lines.append(f"{c.name:<70}{c.before:12,.3f}{c.after:12,.3f}{share:+9.1%}{mark}")
    return "\n".join(lines)
