"""Libraries that report home by default are told not to, before anyone imports them: nothing leaves the machine.

ONNX Runtime from 1.29 on keeps a device's number and a database of events in the home folder and sends them to its
maker; OpenVINO reports its import to Google Analytics. Both decide as they are imported, so this runs when
`fmengine` is imported, in every process of ours; processes that it starts inherit the environment.
"""

import logging
import os
import sys
from typing import Any

log = logging.getLogger(__name__)

ORT_SWITCH = "ORT_DISABLE_TELEMETRY"  # ONNX Runtime reads it once, when it is loaded
OPENVINO_REPORTS = "openvino_telemetry"  # a package of its own; without it OpenVINO reports nothing


def switch_off() -> None:
    """Switch off what is not imported yet; what an application imported before, and too early, is logged once."""
    if "onnxruntime" in sys.modules and not os.environ.get(ORT_SWITCH):
        _warn("onnxruntime", f"set {ORT_SWITCH}=1")
    os.environ[ORT_SWITCH] = "1"
    if sys.modules.get(OPENVINO_REPORTS) is not None:
        _warn("openvino", f"uninstall {OPENVINO_REPORTS.replace('_', '-')}")
    else:
        sys.modules[OPENVINO_REPORTS] = None  # type: ignore[assignment]  # to import it is an ImportError


def import_onnxruntime() -> Any:
    """ONNX Runtime, quiet on Windows as well, where it asks the system's tracing and no environment.

    Raises:
        ImportError: without it.
    """
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    return onnxruntime


def _warn(library: str, otherwise: str) -> None:
    log.warning(
        "%s was imported before fmengine, and may report to its maker: import fmengine first, or %s",
        library,
        otherwise,
    )
