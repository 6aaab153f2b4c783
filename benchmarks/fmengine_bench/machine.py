"""Describes the machine and the model that figures were measured on, and warns where other work disturbed them."""

import datetime
import subprocess
from pathlib import Path

from fmengine.backend.diagnose import describe_environment
from fmengine.engine import Engine

MAX_LOAD = 0.5  # cores: a higher load before is worth a warning
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def describe(engine: Engine, pictures: int, load: float) -> dict[str, str]:
    """Describe the machine, the libraries, the model and the date, without which a figure means nothing."""
    spec = engine.spec
    facts = {key: value for key, value in describe_environment().items() if value != "not installed"}
    facts |= {f"backend {key}": value for key, value in engine.backend.describe().items()}
    facts |= {
        "model": f"{spec.name}.{spec.precision}",
        "model sha256": spec.file_sha256,
        "pictures": str(pictures),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "governor": GOVERNOR.read_text(encoding="ascii").strip() if GOVERNOR.exists() else "unknown",
        "load before": f"{load:.2f}",
    }
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    return facts | ({"commit": commit.stdout.strip()} if commit.returncode == 0 else {})


def warn_of_load(load: float) -> list[str]:
    """List warnings for a machine's load before the measurement, in cores."""
    if load <= MAX_LOAD:
        return []
    return [
        f"the machine's load was {load:.2f} before, over {MAX_LOAD:g}: other work slows and scatters these figures"
    ]
