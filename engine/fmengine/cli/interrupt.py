"""End soon after Ctrl-C, whatever a decoder does meanwhile."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .console import INTERRUPTED, report_error

SECONDS = 0.3  # that whatever is to be closed has


@contextmanager
def end_soon_after_interrupt() -> Iterator[None]:
    """End the process where an interruption does not get it to leave this context in time.

    Python handles a signal only between two steps of its main thread, which may be in a decoder, or wait for a
    thread that is in one. The system's part of the handler writes the signal's number to a socket at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    left = threading.Event()
    threading.Thread(target=_watch, args=(ours, left), name="fmengine-interrupt", daemon=True).start()
    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(before)
        theirs.close()


def _watch(signals: socket.socket, left: threading.Event) -> None:
    with signals:
        while numbers := signals.recv(16):
            if signal.SIGINT in numbers:
                if not left.wait(SECONDS):
                    report_error("fmengine: interrupted", exit_code=INTERRUPTED)
                    os._exit(INTERRUPTED)  # rows are written, and their file can be continued after any end
                return
