"""The model file: one ONNX that explains itself.

`metadata_props["fmengine.model"]` holds one JSON document: the labels, how a picture becomes an input, the
calibration of probabilities, where the weights come from, and a sha256 over the whole file. That digest is
computed with its own 64 digits set to zero. It detects damage, not forgery.
"""

import hashlib
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import ModelError, SourceError
from ..system.files import read_file
from .engine_file import SUFFIX as ENGINE_SUFFIX
from .engine_file import BuiltEngine, read_engine_file
from .reader import compute_digest, find_digest, find_document, has_external_data
from .spec import ModelSpec, Precision

DEFAULT_MODEL = "alexnet-slim"
MAX_BYTES = 2**31  # protobuf's own limit for one message


@dataclass(frozen=True)
class ModelFile:
    """A model file that was read once and checked: backends take these bytes, not the path.

    Attributes:
        path: of the file, or of the engine file that it travels in.
        data: of the ONNX.
        spec: what it says of itself.
        engine: that was built from it, where it travels in an engine file.
    """

    path: Path
    data: bytes = field(repr=False)
    spec: ModelSpec
    engine: BuiltEngine | None = None


def load_model_file(path: str | Path) -> ModelFile:
    """Read and check a model file, or an engine file, of which nothing is run.

    Raises:
        ModelError: for a file that is missing, too large, no ONNX, without metadata, or damaged.
    """
    path, engine = Path(path), None
    try:
        if path.suffix == ENGINE_SUFFIX:
            engine, data = read_engine_file(path)
        else:
            data = read_file(str(path), MAX_BYTES)
    except SourceError as error:
        raise ModelError(
            f"cannot read the model {path}: {error.message}; expected an ONNX file of at most 2 GiB, "
            f"an engine file, or one of {', '.join(available_models())}"
        ) from error
    if path.parent == get_shipped_folder() and hashlib.sha256(data).hexdigest() != _read_shipped_digest(path.name):
        raise ModelError(f"{path} is not the file that fmengine ships: its sha256 differs; install fmengine again")
    return replace(check_model_file(path, data), engine=engine)


def check_model_file(path: Path, data: bytes) -> ModelFile:
    """Check the bytes of a model file. Raises ModelError as `load_model_file` does."""
    return ModelFile(path, data, _verify(path, data))


def resolve(model: str | Path | None, precisions: tuple[Precision, ...]) -> Path:
    """Find the model file that a backend is to run.

    Args:
        model: a path, the name of a shipped model, or None for the default one. With a precision, as
            `alexnet-slim.fp16`, it is that file.
        precisions: what the backend can run, best first; a shipped model is taken in the first of them.

    Raises:
        ModelError: if there is no such model, listing those there are.
    """
    # `os.path` answers that a name too long for the file system does not exist; `pathlib` raises.
    if model is not None and (Path(model).suffix in (".onnx", ENGINE_SUFFIX) or os.path.exists(model)):
        return Path(model)
    name = DEFAULT_MODEL if model is None else str(model)
    folder = get_shipped_folder()
    if name in available_models():
        return folder / f"{name}.onnx"
    for precision in precisions:
        path = folder / f"{name}.{precision}.onnx"
        if os.path.isfile(path):
            return path
    raise ModelError(
        f"no model {name!r} in {' or '.join(precisions)}; shipped are {', '.join(available_models()) or 'none'}"
    )


def get_shipped_folder() -> Path:
    """Return the folder of the models in the package."""
    return Path(__file__).parent / "shipped"


def available_models() -> list[str]:
    """List the models in the package by name and precision, as `alexnet-slim.int8`."""
    return sorted(path.stem for path in get_shipped_folder().glob("*.onnx"))


def _read_shipped_digest(name: str) -> str:
    """Read the sha256 of a shipped model, which `sha256sum --check SHA256SUMS` verifies too."""
    for line in (get_shipped_folder() / "SHA256SUMS").read_text(encoding="ascii").splitlines():
        digest, _, file = line.partition("  ")
        if file == name:
            return digest
    return ""


def seal(data: bytes) -> bytes:
    """Write the file's digest into a serialised ONNX whose metadata hold a `ModelSpec`."""
    slot = find_digest(data, find_document(data))
    return data[: slot.start] + compute_digest(data, slot).encode() + data[slot.stop :]


def _verify(path: Path, data: bytes) -> ModelSpec:
    """Check a model file whole, and read its document."""
    try:
        document = find_document(data)
        spec = ModelSpec.from_json(data[document])
        slot = find_digest(data, document)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    if compute_digest(data, slot) != spec.file_sha256:
        raise ModelError(f"{path} is damaged: its bytes do not give the digest it carries; get or export it again")
    if has_external_data(data):
        raise ModelError(
            f"{path} keeps weights in other files, which its digest does not cover; expected one file that holds "
            "everything: export it again, without external data"
        )
    return spec
