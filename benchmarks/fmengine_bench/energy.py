"""Measures energy by the processor packages' counters on Linux (RAPL), or by a GPU's own (NVML)."""

from collections.abc import Callable
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


def measure_joules(work: Callable[[], object], gpu: str | None = None) -> float | None:
    """Measure the joules that some work takes; None where no counter can be read.

    Args:
        work: what is done.
        gpu: PCI bus address of the GPU to measure; by default the processor packages are measured.
    """
    return _measure_packages(work) if gpu is None else _measure_gpu(work, gpu)


def _measure_packages(work: Callable[[], object]) -> float | None:
    counters = sorted(POWERCAP.glob("intel-rapl:[0-9]"))  # AMD's are named so too
    try:
        wraps = [_read(counter / "max_energy_range_uj") for counter in counters]
        before = [_read(counter / "energy_uj") for counter in counters]
    except OSError:  # readable by root alone on most systems
        return None
    if not counters:
        return None
    work()
    after = [_read(counter / "energy_uj") for counter in counters]
    return sum((b - a) % wrap for a, b, wrap in zip(before, after, wraps, strict=True)) / 1e6


def _read(counter: Path) -> int:
    return int(counter.read_text(encoding="ascii"))


def _measure_gpu(work: Callable[[], object], address: str) -> float | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByPciBusId(address)
        before = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)  # GPUs before Volta have no such counter
    except pynvml.NVMLError:
        return None
    work()
    joules: float = (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) - before) / 1e3  # of millijoules
    return joules
