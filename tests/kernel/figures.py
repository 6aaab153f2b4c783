"""What the compiler says of the kernels, and what follows from it: `make kernel-figures`.

Registers and shared memory are NVRTC's; occupancy is arithmetic over NVIDIA's limits (CUDA C++ Programming
Guide, "Technical Specifications per Compute Capability"); no GPU is asked.
"""

import re

from fmengine.gpu import kernels as nvrtc

THREADS = {
    "preprocess_gray": 320,
    "preprocess_rgb": 320,
    "publish": 256,
    "precompute_tables": 128,
    "precompute_coeffs": 128,
    "resize_horizontal_gray": 256,
    "resize_horizontal_rgb": 256,
    "resize_vertical": 256,
}  # a block
REGISTERS = 65_536  # an SM, on all of these
REGISTER_UNIT = 256  # registers are given to warps in this many
SHARED_UNIT, SHARED_OF_SYSTEM = 128, 1024  # bytes a block
# Threads, blocks and bytes of shared memory that one SM holds.
LIMITS = {
    "sm_75": (1024, 16, 65_536),
    "sm_80": (2048, 32, 167_936),
    "sm_86": (1536, 16, 102_400),
    "sm_89": (1536, 24, 102_400),
    "sm_90": (2048, 32, 233_472),
    "sm_100": (2048, 32, 233_472),
    "sm_120": (1536, 24, 102_400),
}
ENTRY = re.compile(r"entry function '(\w+)'.*?Used (\d+) registers([^\n]*)", re.DOTALL)


def occupancy(architecture: str, threads: int, registers: int, shared: int) -> float:
    """The share of an SM's threads that can be resident."""
    most_threads, most_blocks, most_shared = LIMITS[architecture]
    warp_registers = -(-registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    by_registers = REGISTERS // (warp_registers * threads // 32)
    reserved = -(-shared // SHARED_UNIT) * SHARED_UNIT + (SHARED_OF_SYSTEM if architecture != "sm_75" else 0)
    by_shared = most_shared // reserved if reserved else most_blocks
    blocks = min(most_threads // threads, most_blocks, by_registers, by_shared)
    return blocks * threads / most_threads


def main() -> None:
    version = ".".join(map(str, nvrtc.get_version()))
    print(f"NVRTC {version}: registers, and share of an SM's threads that is resident")
    print("| | " + " | ".join(THREADS) + " |")
    print("|---" * (len(THREADS) + 1) + "|")
    for architecture in LIMITS:
        found = {
            name: (int(used), rest)
            for name, used, rest in ENTRY.findall(nvrtc.compile_cubin(nvrtc.read_source(), architecture)[1])
        }
        cells = []
        for name, threads in THREADS.items():
            registers, rest = found[name]
            shared = int(match[1]) if (match := re.search(r"(\d+) bytes smem", rest)) else 0
            cells.append(f"{registers}, {occupancy(architecture, threads, registers, shared):.0%}")
        print(f"| {architecture} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
