"""Name, write and read the files beside an output file: its state, from which `--resume` continues, and others.

The state is one JSON object: `version`, the identity of what made the rows (model digest, options), and how
much of the file is on the disk: `rows`, `bytes`, and the `sha256` of these bytes.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..system.files import get_temporary_path, open_atomic, write_file
from ..system.lock import get_lock_path

VERSION = 3  # of the rows and their state


def get_state_path(path: Path) -> Path:
    """Return the path of an output file's state."""
    return path.parent / f"{path.name}.state.json"


def get_retry_path(path: Path) -> Path:
    """Return the path of the list of pictures whose failed rows were removed from an output file."""
    return path.parent / f".{path.name}.retry.json"


def get_journal_path(path: Path) -> Path:
    """Return the path of a Parquet file's journal, which holds its rows until the last of them is answered."""
    return path.parent / f"{path.name}.rows.jsonl"


def get_restored_path(path: Path) -> Path:
    """Return the path where the journal of a finished Parquet file is restored."""
    return path.parent / f".{path.name}.rows.jsonl"


def list_output_files(path: Path) -> list[Path]:
    """List an output file, its state, its lock, and what a killed run may leave beside them."""
    own = [path, get_state_path(path), get_retry_path(path)]
    own += [get_temporary_path(file) for file in own] + [get_lock_path(path)]
    if path.suffix == ".parquet":
        own += list_output_files(get_journal_path(path)) + list_output_files(get_restored_path(path))
    return own


def write_state(path: Path, identity: Mapping[str, Any], rows: int, size: int, digest: str) -> None:
    """Write the state of the output file `path`, whose first `size` bytes have the sha256 `digest`.

    Raises:
        OSError: if it cannot be written; the old state stays.
    """
    state = {"version": VERSION, **identity, "rows": rows, "bytes": size, "sha256": digest}
    with open_atomic(get_state_path(path), "w") as file:
        file.write(json.dumps(state, indent=2) + "\n")


def read_state(path: Path, identity: Mapping[str, Any]) -> tuple[int, str]:
    """Check that the same model and options made the output file `path`.

    Returns:
        How many of its bytes were on the disk when the state was written, and their sha256.

    Raises:
        OutputError: if the file cannot be continued.
    """
    try:
        state = json.loads(get_state_path(path).read_text(encoding="utf-8"))
        size, digest = int(state["bytes"]), str(state["sha256"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise OutputError(
            f"cannot resume {path}: {get_state_path(path).name} is missing or damaged; use --overwrite"
        ) from error
    check_version(path, state.get("version"))
    for key, value in identity.items():
        if state.get(key) != value:
            raise OutputError(
                f"cannot resume {path}: it was made with {key} {state.get(key)!r}, now it is {value!r}; "
                "use the same, or --overwrite"
            )
    if path.stat().st_size < size:
        raise OutputError(f"cannot resume {path}: it is shorter than when it was written; use --overwrite")
    return size, digest


def check_version(path: Path, found: object) -> None:
    """Raise OutputError for an output file whose rows another version of fmengine wrote in another form."""
    if found != VERSION:
        raise OutputError(
            f"cannot resume {path}: its rows are of version {found!r}, this fmengine writes version {VERSION}; "
            "finish it with the fmengine that began it, or begin anew with --overwrite"
        )


def write_retries(path: Path, pictures: Sequence[str]) -> None:
    """Write a list of pictures to answer again beside the output file `path`. Raises OutputError if it cannot."""
    write_file(get_retry_path(path), json.dumps(pictures))


def read_retries(path: Path) -> list[str]:
    """Read the list that `write_retries` wrote; empty where there is none.

    Raises:
        OutputError: if it is damaged.
    """
    try:
        listed = json.loads(get_retry_path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (ValueError, RecursionError):
        listed = None
    if not isinstance(listed, list) or not all(isinstance(picture, str) for picture in listed):
        raise OutputError(f"cannot resume {path}: {get_retry_path(path).name} is damaged; use --overwrite")
    return listed
