"""The model file: one ONNX that explains itself.

`metadata_props["fmengine.model"]` holds one JSON document: what the labels are, how a picture becomes an
input, how sure an answer is, where the weights come from, and a sha256 over the whole file. That digest is
computed with its own 64 digits set to zero. It detects damage, not forgery.

The document is found by a small bounded reader of the protobuf wire format, because not every backend
brings `onnx`; field numbers are those of onnx.proto3.
"""

import dataclasses
import hashlib
import json
import os
import reprlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ..errors import ModelError, SourceError
from ..image.decode import read_file
from ..options import Limits
from ..types import COLORS, FITS, Color, Fit

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

METADATA_KEY = "fmengine.model"
FORMAT_VERSION = 1
DEFAULT_MODEL = "alexnet-slim"

_UNSEALED = "0" * 64
_MAX_BYTES = 2**31  # protobuf's own limit for one message
_MAX_DOCUMENT = 2**20  # bytes; ours have less than 2,000

# Field numbers in ModelProto and StringStringEntryProto.
_GRAPH, _METADATA_PROPS = 7, 14
_KEY, _VALUE = 1, 2

# Where tensors are: the fields of each message that hold one, or a message that may; what in TensorProto names
# another file.
_MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_EXTERNAL_DATA = 13


def _is_file_name(value: Any) -> bool:
    """Exported files are called by it, so that it must not lead out of their folder."""
    return _is_text(value) and not value.startswith(".") and not set(value) & set("/\\\0")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    """A finite one; JSON's `true`, and integers beyond every float, are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


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
}


@dataclass(frozen=True)
class ModelSpec:
    """What a model file says of itself.

    Attributes:
        name: the family's name, one for all precisions.
        labels: names of the outputs, in order.
        height: rows of the input in pixels.
        width: columns of the input in pixels.
        color: `gray` (one channel) or `rgb` (three).
        fit: how other aspect ratios are brought to the input's.
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
    """

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
    file_sha256: str = _UNSEALED

    def __post_init__(self) -> None:
        for name, (holds, expected) in _FIELDS.items():
            value = getattr(self, name)
            _require(holds(value), f"{name} is {reprlib.repr(value)}", expected)
        _require(
            len(self.mean) == len(self.std) == self.channels,
            f"mean and std have {len(self.mean)} and {len(self.std)} values",
            f"{self.channels} of each, one a channel of {self.color}",
        )

    @property
    def channels(self) -> int:
        return 1 if self.color == "gray" else 3

    def input_shape(self, batch: int) -> tuple[int, int, int, int]:
        """The shape of `images` for a batch: `(N, C, H, W)`."""
        return (batch, self.channels, self.height, self.width)

    def to_json(self) -> str:
        """The document for `metadata_props["fmengine.model"]`."""
        return json.dumps({"version": FORMAT_VERSION} | dataclasses.asdict(self), ensure_ascii=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> "ModelSpec":
        """Read what `to_json` wrote.

        Raises:
            ModelError: for a document of another version, or one with a field too many, too few or wrong.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"the model's {METADATA_KEY} document is no JSON: {error}") from error
        if not isinstance(values, dict):
            raise ModelError(
                f"the model's {METADATA_KEY} document is {reprlib.repr(values)}; expected a JSON object"
            )
        if (version := values.pop("version", None)) != FORMAT_VERSION:
            raise ModelError(
                f"the model's {METADATA_KEY} document has version {version!r}, expected {FORMAT_VERSION}; "
                "export it again, or update fmengine"
            )
        known = {f.name: f for f in dataclasses.fields(cls)}
        needed = {n for n, f in known.items() if f.default is f.default_factory is dataclasses.MISSING}
        if wrong := sorted((values.keys() - known.keys()) | (needed - values.keys())):
            raise ModelError(
                f"the model's {METADATA_KEY} document has unknown or missing fields: {', '.join(wrong)}; "
                f"expected {', '.join(sorted(needed))}"
            )
        for name, value in values.items():
            if isinstance(value, list):  # JSON has no tuples
                values[name] = tuple(value)
        return cls(**values)


@dataclass(frozen=True)
class ModelFile:
    """A model file that was read once and checked: backends take these bytes, not the path."""

    path: Path
    data: bytes = field(repr=False)
    spec: ModelSpec


def load_model_file(path: str | Path) -> ModelFile:
    """Read and check a model file.

    Raises:
        ModelError: for a file that is missing, too large, no ONNX, without metadata, or damaged.
    """
    path = Path(path)
    try:
        data = read_file(path, Limits(max_bytes=_MAX_BYTES))
    except SourceError as error:
        raise ModelError(
            f"cannot read the model {path}: {error}; expected an ONNX file of at most 2 GiB, "
            f"or one of {', '.join(shipped())}"
        ) from error
    if path.parent == shipped_folder() and hashlib.sha256(data).hexdigest() != _shipped_digest(path.name):
        raise ModelError(f"{path} is not the file that fmengine ships: its sha256 differs; install fmengine again")
    return ModelFile(path, data, _verify(path, data))


def resolve(model: str | Path | None, precisions: tuple[Precision, ...]) -> Path:
    """Find the file for a backend.

    Args:
        model: a path, the name of a shipped model, or None for the default one. With a precision, as
            `alexnet-slim.fp16`, it is that file.
        precisions: what the backend can run, best first; a shipped model is taken in the first of them.

    Raises:
        ModelError: if there is no such model, listing those there are.
    """
    # `os.path` answers that a name too long for the file system does not exist; `pathlib` raises.
    if model is not None and (Path(model).suffix == ".onnx" or os.path.exists(model)):
        return Path(model)
    name = DEFAULT_MODEL if model is None else str(model)
    folder = shipped_folder()
    if name in shipped():
        return folder / f"{name}.onnx"
    for precision in precisions:
        path = folder / f"{name}.{precision}.onnx"
        if os.path.isfile(path):
            return path
    raise ModelError(
        f"no model {name!r} in {' or '.join(precisions)}; shipped are {', '.join(shipped()) or 'none'}"
    )


def shipped_folder() -> Path:
    return Path(__file__).parent / "shipped"


def shipped() -> list[str]:
    """Names and precisions of the models in the package, as `alexnet-slim.int8`."""
    return sorted(path.stem for path in shipped_folder().glob("*.onnx"))


def _shipped_digest(name: str) -> str:
    """The sha256 of a shipped model, which `sha256sum --check SHA256SUMS` verifies too."""
    for line in (shipped_folder() / "SHA256SUMS").read_text(encoding="ascii").splitlines():
        digest, _, file = line.partition("  ")
        if file == name:
            return digest
    return ""


def seal(data: bytes) -> bytes:
    """Write the file's digest into a serialised ONNX whose metadata hold a `ModelSpec`."""
    slot = _digest_slot(data, _document(data))
    return data[: slot.start] + _digest(data, slot).encode() + data[slot.stop :]


def _verify(path: Path, data: bytes) -> ModelSpec:
    try:
        document = _document(data)
        spec = ModelSpec.from_json(data[document])
        slot = _digest_slot(data, document)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    if _digest(data, slot) != spec.file_sha256:
        raise ModelError(f"{path} is damaged: its bytes do not give the digest it carries; get or export it again")
    if _has_external_data(data):
        raise ModelError(
            f"{path} keeps weights in other files, which its digest says nothing of; expected one file that holds "
            "everything: export it again, without external data"
        )
    return spec


def _digest(data: bytes, slot: slice) -> str:
    view, digest = memoryview(data), hashlib.sha256()
    for part in (view[: slot.start], _UNSEALED.encode(), view[slot.stop :]):
        digest.update(part)
    return digest.hexdigest()


def _digest_slot(data: bytes, document: slice) -> slice:
    """Where the 64 digits of `file_sha256` stand. Inside a JSON string its quotes would be escaped."""
    name = b'"file_sha256": "'
    start = data.find(name, document.start, document.stop) + len(name)
    if start < len(name) or data[start + len(_UNSEALED) : start + len(_UNSEALED) + 1] != b'"':
        raise ModelError("the metadata carry no digest of the file; export it again")
    return slice(start, start + len(_UNSEALED))


def _document(data: bytes) -> slice:
    """Where the value of `metadata_props["fmengine.model"]` stands in a serialised ModelProto."""
    has_graph, found = False, None
    for number, content in _fields(data, slice(0, len(data))):
        has_graph |= number == _GRAPH
        if number == _METADATA_PROPS and content is not None:
            entry = {key: value for key, value in _fields(data, content) if value is not None}
            if _KEY in entry and data[entry[_KEY]] == METADATA_KEY.encode():
                found = entry.get(_VALUE)
    if not has_graph:
        raise ModelError("not an ONNX model: it holds no graph")
    if found is None:
        raise ModelError(
            f"an ONNX model without {METADATA_KEY} metadata, so its labels and preprocessing are unknown; "
            "add them with `fmengine export --describe spec.json MODEL.onnx`"
        )
    if found.stop - found.start > _MAX_DOCUMENT:
        raise ModelError(f"the model's {METADATA_KEY} document is larger than {_MAX_DOCUMENT:,} bytes")
    return found


def _has_external_data(data: bytes) -> bool:
    """Whether any tensor of a serialised ModelProto says that its values are in another file.

    Backends would look for it wherever it says, or in the current folder, for they are given bytes without a path.
    """
    left = [("model", slice(0, len(data)))]
    while left:
        kind, span = left.pop()
        for number, content in _fields(data, span):
            if content is not None:
                if kind == "tensor" and number == _EXTERNAL_DATA:
                    return True
                if child := _MESSAGES[kind].get(number):
                    left.append((child, content))
    return False


def _fields(data: bytes, span: slice) -> Iterator[tuple[int, slice | None]]:
    """Walk one protobuf message: field number, and where its content stands if it is length-delimited."""
    position = span.start
    while position < span.stop:
        tag, position = _varint(data, position, span.stop)
        number, wire_type = tag >> 3, tag & 7
        content = None
        if wire_type == 0:
            _, position = _varint(data, position, span.stop)
        elif wire_type in (1, 5):
            position += 8 if wire_type == 1 else 4
        elif wire_type == 2:
            length, position = _varint(data, position, span.stop)
            content = slice(position, position + length)
            position += length
        else:
            raise ModelError("not an ONNX model: its bytes are no protobuf message")
        if position > span.stop or number == 0:
            raise ModelError("not an ONNX model, or one cut short")
        yield number, content


def _varint(data: bytes, position: int, stop: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= stop:
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ModelError("not an ONNX model, or one cut short")


def _require(condition: bool, found: str, expected: str) -> None:
    if not condition:
        raise ModelError(f"model: {found}; expected {expected}")
