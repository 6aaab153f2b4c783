"""Pictures and models that the tests share."""

import gc
import math
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import settings
from PIL import Image, ImageDraw

# The same examples in every run, so that a change is red because of itself; `make explore` draws others.
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("explore", max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# Before PyTorch loads: its threads wait for each other longer than such small networks compute.
os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).parent.parent
DEMO_PICTURES = ROOT / ".cache" / "demo" / "pictures"
SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process of pytest runs all tests of the trained network, so that it is trained once."""
    for item in items:
        if "tiny_run" in getattr(item, "fixturenames", ()) and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group("tiny"))


def pytest_collection_finish() -> None:
    """Leave what was imported and collected out of the tests' garbage collections."""
    gc.freeze()


def remember_onnxruntime(folder: Path) -> str:
    """A cache in which ONNX Runtime measured faster, so that no outcome depends on the processor of the tests."""
    from fmengine.backend.select import describe_machine
    from fmengine.system.cache import Cache

    Cache(folder).store("rates", describe_machine(), b'{"onnxruntime": 2.0, "openvino": 1.0}')
    return str(folder)


@pytest.fixture(scope="session", autouse=True)
def backend_of_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """`auto` is ONNX Runtime in every test and its processes, whatever measures faster on this machine."""
    folder = Path(os.environ["FMENGINE_CACHE"]) if "GPU_DOUBLE_KERNELS" in os.environ else None
    os.environ["FMENGINE_CACHE"] = remember_onnxruntime(folder or tmp_path_factory.mktemp("cache") / "fmengine")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that is empty but for the choice of ONNX Runtime."""
    monkeypatch.setenv("FMENGINE_CACHE", remember_onnxruntime(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def demo_pictures() -> Path:
    """The demo's folder of real faces."""
    if not DEMO_PICTURES.is_dir():
        pytest.skip("no demo pictures; `make demo` or `make test` gathers them")
    return DEMO_PICTURES


@pytest.fixture(scope="session")
def portrait(demo_pictures: Path) -> Path:
    """A real, smiling face in colour, 130×160 pixels (PNG)."""
    return demo_pictures / "astronaut.png"


@pytest.fixture(scope="session")
def portrait_pixels(portrait: Path) -> np.ndarray:
    """The portrait as uint8 `[160, 130, 3]` RGB."""
    with Image.open(portrait) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture(scope="session")
def shared_faces() -> Path:
    """Labelled photographs, where they are at hand; they are research-only and never part of the project."""
    if not (SHARED_DATA / "faces").is_dir():
        pytest.skip("no ../shared/data/faces beside the checkout")
    return SHARED_DATA / "faces"


@pytest.fixture(scope="session")
def shared_scenes() -> Path:
    """Photographs with the boxes of their faces, where they are at hand."""
    if not (SHARED_DATA / "scenes").is_dir():
        pytest.skip("no ../shared/data/scenes beside the checkout")
    return SHARED_DATA / "scenes"


@pytest.fixture(scope="session")
def hostile_images() -> Path:
    """Broken and odd image files, where they are at hand."""
    if not (SHARED_DATA / "hostile-images").is_dir():
        pytest.skip("no ../shared/data/hostile-images beside the checkout")
    return SHARED_DATA / "hostile-images"


def draw_face(happy: bool, seed: int, size: int = 48) -> Image.Image:
    """A gray cartoon face whose mouth bends up or down; everything else varies with the seed."""
    rng = np.random.default_rng(seed)
    scale = 4  # drawn large and scaled down, for smooth lines
    image = Image.new("L", (size * scale, size * scale), int(rng.integers(0, 90)))
    draw = ImageDraw.Draw(image)
    centre = np.array([0.5, 0.5]) + rng.uniform(-0.05, 0.05, 2)
    radius = rng.uniform(0.38, 0.45)

    def box(x: float, y: float, rx: float, ry: float) -> list[float]:
        left, top = centre + np.array([x - rx, y - ry]) * radius / 0.4
        right, bottom = centre + np.array([x + rx, y + ry]) * radius / 0.4
        return [v * size * scale for v in (left, top, right, bottom)]

    skin = int(rng.integers(150, 255))
    draw.ellipse(box(0, 0, 0.36, 0.4), fill=skin)
    for side in (-1, 1):
        draw.ellipse(box(side * 0.14, -0.1, 0.04, 0.05), fill=int(rng.integers(0, 60)))
    width = int(size * scale * rng.uniform(0.03, 0.05))
    mouth = box(0, 0.12 if happy else 0.26, rng.uniform(0.14, 0.2), rng.uniform(0.09, 0.13))
    start, end = (15, 165) if happy else (195, 345)
    draw.arc(mouth, start, end, fill=int(rng.integers(0, 60)), width=width)
    noise = rng.normal(0, 4, (size, size))
    levels = np.asarray(image.resize((size, size), Image.Resampling.BOX)) + noise
    return Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8)).rotate(
        math.degrees(rng.normal(0, 0.05)), fillcolor=0
    )


@pytest.fixture(scope="session")
def drawn_faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set of cartoon faces: `train/{happy,sad}` with 64 each, `val/{happy,sad}` with 16 each."""
    root = tmp_path_factory.mktemp("drawn")
    seed = 0
    for split, count in (("train", 64), ("val", 16)):
        for label in ("happy", "sad"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                seed += 1
                draw_face(label == "happy", seed).save(folder / f"{number:03}.png")
    return root


@pytest.fixture(scope="session")
def tiny_run(drawn_faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small network that learned the cartoon faces; 40 pixels, so that 48 are resized."""
    from fmengine_train import data
    from fmengine_train.device import pick_device
    from fmengine_train.recipe import Recipe
    from fmengine_train.train import train
    from fmengine_train.trainer import Trainer

    folder = tmp_path_factory.mktemp("tiny-run")
    recipe = Recipe(
        size=40, epochs=4, batch_size=16, warmup=1, augment=0.1, dropout=0.1, precision="fp32", ema=0.9
    )
    dataset = data.load(data.find([drawn_faces], (), 0.1), ("happy", "sad"), (1, 40, 40), recipe.fit, folder)
    train(Trainer(recipe, dataset, folder, pick_device("cpu")), lambda text: None)
    return folder


@pytest.fixture(scope="session")
def tiny_models(tiny_run: Path, drawn_faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tiny.fp32.onnx`, `tiny.fp16.onnx` and `tiny.int8.onnx`."""
    folder = tmp_path_factory.mktemp("tiny-models")
    options = ["--calibrate", str(drawn_faces / "train"), "--name", "tiny", "--output", str(folder)]
    from fmengine_export.cli import export

    result = CliRunner().invoke(export, [str(tiny_run), *options])
    assert result.exit_code == 0, result.output
    return folder
