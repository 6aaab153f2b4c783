"""The model file of a face detector: an ONNX whose document says how its outputs become boxes."""

import hashlib
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import ModelError, SourceError
from ..system.files import read_file
from .reader import compute_digest, find_digest, find_document, has_external_data
from .spec import PRECISIONS, UNSEALED, Precision, read_document, require, to_document

TASK = "faces"
MAX_BYTES = 2**28
SHIPPED = Path(__file__).parents[1] / "detect" / "shipped"
DEFAULT = "yunet.fp32.onnx"


class DetectorOutputs(NamedTuple):
    """What the network answers: for each anchor, those of a finer stride first, row by row.

    Attributes:
        cls: probability of a face, float32 `[N, A, 1]`.
        obj: that there is an object, float32 `[N, A, 1]`.
        bbox: offset of the centre from the anchor in strides, logarithms of width and height, float32 `[N, A, 4]`.
        kps: offsets of five landmarks from the anchor in strides, x and y, float32 `[N, A, 10]`.
    """

    cls: npt.NDArray[np.float32]
    obj: npt.NDArray[np.float32]
    bbox: npt.NDArray[np.float32]
    kps: npt.NDArray[np.float32]


@dataclass(frozen=True)
class DetectorSpec:
    """Describes a detector: the document that its file carries.

    Attributes:
        name: of the family.
        precision: `fp32`, `fp16` or `int8`.
        strides: pixels from anchor to anchor, finest first.
        task: `faces`.
        color: `rgb`, levels from 0 to 255; there is no other.
        multiple: that height and width of the input are of; zeros are padded right and below.
        min_score: of a face; the score is the geometric mean of `cls` and `obj`.
        max_iou: of two faces' boxes; of two that share more, the one of the lower score is dropped.
        training_data: what it was trained on.
        weights_sha256: digest of the weights.
        file_sha256: digest of the file.
    """

    outputs: ClassVar[Any] = DetectorOutputs

    name: str
    precision: Precision
    strides: tuple[int, ...]
    task: str = TASK
    color: str = "rgb"
    multiple: int = 32
    min_score: float = 0.6
    max_iou: float = 0.3
    training_data: str = ""
    weights_sha256: str = ""
    file_sha256: str = UNSEALED

    def __post_init__(self) -> None:
        require(self.task == TASK, f"task is {self.task!r}", TASK)
        require(self.color == "rgb", f"color is {self.color!r}", "rgb")
        require(self.precision in PRECISIONS, f"precision is {self.precision!r}", ", ".join(PRECISIONS))
        strides = self.strides if isinstance(self.strides, tuple) else ()
        whole = all(isinstance(stride, int) and stride > 0 for stride in (*strides, self.multiple))
        require(
            bool(strides) and whole and all(self.multiple % stride == 0 for stride in strides),
            f"strides are {self.strides!r} and the multiple is {self.multiple!r}",
            "whole numbers that the multiple is a multiple of",
        )
        for name in ("min_score", "max_iou"):
            value = getattr(self, name)
            require(isinstance(value, float) and 0 < value < 1, f"{name} is {value!r}", "a number from 0 to 1")

    @property
    def output_names(self) -> tuple[str, ...]:
        """The tensors that the network gives, in the order of `outputs`."""
        return DetectorOutputs._fields

    def input_shape(self, batch: int) -> tuple[int | str, ...]:
        """Return the shape of `images` for a batch; height and width are the caller's."""
        return batch, 3, "H", "W"

    def to_json(self) -> str:
        """Write the document for `metadata_props["fmengine.model"]`."""
        return to_document(asdict(self))


@dataclass(frozen=True)
class DetectorFile:
    """A detector's file that was read once and checked: backends take these bytes, not the path."""

    path: Path
    data: bytes = field(repr=False)
    spec: DetectorSpec


def load_detector_file(path: str | Path | None = None) -> DetectorFile:
    """Read and check a detector's file, by default the shipped one.

    Raises:
        ModelError: for a file that is missing, no ONNX, no detector's, or damaged.
    """
    return _load_shipped() if path is None else _load(Path(path))


@cache
def _load_shipped() -> DetectorFile:
    path = SHIPPED / DEFAULT
    file = _load(path)
    expected = (SHIPPED / "SHA256SUMS").read_text(encoding="ascii").split()[0]
    if hashlib.sha256(file.data).hexdigest() != expected:
        raise ModelError(f"{path} is not the file that fmengine ships: its sha256 differs; install fmengine again")
    return file


def _load(path: Path) -> DetectorFile:
    try:
        data = read_file(str(path), MAX_BYTES)
    except SourceError as error:
        raise ModelError(f"cannot read the detector {path}: {error.message}") from error
    try:
        document = find_document(data)
        spec = read_document(DetectorSpec, data[document])
        slot = find_digest(data, document)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    if compute_digest(data, slot) != spec.file_sha256 or has_external_data(data):
        raise ModelError(f"{path} is damaged: its bytes do not give the digest it carries; get it again")
    return DetectorFile(path, data, spec)
