"""What `import fmengine` gives: names, results as data, files as sources, errors that name their source."""

import asyncio
import copy
import dataclasses
import inspect
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.params import quick_first

import fmengine
import fmengine.backend.registry
from fmengine import ClosedError, Engine, Failure, FmengineError, Isolation, Kind, Prediction, Reason, SourceError


def test_every_name_is_there() -> None:
    for name in fmengine.__all__:
        assert getattr(fmengine, name) is not None
    assert sorted(fmengine.__all__) == sorted(set(fmengine.__all__))
    assert issubclass(ClosedError, FmengineError)
    assert issubclass(fmengine.DeviceError, FmengineError)


def test_models_and_backends_are_listed() -> None:
    assert {"alexnet-slim.int8", "alexnet-slim.fp16"} <= set(fmengine.available_models())
    assert fmengine.backends()[0] == "tensorrt"
    with Engine.load(fmengine.available_models()[0], fmengine.backends()[3]) as engine:
        assert engine.backend.name == "onnxruntime"
    assert fmengine.backends is fmengine.backend.registry.backends  # which no module of that name may shadow


def test_a_prediction_is_data(portrait: Path) -> None:
    with Engine.load() as engine:
        one, other = engine.predict(portrait), engine.predict(portrait)
        flat = engine.predict(np.full((48, 48), 9, np.uint8))
        missing = next(iter(engine.predict_many(["missing.jpg"])))
    assert one == other
    assert len({one, other, flat}) == 2
    assert json.loads(json.dumps(one.to_dict())) == {
        "label": "happy",
        "confidence": one.confidence,
        "probabilities": one.probabilities,
        "reason": None,
    }
    assert flat.reason is Reason.FLAT
    assert flat.to_dict()["reason"] == "flat"
    assert isinstance(missing, Failure)
    assert missing.to_dict() == {"kind": "not_found", "message": "no such file"}
    assert len({missing, missing}) == 1


def test_a_prediction_is_a_frozen_dataclass() -> None:
    """Also where its class makes instances in its own way."""
    one = Prediction("happy", 0.75, {"happy": 0.75, "sad": 0.25}, "a.png")
    given = {field.name: getattr(one, field.name) for field in dataclasses.fields(one)}
    assert one == Prediction(**given) == dataclasses.replace(one, source="b.png")
    assert dataclasses.asdict(dataclasses.replace(one, reason=Reason.FLAT)) == given | {"reason": Reason.FLAT}
    assert repr(one) == (
        "Prediction(label='happy', confidence=0.75, probabilities={'happy': 0.75, 'sad': 0.25}, reason=None)"
    )
    for same in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert (same, same.source, hash(same)) == (one, "a.png", hash(one))
    assert list(inspect.signature(Prediction).parameters) == list(given)
    for name in (*given, "other"):
        with pytest.raises((AttributeError, TypeError)):  # a dataclass with slots raises either
            setattr(one, name, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        del one.label
    assert not hasattr(one, "__dict__")


def test_an_engine_says_what_it_is() -> None:
    engine = Engine.load(backend="onnxruntime")
    assert repr(engine) == "Engine(alexnet-slim.int8 on onnxruntime)"
    engine.close()
    assert repr(engine) == "Engine(alexnet-slim.int8 on onnxruntime, closed)"


def test_an_engine_is_closed_by_async_with(portrait: Path) -> None:
    async def use() -> Engine:
        async with Engine.load() as engine:
            assert (await engine.apredict(portrait)).label == "happy"
        return engine

    engine = asyncio.run(use())
    with pytest.raises(ClosedError):
        engine.predict(portrait)


@pytest.mark.parametrize("isolate", quick_first([None, Isolation()]), ids=["", "isolated"])
def test_open_files_are_sources(portrait: Path, isolate: Isolation | None) -> None:
    with Engine.load(isolate=isolate, threads=2) as engine:
        expected = engine.predict(portrait)
        with portrait.open("rb") as file:
            assert engine.predict(file) == expected
        with portrait.open("rb") as file:
            assert asyncio.run(engine.apredict(file)) == expected
        data = portrait.read_bytes()
        assert list(engine.predict_many([io.BytesIO(data), io.BytesIO(data), data])) == [expected] * 3
        assert (engine.preprocess(io.BytesIO(data)) == engine.prepare(data)).all()
        with portrait.open("rb") as file:
            file.close()
            with pytest.raises(SourceError, match="closed") as caught:
                engine.predict(file)
        assert caught.value.kind is Kind.UNREADABLE
        with pytest.raises(TypeError, match="expected an iterable of pictures"):
            engine.predict_many(io.BytesIO(data))  # its lines are no pictures


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("missing.jpg", "missing.jpg: no such file"),
        (Path("missing.jpg"), "missing.jpg: no such file"),
        (b"no picture", "<10 bytes>: no known image format"),
        (np.zeros((4, 4), np.float32), "array of (4, 4) float32: array of float32; expected uint8"),
        (Image.new("F", (4, 4), 1e9), "PIL image of 4×4, mode F: levels of 32 bits"),
    ],
    ids=["str", "path", "bytes", "array", "pil"],
)
def test_an_error_names_its_source(source: object, text: str) -> None:
    with Engine.load() as engine:
        for call in (engine.predict, engine.preprocess, lambda s: asyncio.run(engine.apredict(s))):
            with pytest.raises(SourceError) as caught:
                call(source)
            assert str(caught.value).startswith(text)
            assert not caught.value.message.startswith(text.partition(":")[0])


@pytest.mark.parametrize("threads", [1, 2])
def test_an_observer_sees_every_stage_in_any_body(portrait: Path, threads: int) -> None:
    seen: list[tuple[str, float, float]] = []
    with Engine.load(threads=threads) as engine:
        with engine.observe(lambda *span: seen.append(span)):
            engine.predict(portrait)
            assert [stage for stage, _, _ in seen] == ["read", "decode", "preprocess", "infer", "post"]
            assert all(begin <= end for _, begin, end in seen)
            list(engine.predict_many([portrait] * 20))
        count = len(seen)
        assert [stage for stage, _, _ in seen].count("read") == 21
        engine.predict(portrait)
        assert len(seen) == count


def test_predict_takes_what_the_caller_changes_afterwards(portrait: Path) -> None:
    frame = np.asarray(Image.open(portrait).convert("L")).copy()
    with Engine.load() as engine:
        first = engine.predict(frame)
        frame[:] = 0
        assert isinstance(first, Prediction)
        assert first.label == "happy"
