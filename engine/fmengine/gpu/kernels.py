"""The preprocessing kernel for the GPU at hand: compiled by NVRTC, a wheel, and kept in the cache.

It gives a cubin and no PTX: PTX of a compiler newer than the driver is refused, and is compiled again at each
load where it is not.
"""

import hashlib
from importlib import resources
from typing import Any

from ..errors import BackendError, UnavailableError
from ..system.cache import Cache

SOURCE = "preprocess.cu"
# The source does not depend on it, and says where; without contraction nothing new can come to depend on it.
OPTIONS = ("--fmad=false", "--std=c++17")


class KernelError(BackendError):
    """The kernel does not compile: a bug of ours, or a compiler that we do not know."""


def load_cubin(compute_capability: tuple[int, int], cache: Cache | None = None) -> bytes:
    """The compiled kernel for a GPU.

    Args:
        compute_capability: of the GPU, such as (8, 6).
        cache: where it is kept.

    Raises:
        UnavailableError: if NVRTC is missing, or knows no such GPU.
        KernelError: with the compiler's own words.
    """
    architecture = architecture_of(compute_capability)
    text = source()
    key = {
        "source": hashlib.sha256(text.encode()).hexdigest(),
        "architecture": architecture,
        "compiler": "nvrtc {}.{}".format(*version()),
        "options": " ".join(OPTIONS),
    }
    return (cache or Cache()).get("cubin", key, lambda: compile_cubin(text, architecture)[0])


def compile_cubin(text: str, architecture: str) -> tuple[bytes, str]:
    """Compile a kernel; returns the cubin and the assembler's report on registers and memory."""
    nvrtc = _nvrtc()
    error, program = nvrtc.nvrtcCreateProgram(text.encode(), SOURCE.encode(), 0, [], [])
    _check(nvrtc, error, "create a program")
    try:
        options = [
            option.encode() for option in (f"--gpu-architecture={architecture}", *OPTIONS, "--ptxas-options=-v")
        ]
        (error,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        report = _text(nvrtc, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
        if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise KernelError(f"NVRTC {version()} does not compile {SOURCE} for {architecture}: {report.strip()}")
        error, size = nvrtc.nvrtcGetCUBINSize(program)
        _check(nvrtc, error, "give the cubin's size")
        cubin = bytearray(size)
        (error,) = nvrtc.nvrtcGetCUBIN(program, cubin)
        _check(nvrtc, error, "give the cubin")
        return bytes(cubin), report
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def architecture_of(compute_capability: tuple[int, int]) -> str:
    """NVRTC's name of an architecture, such as `sm_86`.

    Raises:
        UnavailableError: if this NVRTC does not know it.
    """
    nvrtc = _nvrtc()
    error, count = nvrtc.nvrtcGetNumSupportedArchs()
    _check(nvrtc, error, "count its architectures")
    error, known = nvrtc.nvrtcGetSupportedArchs()
    _check(nvrtc, error, "list its architectures")
    major, minor = compute_capability
    # A cubin runs on later GPUs of the same major version too.
    fitting = [number for number in known[:count] if 10 * major <= number <= 10 * major + minor]
    if not fitting:
        names = ", ".join(f"sm_{number}" for number in known[:count])
        which = "an older" if 10 * major + minor < min(known[:count]) else "a newer"
        raise UnavailableError(
            f"NVRTC {'.'.join(map(str, version()))} compiles for {names}, and not for a GPU of compute "
            f"capability {major}.{minor}, which needs {which} nvidia-cuda-nvrtc"
        )
    return f"sm_{max(fitting)}"


def version() -> tuple[int, int]:
    """Of NVRTC."""
    nvrtc = _nvrtc()
    error, major, minor = nvrtc.nvrtcVersion()
    _check(nvrtc, error, "tell its version")
    return major, minor


def source() -> str:
    """The text of preprocess.cu."""
    return resources.files(__package__).joinpath(SOURCE).read_text(encoding="utf-8")


def _nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()  # loads the library, which is a wheel of its own
    except Exception as error:  # the loader's own exception is no ImportError
        raise UnavailableError(
            f"NVRTC cannot be loaded ({error}); install it with: pip install cuda-bindings nvidia-cuda-nvrtc"
        ) from error
    return nvrtc


def _check(nvrtc: Any, error: Any, what: str) -> None:
    if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise KernelError(f"NVRTC cannot {what}: {nvrtc.nvrtcGetErrorString(error)[1].decode()}")


def _text(nvrtc: Any, size_of: Any, get: Any, program: Any) -> str:
    error, size = size_of(program)
    _check(nvrtc, error, "give its log's size")
    buffer = bytearray(size)
    (error,) = get(program, buffer)
    _check(nvrtc, error, "give its log")
    return str(buffer.rstrip(b"\0 "), errors="replace")
