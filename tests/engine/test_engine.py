"""The engine answers the same whatever the source, the batch, or the thread."""

import asyncio
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmengine import (
    Engine,
    Failure,
    FmengineError,
    Kind,
    Limits,
    Prediction,
    SourceError,
)
from fmengine.model.file import get_shipped_folder, load_model_file
from fmengine.pipeline.executor import WINDOW
from fmengine.system.cores import usable_cores
from fmengine_bench.evaluate import evaluate


@pytest.fixture(scope="module")
def engine():
    with Engine.load(max_batch=16) as engine:
        yield engine


@pytest.fixture(scope="module")
def files(demo_pictures):
    return sorted(demo_pictures.iterdir())


def test_the_portrait_is_happy(engine, portrait):
    prediction = engine.predict(portrait)
    assert prediction.label == "happy"
    assert prediction.confidence > 0.9
    assert prediction.confidence == prediction.probabilities["happy"]
    assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert tuple(prediction.probabilities) == engine.spec.labels == ("happy", "sad")


def test_every_kind_of_source_gives_the_same_answer(engine, portrait, portrait_pixels):
    data = portrait.read_bytes()
    sources = [
        str(portrait), portrait, data, bytearray(data), memoryview(data), portrait_pixels,
        np.dstack([portrait_pixels, np.zeros(portrait_pixels.shape[:2], np.uint8)]), Image.open(io.BytesIO(data)),
    ]  # fmt: skip
    answers = {tuple(engine.predict(source).probabilities.values()) for source in sources}
    answers.add(tuple(engine.predict(portrait_pixels[..., ::-1], channels="bgr").probabilities.values()))
    assert len(answers) == 1
    flipped = engine.prepare(portrait_pixels[..., ::-1], channels="bgr")
    np.testing.assert_array_equal(flipped, engine.prepare(portrait_pixels))


def test_a_picture_gets_the_same_bits_in_any_batch(engine, files):
    alone = [engine.predict(path).probabilities for path in files]
    for size in (1, 3, 16):
        together = [result.probabilities for result in engine.predict_many(files, batch_size=size)]
        assert together == alone
    backwards = [result.probabilities for result in engine.predict_many(files[::-1])]
    assert backwards[::-1] == alone


def test_failures_stand_in_their_place_and_nothing_else_is_lost(engine, files, tmp_path):
    sources = [files[0], b"", tmp_path / "missing.jpg", files[1], b"no picture", np.zeros((4, 4)), files[2]]
    results = list(engine.predict_many(sources, batch_size=3))
    kinds = [result.kind if isinstance(result, Failure) else None for result in results]
    assert kinds == [
        None, Kind.EMPTY, Kind.NOT_FOUND, None, Kind.NOT_AN_IMAGE, Kind.UNSUPPORTED, None,
    ]  # fmt: skip
    assert [result.source is source for result, source in zip(results, sources, strict=True)] == [True] * 7
    good = [engine.predict(path) for path in files[:3]]
    assert [result for result in results if isinstance(result, Prediction)] == good


def test_a_strip_that_no_square_can_hold_is_a_failure(monkeypatch):
    with Engine.load(max_batch=1) as engine:
        monkeypatch.setattr(engine._stages, "spec", replace(engine.spec, fit="pad"))
        strip = np.zeros((1, 60_000), np.uint8)
        (result,) = engine.predict_many([strip])
    assert isinstance(result, Failure)
    assert result.kind is Kind.TOO_LARGE


def test_such_a_strip_costs_nobody_elses_answer(monkeypatch, portrait):
    with Engine.load(max_batch=16, threads=1) as engine:
        monkeypatch.setattr(engine._stages, "spec", replace(engine.spec, fit="pad"))
        good = engine.predict(portrait)
        results = list(engine.predict_many([portrait, np.zeros((1, 60_000), np.uint8), portrait]))
    assert [results[0], results[2]] == [good, good]
    assert isinstance(results[1], Failure)
    assert results[1].kind is Kind.TOO_LARGE


def test_one_that_cannot_be_preprocessed_costs_its_own_place(monkeypatch, portrait):
    """Small pictures are preprocessed together: where that fails, each is tried alone."""
    with Engine.load(max_batch=16, threads=1) as engine:
        whole = engine._stages._preprocess
        faces = [np.full((90, 90), level, np.uint8) for level in (10, 66, 200)]
        good = [engine.predict(face) for face in faces]

        def no_room(images, *rest):
            if any((image == 66).all() for image in images):
                raise MemoryError("no room")
            return whole(images, *rest)

        monkeypatch.setattr(engine._stages, "_preprocess", no_room)
        results = list(engine.predict_many(faces))
    assert [results[0].probabilities, results[2].probabilities] == [good[0].probabilities, good[2].probabilities]
    assert (results[1].kind, results[1].source is faces[1]) == (Kind.OUT_OF_MEMORY, True)


def test_a_turned_picture_is_held_to_the_limits_once():
    """As it is stored: turned, its rows of 10 pixels would count as 16 each."""
    image = Image.new("L", (19_000, 10), 99)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif)
    with Engine.load(max_batch=16, limits=Limits(max_pixels=200_000)) as engine:
        good = engine.predict(file.getvalue())
        many = list(engine.predict_many([file.getvalue()] * 3))
    assert [answer.probabilities for answer in many] == 3 * [good.probabilities]


def test_what_is_prepared_does_not_hold_or_follow_its_picture(engine):
    frame = np.full((80, 1000), 50, np.uint8)
    prepared = engine.prepare(frame)
    frame[:] = 7
    assert (prepared == 50).all()
    assert prepared.flags.c_contiguous
    assert prepared.base is None or prepared.base.nbytes == prepared.nbytes


def test_predict_raises_what_predict_many_reports(engine):
    with pytest.raises(SourceError, match="no known image format") as caught:
        engine.predict(b"no picture")
    assert caught.value.kind is Kind.NOT_AN_IMAGE


def test_an_endless_source_is_read_only_as_far_as_needed(engine, portrait):
    asked = count()
    endless = (portrait for _ in asked)
    results = list(islice(engine.predict_many(endless, batch_size=4), 4))
    assert len(results) == 4
    assert next(asked) <= (1 + 2 * WINDOW * usable_cores()) * 4 + 1  # those answered, and the window


def test_an_abandoned_stream_leaves_no_threads(engine, portrait):
    stream = engine.predict_many(portrait for _ in count())
    next(stream)
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fmengine-")]


def test_chunks_are_what_is_known(engine, portrait):
    """A slow source, such as a camera, has its answers before it gives the next pictures; none come twice."""
    good = engine.predict(portrait)
    taken = []

    def slow():
        for number in range(40):
            yield portrait if number % 5 else b""
            if number % 10 == 9:
                time.sleep(0.2)

    for chunk in engine.predict_chunks(slow()):
        assert chunk
        taken += chunk
    assert [getattr(outcome, "probabilities", None) for outcome in taken] == 8 * [None, *4 * [good.probabilities]]


def test_an_error_of_the_source_iterator_reaches_the_caller(engine, portrait):
    def sources():
        yield portrait
        raise RuntimeError("the camera is gone")

    with pytest.raises(RuntimeError, match="the camera is gone"):
        list(engine.predict_many(sources()))


@pytest.mark.slow
def test_sixteen_threads_give_the_serial_answers(engine, files):
    serial = [engine.predict(path) for path in files]
    with ThreadPoolExecutor(16) as pool:
        for answers in pool.map(lambda _: [engine.predict(path) for path in files], range(16)):
            assert answers == serial


def test_the_bare_network_and_the_engine_agree(engine, files):
    images = np.stack([engine.prepare(path) for path in files[:5]])
    assert images.shape == engine.spec.input_shape(5)
    outputs = engine.backend.run(images)
    assert outputs.logits.dtype == outputs.probabilities.dtype == np.float32
    scaled = outputs.logits / engine.spec.temperature
    softmax = np.exp(scaled) / np.exp(scaled).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(outputs.probabilities, softmax, atol=1e-6)
    answers = [list(engine.predict(path).probabilities.values()) for path in files[:5]]
    np.testing.assert_array_equal(outputs.probabilities, np.float32(answers))


@pytest.mark.parametrize("shape", [(48, 48), (60, 50, 1), (30, 70, 3), (90, 40, 4)])
@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_an_array_of_images_has_the_answers_of_each(engine, shape, channels):
    stack = np.random.default_rng(4).integers(0, 256, (engine.max_batch + 5, *shape), np.uint8)
    found = engine.predict_batch(stack, channels=channels)
    assert found.logits.shape == (len(stack), len(engine.spec.labels))
    wanted = [
        list(answer.probabilities.values()) for answer in engine.predict_many(list(stack), channels=channels)
    ]
    np.testing.assert_array_equal(found.probabilities, np.float32(wanted))


@pytest.mark.parametrize(
    ("array", "kind", "says"),
    [
        (np.zeros((48, 48), np.uint8), "unsupported", r"array of shape \(48, 48\); expected \[N, H, W\] or"),
        (np.zeros((0, 48, 48), np.uint8), "empty", r"array of shape \(0, 48, 48\); expected .* N from 1"),
        (np.zeros((2, 0, 48), np.uint8), "empty", "has no pixels"),
        (np.zeros((2, 48, 48, 2), np.uint8), "unsupported", "C of 1, 3 or 4"),
        (np.zeros((2, 48, 48), np.float32), "unsupported", "array of float32; expected uint8"),
        (np.zeros((2, 500_000, 4), np.uint8), "too_large", "a strip of 4×500000 pixels"),
    ],
)
def test_an_array_that_is_none_of_images_is_refused(engine, monkeypatch, array, kind, says):
    monkeypatch.setattr("fmengine.image.geometry.MAX_BETWEEN", 300)
    with pytest.raises(SourceError, match=says) as caught:
        engine.predict_batch(array)
    assert caught.value.kind == kind


def test_a_closed_engine_says_so(portrait):
    engine = Engine.load()
    engine.close()
    engine.close()
    with pytest.raises(FmengineError, match="closed"):
        engine.predict(portrait)
    with pytest.raises(FmengineError, match="closed"):
        engine.predict_many([portrait])


def test_two_engines_live_side_by_side(engine, portrait):
    with Engine.load() as other:
        assert other.predict(portrait) == engine.predict(portrait)
    assert engine.predict(portrait).label == "happy"


@pytest.mark.parametrize("batch_size", [0, 17])
def test_a_batch_size_out_of_range_is_refused_at_once(engine, batch_size):
    with pytest.raises(ValueError, match="expected 1 to max_batch, 16"):
        engine.predict_many([], batch_size=batch_size)


@pytest.mark.parametrize(
    "source",
    ["a.jpg", b"\xff\xd8\xff", bytearray(3), memoryview(b"abc"), Path("a.jpg"), np.zeros((4, 4), np.uint8),
     np.zeros((2, 4, 4, 3), np.uint8), Image.new("L", (4, 4)), None, 3],
    ids=lambda source: type(source).__name__,
)  # fmt: skip
def test_one_picture_in_place_of_many_is_an_error_at_the_call(engine, source):
    """Text is an iterable of letters, each of which would be a picture that is not found."""
    for call in (engine.predict_many, engine.predict_chunks):
        with pytest.raises(TypeError, match=f"{type(source).__name__}; expected an iterable of pictures"):
            call(source)


def test_anything_that_can_be_iterated_is_many(engine, portrait):
    class Indexed:
        def __getitem__(self, index: int) -> Path:
            return [portrait][index]

    for sources in ([portrait], (portrait,), {portrait: 1}, iter([portrait]), Indexed()):
        (answer,) = engine.predict_many(sources)
        assert answer.label == "happy"


def test_shipped_files_are_one_family():
    specs = [load_model_file(_shipped(precision)).spec for precision in ("int8", "fp16")]
    assert {spec.precision for spec in specs} == {"int8", "fp16"}
    assert len({spec.weights_sha256 for spec in specs}) == 1
    assert len({spec.temperature for spec in specs}) == 1


def _shipped(precision):
    return get_shipped_folder() / f"alexnet-slim.{precision}.onnx"


def test_int8_and_fp16_agree_on_every_demo_picture_they_are_sure_of(engine, files):
    with Engine.load(_shipped("fp16")) as other:
        for mine, theirs in zip(engine.predict_many(files), other.predict_many(files), strict=True):
            assert mine.probabilities["happy"] == pytest.approx(theirs.probabilities["happy"], abs=0.15)


@pytest.mark.slow
def test_accuracy_on_held_out_faces(engine, shared_faces):
    report = evaluate(engine, shared_faces / "fer2013" / "val").report
    assert report.count == 1537
    assert report.accuracy >= 0.92
    assert report.ece < 0.03


# Unsure answers


def test_an_answer_under_the_threshold_is_unsure(portrait) -> None:
    with Engine.load() as sure, Engine.load(unsure_below=1.0) as unsure:
        plain, held_back = sure.predict(portrait), unsure.predict(portrait)
    assert plain.label == "happy"
    assert held_back.label == "unsure"
    assert (held_back.confidence, held_back.probabilities) == (plain.confidence, plain.probabilities)


def test_the_threshold_itself_is_sure(portrait) -> None:
    with Engine.load() as engine:
        confidence = engine.predict(portrait).confidence
    with Engine.load(unsure_below=confidence) as engine:
        assert engine.predict(portrait).label == "happy"


def test_the_model_recommends_a_threshold() -> None:
    with Engine.load(unsure_below="recommended") as engine:
        assert engine.unsure_below == engine.spec.unsure_below > 0.5
    with Engine.load() as engine:
        assert engine.unsure_below == 0


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_an_impossible_threshold_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="expected a confidence from 0 to 1, or 'recommended'"):
        Engine.load(unsure_below=threshold)


def test_what_came_before_an_error_of_the_sources_is_answered(engine):
    def sources():
        yield from [np.full((8, 8), level, np.uint8) for level in range(30)]
        raise OSError("the camera is gone")

    answers = []
    with pytest.raises(OSError, match="the camera is gone"):
        answers.extend(engine.predict_many(sources(), batch_size=7))
    stream = engine.predict_many(sources(), batch_size=7)
    assert len([next(stream) for _ in range(30)]) == 30
    with pytest.raises(OSError, match="the camera is gone"):
        next(stream)


def test_scaled_decoding_is_off_unless_asked_for_and_hardly_changes_answers(portrait_pixels):
    data = io.BytesIO()
    Image.fromarray(portrait_pixels).resize((1600, 1600), Image.Resampling.BICUBIC).save(data, "JPEG", quality=90)
    with (
        Engine.load(backend="onnxruntime") as whole,
        Engine.load(backend="onnxruntime", scaled_jpeg=True) as scaled,
    ):
        assert whole.prepare(data.getvalue()).shape == scaled.prepare(data.getvalue()).shape
        assert (whole.prepare(data.getvalue()) != scaled.prepare(data.getvalue())).any()
        answers = [engine.predict(data.getvalue()) for engine in (whole, scaled)]
    assert answers[0].label == answers[1].label
    assert abs(answers[0].confidence - answers[1].confidence) < 0.05


def test_many_threads_and_one_picture_at_a_time_give_the_same_bits(engine, files):
    """The network of `predict_many` runs on one thread each, that of `predict` on all: no bit may depend on it."""
    alone = [engine.predict(file).probabilities for file in files]
    assert [result.probabilities for result in engine.predict_many(files)] == alone


@pytest.mark.parametrize("in_flight", [0, -1])
def test_in_flight_out_of_range_is_refused_at_once(engine, in_flight):
    with pytest.raises(ValueError, match="expected 1 or more"):
        engine.predict_many([], in_flight=in_flight)


@pytest.mark.parametrize("channels", ["BGR", "RGB", "", "gbr", None, 3])
@pytest.mark.parametrize("method", ["predict", "apredict", "predict_many", "predict_chunks", "prepare"])
def test_channels_that_do_not_exist_are_refused_before_a_picture_is_read(engine, method, channels):
    """`BGR` was taken for RGB."""
    read = []
    many = (read.append(1) or np.zeros((4, 4, 3), np.uint8) for _ in range(3))
    source = many if method in ("predict_many", "predict_chunks") else "missing.png"

    def ask() -> object:
        asked = getattr(engine, method)(source, channels=channels)
        return asyncio.run(asked) if method == "apredict" else asked

    with pytest.raises(ValueError, match="expected 'rgb' or 'bgr'"):
        ask()
    assert not read


@pytest.mark.parametrize("limits", [{"max_bytes": 0}, {"max_pixels": 0}, {"max_bytes": float("nan")}])
def test_limits_that_nothing_passes_are_refused(limits):
    with pytest.raises(ValueError, match="expected 1 or more"):
        Limits(**limits)


@pytest.mark.slow
def test_sixteen_threads_with_failures_mixed_in_give_the_serial_answers(engine, files, portrait):
    """Equal to the bit, whoever fails beside them."""
    sources = [
        *files[:20],
        b"",
        b"no picture",
        portrait.read_bytes()[:-500],
        "missing.png",
        np.zeros((0, 4), np.uint8),
    ]

    def ask(source: object) -> object:
        try:
            return engine.predict(source)
        except SourceError as error:
            return error.kind, error.message

    def order(number: int) -> list[int]:
        return [(number + turn * 7) % len(sources) for turn in range(200)]

    serial = [ask(source) for source in sources]
    assert {type(answer) for answer in serial} == {Prediction, tuple}
    with ThreadPoolExecutor(16) as pool:
        for number, answers in enumerate(pool.map(lambda n: [ask(sources[i]) for i in order(n)], range(16))):
            assert answers == [serial[index] for index in order(number)]
