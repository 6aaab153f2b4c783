"""The labels and probabilities of the CPU, over the test double, in many orders of what is not ordered.

python -m tests.gpu_double.shuffles [SEEDS] [PICTURES]
"""

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from fmengine import Engine, Prediction
from fmengine.model.file import resolve
from fmengine.types import DecodedImage, PackedImages

from . import driver

if driver.FOUND:
    from .device_array import CudaArray

DEMO = Path(__file__).parents[2] / ".cache" / "demo" / "pictures"
FP16 = resolve(None, ("fp16",))
NEAR = 1e-6  # between the CPU's answers and those of the same library behind the double


@cache
def pictures(count: int) -> list[DecodedImage]:
    """Pictures of many sizes, gray and in colour: cut and scaled out of real ones, noise, and flat ones."""
    rng = np.random.default_rng(7)
    real = [Image.open(path) for path in sorted(DEMO.iterdir())[:40]] if DEMO.is_dir() else []
    made: list[DecodedImage] = []
    for index in range(count):
        height, width = (int(side) for side in np.exp(rng.uniform(np.log(8), np.log(160), 2)).round())
        if index == 14:  # its box is too long for the kernel that takes one launch
            height, width = 1030, 1100
        if index % 10 == 9:
            made.append(np.full((height, width), int(rng.integers(256)), np.uint8))
        elif real and index % 4:
            size = (width, height)
            picture = real[index % len(real)].convert("L" if index % 3 else "RGB").resize(size)
            made.append(np.asarray(picture))
        else:
            shape = (height, width) if index % 3 else (height, width, 3)
            made.append(rng.integers(0, 256, shape, np.uint8))
    return made


@cache
def expected(count: int) -> list[Prediction]:
    """The CPU's answers for `pictures(count)`."""
    with Engine.load(FP16, "onnxruntime", threads=1) as engine:
        return [answer for answer in engine.predict_many(pictures(count)) if isinstance(answer, Prediction)]


def check(answers: Sequence[object], count: int) -> None:
    """Hold answers for `pictures(count)` against the CPU's."""
    wanted = expected(count)
    assert len(answers) == len(wanted), f"{len(answers)} answers for {len(wanted)} pictures"
    for index, (answer, right) in enumerate(zip(answers, wanted, strict=True)):
        assert isinstance(answer, Prediction), f"picture {index}: {answer}"
        wrong = (answer.label, answer.reason) != (right.label, right.reason)
        assert not wrong, f"picture {index}: {answer}, on the CPU {right}"
        difference = abs(answer.confidence - right.confidence)
        assert difference <= NEAR, f"picture {index}: {answer}, on the CPU {right}"


def check_packed(engine: Engine, count: int) -> None:
    """Images in registered memory: many sizes, one size, few of them, and memory that is given back meanwhile."""
    some, right = pictures(count)[:20], np.array([answer.confidence for answer in expected(count)[:20]])
    of_one_size = [np.resize(picture, (30, 40)) for picture in pictures(count)[:7]]
    wanted = engine.backend.run_pictures(of_one_size).probabilities
    for images, answers in ((some, right), (of_one_size, wanted.max(axis=1))):
        packed = PackedImages.pack(images)
        unregister = engine.backend.register_memory(packed.memory)
        for part in (slice(0, len(images)), slice(3, 7), slice(5, 6)):
            found = engine.backend.run_pictures(packed[part]).probabilities.max(axis=1)
            np.testing.assert_allclose(found, answers[part], atol=NEAR)
        assert driver.count("registered") == 1
        with ThreadPoolExecutor(1) as thread:
            late = thread.submit(engine.backend.run_pictures, packed)
            time.sleep(0.001)
            unregister()
        np.testing.assert_allclose(late.result().probabilities.max(axis=1), answers, atol=NEAR)
        assert not driver.count("registered")


def shuffle(seed: int, count: int, backend: str = "tensorrt") -> None:
    """One order: every picture through `predict_many`, the bare network, `predict`, and some in device memory."""
    print(f"seed {seed}")
    driver.shuffle(seed)
    before = driver.live()
    with Engine.load(FP16, backend, max_batch=16) as engine:
        check(list(engine.predict_many(pictures(count), batch_size=16 if seed % 2 else 5)), count)
        some = min(count, 50)
        images = np.stack([engine.prepare(picture) for picture in pictures(count)[:some]])
        rows = engine.backend.run(images).probabilities  # four parts, several under way at once
        np.testing.assert_allclose(
            rows.max(axis=1), [answer.confidence for answer in expected(count)[:some]], atol=NEAR
        )
        check([engine.predict(picture) for picture in pictures(count)[:3]], 3)
        parts = [pictures(count)[start::4] for start in range(4)]  # more threads than runners
        with ThreadPoolExecutor(4) as threads:
            for part, outputs in enumerate(threads.map(engine.backend.run_pictures, parts)):
                right = [answer.confidence for answer in expected(count)[part::4]]
                np.testing.assert_allclose(outputs.probabilities.max(axis=1), right, atol=NEAR)
        if backend == "tensorrt":
            assert engine.backend.describe()["cuda graphs"] == "batches of 1, 8, 16"
        check_packed(engine, count)
        for size in (1, 3, 5, 16):  # each time written anew, and late
            there = [CudaArray(engine.backend.context, picture) for picture in pictures(count)[:20]]
            check(list(engine.predict_many(there, batch_size=size)), len(there))
            for array in there:
                array.free()
    assert driver.live() == before, f"left over: {driver.live()}"
    assert not driver.count("faults"), "the driver was misused"
    assert not driver.count("copies of pageable memory"), "a copy from or to memory that is not pinned"


def main(seeds: int, count: int) -> None:
    for seed in range(seeds):
        shuffle(seed, count)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
