"""What a source is: file-likes are read to their end and no further, and messages name what was given."""

import asyncio
import io
import os
import pickle
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fmengine import Engine, Kind, Limits, SourceError
from fmengine.image.decode import decode
from fmengine.image.source import (
    MAX_READ,
    describe_source,
    is_encoded,
    is_file_like,
    is_on_device,
    read_file_like,
    with_source,
)

LIMITS = Limits()


class Reader:
    """A file-like that gives what a function makes of the number of bytes that are asked for."""

    def __init__(self, read: Any) -> None:
        self.read = read


def raising(error: BaseException) -> Any:
    def read(size: int) -> bytes:
        raise error

    return read


def error_of(source: Any, limits: Limits = LIMITS) -> SourceError:
    with pytest.raises(SourceError) as caught:
        decode(source, "gray", limits)
    return caught.value


@pytest.fixture(scope="module")
def data(portrait: Path) -> bytes:
    return portrait.read_bytes()


# File-likes


def test_file_likes_are_decoded_as_their_bytes(portrait, data):
    expected = decode(data, "gray", LIMITS)
    with (
        portrait.open("rb") as buffered,
        portrait.open("rb", buffering=0) as raw,
        tempfile.TemporaryFile() as other,
    ):
        other.write(data)
        other.seek(0)
        for source in (io.BytesIO(data), buffered, raw, other):
            assert is_file_like(source)
            assert not is_encoded(source)
            assert not is_on_device(source)
            np.testing.assert_array_equal(decode(source, "gray", LIMITS), expected)


def test_a_file_like_is_read_from_where_it_stands(data):
    file = io.BytesIO(b"something before" + data)
    file.seek(len(b"something before"))
    np.testing.assert_array_equal(decode(file, "gray", LIMITS), decode(data, "gray", LIMITS))
    assert file.tell() == len(file.getvalue())
    assert error_of(file).kind is Kind.EMPTY, "it is at its end"


def test_the_engine_answers_for_a_file_like(portrait, data):
    with Engine.load() as engine:
        expected = engine.predict(portrait).probabilities
        assert engine.predict(io.BytesIO(data)).probabilities == expected
        many = engine.predict_many([io.BytesIO(data), io.BytesIO(b"no picture"), io.BytesIO(data)])
        first, failure, last = many
        assert first.probabilities == last.probabilities == expected
        assert failure.kind is Kind.NOT_AN_IMAGE
        assert asyncio.run(engine.apredict(io.BytesIO(data))).probabilities == expected


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 10_000])
def test_at_most_one_byte_over_the_limit_is_read(size):
    file = io.BytesIO(bytes(size))
    if size <= 100:
        assert read_file_like(file, Limits(max_bytes=100)) == bytes(size)
    else:
        assert error_of(file, Limits(max_bytes=100)).kind is Kind.FILE_TOO_LARGE
    assert file.tell() == min(size, 101)


def test_a_file_like_without_end_is_refused():
    sizes: list[int] = []

    def read(size: int) -> bytes:
        sizes.append(size)
        return bytes(size)

    assert error_of(Reader(read), Limits(max_bytes=2 * MAX_READ)).kind is Kind.FILE_TOO_LARGE
    assert sizes == [MAX_READ, MAX_READ, 1]


def test_short_reads_are_put_together(data):
    file = io.BytesIO(data)
    parts = Reader(lambda size: file.read(min(size, 1000)))
    assert read_file_like(parts, LIMITS) == data
    file.seek(0)
    views = Reader(lambda size: memoryview(bytearray(file.read(min(size, 1000)))))
    assert read_file_like(views, LIMITS) == data


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_file_that_is_open_as_text_is_unsupported(portrait, encoding):
    with portrait.open(encoding=encoding) as file:
        error = error_of(file)
    assert error.kind is Kind.UNSUPPORTED
    assert "binary mode" in error.message


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("text", "gives str; expected bytes"),
        (7, "gives int; expected bytes"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "read as text"),
    ],
)
def test_what_gives_no_bytes_is_unsupported(given, message):
    read = raising(given) if isinstance(given, Exception) else lambda size: given
    error = error_of(Reader(read))
    assert error.kind is Kind.UNSUPPORTED
    assert message in error.message


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(5, "Input/output error"), "Input/output error"),
        (ValueError("I/O operation on closed file."), "closed file"),
        (RuntimeError("the bucket\nis gone"), "cannot read the file: RuntimeError: the bucket is gone"),
        (StopIteration(), "StopIteration"),
        (EOFError(), "EOFError"),
    ],
)
def test_whatever_reading_raises_is_unreadable(error, message):
    found = error_of(Reader(raising(error)))
    assert found.kind is Kind.UNREADABLE
    assert message in found.message


def test_a_closed_file_is_unreadable(portrait, data):
    with portrait.open("rb") as file:
        pass
    memory = io.BytesIO(data)
    memory.close()
    for source in (file, memory):
        assert error_of(source).kind is Kind.UNREADABLE


def test_a_file_that_is_open_for_writing_alone_is_unreadable(tmp_path):
    with (tmp_path / "x").open("wb") as file:
        assert error_of(file).kind is Kind.UNREADABLE


def test_a_pipe_that_has_nothing_yet_is_unreadable():
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with open(reader, "rb", buffering=0) as source:
        error = error_of(source)
    os.close(writer)
    assert error.kind is Kind.UNREADABLE
    assert "no bytes yet" in error.message


def test_an_attribute_that_raises_makes_no_file_like():
    class Broken:
        @property
        def read(self) -> object:
            raise RuntimeError

    assert not is_file_like(Broken())
    assert error_of(Broken()).kind is Kind.UNSUPPORTED


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt()])
def test_what_concerns_the_process_is_not_swallowed(error):
    with pytest.raises(type(error)):
        decode(Reader(raising(error)), "gray", LIMITS)


# Messages


class Named(io.BytesIO):
    name = "upload.jpg"


class Nameless:
    def __fspath__(self) -> str:
        raise RuntimeError


def released() -> memoryview:
    view = memoryview(b"abc")
    view.release()
    return view


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("face.jpg", "face.jpg"),
        (Path("a/Gesicht ä.png"), "a/Gesicht ä.png"),
        ("two\nlines.jpg", r"'two\nlines.jpg'"),
        (os.fsdecode(b"\xff.jpg"), r"'\udcff.jpg'"),
        (b"x" * 48, "<48 bytes>"),
        (bytearray(3), "<3 bytes>"),
        (memoryview(np.zeros((2, 3), np.uint8)), "<6 bytes>"),
        (np.zeros((48, 48), np.uint8), "array of (48, 48) uint8"),
        (np.zeros((1, 2, 3)), "array of (1, 2, 3) float64"),
        (Image.new("RGB", (4, 5)), "PIL image of 4×5, mode RGB"),
        (io.BytesIO(), "<BytesIO>"),
        (Named(), "file upload.jpg"),
        (SimpleNamespace(shape=(4, 5), __dlpack_device__=lambda: (2, 0)), "SimpleNamespace of (4, 5)"),
        (SimpleNamespace(shape=7), "<SimpleNamespace>"),
        (None, "<NoneType>"),
        (Nameless(), "<Nameless>"),
        (released(), "<memoryview>"),
    ],
)
def test_sources_are_described_on_one_line(source, expected):
    assert describe_source(source) == expected
    error = SourceError(Kind.CORRUPT, "no good")
    assert str(with_source(error, source)) == f"{expected}: no good"


def test_the_text_of_an_error_names_its_source_and_its_message_does_not(tmp_path):
    path = tmp_path / "none.jpg"
    plain = error_of(path)
    assert (str(plain), plain.source) == ("no such file", None)
    named = with_source(plain, path)
    assert str(named) == f"{path}: no such file"
    assert (named.kind, named.message, named.source) == (Kind.NOT_FOUND, "no such file", str(path))
    assert isinstance(named.__cause__, FileNotFoundError)
    assert named.__traceback__ is plain.__traceback__
    assert with_source(named, b"another") is named, "whoever knew it first was nearest to it"
    assert str(plain) == "no such file"


@pytest.mark.parametrize("source", [None, "face.jpg"])
def test_errors_are_pickled_with_their_source(source):
    error = pickle.loads(pickle.dumps(SourceError(Kind.CORRUPT, "for a\nreason", source)))
    assert (error.kind, error.message, error.source) == (Kind.CORRUPT, "for a reason", source)
    assert str(error).endswith("reason")
