"""The detector: what its outputs mean, that its file is what the wheel's weights give, on every CPU backend."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmengine.backend.onnxruntime import OnnxRuntimeBackend
from fmengine.backend.openvino import OpenVinoBackend
from fmengine.detect.yunet import Detections, compute_tilts, decode_outputs, merge, suppress_overlaps
from fmengine.errors import ModelError
from fmengine.image.scene import resize_for_search
from fmengine.model.detector import SHIPPED, DetectorOutputs, load_detector_file
from fmengine.model.file import load_model_file, resolve
from fmengine.options import BackendOptions
from fmengine_export.detector import STRIDES, make_detector, make_opencv_model

ROOT = Path(__file__).parents[2]
WHEELS = ROOT / ".cache" / "yuface"
SPEC = load_detector_file().spec
DEFAULT = "yunet.fp32.onnx"
MAX_IOU = 0.3141  # which no two boxes of small whole numbers have, so that no rounding decides


def count_anchors(height: int, width: int) -> int:
    return sum((height // stride) * (width // stride) for stride in STRIDES)


@pytest.mark.parametrize(
    ("stride", "row", "column"),
    [(8, 0, 0), (8, 3, 11), (8, 7, 15), (16, 0, 5), (16, 3, 7), (32, 0, 0), (32, 1, 3)],
)
def test_an_anchors_numbers_become_a_box(stride: int, row: int, column: int) -> None:
    """Input of 128 × 64: 16 × 8, 8 × 4 and 4 × 2 anchors. By hand, for each stride."""
    height, width = 64, 128
    outputs = DetectorOutputs(
        *(np.zeros((2, count_anchors(height, width), size), np.float32) for size in (1, 1, 4, 10))
    )
    before = sum((height // s) * (width // s) for s in STRIDES if s < stride)
    anchor = before + row * (width // stride) + column
    outputs.cls[1, anchor], outputs.obj[1, anchor] = 0.9, 0.4
    outputs.bbox[1, anchor] = 0.25, -0.5, np.log(2), np.log(3)
    outputs.kps[1, anchor] = [0, 0, 1, 0, 0, 1, 0.5, 0.5, -1, -1]
    found = decode_outputs(outputs, 1, width, SPEC, 0.59)
    x, y = (column + 0.25) * stride, (row - 0.5) * stride
    np.testing.assert_allclose(
        found.boxes, [[x - stride, y - 1.5 * stride, x + stride, y + 1.5 * stride]], rtol=1e-6
    )
    assert found.scores == pytest.approx([0.6])
    points = [(0, 0), (1, 0), (0, 1), (0.5, 0.5), (-1, -1)]
    expected = [((column + right) * stride, (row + down) * stride) for right, down in points]
    np.testing.assert_allclose(found.landmarks[0], expected)
    assert not len(decode_outputs(outputs, 1, width, SPEC, 0.61).scores)
    assert not len(decode_outputs(outputs, 0, width, SPEC, 0.59).scores)


def compute_iou(a: np.ndarray, b: np.ndarray) -> float:
    width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = max(width, 0) * max(height, 0)
    return float(shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared))


@given(st.lists(st.tuples(*[st.integers(0, 20)] * 2, *[st.integers(1, 12)] * 2, st.integers(0, 100)), max_size=12))
def test_of_boxes_that_overlap_the_best_is_kept(made: list[tuple[int, int, int, int, int]]) -> None:
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h, _ in made], np.float32).reshape(-1, 4)
    scores = np.array([score / 100 for *_, score in made], np.float32)
    found = Detections(boxes, scores, np.zeros((len(made), 5, 2), np.float32))
    kept = suppress_overlaps(found, MAX_IOU).tolist()
    expected: list[int] = []
    for index in np.argsort(-scores, kind="stable").tolist():
        if all(compute_iou(boxes[index], boxes[other]) <= MAX_IOU for other in expected):
            expected.append(index)
    assert kept == expected
    if made:
        assert len(merge([found, found], MAX_IOU).scores) == len(kept)


def test_the_tilt_is_that_of_the_eyes() -> None:
    landmarks = np.zeros((3, 5, 2), np.float32)
    landmarks[:, 1] = [(10, 0), (0, 10), (-10, -10)]
    found = Detections(np.zeros((3, 4), np.float32), np.ones(3, np.float32), landmarks)
    assert compute_tilts(found).tolist() == pytest.approx([0, 90, -135])


def test_the_shipped_file_says_what_it_is() -> None:
    assert (SPEC.task, SPEC.color, SPEC.multiple, SPEC.strides) == ("faces", "rgb", 32, STRIDES)
    assert (SHIPPED / "LICENSE.yunet").read_text().startswith("By downloading")
    with pytest.raises(ModelError, match="the model is a detector of faces; expected a classifier"):
        load_model_file(SHIPPED / DEFAULT)
    with pytest.raises(ModelError, match="the model is a classifier; expected a detector of faces"):
        load_detector_file(resolve(None, ("int8",)))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    data = bytearray((SHIPPED / DEFAULT).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "yunet.onnx").write_bytes(data)
    with pytest.raises(ModelError, match="is damaged"):
        load_detector_file(tmp_path / "yunet.onnx")
    with pytest.raises(ModelError, match=r"cannot read the detector .*missing\.onnx"):
        load_detector_file(tmp_path / "missing.onnx")


def test_the_same_wheel_gives_the_same_bytes(tmp_path: Path) -> None:
    wheels = list(WHEELS.glob("*.whl"))
    if not wheels:
        pytest.skip("no wheel of yuface in .cache; `make test` fetches it")
    made = [path.name for path in make_detector(wheels[0], tmp_path)]
    assert made == ["yunet.fp32.onnx", "yunet.fp16.onnx"]
    for name in (*made, "SHA256SUMS", "LICENSE.yunet"):
        assert (tmp_path / name).read_bytes() == (SHIPPED / name).read_bytes()
    other = Path(shutil.copy(SHIPPED / DEFAULT, tmp_path / "other.whl"))
    with pytest.raises(ValueError, match=r"expected yuface 2023\.5\.1"):
        make_detector(other, tmp_path)


@pytest.fixture(scope="module")
def scene(demo_pictures: Path) -> np.ndarray:
    """Two faces, uint8 `[96, 160, 3]`."""
    from PIL import Image

    with Image.open(demo_pictures / "astronaut.png") as face:
        canvas = Image.new("RGB", (160, 96), (90, 110, 120))
        for left, size in ((8, 64), (96, 48)):
            canvas.paste(face.convert("RGB").resize((size, size)), (left, 16))
    return np.asarray(canvas)


def test_rows_of_a_batch_are_those_of_single_runs_and_libraries_agree(scene: np.ndarray) -> None:
    file = load_detector_file()
    one, _ = resize_for_search(scene, 320, 32)
    batch = np.concatenate([one, one[..., ::-1], np.zeros_like(one)])
    ours = OnnxRuntimeBackend.open(file, BackendOptions(threads=1))
    other = OpenVinoBackend.open(file, BackendOptions(threads=1))
    whole, again = ours.run(batch), other.run(batch)
    for row in range(3):
        alone = ours.run(batch[row : row + 1])
        for name in DetectorOutputs._fields:
            assert np.array_equal(getattr(alone, name)[0], getattr(whole, name)[row])
            np.testing.assert_allclose(getattr(again, name)[row], getattr(whole, name)[row], atol=1e-3)
    assert len(decode_outputs(whole, 0, one.shape[3], file.spec, 0.6).scores) == 2
    assert not len(decode_outputs(whole, 2, one.shape[3], file.spec, 0.6).scores)


@pytest.mark.slow
def test_boxes_are_those_of_opencv(scene: np.ndarray) -> None:
    import cv2

    file = load_detector_file()
    pixels, _ = resize_for_search(scene, 640, 32)
    ours = decode_outputs(
        OnnxRuntimeBackend.open(file, BackendOptions(threads=1)).run(pixels), 0, pixels.shape[3], file.spec, 0.6
    )
    height, width = pixels.shape[2:]
    model = np.frombuffer(make_opencv_model(height, width), np.uint8)
    theirs = cv2.FaceDetectorYN.create("onnx", model, np.array([], np.uint8), (width, height), 0.6, 0.3, 5000)
    found = theirs.detect(np.ascontiguousarray(pixels[0, ::-1].transpose(1, 2, 0)))[1]
    found = found[np.argsort(-found[:, 14])]
    assert len(found) == len(ours.scores) == 2
    np.testing.assert_allclose(ours.boxes[:, :2], found[:, :2], atol=0.01)
    np.testing.assert_allclose(ours.boxes[:, 2:] - ours.boxes[:, :2], found[:, 2:4], atol=0.01)
    np.testing.assert_allclose(ours.landmarks.reshape(-1, 10), found[:, 4:14], atol=0.01)
    np.testing.assert_allclose(ours.scores, found[:, 14], atol=1e-4)
