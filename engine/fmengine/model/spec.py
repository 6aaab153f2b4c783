"""The metadata of a model file: labels, the input that it takes, where its weights come from."""

import dataclasses
import json
import reprlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeVar, cast, get_args

from ..errors import ModelError
from ..types import COLORS, FITS, Color, Fit, Outputs

T = TypeVar("T")

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

METADATA_KEY = "fmengine.model"
FORMAT_VERSION = 1
UNSEALED = "0" * 64  # `file_sha256` while the digest is computed


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What a network takes for one picture.

    Attributes:
        height: rows in pixels.
        width: columns in pixels.
        color: `gray` (one channel) or `rgb` (three).
        fit: what is done to a picture of another aspect ratio: `crop`, `pad` or `stretch`.
        channels: 1 or 3.
        shape: `(C, H, W)`.
        size: `(width, height)`, as Pillow orders them.

    Raises:
        ValueError: for an empty input, and for another colour or fit.
    """

    height: int
    width: int
    color: Color = "gray"
    fit: Fit = "crop"
    channels: int = field(init=False, repr=False, compare=False)
    shape: tuple[int, int, int] = field(init=False, repr=False, compare=False)
    size: tuple[int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not (self.height >= 1 and self.width >= 1):
            raise ValueError(f"height {self.height}, width {self.width}; expected 1 or more")
        if self.color not in COLORS:
            raise ValueError(f"color {self.color!r}; expected one of {', '.join(COLORS)}")
        if self.fit not in FITS:
            raise ValueError(f"fit {self.fit!r}; expected one of {', '.join(FITS)}")
        # Computed once: they are asked for with every picture.
        object.__setattr__(self, "channels", 1 if self.color == "gray" else 3)
        object.__setattr__(self, "shape", (self.channels, self.height, self.width))
        object.__setattr__(self, "size", (self.width, self.height))


def _is_file_name(value: Any) -> bool:
    """Return whether a value can be a file's name: exported files must not leave their folder by it."""
    return _is_text(value) and not value.startswith(".") and not set(value) & set("/\\\0")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    """Return whether a value is a finite number; JSON's `true`, and integers beyond every float, are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_whole(value: Any, minimum: int, maximum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum


def _is_each(value: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, tuple) and all(map(holds, value))


# What each field must be, checked here because JSON may hold anything, and a wrong type would otherwise be
# found far from its cause: in an array's shape, in a row, in a file's name.
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (_is_file_name, "text that can be a file's name"),
    "labels": (lambda v: _is_each(v, _is_text) and len(v) == len(set(v)) >= 2, "two or more different names"),
    "height": (lambda v: _is_whole(v, 1, 4096), "1 to 4096 pixels"),
    "width": (lambda v: _is_whole(v, 1, 4096), "1 to 4096 pixels"),
    "color": (lambda v: v in COLORS, f"one of {', '.join(COLORS)}"),
    "fit": (lambda v: v in FITS, f"one of {', '.join(FITS)}"),
    "precision": (lambda v: v in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
    "mean": (lambda v: _is_each(v, lambda m: _is_whole(m, 0, 255)), "whole levels from 0 to 255"),
    "std": (lambda v: _is_each(v, lambda s: _is_number(s) and s > 0), "positive numbers"),
    "temperature": (lambda v: _is_number(v) and v > 0, "a positive number"),
    "unsure_below": (lambda v: _is_number(v) and 0 <= v <= 1, "a number from 0 to 1"),
    "training_data": (_is_text, "text"),
    "accuracy": (lambda v: isinstance(v, dict), "scores by data set"),
    "weights_sha256": (_is_text, "text"),
    "filter": (lambda v: v == "bilinear", "bilinear"),
    "file_sha256": (_is_text, "text"),
    "features": (lambda v: _is_whole(v, 0, 65536), "0 to 65536 numbers"),
}


@dataclass(frozen=True)
class ModelSpec:
    """Describes a model: the document that its file carries.

    Attributes:
        name: the family's name, one for all precisions.
        labels: names of the outputs, in order.
        height: rows of the input in pixels.
        width: columns of the input in pixels.
        color: `gray` (one channel) or `rgb` (three).
        fit: what is done to pictures of another aspect ratio: `crop`, `pad` or `stretch`.
        precision: `fp32`, `fp16` or `int8`.
        mean: the level subtracted from each channel, inside the graph.
        std: the levels that become 1.0, inside the graph.
        temperature: what the logits are divided by before the softmax, inside the graph.
        unsure_below: a recommended threshold of confidence.
        training_data: what it was trained on.
        accuracy: measured scores by data set.
        weights_sha256: digest of the FP32 weights, the same for all precisions of a family.
        filter: of the resize; `bilinear` is the only one there is.
        file_sha256: digest of the file.
        features: numbers that the output `features` has for a picture; 0 where the file has no such output.
    """

    outputs: ClassVar[Any] = Outputs  # named as the file's

    name: str
    labels: tuple[str, ...]
    height: int
    width: int
    color: Color
    fit: Fit
    precision: Precision
    mean: tuple[int, ...]
    std: tuple[float, ...]
    temperature: float = 1.0
    unsure_below: float = 0.0
    training_data: str = ""
    accuracy: dict[str, Any] = field(default_factory=dict)
    weights_sha256: str = ""
    filter: str = "bilinear"
    file_sha256: str = UNSEALED
    features: int = 0

    def __post_init__(self) -> None:
        for name, (holds, expected) in _FIELDS.items():
            value = getattr(self, name)
            require(holds(value), f"{name} is {reprlib.repr(value)}", expected)
        require(
            len(self.mean) == len(self.std) == self.channels,
            f"mean and std have {len(self.mean)} and {len(self.std)} values",
            f"{self.channels} of each, one a channel of {self.color}",
        )

    @cached_property
    def input(self) -> InputSpec:
        """What the network takes for one picture; derived, and no field of the document."""
        return InputSpec(self.height, self.width, self.color, self.fit)

    @property
    def channels(self) -> int:
        """1 or 3."""
        return self.input.channels

    @property
    def output_names(self) -> tuple[str, ...]:
        """The tensors that the network gives, in the order of `outputs`."""
        return Outputs._fields if self.features else ("logits", "probabilities")

    def input_shape(self, batch: int) -> tuple[int, int, int, int]:
        """Return the shape of `images` for a batch: `(N, C, H, W)`."""
        return (batch, *self.input.shape)

    def to_json(self) -> str:
        """Write the document for `metadata_props["fmengine.model"]`."""
        return to_document(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> "ModelSpec":
        """Read what `to_json` wrote.

        Raises:
            ModelError: for a document of another version, or one with a field too many, too few or wrong.
        """
        return read_document(cls, text)


def to_document(values: dict[str, Any]) -> str:
    """Write the fields of a model's document."""
    return json.dumps({"version": FORMAT_VERSION} | values, ensure_ascii=True)


def read_document(kind: type[T], text: str | bytes) -> T:
    """Read the document of a model into a dataclass, which checks the fields' values.

    Raises:
        ModelError: for a document of another version or task, or one with a field too many, too few or wrong.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"the model's {METADATA_KEY} document is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ModelError(f"the model's {METADATA_KEY} document is {reprlib.repr(values)}; expected a JSON object")
    if (version := values.pop("version", None)) != FORMAT_VERSION:
        raise ModelError(
            f"the model's {METADATA_KEY} document has version {version!r}, expected {FORMAT_VERSION}; "
            "export it again, or update fmengine"
        )
    fields = {f.name: f for f in dataclasses.fields(cast(Any, kind))}
    if ("task" in values) != ("task" in fields):
        found, expected = ("a detector of faces", "a classifier")[:: 1 if "task" in values else -1]
        raise ModelError(f"the model is {found}; expected {expected}")
    needed = {n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING}
    if wrong := sorted((values.keys() - fields.keys()) | (needed - values.keys())):
        raise ModelError(
            f"the model's {METADATA_KEY} document has unknown or missing fields: {', '.join(wrong)}; "
            f"expected {', '.join(sorted(needed))}"
        )
    for name, value in values.items():
        if isinstance(value, list):  # JSON has no tuples
            values[name] = tuple(value)
    return kind(**values)


def require(condition: bool, found: str, expected: str) -> None:
    """Raise ModelError unless a condition of a document holds."""
    if not condition:
        raise ModelError(f"model: {found}; expected {expected}")
