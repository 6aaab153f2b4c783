"""Compile the kernel for the CPU and print the library's path, for `make kernel-check` and `make kernel-run`."""

import sys
from pathlib import Path

from .host import compile_kernel

print(compile_kernel(Path(sys.argv[1])))
