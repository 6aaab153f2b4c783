"""What goes through the engine: sources, images, a network's inputs and outputs, and each picture's result."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, NamedTuple, NewType, Protocol, Self, get_args, overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from .errors import Kind

Color = Literal["gray", "rgb"]
COLORS: tuple[Color, ...] = get_args(Color)
Fit = Literal["crop", "pad", "stretch"]
FITS: tuple[Fit, ...] = get_args(Fit)
Channels = Literal["rgb", "bgr"]  # the order of an array's channels
CHANNELS: tuple[Channels, ...] = get_args(Channels)


class DLPackArray(Protocol):
    """An array of another library, in host or device memory, over DLPack."""

    def __dlpack__(self, *, stream: int | None = None) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...


class CudaArray(Protocol):
    """An array in device memory, over Numba's protocol."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...


class BinaryFile(Protocol):
    """A file-like that is open for reading bytes, such as `io.BytesIO`."""

    def read(self, size: int = -1, /) -> bytes: ...


Encoded = str | os.PathLike[str] | bytes | bytearray | memoryview  # a path, or a file's bytes
Source = Encoded | np.ndarray[Any, Any] | Image.Image | BinaryFile | DLPackArray | CudaArray

_Bytes = np.ndarray[Any, np.dtype[np.uint8]]
DecodedImage = NewType("DecodedImage", _Bytes)  # uint8 `[H, W]`, or `[H, W, 3]` in RGB order; upright
NetworkInput = NewType("NetworkInput", _Bytes)  # uint8 `[C, H, W]` of one picture
InputBatch = NewType("InputBatch", _Bytes)  # uint8 `[N, C, H, W]`, C-contiguous


Embedding = npt.NDArray[np.float32]  # float32 `[F]` of one picture: a model's features, what its last layer takes


class DeviceImage(NamedTuple):
    """An image in device memory.

    Attributes:
        address: of its first pixel.
        height: rows.
        width: columns.
        stride: bytes from one row to the next.
        channels: bytes a pixel, 1, 3 or 4; the fourth is not read.
        bgr: whether blue comes first.
        owner: what must live until the pixels are read.
    """

    address: int
    height: int
    width: int
    stride: int
    channels: int
    bgr: bool
    owner: object


AnyImage = _Bytes | DeviceImage  # a decoded image, in host or in device memory


class PackedImages(Sequence[DecodedImage]):
    """Decoded images that lie in one memory of the host, as a worker process leaves them.

    Attributes:
        memory: uint8 `[size]`.
        places: offset into `memory`, height, width and channels of each image, int32 `[N, 4]`; no channels for an
            image `[H, W]`. They do not lead out of it.
        address: of `memory` for a GPU that reads it by itself; 0 for none.
    """

    __slots__ = ("address", "memory", "places")

    def __init__(self, memory: _Bytes, places: npt.NDArray[np.int32], address: int = 0) -> None:
        self.memory, self.places, self.address = memory, places, address

    @classmethod
    def pack(cls, images: Sequence[_Bytes]) -> Self:
        """Copy images into new memory, one behind the other."""
        ends = np.cumsum([image.size for image in images])
        places = [
            (end - image.size, *image.shape[:2], image.shape[2] if image.ndim == 3 else 0)
            for image, end in zip(images, ends.tolist(), strict=True)
        ]
        return cls(np.concatenate([image.reshape(-1) for image in images]), np.array(places, np.int32))

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> DecodedImage: ...

    @overload
    def __getitem__(self, index: slice) -> "PackedImages": ...

    def __getitem__(self, index: int | slice) -> "DecodedImage | PackedImages":
        if isinstance(index, slice):
            return PackedImages(self.memory, self.places[index], self.address)
        at, height, width, channels = self.places[index].tolist()
        shape = (height, width, channels) if channels else (height, width)
        return DecodedImage(self.memory[at : at + math.prod(shape)].reshape(shape))


class Outputs(NamedTuple):
    """What a network answers, one row a picture.

    Attributes:
        logits: float32 `[N, K]`.
        probabilities: float32 `[N, K]`, rows add up to 1.
        features: float32 `[N, F]`, the last layer's input; None where the model file has no such output, or the
            backend does not give it.
    """

    logits: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32] | None = None


class ImageOutputs(NamedTuple):
    """What a backend that preprocesses answers: `Outputs`, and whether each image was flat, bool `[N]`."""

    logits: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32]
    flat: npt.NDArray[np.bool_]


UNSURE = "unsure"  # the label of an answer that has a reason, where the engine has a threshold


class Reason(StrEnum):
    """Why an answer deserves no trust, whatever its confidence. The list is closed."""

    UNSURE = "unsure"  # the confidence is under the engine's threshold, or else the one that the model recommends
    FLAT = "flat"  # the picture shows nothing: one level all over
    NO_FACE = "no_face"  # of rows: the photograph has no face that was found


@dataclass(frozen=True, slots=True)
class Prediction:
    """An answer.

    Attributes:
        label: the most probable label, or `UNSURE` where the engine has a threshold and there is a `reason`.
        confidence: its calibrated probability, from 0 to 1.
        probabilities: of each label, in the model's order; they add up to 1.
        source: what was given.
        reason: why the answer deserves no trust; None where it does.
    """

    label: str
    confidence: float
    probabilities: dict[str, float] = field(hash=False)
    source: Source = field(repr=False, compare=False)
    reason: Reason | None = None

    def __init__(
        self,
        label: str,
        confidence: float,
        probabilities: dict[str, float],
        source: Source,
        reason: Reason | None = None,
    ) -> None:
        # What a frozen dataclass does by itself, in two thirds of the time: one is made for each picture.
        _set_label(self, label)
        _set_confidence(self, confidence)
        _set_probabilities(self, probabilities)
        _set_source(self, source)
        _set_reason(self, reason)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold: everything but the source."""
        return {
            "label": self.label,
            "confidence": self.confidence,
            "probabilities": dict(self.probabilities),
            "reason": self.reason.value if self.reason else None,
        }


_set_label, _set_confidence, _set_probabilities, _set_source, _set_reason = (
    getattr(Prediction, name).__set__ for name in Prediction.__slots__
)


@dataclass(frozen=True, slots=True)
class Failure:
    """A picture without an answer.

    Attributes:
        kind: what went wrong, one of a closed list.
        message: the same for a person, on one line.
        source: what was given.
    """

    kind: Kind
    message: str
    source: Source = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, str]:
        """Return what JSON can hold: everything but the source."""
        return {"kind": self.kind.value, "message": self.message}


Result = Prediction | Failure

FaceBox = tuple[float, float, float, float]  # left, top, right and bottom
Point = tuple[float, float]  # x and y


@dataclass(frozen=True, slots=True)
class Face:
    """A face in a photograph. Coordinates are pixels of the upright picture at full size, from its left and top.

    Attributes:
        box: of the face as the detector has it, clipped to the picture.
        score: of the detector, from 0 to 1; no probability.
        landmarks: the subject's right eye, left eye, nose, right and left corner of the mouth; not clipped.
        crop: left, top, right and bottom of what the classifier was given, whole pixels: a square of side √(w·h)
            on the centre of the detector's box, clipped to the picture.
        prediction: the answer for it.
    """

    box: FaceBox
    score: float
    landmarks: tuple[Point, ...]
    crop: tuple[int, int, int, int]
    prediction: Prediction

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        place = {
            "box": list(self.box),
            "score": self.score,
            "landmarks": [list(point) for point in self.landmarks],
        }
        return place | self.prediction.to_dict()


@dataclass(frozen=True, slots=True)
class Scene:
    """A photograph and the faces in it.

    Attributes:
        source: what was given.
        size: width and height of the upright picture.
        faces: in it, the highest score first.
    """

    source: Source = field(repr=False, compare=False)
    size: tuple[int, int]
    faces: tuple[Face, ...]


@dataclass(frozen=True, slots=True)
class TrackedFace(Face):
    """A face in a video, which is followed from frame to frame.

    Attributes:
        id: of the face, the same in every frame, counted from 1 and given to no other; None until it has been
            found in three frames.
        prediction: the answer for it over the last moments: label, confidence and probabilities are those of the
            mean of the network's probabilities, in which an answer counts less by e for each half second of age.
    """

    id: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {"id": self.id} | Face.to_dict(self)


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame of a video and the faces in it.

    Attributes:
        time: seconds from the beginning of the stream, by its own clock; never less than that of the frame before.
        index: of the frame in the stream, from 0; those that were left out are counted.
        size: width and height of the upright frame.
        faces: in it, the highest score first.
    """

    time: float
    index: int
    size: tuple[int, int]
    faces: tuple[TrackedFace, ...]
