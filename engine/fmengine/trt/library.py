"""Import TensorRT and TensorRT-RTX, check their versions, and read their loggers."""

import logging
import platform
import re
import threading
from collections import deque
from importlib import import_module
from typing import Any, Literal

from ..errors import UnavailableError, format_install_command

log = logging.getLogger(__name__)

Library = Literal["tensorrt", "tensorrt_rtx"]
INSTALL = {
    "tensorrt": format_install_command("gpu"),
    "tensorrt_rtx": format_install_command("rtx"),
}
MIN_VERSION = {"tensorrt": (10, 12), "tensorrt_rtx": (1, 7)}
MAX_MAJOR = {"tensorrt": 11, "tensorrt_rtx": 1}


def load_library(name: Library) -> Any:
    """Import TensorRT or TensorRT-RTX.

    Raises:
        UnavailableError: if it is missing, or of a version that fmengine does not know.
    """
    install = INSTALL[name]
    try:
        library = import_module(name)
    except Exception as error:  # a missing shared library may raise anything
        raise UnavailableError(f"{name} cannot be imported ({error}); install it with: {install}") from error
    version = tuple(int(part) for part in re.findall(r"\d+", library.__version__)[:2])
    if not MIN_VERSION[name] <= version or version[0] > MAX_MAJOR[name]:
        minimum = ".".join(map(str, MIN_VERSION[name]))
        raise UnavailableError(
            f"{name} {library.__version__} is installed; expected {minimum} to {MAX_MAJOR[name]}.x: {install}"
        )
    return library


def is_rtx(library: Any) -> bool:
    """Return whether a library is TensorRT-RTX."""
    return bool(library.__name__ == "tensorrt_rtx")


def describe_library(library: Any) -> str:
    """Return name and version, as `tensorrt 11.4.0.106`."""
    return f"{library.__name__} {library.__version__}"


def describe_system() -> str:
    """Return the operating system and the processor, between which no engine can be moved."""
    return f"{platform.system()} {platform.machine()}"


# Of the whole process: TensorRT writes to the first logger that it gets, whichever library or caller brought it.
_messages: deque[str] = deque(maxlen=3)
_loggers: dict[type, Any] = {}  # by the library's own class
_loggers_lock = threading.Lock()


def get_logger(library: Any) -> Any:
    """Return the process's logger as an object of the library's own class; it keeps messages, and prints none.

    All of them keep their messages in one place, so that none is lost, whichever of them TensorRT writes to.
    """
    with _loggers_lock:
        if library.ILogger not in _loggers:
            _loggers[library.ILogger] = _make_logger(library)
        return _loggers[library.ILogger]


def _make_logger(library: Any) -> Any:
    class Logger(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.messages = _messages

        def log(self, severity: Any, message: str) -> None:
            if severity in (library.ILogger.INTERNAL_ERROR, library.ILogger.ERROR, library.ILogger.WARNING):
                self.messages.append(message)
                log.debug("%s: %s", library.__name__, message)

    return Logger()


def take_messages(logger: Any) -> str:
    """Return TensorRT's last messages as a sentence, and clear them: the next error has messages of its own."""
    messages = "; ".join(logger.messages)
    logger.messages.clear()
    if messages:
        return f"Its log: {messages}"
    return "Its log gives no reason; an application that gave TensorRT a logger before has the reason in it"
