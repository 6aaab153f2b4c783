"""Remembers what a run was started with, so that it is resumed by its folder alone."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmengine.errors import DataError


@dataclass(frozen=True)
class Arguments:
    """The arguments of `fmengine train` that are no hyperparameters.

    Attributes:
        data: folders and files of labelled pictures.
        source: the network to begin with, as it was given.
        teachers: checkpoints whose answers are learned.
        transfer: folders of pictures without labels.
        votes: a file of what people voted.
    """

    data: tuple[Path, ...]
    source: str | None = None
    teachers: tuple[Path, ...] = ()
    transfer: tuple[Path, ...] = ()
    votes: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON document, its paths absolute: a run is resumed from any folder."""
        return {
            "data": [_to_text(path) for path in self.data],
            "source": self.source,
            "teachers": [_to_text(path) for path in self.teachers],
            "transfer": [_to_text(path) for path in self.transfer],
            "votes": None if self.votes is None else _to_text(self.votes),
        }

    def complete(self, checkpoint: Path, document: dict[str, Any]) -> "Arguments":
        """Take from a checkpoint's document what is not given; what is given must agree, which its data tell.

        Raises:
            DataError: for a checkpoint that does not remember its data, or another network to begin with.
        """
        kept = document.get("arguments")
        if not kept:
            if not self.data:
                raise DataError(
                    f"{checkpoint} does not remember its pictures, as those of older versions do not; give DATA"
                )
            return self
        if self.source is not None and self.source != kept["source"]:
            raise DataError(
                f"{checkpoint} began with {kept['source'] or 'fresh weights'}, not {self.source}; leave "
                "--from out, or use a new --run"
            )
        votes = kept["votes"]
        return Arguments(
            self.data or tuple(map(Path, kept["data"])),
            kept["source"],
            self.teachers or tuple(map(Path, kept["teachers"])),
            self.transfer or tuple(map(Path, kept["transfer"])),
            self.votes or (None if votes is None else Path(votes)),
        )


def _to_text(path: Path) -> str:
    return os.path.abspath(path)
