"""Embeddings: the last layer's input, the same bits in any batch, close between the files of one family."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from tests.conftest import draw_face

from fmengine import Engine, Failure, Isolation, Kind, ModelError, SourceError
from fmengine.backend.onnxruntime import OnnxRuntimeBackend
from fmengine.check.compare import compare_features
from fmengine.errors import BackendError, ClosedError
from fmengine.model.file import load_model_file
from fmengine.options import BackendOptions, EngineOptions
from fmengine.types import ImageOutputs, Outputs
from fmengine_export.graph import describe
from fmengine_train.checkpoint import load_model

LEVEL = 0.0504  # of the shipped file in INT8: one level of what its last layer takes

Load = Callable[..., Engine]


@pytest.fixture(params=["onnxruntime", "openvino"])
def load(request: pytest.FixtureRequest) -> Load:
    """Loads a model on one backend."""
    pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    return lambda model=None, **options: Engine.load(model, request.param, **options)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine.load(backend="onnxruntime", threads=2) as engine:
        yield engine


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """Forty drawn faces of different sizes."""
    return [np.asarray(draw_face(seed % 2 == 0, seed, 30 + seed)) for seed in range(40)]


def as_array(results: Any) -> np.ndarray:
    return np.stack(list(results))


def test_the_shipped_model_is_golden(load: Load) -> None:
    with load() as engine:
        embedding = engine.embed(draw_face(True, 129))
    assert (embedding.dtype, embedding.shape) == (np.float32, (256,))
    assert embedding[:5] == pytest.approx([12 * LEVEL, 0, 0, 0, 0], abs=1.01 * LEVEL)
    assert embedding[[175, 135, 22, 253, 57]] == pytest.approx(
        [4.181, 3.325, 2.720, 2.569, 2.469], abs=1.01 * LEVEL
    )
    assert (embedding >= 0).all()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_picture_has_the_same_bits_in_any_batch_and_order(
    load: Load, tiny_models: Path, pictures: list[np.ndarray], precision: str
) -> None:
    with load(tiny_models / f"tiny.{precision}.onnx", threads=2) as engine:
        alone = as_array(map(engine.embed, pictures))
        for size in (1, 7, 40):
            np.testing.assert_array_equal(as_array(engine.embed_many(pictures, batch_size=size)), alone)
        np.testing.assert_array_equal(as_array(engine.embed_many(pictures[::-1])), alone[::-1])
        np.testing.assert_array_equal(as_array(engine.embed_many(iter(pictures), feed="caller")), alone)
        assert len(np.unique(alone, axis=0)) == 40


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp16", 5e-3), ("int8", 0.1)])
def test_they_are_pytorchs(
    load: Load, tiny_run: Path, tiny_models: Path, pictures: list[np.ndarray], precision: str, tolerance: float
) -> None:
    model, _ = load_model(tiny_run)
    with load(tiny_models / f"tiny.{precision}.onnx") as engine:
        found = as_array(engine.embed_many(pictures))
        inputs = np.stack([engine.preprocess(picture) for picture in pictures])
    with torch.inference_mode():
        expected = model.embed(torch.from_numpy(inputs)).numpy()
    assert np.abs(found - expected).max() <= tolerance * expected.max()


def test_files_of_one_family_are_close(engine: Engine, pictures: list[np.ndarray]) -> None:
    with Engine.load("alexnet-slim.fp16", "onnxruntime") as half:
        found, expected = (as_array(each.embed_many(pictures)) for each in (engine, half))
    assert compare_features(found, expected).min_cosine > 0.99
    assert compare_features(found, np.roll(expected, 2, axis=0)).min_cosine < 0.9


def test_backends_are_close(engine: Engine, pictures: list[np.ndarray]) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    with Engine.load(backend="openvino") as other:
        found, expected = (as_array(each.embed_many(pictures)) for each in (engine, other))
    assert compare_features(found, expected).min_cosine > 0.999


def test_every_kind_of_source_has_an_embedding(
    engine: Engine, portrait: Path, portrait_pixels: np.ndarray
) -> None:
    expected = engine.embed(portrait)
    sources = [str(portrait), portrait.read_bytes(), portrait_pixels, portrait]
    for found in (*map(engine.embed, sources), *engine.embed_many(sources)):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(engine.embed(portrait_pixels[..., ::-1], channels="bgr"), expected)


def test_one_bad_picture_fails_alone(engine: Engine, pictures: list[np.ndarray], tmp_path: Path) -> None:
    missing = tmp_path / "none.png"
    sources = [pictures[0], b"no picture", pictures[1], missing, np.zeros((4, 4)), pictures[2]]
    results = list(engine.embed_many(sources))
    kinds = [result.kind for result in results if isinstance(result, Failure)]
    assert kinds == [Kind.NOT_AN_IMAGE, Kind.NOT_FOUND, Kind.UNSUPPORTED]
    assert results[3].source == missing
    np.testing.assert_array_equal(results[5], engine.embed(pictures[2]))
    for source in (b"no picture", missing):
        with pytest.raises(SourceError):
            engine.embed(source)


def test_endless_sources_are_read_as_far_as_memory_allows(engine: Engine, pictures: list[np.ndarray]) -> None:
    numbers = count()
    sources = (pictures[number % 40] for number in numbers)
    found = list(islice(engine.embed_many(sources, in_flight=8, feed="caller"), 20))
    np.testing.assert_array_equal(np.stack(found), as_array(map(engine.embed, pictures[:20])))
    assert next(numbers) <= 20 + 8


def test_an_error_of_the_sources_comes_after_what_was_before(engine: Engine, pictures: list[np.ndarray]) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield from pictures[:3]
        raise RuntimeError("the camera is gone")

    results = engine.embed_many(broken())
    assert [next(results).shape for _ in range(3)] == [(256,)] * 3
    with pytest.raises(RuntimeError, match="the camera is gone"):
        next(results)


def test_an_embedding_keeps_no_others_alive(engine: Engine, pictures: list[np.ndarray]) -> None:
    for embedding in (engine.embed(pictures[0]), *engine.embed_many(pictures[:5])):
        assert embedding.base is None
        embedding[:] = 0  # it is the caller's


def test_isolated_decoders_give_the_same(portrait: Path, engine: Engine) -> None:
    expected = engine.embed(portrait)
    with Engine.load(backend="onnxruntime", isolate=Isolation(), workers=1, threads=1) as isolated:
        np.testing.assert_array_equal(isolated.embed(portrait), expected)
        found = list(isolated.embed_many([portrait, b"no picture", portrait.read_bytes()]))
    assert isinstance(found[1], Failure)
    for embedding in found[::2]:
        np.testing.assert_array_equal(embedding, expected)


def test_an_observer_sees_the_stages(engine: Engine, portrait: Path) -> None:
    seen: list[str] = []
    with engine.observe(lambda stage, begin, end: seen.append(stage)):
        engine.embed(portrait)
    assert seen[:4] == ["read", "decode", "preprocess", "infer"]
    stages = len(seen)
    engine.embed(portrait)
    assert len(seen) == stages


def test_batches_of_one_array_have_their_features(engine: Engine) -> None:
    faces = np.stack([np.asarray(draw_face(True, seed)) for seed in range(5)])
    np.testing.assert_array_equal(engine.predict_batch(faces).features, as_array(map(engine.embed, faces)))


# What cannot be


def test_a_file_without_features_says_what_to_do(tiny_models: Path, tmp_path: Path) -> None:
    import onnx

    spec = load_model_file(tiny_models / "tiny.int8.onnx").spec
    model = onnx.load(tiny_models / "tiny.int8.onnx")
    (tmp_path / "old.onnx").write_bytes(describe(model, replace(spec, features=0)))
    with Engine.load(tmp_path / "old.onnx", "onnxruntime") as engine:
        assert engine.predict(draw_face(True, 1)).label in ("happy", "sad")
        for call in (engine.embed, lambda source: engine.embed_many([source])):
            with pytest.raises(
                ModelError, match=r"old\.onnx gives no features .* `python -m fmengine_export\.features"
            ):
                call(draw_face(True, 1))


@pytest.mark.parametrize("features", [255, 2])
def test_a_file_whose_features_have_another_width_is_refused(
    load: Load, tiny_models: Path, tmp_path: Path, features: int
) -> None:
    import onnx

    spec = load_model_file(tiny_models / "tiny.fp32.onnx").spec
    model = onnx.load(tiny_models / "tiny.fp32.onnx")
    (tmp_path / "odd.onnx").write_bytes(describe(model, replace(spec, features=features)))
    with pytest.raises(ModelError, match=rf"features of \(1, 256\) .* expected \(1, {features}\)"):
        load(tmp_path / "odd.onnx")


def test_a_file_that_promises_features_and_has_none_is_refused(
    load: Load, tiny_models: Path, tmp_path: Path
) -> None:
    import onnx

    model = onnx.load(tiny_models / "tiny.fp32.onnx")
    model.graph.output.pop()
    spec = load_model_file(tiny_models / "tiny.fp32.onnx").spec
    (tmp_path / "none.onnx").write_bytes(describe(model, spec))
    with pytest.raises(ModelError, match="features"):
        load(tmp_path / "none.onnx")


def test_wrong_settings_are_refused_before_anything_is_read(engine: Engine) -> None:
    picture = draw_face(True, 1)
    for settings in ({"batch_size": 0}, {"in_flight": 0}, {"channels": "bgra"}, {"feed": "thread"}):
        with pytest.raises(ValueError, match="expected"):
            engine.embed_many([picture], **settings)
    with pytest.raises(ValueError, match="expected"):
        engine.embed(picture, channels="bgra")
    with pytest.raises(TypeError, match="expected an iterable of pictures"):
        engine.embed_many(picture)


def test_a_closed_engine_embeds_nothing() -> None:
    engine = Engine.load(backend="onnxruntime")
    engine.close()
    for call in (engine.embed, lambda source: engine.embed_many([source])):
        with pytest.raises(ClosedError):
            call(draw_face(True, 1))


# A GPU, played by the CPU: it publishes answers alone for pictures, and `run` gives features, or does not.


class PlayedGpu(OnnxRuntimeBackend):
    name = "played"
    device_index, pci_bus_id, streams = 0, "", 2
    gives_features = True

    def run(self, images: np.ndarray) -> Outputs:
        outputs = super().run(images)
        return outputs if self.gives_features else outputs._replace(features=None)

    def admit(self, source: object, channels: str) -> Any:
        raise AssertionError("embeddings are not of pictures in a GPU's memory")

    def decode_jpeg(self, data: bytes) -> None:
        raise AssertionError("nor of what it decodes")

    def register_memory(self, memory: np.ndarray) -> Callable[[], None]:
        return lambda: None

    def run_pictures(self, pictures: Any) -> ImageOutputs:
        raise AssertionError("the kernels publish no features")

    def time_stages(self, batch: Any) -> Any:
        raise NotImplementedError

    def time_host(self, batch: Any) -> Any:
        raise NotImplementedError


class DeviceArray:
    __cuda_array_interface__: ClassVar[dict[str, Any]] = {}


def play_gpu(kind: type[PlayedGpu], **options: Any) -> Engine:
    file = load_model_file(Engine.load(backend="onnxruntime").model_path)
    backend = kind.open(file, BackendOptions(threads=1))
    backend.spec = file.spec
    return Engine(backend, file, EngineOptions(**options))


@pytest.mark.parametrize("isolate", [None, Isolation()], ids=["", "isolated"])
def test_on_a_gpu_pictures_are_preprocessed_on_the_cpu(
    engine: Engine, portrait: Path, pictures: list[np.ndarray], isolate: Isolation | None
) -> None:
    options = {"isolate": isolate, "workers": 1} if isolate else {}
    sources = [pictures[0], portrait, pictures[1], portrait.read_bytes(), b"no picture", *pictures[2:30]]
    with play_gpu(PlayedGpu, **options) as gpu:
        found = list(gpu.embed_many(sources, batch_size=8))
        np.testing.assert_array_equal(gpu.embed(portrait), engine.embed(portrait))
        with pytest.raises(SourceError, match="in the host's: copy it there"):
            gpu.embed(DeviceArray())
    assert isinstance(found.pop(4), Failure)
    del sources[4]
    np.testing.assert_array_equal(np.stack(found), as_array(engine.embed_many(sources)))


def test_a_backend_that_gives_none_is_an_error() -> None:
    with play_gpu(type("Mute", (PlayedGpu,), {"gives_features": False})) as gpu:
        with pytest.raises(BackendError, match="played gives no features, although the model file has them"):
            gpu.embed(draw_face(True, 1))
        with pytest.raises(BackendError, match="another backend, such as onnxruntime"):
            list(gpu.embed_many([draw_face(True, seed) for seed in range(9)], batch_size=2))
