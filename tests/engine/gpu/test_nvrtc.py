"""The kernel compiles for every architecture, within its limits, and is compiled once."""

import re
import sys
from pathlib import Path

import pytest
from tests.params import quick_first

from fmengine.errors import UnavailableError
from fmengine.gpu import kernels as nvrtc
from fmengine.system.cache import Cache

pytestmark = pytest.mark.timeout(120)
pytest.importorskip("cuda.bindings", reason="NVRTC's wheel is not installed; tests/requirements.txt names it")

ARCHITECTURES = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"]
KERNELS = set(nvrtc.KERNELS)
FIGURES = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
    r"(\d+) bytes spill loads.*?Used (\d+) registers",
    re.DOTALL,
)


@pytest.mark.parametrize("architecture", quick_first(ARCHITECTURES))
def test_no_spills_no_stack_and_few_registers(architecture: str) -> None:
    cubin, report = nvrtc.compile_cubin(nvrtc.read_source(), architecture)
    assert cubin.startswith(b"\x7fELF")
    figures = {name: [int(number) for number in numbers] for name, *numbers in FIGURES.findall(report)}
    assert figures.keys() == KERNELS
    for name, (stack, stores, loads, registers) in figures.items():
        assert (stack, stores, loads) == (0, 0, 0), name
        assert registers <= 64, name


def test_the_report_of_a_kernel_that_spills_is_read_as_such() -> None:
    """So that the test above can fail."""
    text = """
    extern "C" __global__ void __launch_bounds__(1024, 2) stack(float* x) {
        float v[200];
        for (int i = 0; i < 200; ++i) v[i] = x[i * 32 + threadIdx.x];
        for (int r = 0; r < 9; ++r) for (int i = 1; i < 200; ++i) v[i] += v[i - 1] * v[(i * 7 + r) % 200];
        for (int i = 0; i < 200; ++i) x[i * 32 + threadIdx.x] = v[i];
    }"""
    ((name, stack, *_),) = FIGURES.findall(nvrtc.compile_cubin(text, "sm_86")[1])
    assert name == "stack"
    assert int(stack) > 0


def test_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path / "cache")
    first = nvrtc.load_cubin((8, 6), cache)
    assert nvrtc.load_cubin((8, 9), cache) != first
    monkeypatch.setattr(nvrtc, "compile_cubin", lambda *arguments: pytest.fail("compiled again"))
    assert nvrtc.load_cubin((8, 6), cache) == first


def test_another_source_or_compiler_is_compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, compiled = Cache(tmp_path / "cache"), []
    monkeypatch.setattr(nvrtc, "compile_cubin", lambda text, arch: (compiled.append(arch) or b"cubin", ""))
    nvrtc.load_cubin((8, 6), cache)
    monkeypatch.setattr(nvrtc, "read_source", lambda: "// another")
    nvrtc.load_cubin((8, 6), cache)
    monkeypatch.setattr(nvrtc, "get_version", lambda: (99, 1))
    nvrtc.load_cubin((8, 6), cache)
    assert len(compiled) == 3


@pytest.mark.parametrize(("capability", "which"), [((5, 0), "an older"), ((99, 0), "a newer")])
def test_an_unknown_gpu_is_told_with_the_known(capability: tuple[int, int], which: str) -> None:
    with pytest.raises(
        UnavailableError, match=rf"compiles for sm_75, .* {capability[0]}\.0, which needs {which} nvidia"
    ):
        nvrtc.find_architecture(capability)


def test_a_later_minor_version_runs_the_cubin_of_an_earlier() -> None:
    assert nvrtc.find_architecture((8, 6)) == "sm_86"
    assert nvrtc.find_architecture((12, 5)) == "sm_121"


def ptx(text: str) -> str:
    """The kernel's code before the assembler, compiled so that products and sums may be fused."""
    from cuda.bindings import nvrtc as bindings

    _, program = bindings.nvrtcCreateProgram(text.encode(), b"kernel.cu", 0, [], [])
    options = [b"--gpu-architecture=compute_86", b"--fmad=true", b"--std=c++17"]
    (error,) = bindings.nvrtcCompileProgram(program, len(options), options)
    assert error == bindings.nvrtcResult.NVRTC_SUCCESS
    code = bytearray(bindings.nvrtcGetPTXSize(program)[1])
    bindings.nvrtcGetPTX(program, code)
    return code.decode()


def test_no_double_product_is_fused_with_a_sum() -> None:
    """A fused product is not rounded, and weights would move by one; no CPU test could see it."""
    code = ptx(nvrtc.read_source())
    assert "mul.rn.f64" in code
    assert not re.search(r"\b(fma\.rn|mul)\.f64", code)
    fusible = nvrtc.read_source().replace("__dmul_rn(out + 0.5, scale)", "(out + 0.5) * scale")
    assert re.search(r"\bmul\.f64", ptx(fusible))


def test_a_kernel_that_does_not_compile_is_told_in_the_compilers_words() -> None:
    with pytest.raises(nvrtc.KernelError, match=r'does not compile .* for sm_86: .*identifier "y" is undefined'):
        nvrtc.compile_cubin('extern "C" __global__ void f(int* x) { *x = y; }', "sm_86")


def test_a_missing_compiler_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(
        UnavailableError, match=r"NVRTC cannot be loaded.*pip install cuda-bindings nvidia-cuda-nvrtc"
    ):
        nvrtc.load_cubin((8, 6))
