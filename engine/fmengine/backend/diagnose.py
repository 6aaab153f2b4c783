"""Describe this machine: its hardware and libraries, which backends work on it, and which `auto` takes and why."""

import os
import platform
import subprocess
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from typing import Any

from .. import __version__
from ..errors import FmengineError
from ..options import BackendOptions
from ..system.cores import read_cpuinfo, usable_cores
from ..system.nvidia import find_version
from .registry import BACKENDS, open_backend

LIBRARIES = (
    "numpy",
    "pillow",
    "simplejpeg",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "pycuda",
    "cuda-bindings",
    "nvidia-cuda-nvrtc",
    "torch",
    "onnx",
    "safetensors",
)
# The fields that `nvidia-smi` is queried for, and how they are shown.
SMI = {
    "name": "",
    "memory.total": "memory",
    "compute_cap": "compute capability",
    "pcie.link.gen.current": "PCIe generation",
    "pcie.link.width.current": "lanes",
    "clocks.sm": "SM clock",
    "clocks.max.sm": "of at most",
}
DRIVER = "driver_version"  # queried last: on some machines it is a sentence, which may hold commas
# Instruction sets that speed an INT8 network up, oldest first.
CPU_FEATURES = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm")


@dataclass(frozen=True)
class Diagnosis:
    """One backend on this machine.

    Attributes:
        works: whether it opened the model and answered.
        detail: what it runs on, or why it does not work and what to do.
        chosen: whether `auto` takes it.
    """

    backend: str
    works: bool
    detail: str
    chosen: bool


def diagnose(options: BackendOptions | None = None, model: str | None = None) -> list[Diagnosis]:
    """Open every backend with a model, by default the shipped one, in the order in which `auto` tries them."""
    options = options or BackendOptions()
    diagnoses: list[Diagnosis] = []
    for name in BACKENDS:
        try:
            backend, file, _ = open_backend(name, model, options)
        except FmengineError as error:
            diagnoses.append(Diagnosis(name, False, str(error), False))
            continue
        detail = ", ".join(f"{key} {value}" for key, value in backend.describe().items() if key != "backend")
        backend.close()
        diagnoses.append(Diagnosis(name, True, f"{detail}, {file.path.name}", False))
    with suppress(FmengineError):
        backend, _, attempts = open_backend("auto", model, options)
        backend.close()
        reasons = dict(attempts)
        return [_add_choice(diagnosis, backend.name, reasons) for diagnosis in diagnoses]
    return diagnoses


def _add_choice(diagnosis: Diagnosis, chosen: str, reasons: dict[str, str]) -> Diagnosis:
    """Add whether `auto` takes it, or why not although it works."""
    reason = reasons.get(diagnosis.backend, "")
    detail = f"{diagnosis.detail}; {reason}" if diagnosis.works and reason else diagnosis.detail
    return replace(diagnosis, chosen=diagnosis.backend == chosen, detail=detail)


def describe_environment() -> dict[str, str]:
    """Describe the machine and the libraries, also those that are not installed."""
    facts = {
        "fmengine": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": platform.platform(),
        **_read_cpu(),
        **_query_gpus(),
        "cores": f"{usable_cores()} usable of {os.cpu_count()}",
    }
    for library in LIBRARIES:
        try:
            facts[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            facts[library] = "not installed"
    return facts


def find_problems(facts: dict[str, str]) -> list[str]:
    """List mistakes of the installation, even where nothing has failed yet."""
    both = [name for name in ("onnxruntime", "onnxruntime-gpu") if facts[name] != "not installed"]
    if len(both) == 2:
        return [
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; "
            "uninstall both, then install one"
        ]
    return []


def make_document(facts: dict[str, str], diagnoses: list[Diagnosis]) -> dict[str, Any]:
    """Make the document of `doctor --json`."""
    return {"environment": facts, "backends": [asdict(d) for d in diagnoses], "problems": find_problems(facts)}


def _query_gpus() -> dict[str, str]:
    """Query `nvidia-smi`, which comes with the driver, for each GPU."""
    command = ["nvidia-smi", f"--query-gpu={','.join([*SMI, DRIVER])}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"gpu": f"none that we know of: nvidia-smi does not run ({type(error).__name__})"}
    if done.returncode:
        return {"gpu": " ".join((done.stdout + done.stderr).split())}
    return {f"gpu {index}": _describe_gpu(line) for index, line in enumerate(done.stdout.splitlines())}


def _describe_gpu(line: str) -> str:
    """Describe a GPU from a line of `nvidia-smi`."""
    *values, driver = line.split(",", len(SMI))
    parts = [f"{label} {value.strip()}".strip() for label, value in zip(SMI.values(), values, strict=False)]
    return ", ".join([*parts, f"driver {find_version(driver)}"])


def _read_cpu() -> dict[str, str]:
    """Read the CPU's name and features from Linux; on other systems, what Python knows."""
    fields = read_cpuinfo()
    if not fields:
        return {"cpu": platform.processor() or "unknown", "cpu features": "unknown on this system"}
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    features = " ".join(feature for feature in CPU_FEATURES if feature in flags)
    return {
        "cpu": fields.get("model name") or platform.machine(),
        "cpu features": features or "none that we look for",
    }
