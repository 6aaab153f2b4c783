"""Makes a folder as a whole or not at all; its name is checked before the work."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fmengine.errors import OutputError
from fmengine.system.files import get_temporary_path


@contextmanager
def make_folder(path: Path) -> Iterator[Path]:
    """Make a folder: yield a temporary one beside it to fill, which is renamed at the end, or removed on an error.

    What a killed run left of the temporary one is removed.

    Raises:
        OutputError: at once for a name that is taken, or a folder that cannot be written; later if what is written
            into it cannot be.
    """
    if os.path.lexists(path):
        raise OutputError(f"{path} exists; choose another --output")
    if not os.path.isdir(path.parent):
        raise OutputError(f"cannot make {path}: there is no folder {path.parent}; make it first")
    partial = get_temporary_path(path)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        partial.rename(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
