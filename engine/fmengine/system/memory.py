"""How much memory a process takes, as Linux counts it."""

from pathlib import Path

PROC = Path("/proc")


def read_pss(pid: int) -> int | None:
    """Read the bytes that a process takes, pages that several share in equal parts; None where nobody says."""
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration):  # another system, another's process, or one that has ended
        return None
