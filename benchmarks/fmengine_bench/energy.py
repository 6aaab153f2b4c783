"""Energy, where the machine tells it: Intel's and AMD's RAPL counters on Linux."""

from collections.abc import Callable
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


def joules_of(work: Callable[[], object]) -> float | None:
    """Joules that the processor packages took while something was done; None where no counter can be read."""
    counters = sorted(POWERCAP.glob("intel-rapl:[0-9]"))  # AMD's are named so too
    try:
        before = [_read(counter / "energy_uj") for counter in counters]
        work()
        after = [_read(counter / "energy_uj") for counter in counters]
        wraps = [_read(counter / "max_energy_range_uj") for counter in counters]
    except OSError:  # root's alone, on most systems
        return None
    if not counters:
        return None
    return sum((b - a) % wrap for a, b, wrap in zip(before, after, wraps, strict=True)) / 1e6


def _read(counter: Path) -> int:
    return int(counter.read_text(encoding="ascii"))
