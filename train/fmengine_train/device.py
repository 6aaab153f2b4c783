"""Picks the device that a run computes on, and its precision."""

import torch

from fmengine.errors import DataError, UnavailableError


def pick_device(name: str) -> torch.device:
    """Pick the device for `auto`, `cuda` or `cpu`.

    Raises:
        UnavailableError: where CUDA is named and does not work.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UnavailableError(
            f"no CUDA device works with PyTorch {torch.__version__}; use --device cpu, or see `nvidia-smi`"
        )
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """Pick the type of mixed precision's activations; float32 means no mixed precision."""
    if name == "auto":
        if has_fast_bf16(device):
            return torch.bfloat16
        return torch.float16 if device.type == "cuda" else torch.float32
    if name == "fp16" and device.type != "cuda":
        raise DataError("precision fp16 trains on CUDA only; use bf16 or fp32 on a CPU")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether a device has the instructions; others emulate bf16, thirty times slower than FP32."""
    if device.type == "cuda":  # Turing and Volta have fast FP16 alone
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_avx512_bf16_supported()


def is_lost(error: RuntimeError) -> bool:
    """Return whether a GPU stopped answering, or computes no more in this process."""
    # Older versions of PyTorch have no class for it.
    memory = isinstance(error, torch.OutOfMemoryError)
    return not memory and any(text in str(error) for text in ("CUDA error", "cuDNN error"))
