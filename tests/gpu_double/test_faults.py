"""Planted faults: each must turn the shuffles red, or be answered with the right error and no wrong label."""

import numpy as np
import pytest

from fmengine import Engine, Failure
from fmengine.errors import DeviceError

from . import driver, mutants, shuffles

pytestmark = pytest.mark.slow
DOWNLOAD = (
    "        self._context.cuda.memcpy_dtoh_async(self._answers.host[:used], self._answers.address, self.stream)\n"
)
RECORD = "        self._finished.record(self.stream)\n"

# What is changed, and where: waits, copies, buffers, descriptors, launches.
MUTANTS = {
    "a dropped wait before the answers": ("gpu/runner.py", "        self._finished.synchronize()\n", ""),
    "the answers marked finished before they are copied": (
        "gpu/runner.py",
        DOWNLOAD + RECORD,
        RECORD + DOWNLOAD,
    ),
    "a dropped copy of the answers": (
        "gpu/runner.py",
        DOWNLOAD,
        "",
    ),
    "a short copy of the inputs": ("gpu/runner.py", "self._images.host[:size]", "self._images.host[: size // 8]"),
    "a short copy of the answers": (
        "gpu/runner.py",
        "self._answers.host[:used]",
        "self._answers.host[: used - 4]",
    ),
    "a short copy of the pixels": (
        "gpu/preprocessor.py",
        "host[:end], self._stream",
        "host[: end - 64], self._stream",
    ),
    "a dropped copy of the pixels": (
        "gpu/preprocessor.py",
        "        self._context.cuda.memcpy_htod_async(self._upload.address, host[:end], self._stream)\n",
        "",
    ),
    # More than the last row, which the network takes no notice of.
    "a short copy of images": ("gpu/preprocessor.py", "_async(address, host, ", "_async(address, host[:-1000], "),
    "pixels copied on another stream": (
        "gpu/preprocessor.py",
        "self._context.cuda.memcpy_htod_async(self._upload.address, host[:end], self._stream)",
        "self._context.cuda.memcpy_htod_async(self._upload.address, host[:end])",
    ),
    "answers copied on another stream": ("gpu/runner.py", DOWNLOAD, DOWNLOAD.replace(", self.stream", "")),
    "kernels launched on another stream": ("gpu/preprocessor.py", "1), stream=stream)", "1), stream=None)"),
    "a wrong descriptor": (
        "gpu/preprocessor.py",
        "bgr, stride = False, width * channels",
        "bgr, stride = False, width",
    ),
    "a wrong offset": ("gpu/preprocessor.py", "return Geometry(offset, ", "return Geometry(offset + 1, "),
    "wrong blocks": ("gpu/preprocessor.py", "block=(*launch.block, 1)", "block=(*launch.block[::-1], 1)"),
    "kernels in another order": (
        "gpu/preprocessor.py",
        "in plan.list_launches(*addresses)",
        "in plan.list_launches(*addresses)[::-1]",
    ),
    "one kernel left out": (
        "gpu/preprocessor.py",
        "in plan.list_launches(*addresses)",
        "in plan.list_launches(*addresses)[1:]",
    ),
    "a launch with a wrong argument size": (
        "gpu/launch.py",
        "n, c, h, w = (np.int32(value)",
        "n, c, h, w = (np.int64(value)",
    ),
    "a buffer reused in flight": (
        "gpu/pool.py",
        "                in_flight.append(runner)\n",
        "                in_flight.append(runner)\n                self._free.put(runner)\n",
    ),
    "a runner given back before its answers are read": (
        "gpu/pool.py",
        "        outputs = runner.collect()\n        in_flight.popleft()\n        self._free.put(runner)\n",
        "        in_flight.popleft()\n        self._free.put(runner)\n        outputs = runner.collect()\n",
    ),
    "a context reshaped under its graph": (
        "gpu/runner.py",
        "execution = self._own(self.network.create_execution(index, self._addresses, self.stream))",
        "execution = self._executions[index]",
    ),
    "a capture of what has not run": (
        "gpu/runner.py",
        "            plain = self._read_answers()\n",
        "            plain = 0\n",
    ),
    "a picture read before it is written": ("gpu/interop.py", "self._order(producer, self.handle)", "pass"),
    "a picture read without waiting": ("gpu/interop.py", "self._order(self.handle, reader)", "pass"),
    "the network before its input": (
        "gpu/runner.py",
        "            self._fill_input(batch, record)\n            self._infer(len(batch))\n",
        "            self._infer(len(batch))\n            self._fill_input(batch, record)\n",
    ),
    "a part left out of a large batch": (
        "gpu/pool.py",
        "range(0, len(batch), max_batch)",
        "range(0, len(batch) - max_batch, max_batch)",
    ),
    "logits for probabilities": (
        "gpu/runner.py",
        "for at in (0, self._probabilities_offset))",
        "for at in (self._probabilities_offset, 0))",
    ),
    "a shape that is not renewed": (
        "trt/engine.py",
        "        if batch != self._batch:",
        "        if not self._batch:",
    ),
    "pageable memory": (
        "gpu/arena.py",
        "self._context.cuda.pagelocked_empty(attempt, np.uint8)",
        "np.empty(attempt, np.uint8)",
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


def test_nothing_is_left_after_1000_batches():
    with Engine.load(shuffles.FP16, "tensorrt", max_batch=4) as engine:
        pictures = [np.full((8, 8), level, np.uint8) for level in range(8)]
        list(engine.predict_many(pictures))
        before = driver.live()
        for _ in range(500):
            list(engine.predict_many(pictures, batch_size=4))
        assert driver.live() == before
    assert not driver.live()
