"""Pictures in device memory: read where they lie, after the stream that writes them, or refused."""

import gc

import numpy as np
import pytest

from fmengine import Engine, Failure, SourceError

from ..params import quick_first
from . import driver, shuffles

if driver.FOUND:
    from .device_array import CudaArray, DlpackArray, LegacyArray


@pytest.fixture
def engine():
    if not driver.FOUND:
        yield
        return
    with Engine.load(shuffles.FP16, "tensorrt", max_batch=16) as engine:
        yield engine
    assert not driver.live()


def array(kind: str, engine: Engine, pixels: np.ndarray, **options):
    return {"interface": CudaArray, "legacy": LegacyArray, "dlpack": DlpackArray}[kind](
        engine.backend.context, pixels, **options
    )


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "padding"), [("interface", 5), ("legacy", 0), ("dlpack", 5)])
def test_they_have_the_answers_of_arrays_in_20_orders(engine, kind, padding):
    """Every second one is on the GPU, and its stream has not written it when it is given."""
    pixels = shuffles.pictures(60)
    for seed in range(20):
        driver.shuffle(seed)
        mixed = [array(kind, engine, p, padding=padding) if i % 2 else p for i, p in enumerate(pixels)]
        copies = driver.count("copies of pageable memory")
        shuffles.check(list(engine.predict_many(mixed)), 60)
        assert driver.count("copies of pageable memory") == copies
        for source in mixed[1::2]:
            source.free()


@pytest.mark.parametrize("kind", ["interface", "dlpack"])
def test_nothing_is_copied(engine, kind):
    """What describes it is read where it is, and nothing is uploaded."""
    uploaded = []
    for side in (16, 300):
        source = array(kind, engine, np.zeros((side, side, 3), np.uint8))
        engine.predict(source)
        before = driver.count("bytes uploaded")
        engine.predict(source)
        uploaded.append(driver.count("bytes uploaded") - before)
        source.free()
    assert uploaded == [0, 0]


def test_the_order_of_the_channels_is_taken_from_the_caller(engine):
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[..., 0] = np.arange(40) * 6
    rgb, bgr = array("interface", engine, pixels), array("dlpack", engine, pixels[..., ::-1].copy())
    assert engine.predict(rgb).confidence == engine.predict(bgr, channels="bgr").confidence
    assert engine.predict(rgb).confidence != engine.predict(bgr).confidence
    rgb.free()
    bgr.free()


@pytest.mark.slow
def test_they_live_until_they_are_read(engine):
    """Whoever gives an array away need not keep it."""

    class Temporary(CudaArray if driver.FOUND else object):
        def __del__(self) -> None:
            self.free()

    pixels = shuffles.pictures(60)
    for seed in range(20):
        driver.shuffle(seed)
        answers = []
        for start in range(0, 60, 10):
            sources = (Temporary(engine.backend.context, p) for p in pixels[start : start + 10])
            answers += [(a.label, a.confidence) for a in engine.predict_many(sources, batch_size=5)]
        assert answers == [(a.label, a.confidence) for a in engine.predict_many(pixels, batch_size=5)]
    gc.collect()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((8, 8), np.float32), r"device memory of type <f4; expected \|u1, uint8 levels"),
        (np.zeros((8, 8), np.int8), r"device memory of type \|i1"),
        (np.zeros((3, 8, 8), np.uint8), r"shape \(3, 8, 8\); expected \[H, W\].*permute\(1, 2, 0\)"),
        (np.zeros((8, 8, 2), np.uint8), r"shape \(8, 8, 2\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"shape \(2, 8, 8, 3\)"),
        (np.zeros(8, np.uint8), r"shape \(8,\)"),
    ],
)
@pytest.mark.parametrize("kind", ["interface", "dlpack"])
def test_another_type_or_shape_is_refused(engine, kind, pixels, message):
    source = array(kind, engine, pixels)
    with pytest.raises(SourceError, match=message) as caught:
        engine.predict(source)
    assert caught.value.kind == "unsupported"
    answers = list(engine.predict_many([source, shuffles.pictures(1)[0]]))
    assert isinstance(answers[0], Failure)
    shuffles.check(answers[1:], 1)
    source.free()


@pytest.mark.parametrize("kind", ["interface", "dlpack"])
def test_pixels_that_are_not_side_by_side_are_refused(engine, kind):
    source = array(kind, engine, np.zeros((8, 8, 3), np.uint8))
    source.strides = (8, 1, 64)  # as of a permuted tensor
    with pytest.raises(SourceError, match=r"strides of \(8, 1, 64\) bytes; .* make it contiguous"):
        engine.predict(source)
    source.free()


@pytest.mark.parametrize("kind", quick_first(["interface", "dlpack"]))
def test_a_picture_on_another_gpu_is_refused(engine, kind):
    with Engine.load(shuffles.FP16, "tensorrt", device=1, max_batch=16) as other:
        source = array(kind, other, shuffles.pictures(1)[0])
        with pytest.raises(SourceError, match="the picture lies on GPU 1, and this engine runs on GPU 0"):
            engine.predict(source)
        shuffles.check([other.predict(source)], 1)
        source.free()


def test_a_stream_that_the_protocol_forbids_is_refused(engine):
    source = array("interface", engine, shuffles.pictures(1)[0])
    source.stream = type("Stream", (), {"handle": 0})
    with pytest.raises(SourceError, match="names stream 0, which it forbids"):
        engine.predict(source)
    del source.stream
    source.stream = type("Stream", (), {"handle": 12345, "synchronize": lambda self: None})()
    with pytest.raises(
        SourceError, match="cannot wait for stream 0x3039 of the picture: CUDA_ERROR_INVALID_HANDLE"
    ):
        engine.predict(source)
    source.free()


@pytest.mark.parametrize(
    "error", quick_first([RuntimeError("requires grad"), BufferError("another GPU"), KeyError("version")])
)
def test_a_library_that_does_not_hand_a_picture_over_fails_alone(engine, error):
    class Tensor:
        def __dlpack_device__(self):
            return (2, 0)

        def __dlpack__(self, *, stream):
            raise error

    answers = list(engine.predict_many([Tensor(), shuffles.pictures(1)[0]]))
    assert answers[0].kind == "unsupported"
    assert f"{type(error).__name__}: {error}" in answers[0].message
    shuffles.check(answers[1:], 1)


def test_host_memory_that_claims_to_be_a_gpus_is_refused(engine):
    class Liar:
        def __init__(self) -> None:
            self.pixels = np.zeros((8, 8), np.uint8)

        @property
        def __cuda_array_interface__(self):
            return {**self.pixels.__array_interface__, "version": 3, "stream": None}

    with pytest.raises(SourceError, match="is no memory of a GPU"):
        engine.predict(Liar())


def test_a_tensor_on_the_host_is_read_like_an_array(engine):
    class Tensor:
        """As PyTorch's on the CPU."""

        def __init__(self, pixels: np.ndarray) -> None:
            self.__dlpack__, self.__dlpack_device__ = pixels.__dlpack__, pixels.__dlpack_device__

    pixels = shuffles.pictures(20)
    shuffles.check(list(engine.predict_many(pixels)), 20)
    with Engine.load(shuffles.FP16, "onnxruntime", threads=1) as cpu:
        assert cpu.predict(Tensor(pixels[0])).confidence == shuffles.expected(20)[0].confidence


def test_the_cpu_says_that_it_cannot_read_a_gpu(engine):
    source = array("interface", engine, shuffles.pictures(1)[0])
    cpu = Engine.load(shuffles.FP16, "onnxruntime", threads=1)
    with pytest.raises(SourceError, match="lies in a GPU's memory; open the engine with backend='tensorrt'"):
        cpu.predict(source)
    source.free()
