"""What nobody foresaw costs one picture: whatever a source, a decoder, a library or the model comes up with."""

import asyncio
import json
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.params import quick_first

import fmengine.pipeline.stages
from fmengine import Engine, Failure, Isolation, Kind, SourceError
from fmengine.model.file import seal


class FaultError(Exception):
    """An exception that cannot even be shown."""

    def __str__(self) -> str:
        raise ValueError("no words")


class Path1:
    def __fspath__(self) -> str:
        raise FaultError


class Path2(os.PathLike):
    def __fspath__(self) -> str:
        raise OSError(5, "a drive that fails")


class Path3:
    def __fspath__(self) -> int:
        return 5


class Tensor1:
    def __dlpack_device__(self) -> tuple[int, int]:
        raise FaultError

    def __dlpack__(self, **_: object) -> object:
        raise FaultError


class Tensor2:
    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __dlpack__(self, **_: object) -> object:
        raise FaultError


class Tensor3:
    @property
    def __cuda_array_interface__(self) -> dict:
        raise FaultError


class Array(np.ndarray):
    def __array_finalize__(self, other: object) -> None:
        if other is not None and getattr(self, "ndim", 0) == 2:
            raise FaultError


def released() -> memoryview:
    view = memoryview(b"bytes")
    view.release()
    return view


def without_storage() -> object:
    import torch

    return torch.empty(48, 48, dtype=torch.uint8, device="meta")


def closed() -> object:
    from PIL import Image

    image = Image.new("L", (48, 48))
    image.close()
    return image


ODD: dict[str, Callable[[], object]] = {
    "a path that raises": Path1,
    "a path that fails as a drive does": Path2,
    "a path that is no text": Path3,
    "a tensor that does not tell its device": Tensor1,
    "a tensor that is not handed over": Tensor2,
    "an array that does not tell its address": Tensor3,
    "an array that cannot be sliced": lambda: np.zeros((4, 48, 1), np.uint8).view(Array),
    "a released view": released,
    "a tensor without storage": without_storage,
    "a closed image": closed,
    "nothing": lambda: None,
    "a class": lambda: Path1,
    "a number": lambda: 5,
}


def answers_of(engine: Engine, sources: list) -> Iterator[list]:
    """By each way in, with a `Failure` for a `SourceError`."""
    yield list(engine.predict_many(sources))
    yield list(engine.predict_many(sources, in_flight=1))

    def alone(source: object) -> object:
        try:
            return engine.predict(source)
        except SourceError as error:
            return Failure(error.kind, error.message, source)

    yield [alone(source) for source in sources]

    async def ask() -> list:
        return await asyncio.gather(*map(engine.apredict, sources), return_exceptions=True)

    yield [Failure(r.kind, r.message, None) if isinstance(r, SourceError) else r for r in asyncio.run(ask())]


@pytest.mark.parametrize("isolate", quick_first([None, Isolation()]), ids=["here", "isolated"])
def test_odd_sources_take_no_neighbour_along(portrait: Path, isolate: Isolation | None) -> None:
    sources: list = [portrait]
    for make in ODD.values():
        sources += [make(), portrait]
    with Engine.load(isolate=isolate) as engine:
        expected = engine.predict(portrait)
        for answers in answers_of(engine, sources):
            assert answers[::2] == [expected] * (len(ODD) + 1)
            for name, answer in zip(ODD, answers[1::2], strict=True):
                assert isinstance(answer, Failure), name
                assert answer.kind in (Kind.UNSUPPORTED, Kind.UNREADABLE, Kind.CORRUPT, Kind.INTERNAL), name
                assert answer.message, name


UNFORESEEN = [
    KeyError("4:4:1"),
    FaultError(),
    RuntimeError("a\nfault"),
    MemoryError(),
    AssertionError(),
    StopIteration(),
]


@pytest.mark.parametrize("error", UNFORESEEN, ids=lambda error: type(error).__name__)
def test_whatever_decoding_raises_is_that_pictures_failure(
    portrait: Path, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad = b"what breaks the decoder"
    decode = fmengine.pipeline.stages.decode_bytes

    def breaks(data: bytes, *rest: object) -> object:
        if data == bad:
            raise error
        return decode(data, *rest)

    monkeypatch.setattr(fmengine.pipeline.stages, "decode_bytes", breaks)
    caplog.set_level(logging.DEBUG, "fmengine")
    with Engine.load() as engine:
        expected = engine.predict(portrait)
        for answers in answers_of(engine, [portrait, bad, portrait]):
            assert answers[::2] == [expected] * 2
            kind = Kind.OUT_OF_MEMORY if isinstance(error, MemoryError) else Kind.INTERNAL
            assert answers[1].kind is kind
            assert kind is Kind.OUT_OF_MEMORY or type(error).__name__ in answers[1].message
            assert "\n" not in answers[1].message
    if not isinstance(error, MemoryError):
        assert "in breaks" in caplog.text, "the log has the whole traceback"


def test_a_library_that_fails_for_one_picture_costs_that_one(
    portrait: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine.load() as engine:
        bad = np.random.default_rng(0).integers(0, 256, (80, 80), np.uint8)
        trigger, run = engine.prepare(bad), type(engine.backend).run

        def breaks(self: object, images: np.ndarray) -> object:
            if (images == trigger).all(axis=(1, 2, 3)).any():
                raise RuntimeError("a fault of its kernels")
            return run(self, images)

        monkeypatch.setattr(type(engine.backend), "run", breaks)
        expected = engine.predict(portrait)
        for answers in answers_of(engine, [portrait, bad, portrait, portrait]):
            assert [*answers[:1], *answers[2:]] == [expected] * 3
            assert (answers[1].kind, answers[1].message) == ("internal", "RuntimeError: a fault of its kernels")


# A model that answers with what is no number


@pytest.fixture(scope="module", params=["nan", "inf"])
def broken_model(
    tiny_models: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    """Its last layer adds what is no number to one logit."""
    model = onnx.load(tiny_models / "tiny.fp32.onnx")
    (bias,) = (constant for constant in model.graph.initializer if list(constant.dims) == [2])
    bias.CopyFrom(numpy_helper.from_array(np.float32([request.param, 0]), bias.name))
    entry = next(entry for entry in model.metadata_props if entry.key == "fmengine.model")
    document = json.loads(entry.value)
    entry.value = json.dumps(document | {"file_sha256": "0" * 64})
    path = tmp_path_factory.mktemp("broken") / "broken.fp32.onnx"
    path.write_bytes(seal(model.SerializeToString()))
    return path


def test_an_answer_that_is_no_number_is_an_error_of_its_own_kind(broken_model: Path, portrait: Path) -> None:
    for threshold in (0.0, 0.9):
        with Engine.load(broken_model, "onnxruntime", unsure_below=threshold) as engine:
            for answers in answers_of(engine, [portrait, b"", portrait]):
                assert [answer.kind for answer in answers] == ["not_finite", "empty", "not_finite"]
                assert answers[0].message.startswith("the model answers nan for happy, ")


@pytest.mark.parametrize("suffix", quick_first(["", "jsonl", "csv"]))
def test_rows_are_valid_all_the_same(broken_model: Path, portrait: Path, tmp_path: Path, suffix: str) -> None:
    output = ["--output", tmp_path / f"rows.{suffix}"] if suffix else ["--json"]
    command = [sys.executable, "-m", "fmengine", "infer", portrait, "--model", broken_model, *output]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
    assert done.returncode == 3, done.stderr
    text = (tmp_path / f"rows.{suffix}").read_text() if suffix else done.stdout
    if suffix == "csv":
        assert ",not_finite," in text
        return

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    row = json.loads(text, parse_constant=refuse)
    assert (row["label"], row["error"]["kind"]) == (None, "not_finite")


# Errors travel


def fails(kind: Kind) -> None:
    raise SourceError(kind, "for a reason")


def test_errors_come_out_of_a_process_pool() -> None:
    error = pickle.loads(pickle.dumps(SourceError(Kind.CORRUPT, "for a reason")))
    assert type(error) is SourceError
    assert (error.kind, error.message, str(error)) == ("corrupt", "for a reason", "for a reason")
    with ProcessPoolExecutor(1) as pool, pytest.raises(SourceError, match="for a reason") as caught:
        pool.submit(fails, Kind.TIMEOUT).result(timeout=60)
    assert caught.value.kind is Kind.TIMEOUT
