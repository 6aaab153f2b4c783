"""The test double itself: it must catch what it is there to catch."""

import numpy as np
import pytest

from . import driver

if driver.FOUND:
    import pycuda.driver as cuda


@pytest.fixture
def context():
    if not driver.FOUND:  # the test runs in a process of its own
        yield
        return
    cuda.init()
    context = cuda.Device(0).retain_primary_context()
    context.push()
    yield context
    context.detach()


def test_work_waits_until_somebody_waits(context):
    """An answer that is read before its copy is done is no older answer: it is no answer."""
    pinned = cuda.pagelocked_empty(1000, np.float32)
    memory = cuda.mem_alloc(pinned.nbytes)
    stream = cuda.Stream(1)
    early = 0
    for value in range(50):
        pinned[:] = value
        cuda.memcpy_htod_async(memory, pinned, stream)
        cuda.memcpy_dtoh_async(pinned, memory, stream)
        early += np.isnan(pinned).all()
        stream.synchronize()
    assert early > 30


def test_streams_run_in_many_orders(context):
    """Without an event, two streams come in either order; with one, in the order that it says."""
    memory = cuda.mem_alloc(1)
    pinned = [cuda.pagelocked_empty(1, np.uint8) for _ in range(2)]
    pinned[0][:], pinned[1][:] = 1, 2
    seen = {False: set(), True: set()}
    for seed in range(40):
        driver.shuffle(seed)
        for ordered in (False, True):
            first, second, event = cuda.Stream(1), cuda.Stream(1), cuda.Event()
            cuda.memcpy_htod_async(memory, pinned[0], first)
            event.record(first)
            if ordered:
                second.wait_for_event(event)
            cuda.memcpy_htod_async(memory, pinned[1], second)
            context.synchronize()
            result = np.zeros(1, np.uint8)
            cuda.memcpy_dtoh(result, memory)
            seen[ordered].add(int(result[0]))
    assert seen == {False: {1, 2}, True: {2}}


def test_the_default_stream_waits_for_blocking_streams_alone(context):
    pinned = cuda.pagelocked_empty(1, np.uint8)
    memory = cuda.mem_alloc(1)
    found = {0: set(), 1: set()}
    for seed in range(40):
        driver.shuffle(seed)
        for flags in (0, 1):
            cuda.memcpy_htod(memory, np.zeros(1, np.uint8))
            pinned[:] = 7
            stream = cuda.Stream(flags)
            cuda.memcpy_htod_async(memory, pinned, stream)
            result = np.zeros(1, np.uint8)
            cuda.memcpy_dtoh(result, memory)
            found[flags].add(int(result[0]))
            stream.synchronize()
    assert found == {0: {7}, 1: {0, 7}}


def test_a_pinned_buffer_that_is_written_too_early_shows(context):
    pinned = cuda.pagelocked_empty(1, np.uint8)
    memory, stream = cuda.mem_alloc(1), cuda.Stream(1)
    results = set()
    for seed in range(40):
        driver.shuffle(seed)
        pinned[:] = 1
        cuda.memcpy_htod_async(memory, pinned, stream)
        pinned[:] = 2
        stream.synchronize()
        result = np.zeros(1, np.uint8)
        cuda.memcpy_dtoh(result, memory)
        results.add(int(result[0]))
    assert results == {1, 2}


def test_a_copy_past_an_allocation_is_an_error(context, capfd):
    memory = cuda.mem_alloc(100)
    with pytest.raises(cuda.LogicError, match="invalid argument"):
        cuda.memcpy_htod(memory, np.zeros(101, np.uint8))
    assert "copied past device memory" in capfd.readouterr().err


def test_a_kernel_that_reads_past_an_allocation_loses_the_context(context):
    """Descriptors of 80 bytes each are read from an allocation that holds none."""
    kernel = kernels().get_function("precompute_coeffs")
    memory, stream = cuda.mem_alloc(256), cuda.Stream(1)
    address = np.uint64(int(memory) + 256)
    sizes = [np.int32(size) for size in (1, 8, 8)]
    kernel(address, *sizes, address, address, grid=(1, 1), block=(128, 1, 1), stream=stream)
    with pytest.raises(cuda.LogicError, match="illegal memory access"):
        stream.synchronize()
    with pytest.raises(cuda.LogicError, match="illegal memory access"):
        cuda.mem_alloc(1)


@pytest.mark.parametrize("arguments", [[np.uint64(0)] * 6, [np.uint64(0), np.int32(0)]])
def test_a_launch_with_other_arguments_is_an_error(context, capfd, arguments):
    with pytest.raises(cuda.LogicError, match="invalid argument"):
        kernels().get_function("precompute_coeffs")(
            *arguments, grid=(1, 1), block=(128, 1, 1), stream=cuda.Stream(1)
        )
    assert "arguments of another size" in capfd.readouterr().err


def test_a_host_cannot_read_device_memory(context):
    import subprocess
    import sys

    code = (
        "import ctypes, pycuda.driver as d; d.init(); d.Device(0).retain_primary_context().push();"
        "print(ctypes.string_at(int(d.mem_alloc(8)), 8))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == -11  # a segmentation fault


def test_what_is_not_given_back_is_counted(context):
    before = driver.live()
    kept = [cuda.mem_alloc(1), cuda.pagelocked_empty(1, np.uint8), cuda.Stream(), cuda.Event(), kernels()]
    assert driver.live() == {
        name: before.get(name, 0) + (name in ("allocations", "pinned", "streams", "events", "modules"))
        for name in ("allocations", "pinned", "streams", "events", "modules", "contexts", "current contexts")
    }
    del kept
    assert driver.live() == before


def kernels():
    from fmengine.gpu.kernels import load_cubin

    return cuda.module_from_buffer(load_cubin((8, 6)))
