"""Reset objects in forked children, where their threads, sockets and locks are the parent's.

`multiprocessing`'s fork, gunicorn's `--preload` and Celery fork processes that loaded an engine before.
"""

import ctypes
import os
import threading
import weakref
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from ..errors import ClosedError


class Resettable(Protocol):
    """An object that can be reset in a forked child."""

    def reset_after_fork(self) -> None:
        """Drop what belongs to the parent. Called in the child's only thread, before anything else runs there."""
        ...


T = TypeVar("T")

_objects: "weakref.WeakSet[Resettable]" = weakref.WeakSet()
_functions: list[Callable[[], None]] = []


def register(resettable: Resettable) -> None:
    """Register an object to be reset in each forked child, as long as it lives."""
    _objects.add(resettable)


def call_in_child(function: Callable[[], None]) -> None:
    """Call a function in each forked child, such as one that renews a module's lock."""
    _functions.append(function)


def leak(resource: object) -> None:
    """Keep an object from being destroyed: destructors may wait for threads that a forked child does not have."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(resource))


class PerProcess(Generic[T]):
    """A library's object with threads of its own, such as a session, which a forked child makes anew.

    Attributes:
        value: None in a forked child before `remake`, and after `close`.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._closed = False
        self._lock = threading.Lock()
        self.value: T | None = make()
        register(self)

    def remake(self) -> T:
        """Return the value, made now if there is none. Raises ClosedError after `close`."""
        with self._lock:
            if self._closed:
                raise ClosedError
            if self.value is None:
                self.value = self._make()
            return self.value

    def close(self) -> None:
        """Let go of the value."""
        self._closed, self.value = True, None

    def reset_after_fork(self) -> None:
        leak(self.value)
        self.value, self._lock = None, threading.Lock()


def _reset_all() -> None:
    for resettable in list(_objects):
        resettable.reset_after_fork()
    for function in _functions:
        function()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_reset_all)
