"""The preprocessing kernel against the definition: the `.cu` that GPUs run, compiled for the CPU.

What this cannot show: races between threads, a GPU's own compiler and memory, speed.
"""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmengine.errors import SourceError
from fmengine.gpu import plan, publish, tables
from fmengine.gpu.launch import BATCH, PICTURE, SHOWN, Geometry, InputShape, describe_pictures
from fmengine.gpu.plan import DESCRIPTOR, Plan
from fmengine.gpu.tables import LONGEST, Tables
from fmengine.image import flatness
from fmengine.image.decode import decode
from fmengine.image.flatness import is_flat_input
from fmengine.image.geometry import compute_fit_box
from fmengine.image.preprocess import preprocess
from fmengine.model.spec import InputSpec
from fmengine.options import Limits
from fmengine.types import FITS

from .cases import Case, random_box, random_case, reference
from .differ import make_case
from .host import SOURCE, HostKernel, compile_kernel, fits, pack, sanitized_environment

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("kernel")]  # compiled once
ROOT = Path(__file__).parents[2]
REPORT = re.compile(r"cases (\d+), pixels (\d+), differing (\d+)")


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_kernel(tmp_path_factory.mktemp("kernel"))


@pytest.fixture(scope="session")
def kernel(library: Path) -> HostKernel:
    return HostKernel(library)


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library under the sanitizers, for processes of `sanitized_environment()`."""
    return compile_kernel(tmp_path_factory.mktemp("sanitized"), sanitize=True)


def assert_equal(case: Case, kernel: HostKernel) -> None:
    np.testing.assert_array_equal(case.run(kernel), case.expected())


# Equal to the definition


@pytest.mark.slow
def test_five_hundred_pictures_under_the_sanitizers(sanitized: Path) -> None:
    command = [sys.executable, "-m", "tests.kernel.check", str(sanitized), "--cases", "500", "--seed", "1"]
    done = subprocess.run(
        command, cwd=ROOT, env=sanitized_environment(), capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    cases, pixels, differing = (int(number) for number in REPORT.fullmatch(done.stdout.strip()).groups())
    assert (cases, differing) == (500, 0)
    assert pixels > 1_000_000


@settings(max_examples=150, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    channels=st.sampled_from([1, 3]),
    bytes_a_pixel=st.sampled_from([0, 1, 3, 4]),
    padding=st.integers(0, 5),
    bgr=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_small_picture(
    kernel: HostKernel,
    height: int,
    width: int,
    size: tuple[int, int],
    channels: int,
    bytes_a_pixel: int,
    padding: int,
    bgr: bool,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    shape = (height, width, bytes_a_pixel) if bytes_a_pixel else (height, width)
    picture, box = rng.integers(0, 256, shape, np.uint8), random_box(rng, height, width)
    assert_equal(make_case(picture, box, size=size, channels=channels, paddings=[padding], bgr=[bgr]), kernel)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (1, 1, (1, 1)),
        (1, 1, (112, 112)),
        (1, 8192, (1, 1)),
        (8192, 1, (1, 1)),
        (3, 8192, (7, 112)),
        (8192, 3, (112, 7)),
        (2, 8192, (2, 8192)),
        (8192, 2, (1, 3)),
        (5, 513, (5, 512)),  # one source pixel more than a tile holds
        (300, 200, (300, 31)),
        (64, 1, (64, 33)),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_edges(kernel: HostKernel, height: int, width: int, size: tuple[int, int], channels: int) -> None:
    shape = (height, width) if channels == 1 else (height, width, 4)
    picture = np.random.default_rng(height * width).integers(0, 256, shape, np.uint8)
    assert_equal(make_case(picture, size=size, channels=channels), kernel)


def test_a_large_photograph(kernel: HostKernel) -> None:
    picture = np.random.default_rng(5).integers(0, 256, (1500, 2100, 3), np.uint8)
    assert_equal(make_case(picture, size=(112, 112)), kernel)


def test_a_pass_that_changes_no_size_changes_no_level(kernel: HostKernel) -> None:
    picture = np.random.default_rng(6).integers(0, 256, (37, 53), np.uint8)
    np.testing.assert_array_equal(make_case(picture, size=(37, 53)).run(kernel)[0, 0], picture)


def test_black_and_white_stay_black_and_white(kernel: HostKernel) -> None:
    for level in (0, 255):
        picture = np.full((90, 31, 3), level, np.uint8)
        assert (make_case(picture, size=(64, 64), channels=3).run(kernel) == level).all()


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("color", ["gray", "rgb"])
def test_every_fit_policy_is_the_runtimes(kernel: HostKernel, fit: str, color: str) -> None:
    rng = np.random.default_rng(7)
    spec = InputSpec(40, 56, color, fit)
    pictures = [
        rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((48, 48), (90, 31), (31, 90), (5, 7), (1, 40))
    ]
    boxes = [compute_fit_box((picture.shape[1], picture.shape[0]), spec) for picture in pictures]
    buffer, geometries = pack(pictures, boxes)
    found = kernel.run(geometries, buffer.ctypes.data, *spec.shape)
    np.testing.assert_array_equal(found, np.stack([preprocess(p, spec) for p in pictures]))


def test_a_picture_does_not_depend_on_its_batch(kernel: HostKernel) -> None:
    case = random_case(np.random.default_rng(8), 12)
    together = case.run(kernel)
    for index in (0, 5, 11):
        alone = Case(
            *([part[index]] for part in (case.pictures, case.boxes, case.paddings, case.bgr)),
            case.channels,
            case.size,
        )
        np.testing.assert_array_equal(alone.run(kernel)[0], together[index])


def test_real_faces(kernel: HostKernel, shared_faces: Path) -> None:
    paths = sorted((shared_faces / "effectnet" / "train" / "happy").iterdir())[:60]
    paths += sorted((shared_faces / "fer2013" / "val" / "sad").iterdir())[:60]
    pictures = [decode(path, color, Limits()) for path, color in zip(paths, ["gray", "rgb"] * 60, strict=True)]
    _hold(kernel, pictures)


def test_hostile_pictures_that_decode(kernel: HostKernel, hostile_images: Path) -> None:
    pictures = []
    for path in sorted(hostile_images.rglob("*"))[::7]:
        try:
            pixels = decode(path, "rgb", Limits(max_pixels=250_000))
        except SourceError:
            continue
        pictures.append(pixels)
    assert len(pictures) > 20
    _hold(kernel, pictures)


def test_the_portrait(kernel: HostKernel, portrait_pixels: np.ndarray) -> None:
    _hold(kernel, [portrait_pixels])


def _hold(kernel: HostKernel, pictures: list[np.ndarray]) -> None:
    spec = InputSpec(112, 112, "gray", "crop")
    boxes = [compute_fit_box((picture.shape[1], picture.shape[0]), spec) for picture in pictures]
    buffer, geometries = pack(pictures, boxes)
    found = kernel.run(geometries, buffer.ctypes.data, *spec.shape)
    np.testing.assert_array_equal(found, np.stack([preprocess(p, spec) for p in pictures]))


def test_a_batch_of_more_than_two_gibibytes(kernel: HostKernel) -> None:
    """The second picture begins past 2^31 bytes, its rows far apart; most of the buffer is never touched."""
    rng = np.random.default_rng(9)
    far, stride = 2**31 + 12345, 2**27 + 11
    buffer = np.zeros(far + 5 * stride, np.uint8)
    near_picture, far_picture = rng.integers(0, 256, (20, 30), np.uint8), rng.integers(0, 256, (5, 40), np.uint8)
    buffer[:600] = near_picture.ravel()
    for row, levels in enumerate(far_picture):
        buffer[far + row * stride : far + row * stride + 40] = levels
    geometries = [
        Geometry(0, 20, 30, 30, 1, False, (0, 0, 30, 20)),
        Geometry(far, 5, 40, stride, 1, False, (0, 0, 40, 5)),
    ]
    found = kernel.run(geometries, buffer.ctypes.data, 1, 24, 24)
    for index, picture in enumerate((near_picture, far_picture)):
        whole = (0, 0, picture.shape[1], picture.shape[0])
        np.testing.assert_array_equal(found[index], reference(picture, whole, False, 1, (24, 24)))


# One launch


@pytest.mark.parametrize("side", [LONGEST - 1, LONGEST, LONGEST + 1])
@pytest.mark.parametrize("channels", [1, 3])
def test_around_its_limit(kernel: HostKernel, side: int, channels: int) -> None:
    rng = np.random.default_rng(side)
    for shape in ((side, 40), (40, side), (side, side)):
        picture = rng.integers(0, 256, shape if channels == 1 else (*shape, 4), np.uint8)
        case = make_case(picture, size=(80, 80), channels=channels)
        assert fits(case.geometries(), InputShape(channels, 80, 80)) == (side <= LONGEST)
        assert_equal(case, kernel)


@pytest.mark.parametrize(
    ("shape", "longest"),
    [
        (InputShape(1, 80, 80), LONGEST),
        (InputShape(3, 224, 224), LONGEST),
        (InputShape(1, 2, 512), 2 * 15),  # 32 rows of 512 fit, and 31 are one output row's taps
        (InputShape(1, 8, 4096), 8),
        (InputShape(1, 8, 8192), 0),
    ],
)
def test_its_limit_is_what_fits_between_the_passes(kernel: HostKernel, shape: InputShape, longest: int) -> None:
    assert Tables.for_input(shape).longest == longest
    rng = np.random.default_rng(2)
    for side in {1, 2, longest - 1, longest, longest + 1} - {-1, 0}:
        picture = rng.integers(0, 256, (side, 9), np.uint8)
        assert_equal(make_case(picture, size=(shape.height, shape.width), channels=shape.channels), kernel)


@pytest.mark.parametrize("bands", [1, 2, 3, 20, 100])
def test_bands_change_no_level(kernel: HostKernel, bands: int) -> None:
    case = random_case(np.random.default_rng(11), 5)
    buffer, geometries = pack(case.pictures, case.boxes, padding=case.paddings, bgr=case.bgr)
    shape = InputShape(case.channels, *case.size)
    images, _ = kernel.preprocess(geometries, buffer.ctypes.data, shape, bands=bands, more=3)
    np.testing.assert_array_equal(images, case.expected())


PAST = 2**40
HOSTILE = {
    "a byte past the end": {"pixels": 1},
    "a byte before the start": {"pixels": -1},
    "far away": {"pixels": PAST},
    "as far as there is": {"pixels": 2**63 - 1},
    "as far before as there is": {"pixels": -(2**63)},
    "a row too many": {"height": 21},
    "rows without end": {"height": 2**31 - 1},
    "no row": {"height": 0},
    "rows below none": {"height": -5},
    "a column too many": {"width": 31},
    "columns without end": {"width": 2**31 - 1},
    "no column": {"width": 0},
    "a stride too large": {"stride": 31},
    "a stride that wraps": {"stride": 2**63 // 19},
    "a stride backwards": {"stride": -30},
    "more channels": {"channels": 3},
    "two channels": {"channels": 2},
    "no channel": {"channels": 0},
    "a box of nothing": {"crop_width": 0},
    "a box below nothing": {"crop_height": -1},
    "a box without tables": {"crop_height": LONGEST + 1},
    "a box that wraps": {"crop_width": 2**31 - 1},
    "a box far to the left": {"left": -(2**31)},
    "a box far below": {"top": 2**31 - 1},
}


@pytest.mark.parametrize("how", list(HOSTILE))
def test_a_picture_that_leads_out_of_the_batch_is_refused_alone(kernel: HostKernel, how: str) -> None:
    """Whoever took over a decoder may write anything there, also after the host has looked."""
    rng, shape = np.random.default_rng(12), InputShape(1, 24, 24)
    pixels = [rng.integers(0, 256, (20, 30), np.uint8) for _ in range(3)]
    buffer, geometries = pack(pixels, [(0, 0, 30, 20)] * 3)
    pictures, batch = np.zeros(3, PICTURE), np.zeros(1, BATCH)
    describe_pictures(geometries, pictures)
    batch["base"], batch["end"], batch["count"] = buffer.ctypes.data, len(buffer), 3
    tables = Tables.for_input(shape)
    wanted, _ = kernel.launch_preprocess(tables, batch, pictures, bands=2, more=1)
    at = 0 if HOSTILE[how].get("pixels") == -1 or HOSTILE[how].get("stride", 0) < 0 else 2
    for name, value in HOSTILE[how].items():
        pictures[name][at] = pictures[name][at] + value if abs(value) == 1 and name == "pixels" else value
    images, shown = kernel.launch_preprocess(tables, batch, pictures, bands=2, more=1)
    assert [int(index) for index in np.flatnonzero(shown["refused"])] == [at]
    wanted[at] = 0
    np.testing.assert_array_equal(images, wanted)


def test_any_descriptor_reads_within_the_batch(sanitized: Path) -> None:
    """Random bytes for a descriptor, under the sanitizers."""
    command = [sys.executable, "-m", "tests.kernel.hostile", str(sanitized)]
    done = subprocess.run(
        command, cwd=ROOT, env=sanitized_environment(), capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    refused, taken = map(int, done.stdout.split())
    assert refused > 100
    assert taken > 100


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("color", ["gray", "rgb"])
def test_flat_pictures_are_those_of_the_definition(kernel: HostKernel, fit: str, color: str) -> None:
    rng = np.random.default_rng(13)
    spec = InputSpec(40, 56, color, fit)
    pictures = []
    for index in range(60):
        height, width = (int(side) for side in np.exp(rng.uniform(0, np.log(150), 2)).round())
        level, spread = rng.integers(0, 256), [0, 1, 3, 7, 12, 90][index % 6]
        noise = rng.integers(-spread, spread + 1, (height, width, 3))
        pictures.append((level + noise).clip(0, 255).astype(np.uint8))
    sizes = [(picture.shape[1], picture.shape[0]) for picture in pictures]
    buffer, geometries = pack(pictures, [compute_fit_box(size, spec) for size in sizes])
    logits, probabilities = rng.random((2, 60, 3), np.float32)
    counters = np.zeros(2, np.uint32)
    for number, run in enumerate((kernel.preprocess, kernel.preprocess_separately), 1):
        images, shown = run(geometries, buffer.ctypes.data, InputShape(*spec.shape))
        *outputs, marks, sequence = kernel.publish(images, shown, logits, probabilities, counters)
        wanted = is_flat_input(images, sizes, spec)
        assert 10 < wanted.sum() < 50
        np.testing.assert_array_equal(marks, wanted)
        np.testing.assert_array_equal(outputs, [logits, probabilities])
        assert sequence == number
        assert list(counters) == [0, number]


# Planted faults: each must show

FAULTS = {
    "a weight off by one": ("*weight = (int)(0.5 +", "*weight = (out == 3) + (int)(0.5 +"),
    "weights not rounded": ("(int)(0.5 + __dmul_rn(share", "(int)(0.0 + __dmul_rn(share"),
    "luma not rounded": ("+ 0x8000) >> 16", ") >> 16"),
    "a descriptor field swapped": ("int left, top;", "int top, left;"),
    "sizes swapped in the descriptor": ("int crop_height, crop_width;", "int crop_width, crop_height;"),
    "no antialiasing": ("scale < 1 ? 1 : scale;  // half", "scale < 1 ? 1 : 1;  // half"),
    "a tap too few": ("min(length, (int)(centre", "min(length - 1, (int)(centre"),
    # of the three launches
    "the rounding of a pass dropped": ("sums[c] = HALF;", "sums[c] = 0;"),
    "the rounding of the other pass dropped": (
        "int sum = HALF;\n    for (int tap = table",
        "int sum = 0;\n    for (int tap = table",
    ),
    "red and blue swapped": ("pixel[picture.bgr ? 2 : 0]", "pixel[picture.bgr ? 0 : 2]"),
    "a row stride ignored": ("y * picture.stride", "y * (long long)picture.width * picture.channels"),
    "an int32 offset": ("base + picture.pixels + y", "base + (int)picture.pixels + y"),
    "the crop's edge not black": ("x < 0 || x >= picture.width", "x < 0"),
    "a barrier for the rows inside alone": (
        "        __syncthreads();\n        for (int x = max(begin",
        "        if (row < picture.crop_height) __syncthreads();\n        for (int x = max(begin",
    ),
    "two barriers for one": (
        "        __syncthreads();\n        for (int x = max(begin",
        "        if (writes) __syncthreads();\n        else\n            __syncthreads();\n"
        "        for (int x = max(begin",
    ),
    "a last barrier for half a warp": (
        "    if (!writes) return;",
        "    if (threadIdx.x < 16) __syncthreads();\n    if (!writes) return;",
    ),
    "no barrier before the sum": (
        "        __syncthreads();\n        for (int x = max(begin",
        "        for (int x = max(begin",
    ),
    "no barrier after the sum": ("        __syncthreads();\n    }\n    if (!writes)", "    }\n    if (!writes)"),
    # of the one launch
    "the rounding of its first pass dropped": (
        "int sum = HALF;\n                        for (int x",
        "int sum = 0;\n                        for (int x",
    ),
    "the rounding of its other pass dropped": (
        "int sum = HALF;\n                    for (int tap",
        "int sum = 0;\n                    for (int tap",
    ),
    "its red and blue swapped": ("red = picture.bgr ? 2 : 0", "red = picture.bgr ? 0 : 2"),
    "its planes swapped": ("picture.bgr ? 2 - plane : plane", "picture.bgr ? plane : 2 - plane"),
    "its row stride ignored": (
        "from = begin + (some + r) * picture.stride",
        "from = begin + (long long)(some + r) * picture.width * channels",
    ),
    "its int32 offset": ("batch.base + picture.pixels", "batch.base + (int)picture.pixels"),
    "a table of another length": (
        "(picture.crop_width - 1) * table_ints",
        "(picture.crop_width - 2) * table_ints",
    ),
    "too many rows between the passes": ("- low > room) --next", "- low > 2 * room) --next"),
    "a band that begins a row late": (
        "first_row = band * rows_a_band,",
        "first_row = band * rows_a_band + (band == 1),",
    ),
    "pictures that are not there": ("if (index >= batch.count) return;", "if (index > batch.count) return;"),
    "no barrier before its first pass": (
        "            __syncthreads();\n            if (to_luma) {",
        "            if (to_luma) {",
    ),
    "no barrier after its luma": (
        "                __syncthreads();\n            }\n            for (int column",
        "            }\n            for (int column",
    ),
    "no barrier between its passes": (
        "            __syncthreads();\n        }\n        for (int plane",
        "        }\n        for (int plane",
    ),
    "the picture read before it is there": (
        "    __syncthreads();\n    if (index >= batch.count)",
        "    if (index >= batch.count)",
    ),
}


def differs(library: Path) -> bool:
    """Whether it shows, in a process of its own: a fault may end that."""
    command = [sys.executable, "-m", "tests.kernel.differ", str(library), "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    # A signal: out of its buffers, or stopped by a check of the host's. Or the shown parts differ.
    if done.returncode < 0 or "Arrays are not equal" in done.stderr:
        return True
    assert done.returncode == 0, done.stderr
    return done.stdout == "differs\n"


@pytest.mark.slow
def test_without_a_fault_nothing_differs(library: Path) -> None:
    assert not differs(library)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(FAULTS))
def test_a_planted_fault_shows(name: str, tmp_path: Path) -> None:
    right, wrong = FAULTS[name]
    text = SOURCE.read_text(encoding="utf-8")
    assert right in text
    assert differs(compile_kernel(tmp_path, text.replace(right, wrong, 1)))


def test_the_passes_swapped_show(kernel: HostKernel) -> None:
    """Vertical first: what Pillow 13 does of itself on tall pictures."""
    picture = np.random.default_rng(3).integers(0, 256, (60, 41), np.uint8)
    swapped = make_case(np.ascontiguousarray(picture.T), size=(24, 30)).run(kernel)[0, 0].T
    assert (swapped != make_case(picture, size=(30, 24)).expected()[0, 0]).any()


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        ("x < 0 || x >= picture.width", "x < 0"),
        ("if (unit >= from && unit + UNIT <= end)", "if (unit >= from && unit + UNIT <= end + 1)"),
    ],
    ids=["three launches", "one launch"],
)
def test_a_read_past_a_picture_is_caught(fault: tuple[str, str], tmp_path: Path) -> None:
    """The sanitizers see what the levels might hide."""
    right, wrong = fault
    text = SOURCE.read_text(encoding="utf-8")
    assert right in text
    text = text.replace(right, wrong, 1)
    library = compile_kernel(tmp_path, text, sanitize=True)
    command = [sys.executable, "-m", "tests.kernel.check", str(library), "--cases", "200"]
    done = subprocess.run(
        command, cwd=ROOT, env=sanitized_environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr


# The plan


@pytest.mark.parametrize(
    "kind", [PICTURE, BATCH, SHOWN, DESCRIPTOR], ids=["Picture", "Batch", "Shown", "Descriptor"]
)
def test_the_structs_are_the_kernels(kind: np.dtype, request: pytest.FixtureRequest) -> None:
    """Field by field: the compiler sees names and order, and `HostKernel` compares the size."""
    name = request.node.callspec.id
    fields = list_fields(name) if name != "Descriptor" else list_fields("Picture") + list_fields(name)
    assert fields == [(name, kind[name].name) for name in kind.names]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LONGEST", LONGEST),
        ("BETWEEN_BYTES", tables.BETWEEN_BYTES),
        ("BLOCK", tables.BLOCK),
        ("PUBLISHERS", publish.THREADS),
        ("FLAT", flatness.FLAT),
        ("WARP", plan.WARP),
        ("ROWS", plan.ROWS),
    ],
)
def test_the_numbers_are_the_kernels(name: str, value: int) -> None:
    """A launch with others would read or write past shared memory, or leave pictures out."""
    (found,) = re.findall(rf"constexpr int {name} = ([\d* ]+);", SOURCE.read_text(encoding="utf-8"))
    assert eval(found) == value


def list_fields(struct: str) -> list[tuple[str, str]]:
    text = re.sub(r"//.*", "", SOURCE.read_text(encoding="utf-8"))
    body = re.search(rf"struct {struct}\b.*?{{(.*?)}};", text, re.DOTALL)[1]
    kinds = {"int": "int32", "long long": "int64", "unsigned long long": "uint64"}
    return [
        (name.strip(), kinds[kind])
        for kind, names in re.findall(r"((?:unsigned )?long long|int) ([\w, ]+);", body)
        for name in names.split(",")
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 0}, "picture 1 has 0 rows of 5 pixels"),
        ({"width": -1}, "5 rows of -1 pixels"),
        ({"height": 2**31}, "expected 1 or more"),
        ({"channels": 2}, "2 channels; expected 1, 3 or 4"),
        ({"box": (3, 0, 3, 5)}, "expected left < right and top < bottom"),
        ({"box": (0, 0, 2**32 + 5, 5)}, "expected left < right"),
    ],
)
def test_an_impossible_picture_is_refused(changes: dict[str, object], message: str) -> None:
    good = Geometry(0, 5, 5, 5, 1, False, (0, 0, 5, 5))
    with pytest.raises(ValueError, match=message):
        Plan.make([good, good._replace(**changes)], InputShape(1, 8, 8))


def test_a_batch_of_too_many_rows_is_refused() -> None:
    tall = Geometry(0, 2**30 - 1, 1, 1, 1, False, (0, 0, 1, 2**30 - 1))
    plan = Plan.make([tall] * 17, InputShape(1, 8, 8))
    with pytest.raises(ValueError, match="launch them in two batches"):
        plan.list_launches(0, 0, 0, 0, 0, 0)


# The commands


@pytest.mark.slow
def test_run_on_own_arrays(tmp_path: Path, library: Path) -> None:
    rng = np.random.default_rng(4)
    pictures = [rng.integers(0, 256, shape, np.uint8) for shape in ((9, 14), (30, 12, 3), (7, 7, 4))]
    np.savez(tmp_path / "in.npz", size=(20, 18), **{f"image_{i}": picture for i, picture in enumerate(pictures)})
    command = [
        sys.executable,
        "-m",
        "tests.kernel.run",
        str(library),
        str(tmp_path / "in.npz"),
        str(tmp_path / "out.npz"),
    ]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    found = np.load(tmp_path / "out.npz")["out"]
    assert found.dtype == np.uint8
    assert found.shape == (3, 1, 20, 18)
    for index, picture in enumerate(pictures):
        whole = (0, 0, picture.shape[1], picture.shape[0])
        np.testing.assert_array_equal(found[index], reference(picture, whole, False, 1, (20, 18)))
