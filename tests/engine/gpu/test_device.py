"""Which GPU this is, over a driver of names and numbers alone."""

import sys
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from fmengine.errors import DeviceError, UnavailableError
from fmengine.gpu import driver as device
from fmengine.gpu.driver import check_status, describe_gpu, use_gpu
from fmengine.system.nvidia import Gpu


class Status(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_OUT_OF_MEMORY = 2


class Driver(ModuleType):
    """Two GPUs; notes what is called in `calls`."""

    CUresult = Status
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major",
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor",
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT="multiprocessors",
    )

    def __init__(self) -> None:
        super().__init__("driver")
        self.calls: list[str] = []
        self.init = Status.CUDA_SUCCESS
        self.push = Status.CUDA_SUCCESS

    def __getattr__(self, name: str) -> object:
        answers = {
            "cuInit": lambda flags: (self.init,),
            "cuDeviceGetCount": lambda: (Status.CUDA_SUCCESS, 2),
            "cuDeviceGet": lambda index: (Status.CUDA_SUCCESS, index),
            "cuDeviceGetName": lambda size, index: (Status.CUDA_SUCCESS, f"Card {index}".encode() + b"\0junk"),
            "cuDeviceGetAttribute": lambda name, index: (
                Status.CUDA_SUCCESS,
                {"major": 8, "minor": 6}.get(name, 72),
            ),
            "cuDriverGetVersion": lambda: (Status.CUDA_SUCCESS, 12080),
            "cuDevicePrimaryCtxRetain": lambda index: (Status.CUDA_SUCCESS, f"context {index}"),
            "cuCtxPushCurrent": lambda context: (self.push,),
            "cuCtxPopCurrent": lambda: (Status.CUDA_SUCCESS, None),
            "cuDevicePrimaryCtxRelease": lambda index: (Status.CUDA_SUCCESS,),
        }
        if name not in answers:
            raise AttributeError(name)

        def call(*arguments: object) -> object:
            self.calls.append(" ".join(map(str, (name, *arguments))))
            return answers[name](*arguments)

        return call


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver()
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(driver=made))
    return made


VERSIONS = {
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86  Wed Jan 8\nGCC version: 12.2.0\n": "570.86",
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build": "580.159.04",
    "a driver of one's own": "a driver of one's own",
    "": "of unknown version",
}


@pytest.mark.parametrize("text", VERSIONS)
def test_a_gpu_is_described(driver: Driver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    version = tmp_path / "version"
    version.write_text(text)
    monkeypatch.setattr(device, "DRIVER_VERSION", version)
    assert describe_gpu(1) == Gpu("Card 1", (8, 6), 72, f"{VERSIONS[text]}, CUDA 12.8")
    assert not [call for call in driver.calls if "Ctx" in call]  # no context is made


@pytest.mark.parametrize("index", [2, -1])
def test_a_gpu_that_is_not_there_is_told(driver: Driver, index: int) -> None:
    with pytest.raises(UnavailableError, match=rf"no GPU {index}: this machine has 2, numbered from 0"):
        describe_gpu(index)


def test_no_device_is_told(driver: Driver) -> None:
    driver.init = Status.CUDA_ERROR_NO_DEVICE
    with pytest.raises(UnavailableError, match="the NVIDIA driver does not start: CUDA_ERROR_NO_DEVICE"):
        describe_gpu(0)


def test_work_is_done_in_the_gpus_own_context(driver: Driver) -> None:
    with suppress(KeyError), use_gpu(1):
        driver.calls.append("work")
        raise KeyError
    assert driver.calls[-5:] == [
        "cuDevicePrimaryCtxRetain 1",
        "cuCtxPushCurrent context 1",
        "work",
        "cuCtxPopCurrent",
        "cuDevicePrimaryCtxRelease 1",
    ]


def test_a_context_that_cannot_be_used_is_given_back(driver: Driver) -> None:
    driver.push = Status.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(UnavailableError, match="CUDA cannot use the GPU: CUDA_ERROR_OUT_OF_MEMORY"), use_gpu(0):
        pytest.fail("went on")
    assert driver.calls[-1] == "cuDevicePrimaryCtxRelease 0"
    assert not [call for call in driver.calls if "Pop" in call]


def test_missing_bindings_are_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(UnavailableError, match="pip install cuda-bindings"):
        describe_gpu(0)


def test_a_status_is_checked_in_one_way() -> None:
    assert check_status((Status.CUDA_SUCCESS, 1, "two"), "never read") == (1, "two")
    assert check_status((Status.CUDA_SUCCESS,), "never read") == ()
    failed = (Status.CUDA_ERROR_NO_DEVICE, None)
    with pytest.raises(DeviceError, match=r"^CUDA cannot do it: CUDA_ERROR_NO_DEVICE$"):
        check_status(failed, "CUDA cannot do it: {status}")
    with pytest.raises(UnavailableError, match=r"^CUDA_ERROR_NO_DEVICE; braces in \{a report\} stay$"):
        check_status(failed, "{status}; braces in {a report} stay", UnavailableError)
