"""What becomes of an object in a forked child: its threads, sockets and locks are the parent's.

`multiprocessing`'s fork, gunicorn's `--preload` and Celery fork processes that loaded an engine before.
"""

import ctypes
import os
import weakref
from collections.abc import Callable
from typing import Protocol


class Resettable(Protocol):
    """An object that can begin anew in a forked child."""

    def reset_after_fork(self) -> None:
        """Forget what is the parent's. Called in the child's only thread, before anything else runs there."""
        ...


_objects: "weakref.WeakSet[Resettable]" = weakref.WeakSet()
_functions: list[Callable[[], None]] = []


def register(thing: Resettable) -> None:
    """Have an object reset in each forked child, as long as it lives."""
    _objects.add(thing)


def call_in_child(function: Callable[[], None]) -> None:
    """Call a function in each forked child, such as one that renews a module's lock."""
    _functions.append(function)


def leak(thing: object) -> None:
    """Never destroy an object: destructors of libraries wait for threads that a forked child does not have."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _reset_all() -> None:
    for thing in list(_objects):
        thing.reset_after_fork()
    for function in _functions:
        function()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_reset_all)
