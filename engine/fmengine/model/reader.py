"""A small bounded reader of an ONNX file's protobuf, because not every backend installs `onnx`.

It finds the document about the model, the digest in it, and tensors that lie in other files. Field numbers are
those of onnx.proto3.
"""

import hashlib
from collections.abc import Iterator

from ..errors import ModelError
from .spec import METADATA_KEY, UNSEALED

MAX_DOCUMENT = 2**20  # bytes; ours have less than 2,000

# Field numbers in ModelProto and StringStringEntryProto.
_GRAPH, _METADATA_PROPS = 7, 14
_KEY, _VALUE = 1, 2

# The fields of each message that hold a tensor, or a message that may, and the field of TensorProto that names
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


def find_document(data: bytes) -> slice:
    """Find the value of `metadata_props["fmengine.model"]` in a serialised ModelProto.

    Raises:
        ModelError: for bytes that are no ONNX model, or one without the document.
    """
    has_graph, document = False, None
    for number, content in _walk_fields(data, slice(0, len(data))):
        has_graph |= number == _GRAPH
        if number == _METADATA_PROPS and content is not None:
            entry = {key: value for key, value in _walk_fields(data, content) if value is not None}
            if _KEY in entry and data[entry[_KEY]] == METADATA_KEY.encode():
                document = entry.get(_VALUE)
    if not has_graph:
        raise ModelError("not an ONNX model: it holds no graph")
    if document is None:
        raise ModelError(
            f"an ONNX model without {METADATA_KEY} metadata, so its labels and preprocessing are unknown; "
            "add them with `fmengine export --describe spec.json MODEL.onnx`"
        )
    if document.stop - document.start > MAX_DOCUMENT:
        raise ModelError(f"the model's {METADATA_KEY} document is larger than {MAX_DOCUMENT:,} bytes")
    return document


def find_digest(data: bytes, document: slice) -> slice:
    """Find the 64 digits of `file_sha256` in the document. Inside a JSON string its quotes would be escaped.

    Raises:
        ModelError: for a document without them.
    """
    name = b'"file_sha256": "'
    start = data.find(name, document.start, document.stop) + len(name)
    if start < len(name) or data[start + len(UNSEALED) : start + len(UNSEALED) + 1] != b'"':
        raise ModelError("the metadata carry no digest of the file; export it again")
    return slice(start, start + len(UNSEALED))


def compute_digest(data: bytes, slot: slice) -> str:
    """Compute the sha256 of a file whose own digits, in `slot`, count as zeros."""
    view, digest = memoryview(data), hashlib.sha256()
    for part in (view[: slot.start], UNSEALED.encode(), view[slot.stop :]):
        digest.update(part)
    return digest.hexdigest()


def has_external_data(data: bytes) -> bool:
    """Return whether any tensor of a serialised ModelProto refers to another file for its values.

    Backends would look for that file under any name, or in the current folder, for they get bytes without a path.
    """
    pending = [("model", slice(0, len(data)))]
    while pending:
        kind, span = pending.pop()
        for number, content in _walk_fields(data, span):
            if content is not None:
                if kind == "tensor" and number == _EXTERNAL_DATA:
                    return True
                if child := _MESSAGES[kind].get(number):
                    pending.append((child, content))
    return False


def _walk_fields(data: bytes, span: slice) -> Iterator[tuple[int, slice | None]]:
    """Walk one protobuf message: each field's number, and its content's slice if it is length-delimited."""
    position = span.start
    while position < span.stop:
        tag, position = _read_varint(data, position, span.stop)
        number, wire_type = tag >> 3, tag & 7
        content = None
        if wire_type == 0:
            _, position = _read_varint(data, position, span.stop)
        elif wire_type in (1, 5):
            position += 8 if wire_type == 1 else 4
        elif wire_type == 2:
            length, position = _read_varint(data, position, span.stop)
            content = slice(position, position + length)
            position += length
        else:
            raise ModelError("not an ONNX model: its bytes are no protobuf message")
        if position > span.stop or number == 0:
            raise ModelError("not an ONNX model, or one cut short")
        yield number, content


def _read_varint(data: bytes, position: int, stop: int) -> tuple[int, int]:
    """Read a varint of at most 10 bytes: its value, and the position behind it."""
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
