"""How a worker process, or the server that forks them, ended, for those who speak to it."""

from ..errors import Kind, UnavailableError


class WorkerDiedError(Exception):
    """A worker ended, or had to be ended, before it answered.

    Attributes:
        kind: of the failure, if it was the picture's doing.
        suspect: index of the picture that it was at work on; None where there was none, or none is known.
        killed: whether it was, or may have been, somebody else who ended it.
    """

    def __init__(self, kind: Kind, message: str, *, suspect: int | None = None, killed: bool = False) -> None:
        super().__init__(message)
        self.kind, self.suspect, self.killed = kind, suspect, killed


class KilledError(UnavailableError):
    """A process was killed by somebody else before it was of use, as where memory ran out; another may be."""
