"""A plugin of pytest that runs each test in a fork of its own, as a pipe names them.

So what the tests import is imported once. The process that forks opens no driver: a driver refuses to work in a
fork of the process that opened it.
"""

import gc
import os
from multiprocessing.connection import Connection

import pytest

PIPE = "GPU_DOUBLE_PIPE"  # the descriptor of the pipe: the ids of tests come in, exit statuses go out


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Fork for each test; in the fork, leave the loop to pytest, with that test alone."""
    gc.freeze()  # what is imported stays out of every fork's collections, and its memory shared
    items = {item.nodeid: item for item in session.items}
    with Connection(int(os.environ[PIPE])) as pipe:
        while name := pipe.recv():
            if (child := os.fork()) == 0:
                session.items[:] = [items[name]]
                return None
            pipe.send(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    return True
