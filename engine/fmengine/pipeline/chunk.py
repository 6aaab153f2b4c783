"""A chunk: pictures that go through the stages together, and their answers in columns.

Of a long list of files no object is made for each of them before somebody looks at it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

from ..types import Failure, Prediction, Reason, Result
from .batch import Content, Task


@dataclass(slots=True)
class Answers(Sequence[Result]):
    """The results of several paths: `Prediction` and `Failure`, made when they are looked at.

    Attributes:
        names: of the labels.
        sources: the paths.
        probabilities: of each answer.
        flat: whether each picture shows nothing.
        failures: by index; what the columns hold there means nothing.
        best: which of its probabilities is the confidence of each answer.
        labels: of each answer.
        reasons: not to trust them.
    """

    names: tuple[str, ...]
    sources: list[str]
    probabilities: Sequence[tuple[float, ...]]
    flat: Sequence[bool]
    failures: Mapping[int, Failure]
    best: list[int] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    reasons: list[Reason | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.sources)

    @overload
    def __getitem__(self, index: int) -> Result: ...

    @overload
    def __getitem__(self, index: slice) -> list[Result]: ...

    def __getitem__(self, index: int | slice) -> Result | list[Result]:
        return list(self)[index]

    def __iter__(self) -> Iterator[Result]:
        columns = zip(self.sources, self.labels, self.reasons, self.probabilities, strict=True)
        for index, (source, label, reason, row) in enumerate(columns):
            failure = self.failures.get(index)
            yield failure or Prediction(label, max(row), dict(zip(self.names, row, strict=True)), source, reason)


class Chunk:
    """Pictures that one worker is given together.

    Attributes:
        contents: paths, and bytes of encoded pictures.
        tasks: of the pictures; None until somebody needs them, where all are paths.
        result: of all; None until it is known. An error that is no picture's is raised by whoever takes it.
        weight: how many pictures it counts for among those in flight.
    """

    __slots__ = ("_whole", "contents", "result", "tasks", "weight")

    def __init__(self, contents: Sequence[Content], tasks: list[Task] | None = None) -> None:
        self.contents, self.tasks = contents, tasks
        self.result: Sequence[Result] | BaseException | None = None
        self.weight = len(contents)
        self._whole: Chunk | None = None

    @classmethod
    def of(cls, tasks: list[Task], whole: "Chunk | None" = None) -> "Chunk":
        """Make a chunk of tasks whose results are taken one by one, or are part of those of another chunk."""
        chunk = cls([task.content for task in tasks], tasks)
        chunk._whole = whole
        return chunk

    def expand(self) -> list[Task]:
        """Return a task for each picture."""
        if self.tasks is None:
            self.tasks = [Task(path, path) for path in self.contents]  # type: ignore[arg-type]
        return self.tasks

    def renew(self) -> "Chunk":
        """Make a chunk of the paths that have no result; what is done to the tasks of now counts no more."""
        tasks = self.expand()
        missing = {
            index: Task(task.source, self.contents[index])
            for index, task in enumerate(tasks)
            if task.result is None
        }
        self.tasks = [missing.get(index, task) for index, task in enumerate(tasks)]
        return Chunk.of(list(missing.values()), self)

    def settle(self) -> None:
        """Take the results of its tasks, if all have theirs."""
        results = [task.result for task in self.tasks or ()]
        if None in results:
            return
        errors = [result for result in results if isinstance(result, BaseException)]
        self.result = errors[0] if errors else results  # type: ignore[assignment]
        if self._whole is not None:
            self._whole.settle()

    def set_error(self, error: BaseException) -> None:
        """Give those of its pictures that have no result an error for it."""
        for task in self.tasks or ():
            task.result = task.result or error
        self.result = self.result or error
        if self._whole is not None:
            self._whole.set_error(error)


def find_failures(results: Sequence[Result]) -> list[Failure]:
    """Find the failures among results."""
    if isinstance(results, Answers):
        return list(results.failures.values())
    return [result for result in results if isinstance(result, Failure)]
