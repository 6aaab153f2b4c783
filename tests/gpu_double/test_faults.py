"""Planted faults: each must turn the shuffles red, or be answered with the right error and no wrong label."""

import numpy as np
import pytest

from fmengine import Engine, Failure
from fmengine.errors import DeviceError

from . import driver, mutants, shuffles

pytestmark = pytest.mark.slow
ENQUEUE_PREPROCESSING = "            preprocess()\n"
ENQUEUE_NETWORK = "            infer()\n"
ENQUEUE_ANSWERS = "            publish()\n"
COPY = "self._context.cuda.memcpy_htod_async(self._pixels.address, pixels, stream)"

# What is changed, and where: waits, copies, buffers, descriptors, launches, graphs.
MUTANTS = {
    "a dropped wait before the answers": ("gpu/answers.py", "        self._stream.synchronize()\n", ""),
    "a dropped wait, and its check": (
        "gpu/runner.py",
        "        if not (poll and self._answers.poll()):\n",
        "        if False:\n",
    ),
    "a look at the answers that finds any": (
        "gpu/answers.py",
        "        while flag[0] != wanted:\n",
        "        while False:\n",
    ),
    "answers that are not copied": (
        "gpu/answers.py",
        "self._views.probabilities[:count].copy()",
        "self._views.probabilities[:count]",
    ),
    "a batch that is not counted": (
        "gpu/answers.py",
        "self._sequence = (self._sequence + 1) % 2**32",
        "pass",
    ),
    "the network before its input": (
        "gpu/runner.py",
        ENQUEUE_PREPROCESSING + ENQUEUE_NETWORK,
        ENQUEUE_NETWORK + ENQUEUE_PREPROCESSING,
    ),
    "the answers published before the network": (
        "gpu/runner.py",
        ENQUEUE_NETWORK + ENQUEUE_ANSWERS,
        ENQUEUE_ANSWERS + ENQUEUE_NETWORK,
    ),
    "answers that are not published": ("gpu/runner.py", ENQUEUE_ANSWERS, ""),
    "a graph without preprocessing": ("gpu/runner.py", ENQUEUE_PREPROCESSING, ""),
    "the graph of a smaller class": ("gpu/runner.py", "if most >= count", "if most >= count - 1"),
    "a context reshaped under its graph": (
        "gpu/runner.py",
        "self._owned.add(\n            self.network.create_class_execution(self._find_profile(most), most, "
        "self._addresses, self.stream)\n        )",
        "self._executions[self._find_profile(most)]",
    ),
    "a capture of what has not run": (
        "gpu/runner.py",
        "        do_all()  # TensorRT must have run a shape before it is captured\n"
        "        self._answers.expect()\n        plain = self.collect()\n",
        "        plain = ()\n",
    ),
    "a short copy of the pixels": ("gpu/staging.py", COPY, COPY.replace("pixels, stream", "pixels[:-64], stream")),
    "a dropped copy of the pixels": ("gpu/staging.py", COPY, "pass"),
    "pixels copied on another stream": ("gpu/staging.py", COPY, COPY.replace(", stream", "")),
    "a wrong descriptor": ("gpu/staging.py", "row = (0, width * channels, height", "row = (0, width, height"),
    "a wrong offset": ("gpu/staging.py", "= ends - sizes", "= ends - sizes + 1"),
    "a wrong offset in device memory": ("gpu/staging.py", "picture.address - base", "picture.address - base + 1"),
    "the description of another batch": ("gpu/staging.py", "if self._last != (count, shape)", "if not self._last"),
    "bounds that end early": ("gpu/staging.py", "= begin, end, count", "= begin, end - 1, count"),
    "a picture too few": ("gpu/staging.py", "= begin, end, count", "= begin, end, count - 1"),
    "no copy where there should be one": (
        "gpu/staging.py",
        "if len(pixels) and base != ",
        "if len(pixels) and base == ",
    ),
    "registered memory that goes while it is read": (
        "gpu/registered.py",
        "        with view.registered.lock:\n",
        "        if True:\n",
    ),
    "registered memory that is not given back": (
        "gpu/registered.py",
        "self._driver.cuMemHostUnregister(self._start)",
        "pass",
    ),
    "registered memory read elsewhere": (
        "gpu/registered.py",
        "self._address + at if",
        "self._address + at + 1 if",
    ),
    "the places of another batch": (
        "gpu/staging.py",
        "        if self._last != key:\n",
        "        if not self._last:\n",
    ),
    "pixels from the beginning of an arena": (
        "gpu/staging.py",
        "pictures.address + self._begin\n",
        "pictures.address\n",
    ),
    "kernels launched on another stream": ("gpu/kernels.py", "1), stream=stream)", "1), stream=None)"),
    "wrong blocks": ("gpu/kernels.py", "block=(*launch.block, 1)", "block=(*launch.block[::-1], 1)"),
    "tables that are not made": ("gpu/preprocessor.py", "if self.tables.longest:", "if not self.tables.longest:"),
    "kernels in another order": (
        "gpu/preprocessor.py",
        "for launch in launches:",
        "for launch in launches[::-1]:",
    ),
    "one kernel left out": ("gpu/preprocessor.py", "for launch in launches:", "for launch in launches[1:]:"),
    "one launch for a picture that needs three": (
        "gpu/preprocessor.py",
        "self.staging.longest <= self._weights.tables.longest",
        "True",
    ),
    "a launch with a wrong argument size": (
        "gpu/plan.py",
        "n, c, h, w = (np.int32(value)",
        "n, c, h, w = (np.int64(value)",
    ),
    "fewer blocks than pictures": (
        "gpu/tables.py",
        "            most * bands,\n",
        "            most * bands - 1,\n",
    ),
    "fewer blocks than bands": (
        "gpu/tables.py",
        "[np.int32(number) for number in (bands,",
        "[np.int32(number) for number in (bands + 1,",
    ),
    "logits for probabilities": (
        "gpu/publish.py",
        "        logits, probabilities, marks, sequence = self",
        "        probabilities, logits, marks, sequence = self",
    ),
    "flat for another picture": (
        "gpu/publish.py",
        "memory[marks : marks + self.most]",
        "memory[marks + 1 : marks + 1 + self.most]",
    ),
    "a buffer reused in flight": (
        "gpu/pool.py",
        "                in_flight.append(runner)\n",
        "                in_flight.append(runner)\n                self._free.put(runner)\n",
    ),
    "a runner given back before its answers are read": (
        "gpu/pool.py",
        "        outputs = runner.collect(poll=len(self._callers) == 1)\n        if features is not None:\n"
        "            features.append(runner.read_features(len(outputs.logits)))\n        in_flight.popleft()\n"
        "        self._free.put(runner)\n",
        "        in_flight.popleft()\n        self._free.put(runner)\n        outputs = runner.collect()\n",
    ),
    "a part left out of a large batch": (
        "gpu/pool.py",
        "range(0, len(batch), step)",
        "range(0, len(batch) - step, step)",
    ),
    "a picture read before it is written": ("gpu/interop.py", "self._order(producer, self.handle)", "pass"),
    "a picture read without waiting": ("gpu/interop.py", "self._order(self.handle, reader)", "pass"),
    "a shape that is not renewed": (
        "trt/engine.py",
        "        if batch != self._batch:",
        "        if not self._batch:",
    ),
    "a graph that is not given back": (
        "gpu/graph.py",
        "self._driver.cuGraphExecDestroy(self._executable)",
        "pass",
    ),
    "a context that is not given back": ("gpu/context.py", "        self._context.detach()\n", ""),
}


@pytest.mark.outside
@pytest.mark.parametrize("fault", MUTANTS)
def test_a_planted_fault_turns_the_shuffles_red(fault, tmp_path):
    file, original, changed = MUTANTS[fault]
    done = mutants.run_mutant(tmp_path, file, original, changed)
    assert done.returncode, done.stdout
    assert "Traceback" in done.stderr, done.stderr  # it says what is wrong, and does not just crash


@pytest.mark.outside
def test_without_a_fault_they_are_green(tmp_path):
    done = mutants.run_mutant(tmp_path, "gpu/timing.py", '"""Time nothing."""', '"""Nothing."""')
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number", [1, 2, 3, 5, 8, 100])
def test_out_of_memory_at_an_allocation_is_told_or_survived(number):
    """Once, at the first of all, or at the hundredth: while an engine is opened, or when buffers grow."""
    driver.set_fault("fail allocation", number)
    opened = 0
    while driver.count("allocations made") < max(number, 12):
        try:
            with Engine.load(shuffles.FP16, "tensorrt", max_batch=16) as engine:
                shuffles.check(list(engine.predict_many(shuffles.pictures(20))), 20)
                opened += 1
        except DeviceError as error:
            assert "GPU 0 has no room: " in str(error)  # noqa: PT017
            assert "bytes are needed" in str(error)  # noqa: PT017
        assert not driver.live()
    assert opened


@pytest.mark.parametrize("operations", [1, 10, 60, 200])
def test_a_lost_device_is_told_and_gives_no_label(operations):
    with Engine.load(shuffles.FP16, "tensorrt", max_batch=16):
        pass  # the gate is passed
    driver.set_fault("lose device after", driver.count("operations") + operations)
    given = []

    def use_it() -> None:
        with Engine.load(shuffles.FP16, "tensorrt", max_batch=16) as engine:
            for _ in range(50):
                given.extend(engine.predict_many(shuffles.pictures(40), batch_size=8))

    with pytest.raises(DeviceError, match=r"GPU 0 failed: .*unspecified launch failure.*new process"):
        use_it()
    assert not [answer for answer in given if isinstance(answer, Failure)]
    for index, answer in enumerate(given):
        assert answer.label == shuffles.expected(40)[index % 40].label
    assert not driver.live()


def test_after_a_lost_device_every_use_says_so():
    with Engine.load(shuffles.FP16, "tensorrt", max_batch=16) as engine:
        driver.set_fault("lose device after", driver.count("operations") + 1)
        messages = set()
        for _ in range(3):
            with pytest.raises(DeviceError) as caught:
                engine.predict(shuffles.pictures(1)[0])
            messages.add(str(caught.value))
        assert len(messages) == 1
    assert not driver.live()


def test_nothing_is_left_after_400_batches():
    with Engine.load(shuffles.FP16, "tensorrt", max_batch=4) as engine:
        pictures = [np.full((8, 8), level, np.uint8) for level in range(8)]
        list(engine.predict_many(pictures))
        before = driver.live()
        for _ in range(200):
            list(engine.predict_many(pictures, batch_size=4))
        assert driver.live() == before
    assert not driver.live()
