"""JPEG files decoded on the GPU: where asked for, and nothing but plain ones."""

import io
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from fmengine import Engine, Failure
from fmengine.errors import UnavailableError
from fmengine.options import Limits

from . import driver, shuffles


def jpeg(pixels: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


def load(where: str) -> Engine:
    return Engine.load(shuffles.FP16, "tensorrt", max_batch=16, jpeg=where)


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    if driver.FOUND:
        assert not driver.live()


@pytest.mark.slow
def test_they_have_the_answers_of_the_cpus_pixels_in_20_orders():
    files = [jpeg(pixels, quality=40 + index) for index, pixels in enumerate(shuffles.pictures(40))]
    with load("cpu") as cpu:
        wanted = list(cpu.predict_many(files))
    with load("gpu") as gpu:
        assert gpu.backend.describe()["jpeg"] == "gpu"
        for seed in range(20):
            driver.shuffle(seed)
            assert list(gpu.predict_many(files, batch_size=8)) == wanted


def test_the_cpu_keeps_what_is_not_plain(tmp_path):
    """PNG, CMYK, turned, cut off; and the limits hold."""
    pixels = shuffles.pictures(8)[4]
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    turned = Image.Exif()
    turned[0x0112] = 6
    cmyk = io.BytesIO()
    Image.fromarray(pixels).convert("CMYK").save(cmyk, "JPEG")
    path = tmp_path / "face.jpg"
    path.write_bytes(jpeg(pixels))
    sources = [
        png.getvalue(),
        jpeg(pixels, exif=turned),
        cmyk.getvalue(),
        path,
        jpeg(pixels)[:200],
        tmp_path / "no.jpg",
    ]
    answers = {}
    for where in ("cpu", "gpu"):
        with load(where) as engine:
            decode = engine.backend.decode_jpeg
            with patch.object(engine.backend, "decode_jpeg", wraps=decode) as asked:
                answers[where] = list(engine.predict_many(sources))
        assert [call.args[0] for call in asked.call_args_list] == [path.read_bytes()]
    assert answers["cpu"] == answers["gpu"]
    assert [isinstance(answer, Failure) for answer in answers["gpu"]] == [False] * 4 + [True] * 2
    with Engine.load(shuffles.FP16, "tensorrt", max_batch=16, jpeg="gpu", limits=Limits(max_pixels=10)) as engine:
        assert [answer.kind for answer in engine.predict_many([jpeg(pixels)])] == ["too_large"]


def test_a_cpu_says_that_it_has_no_gpu_to_decode_on():
    with pytest.raises(UnavailableError, match="onnxruntime decodes no JPEG on a GPU"):
        Engine.load(backend="onnxruntime", jpeg="gpu")


@pytest.mark.outside
def test_the_real_library_has_the_names_and_decodes_luma_as_the_cpu_does():
    """Its CPU decoder, which is what runs without a GPU: bit-equal here, which says nothing of the GPU's."""
    from fmengine.gpu.nvjpeg import make_parameters
    from fmengine.image.decode import decode_bytes

    codec = pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is not installed")
    backends = [codec.Backend(codec.BackendKind.CPU_ONLY)]
    decoder = codec.Decoder(device_id=codec.NVIMGCODEC_DEVICE_CPU_ONLY, backends=backends)
    for pixels in shuffles.pictures(30):
        data = jpeg(pixels)
        for color in ("gray", "rgb"):
            image = decoder.decode(codec.CodeStream(data), params=make_parameters(codec, color), cuda_stream=0)
            expected = decode_bytes(data, color, Limits())
            if color == "gray":
                np.testing.assert_array_equal(np.asarray(image).squeeze(axis=2), expected)
            assert np.asarray(image).shape[:2] == expected.shape[:2]
    assert (
        decoder.decode(codec.CodeStream(jpeg(pixels)), params=make_parameters(codec, "gray"), cuda_stream=0)
        is not None
    )
