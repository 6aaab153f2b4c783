"""Compile the kernel for the CPU and print the library's path, for `make kernel-check` and `make kernel-run`."""

import shutil
import sys
from pathlib import Path

from .host import compile_kernel

if shutil.which("g++") is None:
    sys.exit("g++ is not installed; it compiles the kernel for the CPU (Debian: apt install g++)")
print(compile_kernel(Path(sys.argv[1])))
