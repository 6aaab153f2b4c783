"""A CUDA graph: work captured from a stream once, and launched again as one."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..errors import DeviceError
from .driver import check_status


class CaptureError(DeviceError):
    """This work cannot be captured; it runs without a graph."""


class Graph:
    """Captured work. It holds the addresses and shapes that it was captured with, for good."""

    def __init__(self, driver: Any, stream: int, enqueue: Callable[[], None]) -> None:
        """Capture what `enqueue` puts into a stream.

        Args:
            driver: the module `cuda.bindings.driver`.
            stream: handle of a stream with nothing in flight.
            enqueue: called once; the same work must have run outside a capture before.

        Raises:
            CaptureError: if the work cannot be captured. The stream is usable as before.
        """
        self._driver = driver
        self._executable: Any = None
        # Thread-local: other threads may allocate memory meanwhile, which a global capture forbids.
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _check(driver.cuStreamBeginCapture(stream, mode), "begin a capture")
        try:
            enqueue()
        except BaseException as error:  # a stream in capture can be used for nothing else
            with suppress(CaptureError):
                (graph,) = _check(driver.cuStreamEndCapture(stream), "end a capture")
                driver.cuGraphDestroy(graph)
            if isinstance(error, DeviceError):
                raise CaptureError(f"the network cannot be captured: {error}") from error
            raise
        (graph,) = _check(driver.cuStreamEndCapture(stream), "capture the network")
        try:
            (self._executable,) = _check(driver.cuGraphInstantiate(graph, 0), "instantiate the graph")
        finally:
            driver.cuGraphDestroy(graph)

    def launch(self, stream: int) -> None:
        """Put the captured work into a stream."""
        _check(self._driver.cuGraphLaunch(self._executable, stream), "launch the graph")

    def free(self) -> None:
        """Release everything. Freeing twice is no error."""
        if self._executable is not None:
            self._driver.cuGraphExecDestroy(self._executable)
            self._executable = None


class SurroundingGraphs:
    """Two graphs, and work that cannot be captured, which is enqueued between them at each launch."""

    def __init__(self, before: Graph, enqueue: Callable[[], None], after: Graph) -> None:
        self._before, self._enqueue, self._after = before, enqueue, after

    def launch(self, stream: int) -> None:
        """Put all of it into the stream that the graphs were captured from."""
        self._before.launch(stream)
        self._enqueue()
        self._after.launch(stream)


def _check(answer: tuple[Any, ...], action: str) -> tuple[Any, ...]:
    return check_status(answer, f"CUDA cannot {action}: {{status}}", CaptureError)
