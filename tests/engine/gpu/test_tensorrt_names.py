"""Every name of TensorRT's API that builder and runtime use exists in the real bindings of 10.12 and 11.4.

The bindings import with empty libraries in place of TensorRT's own, which only NVIDIA's index has. This is
about names alone.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from fmengine.trt import build, engine, library

pytestmark = pytest.mark.timeout(60)
BINDINGS = Path(__file__).parents[3] / ".cache" / "tensorrt"
VERSIONS = {"10.12.0.36": "10", "11.4.0.106": "11"}

# What the builder's variables are. A variable that vanishes from the builder turns the first test red.
CLASSES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "error": "ParserError",
    "layer": "ILayer",
    "tensor": "ITensor",
    "made": "IOptimizationProfile",
    "timing_cache": "ITimingCache",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "settings": "IRuntimeConfig",
}
# In TensorRT-RTX alone; the builder asks which it has.
RTX_ONLY = {
    "ComputeCapability",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "CudaGraphStrategy",
    "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE",
    "DynamicShapesKernelSpecializationStrategy",
    "IRuntimeConfig.cuda_graph_strategy",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
}


def names_used() -> set[str]:
    """`Class.attribute` for the variables above, and dotted names below `library`."""
    nodes = [
        node
        for module in (build, engine, library)
        for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8")))
    ]
    found = set()
    for node in nodes:
        if isinstance(node, ast.Attribute):
            root, *rest = ast.unparse(node).removeprefix("self._").split(".")
            if rest and root in ("library", "trt") and not rest[0].startswith("__"):
                found.add(".".join(part for part in rest if part.isidentifier()))
            elif root in CLASSES and len(rest) == 1 and rest[0].isidentifier():
                found.add(f"{CLASSES[root]}.{rest[0]}")
    return {name for name in found if "__" not in name} - RTX_ONLY


def test_the_names_are_found() -> None:
    names = names_used()
    assert {name.split(".")[0] for name in names | RTX_ONLY} >= set(CLASSES.values())
    assert {"MemoryPoolType.WORKSPACE", "LayerType.CONVOLUTION", "Builder.build_serialized_network"} <= names


SCRIPT = """
import sys
import tensorrt_bindings as trt
missing = []
for name in sys.argv[1:]:
    value = trt
    for part in name.split("."):
        value = getattr(value, part, None)
    if value is None:
        missing.append(name)
print(trt.__version__, *missing)
"""


def missing_names(version: str, names: set[str], folder: Path) -> tuple[str, set[str]]:
    """The bindings' own version, and which names they lack."""
    if not (BINDINGS / version).is_dir():
        pytest.skip(f"no bindings of TensorRT {version}; `make test` fetches them")
    (library,) = (BINDINGS / version / "tensorrt_bindings").glob("tensorrt*.so")
    undefined = subprocess.run(
        ["nm", "-D", "--undefined-only", library], check=True, capture_output=True, text=True
    )
    prefixes = ("createInfer", "createNv", "getBuilder", "getNv", "getPlugin", "initLib")
    symbols = [line.split()[-1] for line in undefined.stdout.splitlines() if line.split()[-1].startswith(prefixes)]
    (folder / "empty.c").write_text(
        "".join(f"void* {symbol.split('@')[0]}(void) {{ return 0; }}\n" for symbol in symbols)
    )
    for name in ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser"):
        target = f"{name}.so.{VERSIONS[version]}"
        command = [
            "gcc",
            "-shared",
            "-fPIC",
            "-w",
            str(folder / "empty.c"),
            "-o",
            str(folder / target),
            f"-Wl,-soname,{target}",
        ]
        subprocess.run(command, check=True)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *sorted(names)],
        env={"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(BINDINGS / version)},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    found, *missing = done.stdout.split()
    return found, set(missing)


def test_every_name_exists_in_tensorrt_rtx() -> None:
    """Which is here whole, with what it alone has."""
    library = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    strategies = {"DynamicShapesKernelSpecializationStrategy.EAGER"}
    for name in names_used() | RTX_ONLY | strategies:
        value = library
        for part in name.split("."):
            assert hasattr(value, part), name
            value = getattr(value, part)


@pytest.mark.parametrize("version", list(VERSIONS))
def test_every_name_exists(version: str, tmp_path: Path) -> None:
    found, missing = missing_names(version, names_used(), tmp_path)
    assert found == version
    assert not missing


@pytest.mark.parametrize("version", list(VERSIONS))
def test_a_name_that_does_not_exist_is_missed(version: str, tmp_path: Path) -> None:
    """Of TensorRT 8 and earlier, and of nobody."""
    gone = {"BuilderFlag.FROBNICATE", "Builder.build_cuda_engine", "ComputeCapability"}
    assert missing_names(version, gone, tmp_path)[1] == gone
