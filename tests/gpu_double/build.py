"""Builds the test double of the driver, and pycuda against it, on a machine without a GPU or a CUDA toolkit.

    python -m tests.gpu_double.build FOLDER    # libcuda.so.1, then a wheel of pycuda; prints the wheel's path

CUDA's headers come from NVIDIA's own wheels, in `.cache/cuda` (`make test` fetches them).
"""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SOURCE = HERE / "libcuda.cpp"
HEADERS = HERE.parents[1] / ".cache" / "cuda" / "nvidia" / "cu13" / "include"


def build_double(folder: Path) -> Path:
    """Compile `libcuda.so.1` into a folder below `folder`, unless the same was compiled there before."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    library = folder.resolve() / digest / "libcuda.so.1"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        stubs = library.with_name("stubs.c")
        stubs.write_text(_stubs(), encoding="utf-8")
        _run("gcc", "-c", "-fPIC", "-w", stubs, "-o", library.with_name("stubs.o"))
        partial = library.with_name(f"libcuda.{os.getpid()}")
        options = ["-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-shared", "-fPIC", "-I", HEADERS]
        names = ["-Wl,-soname,libcuda.so.1", "-ldl"]
        _run("g++", *options, SOURCE, library.with_name("stubs.o"), "-o", partial, *names)
        partial.replace(library)
    return library


def build_pycuda(library: Path, folder: Path) -> Path:
    """Build pycuda's wheel into `folder`, linked against the double; unless it lies there."""
    if not (wheels := list(folder.glob("pycuda-*.whl"))):
        home = library.with_name("home")
        home.mkdir(exist_ok=True)
        # What pycuda's setup.py reads. Random numbers are not needed, and their headers are another wheel's.
        settings = {
            "CUDA_ROOT": "",
            "CUDA_INC_DIR": [str(HEADERS)],
            "CUDA_ENABLE_CURAND": False,
            "CXXFLAGS": ["-O0", "-g0", "-w"],  # half the time
        }
        text = "".join(f"{name} = {value!r}\n" for name, value in settings.items())
        (home / ".aksetup-defaults.py").write_text(text, encoding="utf-8")
        link = library.with_name("libcuda.so")
        link.unlink(missing_ok=True)
        link.symlink_to(library.name)
        environment = os.environ | {"HOME": str(home), "LIBRARY_PATH": str(library.parent)}
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
        constraints = HERE.parents[1] / "constraints.txt"
        _run(*pip, "--constraint", constraints, "--wheel-dir", folder, "pycuda", environment=environment)
        wheels = list(folder.glob("pycuda-*.whl"))
    return wheels[0]


def _stubs() -> str:
    """Every function of the driver, weak and not supported: what the double defines takes its place."""
    includes = "#include <cuda.h>\n#include <cudaProfiler.h>\n"
    command = ["g++", "-E", "-x", "c++", "-I", str(HEADERS), "-"]
    text = subprocess.run(command, input=includes, check=True, capture_output=True, text=True).stdout
    names = sorted(set(re.findall(r"\b(cu[A-Z]\w*)\s*\(", text)))
    lines = ["#include <stdio.h>"]
    for name in names:
        lines.append(
            f"__attribute__((weak)) int {name}(void) "
            f'{{ fprintf(stderr, "gpu double: {name} is not emulated\\n"); return 801; }}'
        )
    return "\n".join(lines) + "\n"


def _run(*command: object, environment: dict[str, str] | None = None) -> None:
    subprocess.run([str(part) for part in command], check=True, timeout=600, env=environment)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    print(build_pycuda(build_double(target), target))
