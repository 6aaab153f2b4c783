"""Formats a report of `fmengine bench` as tables for a terminal."""

from .bench import Report
from .contenders import Contender
from .metrics import Accuracy
from .on_gpu import BatchParts, Way
from .processes import WORKER, Usage
from .scenarios import LOWEST
from .stages import Overlapped
from .timing import Figure, Summary

MAX_LISTED = 8  # workers, each in a line of its own


def as_text(report: Report) -> str:
    """Format the verdict, and below it every figure with its 95 % interval in brackets."""
    lines = [report.verdict.as_text(), *(f"warning: {warning}" for warning in report.warnings)]
    if not report.verdict.passed:
        return "\n".join([*lines, "no figures: a backend whose answers differ gets none"])
    about = report.about
    lines += [f"{about['model']} on {about['backend backend']}, {about['cpu']}, {about['cores']} cores"]
    if found := report.accuracy:
        lines.append(f"accuracy: {_format_accuracy(found)} of {found.count} pictures with a label")
    assert report.serial
    assert report.overlapped
    assert report.server
    stages = report.serial.stages | {"whole": report.serial.whole}
    lines += ["", *_format_latencies("stages, one picture at a time", stages)]
    verdict = "agree with" if report.serial.agrees else "DIFFER BY MORE THAN 5 % FROM"
    lines.append(f"the stages add up to {_format(report.serial.share, '.1%')} of the whole: they {verdict} it")
    if report.serial.device:
        lines += ["", *_format_latencies("on the GPU, by its events", report.serial.device)]
    if report.parts_on_gpu:
        lines += ["", *_format_parts(report.parts_on_gpu)]
    if report.ways_on_gpu:
        lines += ["", *_format_ways(report.ways_on_gpu)]
    lines += ["", *_format_overlapped(report.overlapped)]
    lines += ["", *_format_latencies("single stream", report.single_stream), "", "offline, from files"]
    lines += [
        f"  batch {batch:<6}{_format(rate, ',.0f', 10)} pictures/s" for batch, rate in report.offline.items()
    ]
    lines += _format_usage(report.processes)
    rate = _format(report.server.rate, ",.0f") if report.server.rate.median else f"under {LOWEST:,.0f}"
    lines.append(f"server: {rate} pictures/s, Poisson, with 99 % within {report.server.deadline:g} ms")
    lines += ["", *_format_limit(report)]
    if report.contenders:
        lines += ["", *_format_contenders(report.contenders)]
        lines += [f"  {name} failed: {why}" for name, why in report.failed.items()]
    return "\n".join(lines)


def _format(figure: Figure, form: str, width: int = 0) -> str:
    return f"{format(figure.median, form):>{width}} [{figure.low:{form}}, {figure.high:{form}}]"


def _format_accuracy(found: Accuracy) -> str:
    return f"{found.share:.1%} [{found.low:.1%}, {found.high:.1%}]"


def _format_latencies(title: str, rows: dict[str, Summary]) -> list[str]:
    heads = ("min", "mean", "p50", "p90", "p95", "p99", "max")
    lines = [f"{title + ', ms':<38}" + "".join(f"{head:>9}" for head in heads) + f"{'p50 in':>18}{'p99 in':>18}"]
    for name, row in rows.items():
        values = "".join(f"{getattr(row, head):9.3f}" for head in heads)
        intervals = ["[{:.3f}, {:.3f}]".format(*row.intervals[head]) for head in ("p50", "p99")]
        lines.append(f"  {name:<36}{values}" + "".join(f"{interval:>18}" for interval in intervals))
    return lines


def _format_overlapped(measured: Overlapped) -> list[str]:
    lines = [f"overlapped: {measured.pictures} pictures in {_format(measured.wall, '.3f')} s"]
    for stage, busy in measured.busy.items():
        hidden = measured.hidden.get(stage)
        behind = f"{_format(hidden, '.0%', 7)} of it behind infer" if hidden else ""
        lines.append(f"  {stage:<12}{_format(busy, '.3f', 8)} s of threads{behind}")
    return lines


def _format_usage(usage: Usage | None) -> list[str]:
    if usage is None:
        return ["  what each process takes: this system does not say"]
    lines = [f"  {f'at batch {usage.batch}':<22}{'of a core':>12}{'memory':>20}"]
    workers = [name for name in usage.shares if name.startswith(WORKER)]
    for name, share in usage.shares.items():
        if name in workers and len(workers) > MAX_LISTED and name not in usage.memory:
            continue
        memory = f"{usage.memory[name] / 1e6:,.0f} MB" if name in usage.memory else ""
        lines.append(f"    {name:<18}{_format(share, '.0%', 8):<24}{memory:>12}".rstrip())
    if len(workers) > MAX_LISTED:
        medians = [usage.shares[name].median for name in workers]
        lines.append(f"    all {len(workers)} workers: {min(medians):.0%} to {max(medians):.0%}")
    idle, disk_wait = usage.idle.median, usage.disk_wait.median
    lines.append(f"    of {usage.cores} cores {idle:.2f} are idle, {disk_wait:.2f} of them for want of the disk")
    if usage.disk_read is not None:
        lines.append(f"    {usage.disk_read.median / 1e6:.1f} MB/s come from the disk, the rest from memory")
    return lines


def _format_limit(report: Report) -> list[str]:
    assert report.work
    work, on_gpu = report.work, bool(report.serial and report.serial.device)
    lines = [f"a picture: {work.operations / 1e6:.0f} million operations, {work.weights / 1e6:.2f} MB of weights"]
    if peak := report.peak:
        rates = ", ".join(f"{rate.best:,.0f} {name.upper()}" for name, rate in peak.operations.items())
        upload = f", {peak.upload.best:.1f} GB/s from the host" if peak.upload else ""
        lines.append(f"this machine: {rates} GOP/s, {peak.copy.best:.1f} GB/s copied{upload}")
    else:
        lines.append("this GPU's peak: not measured; PyTorch is missing, does not see it, or has no room on it")
    lines += [
        f"  {r.part}, batch {r.batch}: {_format(r.measured, '.3f')} ms, {_format(r.share, '.0%')} of the roofline "
        f"({r.bound}-bound)"
        for r in report.rooflines
    ]
    if report.pictures_a_joule is None:
        lines.append("energy: this machine has no counter that can be read")
    else:
        counter = "the GPU, NVML" if on_gpu else "packages, RAPL"
        lines.append(f"energy: {_format(report.pictures_a_joule, ',.0f')} pictures a second a watt ({counter})")
    return [*lines, *(f"what holds it back: {words}" for words in report.holds_back)]


def _format_contenders(contenders: list[Contender]) -> list[str]:
    lines = [
        f"{'the same pictures, in turn':<28}{'pictures/s':>12}{'95 % interval':>20}{'ours is':>10}{'right':>24}"
    ]
    for c in contenders:
        right = "not known" if c.accuracy is None else _format_accuracy(c.accuracy)
        interval = f"[{c.rate.low:,.0f}, {c.rate.high:,.0f}]"
        times = "" if c.times is None else f"{c.times.median:.1f} ×"
        unread = f"; {c.unread} pictures it cannot read" if c.unread else ""
        lines.append(
            f"  {c.name:<26}{c.rate.median:>12,.0f}{interval:>20}{times:>10}{right:>24}  {c.what}{unread}"
        )
    return lines


def _format_parts(found: list[BatchParts]) -> list[str]:
    heads = "".join(f"{f'batch {parts.batch}':>24}" for parts in found)
    lines = [f"{'48×48 faces, pixels to results, ms':<38}{heads}"]
    for who, of in (("host", "host"), ("GPU", "device")):
        for part in getattr(found[0], of):
            values = "".join(f"{_format(getattr(parts, of)[part], '.3f'):>24}" for parts in found)
            lines.append(f"  {f'{who}: {part}':<36}{values}")
    return lines


def _format_ways(found: list[Way]) -> list[str]:
    batches = list(found[0].with_transfers)
    heads = [f"batch {batch}" for batch in batches]
    lines = [
        f"{'on the GPU, ms':<38}" + "".join(f"{head:>11}" for head in heads) + f"{'pictures/s':>13}  CUDA graphs"
    ]
    for way in found:
        values = "".join(f"{way.with_transfers[batch].median:11.3f}" for batch in batches)
        lines.append(f"  {way.name:<36}{values}{way.rate.median:13,.0f}  {way.graphs}")
        alone = "".join(f"{way.network[batch].median:11.3f}" for batch in batches)
        lines.append(f"  {'    the network alone, no transfers':<36}{alone}")
        for part in way.host[batches[0]]:
            times = "".join(f"{way.host[batch][part]:11.3f}" for batch in batches)
            lines.append(f"  {f'    on the host: {part}':<36}{times}")
    return lines
