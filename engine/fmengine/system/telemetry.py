"""Switch off the telemetry of libraries before they are imported: nothing leaves the machine.

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
    """Switch off the telemetry of libraries that are not imported yet, and log a warning for those that are."""
    if "onnxruntime" in sys.modules and not os.environ.get(ORT_SWITCH):
        _warn("onnxruntime", f"set {ORT_SWITCH}=1")
    os.environ[ORT_SWITCH] = "1"
    if sys.modules.get(OPENVINO_REPORTS) is not None:
        _warn("openvino", f"uninstall {OPENVINO_REPORTS.replace('_', '-')}")
    else:
        sys.modules[OPENVINO_REPORTS] = None  # type: ignore[assignment]  # importing it then raises ImportError


def import_onnxruntime() -> Any:
    """Import ONNX Runtime without telemetry, also on Windows, where the environment does not switch it off.

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
