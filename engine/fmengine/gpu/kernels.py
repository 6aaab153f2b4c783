"""Compile the preprocessing kernels for a GPU with NVRTC, which is a wheel; keep them in the cache; load them.

NVRTC is to make a cubin and no PTX: a driver older than the compiler refuses its PTX, and any other compiles it at
each load.
"""

import hashlib
from importlib import resources
from typing import Any

from ..errors import BackendError, UnavailableError
from ..system.cache import Cache
from .context import Context
from .driver import check_status, describe_gpu
from .launch import Launch

SOURCE = "preprocess.cu"
KERNELS = (
    "precompute_tables",
    "preprocess_gray",
    "preprocess_rgb",
    "publish",
    "precompute_coeffs",
    "resize_horizontal_gray",
    "resize_horizontal_rgb",
    "resize_vertical",
)
# Without contraction of products and sums, which would round otherwise than Pillow.
OPTIONS = ("--fmad=false", "--std=c++17")


class KernelError(BackendError):
    """The kernels do not compile: a bug of ours, or a compiler that we do not know."""


class Kernels:
    """The loaded kernels of preprocess.cu, for any stream. Make them within the context.

    Attributes:
        digest: sha256 of the compiled code.
    """

    def __init__(self, context: Context, cache: Cache | None = None) -> None:
        cubin = load_cubin(describe_gpu(context.index).compute_capability, cache)
        self.digest = hashlib.sha256(cubin).hexdigest()
        self._module = context.cuda.module_from_buffer(cubin)
        self._functions = {name: self._module.get_function(name) for name in KERNELS}

    def enqueue(self, launch: Launch, stream: Any) -> None:
        """Put a launch into a stream."""
        function = self._functions[launch.kernel]
        function(*launch.arguments, grid=(launch.grid, 1), block=(*launch.block, 1), stream=stream)

    def free(self) -> None:
        """Unload them."""
        self._functions = {}
        self._module = None


def load_cubin(compute_capability: tuple[int, int], cache: Cache | None = None) -> bytes:
    """Load the compiled kernels for a GPU from the cache, or compile them.

    Args:
        compute_capability: of the GPU, such as (8, 6).
        cache: where they are kept.

    Raises:
        UnavailableError: if NVRTC is missing, or knows no such GPU.
        KernelError: with the compiler's messages.
    """
    architecture = find_architecture(compute_capability)
    text = read_source()
    key = {
        "source": hashlib.sha256(text.encode()).hexdigest(),
        "architecture": architecture,
        "compiler": "nvrtc {}.{}".format(*get_version()),
        "options": " ".join(OPTIONS),
    }
    return (cache or Cache()).get("cubin", key, lambda: compile_cubin(text, architecture)[0])


def compile_cubin(text: str, architecture: str) -> tuple[bytes, str]:
    """Compile kernels; return the cubin and the assembler's report on registers and memory."""
    nvrtc = _import_nvrtc()
    (program,) = _check(nvrtc.nvrtcCreateProgram(text.encode(), SOURCE.encode(), 0, [], []), "create a program")
    try:
        options = [
            option.encode() for option in (f"--gpu-architecture={architecture}", *OPTIONS, "--ptxas-options=-v")
        ]
        compiled = nvrtc.nvrtcCompileProgram(program, len(options), options)
        report = _read_report(nvrtc, program)
        failure = f"NVRTC {get_version()} does not compile {SOURCE} for {architecture}: {report.strip()}"
        check_status(compiled, failure, KernelError)
        (size,) = _check(nvrtc.nvrtcGetCUBINSize(program), "give the cubin's size")
        cubin = bytearray(size)
        _check(nvrtc.nvrtcGetCUBIN(program, cubin), "give the cubin")
        return bytes(cubin), report
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def find_architecture(compute_capability: tuple[int, int]) -> str:
    """Find NVRTC's name of the architecture to compile for, such as `sm_86`.

    Raises:
        UnavailableError: if this NVRTC does not know it.
    """
    nvrtc = _import_nvrtc()
    (count,) = _check(nvrtc.nvrtcGetNumSupportedArchs(), "count its architectures")
    (supported,) = _check(nvrtc.nvrtcGetSupportedArchs(), "list its architectures")
    major, minor = compute_capability
    # A cubin runs on later GPUs of the same major version too.
    fitting = [number for number in supported[:count] if 10 * major <= number <= 10 * major + minor]
    if not fitting:
        names = ", ".join(f"sm_{number}" for number in supported[:count])
        which = "an older" if 10 * major + minor < min(supported[:count]) else "a newer"
        raise UnavailableError(
            f"NVRTC {'.'.join(map(str, get_version()))} compiles for {names}, and not for a GPU of compute "
            f"capability {major}.{minor}, which needs {which} nvidia-cuda-nvrtc"
        )
    return f"sm_{max(fitting)}"


def get_version() -> tuple[int, int]:
    """Return NVRTC's version."""
    major, minor = _check(_import_nvrtc().nvrtcVersion(), "give its version")
    return major, minor


def read_source() -> str:
    """Read the text of preprocess.cu."""
    return resources.files(__package__).joinpath(SOURCE).read_text(encoding="utf-8")


def _import_nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()  # loads the library, which is a wheel of its own
    except Exception as error:  # the loader's own exception is no ImportError
        raise UnavailableError(
            f"NVRTC cannot be loaded ({error}); install it with: pip install cuda-bindings nvidia-cuda-nvrtc"
        ) from error
    return nvrtc


def _read_report(nvrtc: Any, program: Any) -> str:
    (size,) = _check(nvrtc.nvrtcGetProgramLogSize(program), "give its log's size")
    buffer = bytearray(size)
    _check(nvrtc.nvrtcGetProgramLog(program, buffer), "give its log")
    return str(buffer.rstrip(b"\0 "), errors="replace")


def _check(answer: tuple[Any, ...], action: str) -> tuple[Any, ...]:
    return check_status(answer, f"NVRTC cannot {action}: {{status}}", KernelError)
