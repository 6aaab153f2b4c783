"""The manifest of a file that was built on a machine: what it was built from and for, and the sha256 of its bytes.

It is one line of JSON in front of the bytes.
"""

import hashlib
import json
from collections.abc import Mapping

from ..errors import FmengineError

Key = Mapping[str, str]  # everything that the bytes depend on

VERSION = 1
MAX_MANIFEST = 64 * 1024  # bytes


class StaleError(FmengineError):
    """A built file is damaged, or was built from or for something else."""


def pack(key: Key, data: bytes) -> bytes:
    """Put the manifest in front of a built file's bytes."""
    manifest = {"version": VERSION, "key": dict(key), "sha256": _compute_digest(data), "size": len(data)}
    return _to_json(manifest) + b"\n" + data


def unpack(content: bytes, key: Key) -> bytes:
    """Check a built file and return its bytes without the manifest.

    Args:
        content: of the file.
        key: what it must have been built from and for.

    Raises:
        StaleError: if anything is not as it was written.
    """
    found, data = read_manifest(content)
    if found != dict(key):
        wrong = sorted(name for name in {*key, *found} if found.get(name) != key.get(name))
        details = ", ".join(f"{name} was {found.get(name)!r}, is {key.get(name)!r}" for name in wrong)
        raise StaleError(f"it was built for something else: {details}")
    return data


def read_manifest(content: bytes) -> tuple[dict[str, str], bytes]:
    """Check a built file, and return what it was built from and for, and its bytes without the manifest.

    Raises:
        StaleError: if it has no manifest, or is damaged.
    """
    line = content[:MAX_MANIFEST].partition(b"\n")[0]
    data = content[len(line) + 1 :]
    try:
        manifest = json.loads(line)
        found, digest = dict(manifest["key"]), manifest["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StaleError("it has no manifest; it was not built by fmengine") from error
    if manifest.get("version") != VERSION:
        raise StaleError(f"its manifest is of version {manifest.get('version')}, expected {VERSION}")
    if _compute_digest(data) != digest:
        raise StaleError("its bytes do not give the sha256 of its manifest: it was cut short or altered")
    return found, data


def make_file_name(kind: str, key: Key) -> str:
    """Make the name of the file that is built for `key`, with `kind` as its ending."""
    return f"{_compute_digest(_to_json(key))[:32]}.{kind}"


def _to_json(document: object) -> bytes:
    """Write equal documents as equal bytes."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), default=dict).encode()


def _compute_digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
