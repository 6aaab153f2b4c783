"""Energy, where the machine tells it: the processor packages' counters on Linux (RAPL), and a GPU's own (NVML)."""

from collections.abc import Callable
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")

Read = Callable[[], float]  # joules, from some moment on


def joules_of(work: Callable[[], object], gpu: str | None = None) -> float | None:
    """Joules taken while something was done; None where no counter can be read.

    Args:
        work: what is done.
        gpu: PCI bus address of the GPU that is asked; by default the processor packages are.
    """
    read = _packages() if gpu is None else _gpu(gpu)
    if read is None:
        return None
    before = read()
    work()
    return read() - before


def _packages() -> Read | None:
    counters = sorted(POWERCAP.glob("intel-rapl:[0-9]"))  # AMD's are named so too
    try:
        last = [_read(counter / "energy_uj") for counter in counters]
        wraps = [_read(counter / "max_energy_range_uj") for counter in counters]
    except OSError:  # root's alone, on most systems
        return None
    if not counters:
        return None
    total = 0

    def read() -> float:
        nonlocal last, total
        now = [_read(counter / "energy_uj") for counter in counters]
        total += sum((b - a) % wrap for a, b, wrap in zip(last, now, wraps, strict=True))
        last = now
        return total / 1e6

    return read


def _read(counter: Path) -> int:
    return int(counter.read_text(encoding="ascii"))


def _gpu(address: str) -> Read | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByPciBusId(address)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)  # which GPUs before Volta do not tell
    except pynvml.NVMLError:
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3  # of millijoules
