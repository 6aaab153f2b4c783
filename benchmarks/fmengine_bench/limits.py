"""Measures the distance to the hardware's limit: the model's work, the machine's peak, the roofline.

Roofline: S. Williams, A. Waterman, D. Patterson, Roofline: An Insightful Visual Performance Model, CACM 2009.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper, shape_inference

from fmengine.model.file import ModelFile
from fmengine.model.spec import ModelSpec

from .on_gpu import BatchParts
from .processes import Usage
from .timing import RESAMPLES, TURN, Call, Figure, random_pixels, time_calls

if TYPE_CHECKING:
    import torch

ROUNDS = 5
SIDE = 1024  # of the matrices that are multiplied
COPIED = 64 * 1024 * 1024  # bytes: beyond the caches of usual processors
GPU_SIDE, GPU_COPIED = 8192, 1024 * 1024 * 1024
BYTES = {"int8": 1, "fp16": 2, "fp32": 4}


Bound = Literal["arithmetic", "memory", "PCIe"]


@dataclass(frozen=True)
class Work:
    """The work that one picture takes.

    Attributes:
        operations: of convolutions and matrix products, two for each product and sum.
        weights: bytes of the weights, read once a batch.
        activations: bytes that the layers read and write: `BYTES` a value.
    """

    operations: int
    weights: int
    activations: int


@dataclass(frozen=True)
class Best:
    """The best of all rounds, and the lowest that it would be in 95 % of rounds drawn anew (bootstrap).

    A limit is what the machine can do: other work only ever slows it.
    """

    best: float
    low: float
    rounds: int


@dataclass(frozen=True)
class Peak:
    """The machine's peak, measured in this run.

    Attributes:
        operations: 1e9 a second in a product of matrices, by precision.
        copy: 1e9 bytes a second, those that are read and those that are written.
        upload: 1e9 bytes a second from pinned memory of the host to a GPU; None on a CPU.
    """

    operations: dict[str, Best]
    copy: Best
    upload: Best | None = None


@dataclass(frozen=True)
class Roofline:
    """How near a part of a batch's work comes to the minimum of milliseconds that the peak allows.

    Attributes:
        part: `network`, or on a GPU `preprocessing`, the way of the pixels from the host into the network's input.
        batch: pictures.
        measured: milliseconds.
        bound: `arithmetic`, `memory` or `PCIe`, whichever takes longest at the machine's peak.
        least: those milliseconds, the minimum.
        share: of the measured time that is the minimum.
    """

    part: Literal["network", "preprocessing"]
    batch: int
    measured: Figure
    bound: Bound
    least: float
    share: Figure


def count_work(file: ModelFile) -> Work:
    """Count the work of one picture from the graph's shapes."""
    model = shape_inference.infer_shapes(onnx.load_from_string(file.data))
    graph = model.graph
    shapes = {
        value.name: [dimension.dim_value or 1 for dimension in value.type.tensor_type.shape.dim]
        for value in [*graph.value_info, *graph.input, *graph.output]
    } | {constant.name: list(constant.dims) for constant in graph.initializer}
    operations = activations = 0
    size = BYTES[file.spec.precision]
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        values = math.prod(shapes[node.output[0]])
        weights = shapes[node.input[1]]
        # Products of one output value: a kernel's volume, or the inner dimension.
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        each = math.prod(weights[1:]) if node.op_type == "Conv" or transposed else weights[-2]
        operations += 2 * values * each
        activations += size * (values + math.prod(shapes[node.input[0]]))
    constants = sum(numpy_helper.to_array(constant).nbytes for constant in graph.initializer)
    return Work(operations, constants, activations)


def measure_peak(threads: int) -> Peak:
    """Multiply matrices in ONNX Runtime, as the network does, and copy memory."""
    source, target = random_pixels(COPIED), np.zeros(COPIED, np.uint8)
    products = {
        "int8": _make_product("MatMulInteger", TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32, threads),
        "fp32": _make_product("MatMul", TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.FLOAT, threads),
    }
    return _measure_rates(products, SIDE, {"copy": (lambda: np.copyto(target, source), 2 * COPIED)})


def _measure_rates(products: dict[str, Call], side: int, transfers: dict[str, tuple[Call, int]]) -> Peak:
    """Time products of square matrices, and transfers of so many bytes, in turn."""
    calls = products | {name: call for name, (call, _) in transfers.items()}
    amounts = dict.fromkeys(products, 2 * side**3) | {name: size for name, (_, size) in transfers.items()}
    taken = time_calls(calls, ROUNDS, TURN, min_calls=3)
    rates = {
        name: _find_best([amount / min(turn) / 1e6 for turn in taken[name]]) for name, amount in amounts.items()
    }
    return Peak({name: rates[name] for name in products}, rates["copy"], rates.get("upload"))


def _find_best(rates: list[float]) -> Best:
    drawn = np.random.default_rng(0).choice(np.asarray(rates), (RESAMPLES, len(rates)))
    return Best(max(rates), float(np.percentile(drawn.max(axis=1), 5)), len(rates))


def measure_gpu_peak(index: int) -> Peak | None:
    """Multiply matrices and copy memory in PyTorch on a GPU; None where PyTorch cannot, or there is no room."""
    try:
        import torch
    except ImportError:
        return None
    if index >= torch.cuda.device_count():
        return None
    try:
        return _measure_peak_in_torch(
            torch.device("cuda", index), partial(torch.cuda.synchronize, index), GPU_SIDE, GPU_COPIED
        )
    except RuntimeError:  # out of memory, or a GPU that this PyTorch has no kernels for
        return None
    finally:
        torch.cuda.empty_cache()  # it would keep what the next measurements need


def _measure_peak_in_torch(device: "torch.device", wait: Callable[[], None], side: int, copied: int) -> Peak:
    import torch

    source = torch.randint(0, 256, (copied,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    on_host = torch.from_numpy(random_pixels(copied // 4))
    if device.type == "cuda":
        on_host = on_host.pin_memory(device)
    matrices = {
        name: torch.randn(side, side, dtype=dtype, device=device)
        for name, dtype in (("fp16", torch.float16), ("fp32", torch.float32))
    }

    def copy() -> None:
        target.copy_(source)
        wait()

    def upload() -> None:
        target[: len(on_host)].copy_(on_host, non_blocking=True)
        wait()

    def multiply(name: str) -> None:
        torch.mm(matrices[name], matrices[name])
        wait()

    transfers: dict[str, tuple[Call, int]] = {"copy": (copy, 2 * copied), "upload": (upload, len(on_host))}
    return _measure_rates({name: partial(multiply, name) for name in matrices}, side, transfers)


def _make_product(name: str, left: int, right: int, out: int, threads: int) -> Call:
    """Make a product of two matrices in ONNX Runtime, of random numbers as in `random_pixels`."""
    images, weights = (
        np.random.default_rng(seed).integers(-64, 64, (SIDE, SIDE)).astype(helper.tensor_dtype_to_np_dtype(kind))
        for seed, kind in enumerate((left, right))
    )
    graph = helper.make_graph(
        [helper.make_node(name, ["a", "b"], ["c"])],
        "gemm",
        [helper.make_tensor_value_info("a", left, [SIDE, SIDE])],
        [helper.make_tensor_value_info("c", out, [SIDE, SIDE])],
        [numpy_helper.from_array(weights, "b")],
    )
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"a": images})


def compute_roofline(work: Work, peak: Peak, precision: str, batch: int, measured: Figure) -> Roofline:
    """Compare a batch's measured milliseconds with the minimum that the peak allows."""
    # A CPU computes an FP16 file in FP32.
    operations = peak.operations.get(precision, peak.operations["fp32"])
    arithmetic = batch * work.operations / 1e6 / operations.best
    memory = (work.weights + batch * work.activations) / 1e6 / peak.copy.best
    return _compare(
        "network", batch, measured, {"arithmetic": (arithmetic, operations), "memory": (memory, peak.copy)}
    )


def compute_pixel_roofline(spec: ModelSpec, side: int, peak: Peak, batch: int, measured: Figure) -> Roofline:
    """Compare the milliseconds that a batch's pixels take from the host into the network's input with the minimum.

    Args:
        spec: of the model.
        side: rows and columns of each picture, of one byte a pixel.
        peak: of the GPU; its upload must be measured.
        batch: pictures.
        measured: of upload and preprocessing together: small batches are read over PCIe by the kernel itself.
    """
    assert peak.upload is not None
    read, written = batch * side * side, math.prod(spec.input_shape(batch))
    return _compare(
        "preprocessing",
        batch,
        measured,
        {
            "PCIe": (read / 1e6 / peak.upload.best, peak.upload),
            "memory": ((read + written) / 1e6 / peak.copy.best, peak.copy),
        },
    )


def _compare(
    part: Literal["network", "preprocessing"],
    batch: int,
    measured: Figure,
    bounds: dict[Bound, tuple[float, Best]],
) -> Roofline:
    """Hold measured milliseconds against the longest of the bounds, each with the rate that it is at."""
    bound = max(bounds, key=lambda name: bounds[name][0])
    minimum, rate = bounds[bound]
    share = Figure(
        minimum / measured.median,
        minimum / measured.high,
        minimum * rate.best / rate.low / measured.low,
        measured.rounds,
    )
    return Roofline(part, batch, measured, bound, minimum, share)


def explain_bounds(
    serial_means: dict[str, float],
    device_means: dict[str, float],
    spread: float,
    usage: Usage | None = None,
    parts: Sequence[BatchParts] = (),
) -> list[str]:
    """Explain what the engine is bound by, in words, by the rules that trtexec has for its warnings.

    Args:
        serial_means: milliseconds by stage.
        device_means: milliseconds by part of the GPU's work, where there is one.
        spread: of the network's time: how far its 90th percentile is from its median, over the median.
        usage: of the processes of a long job, where it is known.
        parts: of batches on a GPU.
    """
    slowest = max(serial_means, key=serial_means.__getitem__)
    share = serial_means[slowest] / sum(serial_means.values())
    words = [f"{slowest}-bound: {share:.0%} of a single picture's time is in {slowest}"]
    if device_means:
        transfers = device_means["host-to-device"] + device_means["device-to-host"]
        on_device = sum(device_means.values())
        if transfers >= device_means["network"]:
            words.append("transfer-bound: copies take as long as the network; send larger batches")
        if serial_means["infer"] > 1.8 * on_device:
            words.append(
                "launch-bound: the host takes longer to launch than the GPU to work; use graphs or batches"
            )
    words += [part.explain() for part in parts]
    if spread > 0.25:
        words.append(f"unstable: the network's time varies by {spread:.0%}; other work, or clocks that change")
    if usage is not None:
        words.append(f"from files, {usage.held_by}-bound: {usage.why}")
    return words
