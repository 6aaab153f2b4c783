"""The full AlexNet in ONNX Runtime or OpenVINO, called plainly: Pillow in threads, batches of 64."""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image
from serve import UNREAD, Answer, Opened, main

BATCH = 64
LABELS = ("happy", "sad")


def read(path: str) -> Any:
    """Read a picture into the network's input, or return None where there is none."""
    try:
        image = Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
    except Exception:  # Pillow may raise anything; one picture must not end the job
        return None
    return np.asarray(image).transpose(2, 0, 1)


def onnxruntime_runner(model: str, threads: int, device: str) -> tuple[Callable[[Any], Any], str]:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.startswith("cuda"):
        onnxruntime.preload_dlls()  # CUDA's and cuDNN's, from their own packages
        providers = [("CUDAExecutionProvider", {"device_id": device.partition(":")[2] or "0"}), *providers]
    session = onnxruntime.InferenceSession(model, settings, providers=providers)
    if len(session.get_providers()) < len(providers):
        raise RuntimeError(f"ONNX Runtime runs on {session.get_providers()} where {device} was requested")
    return lambda images: session.run(["probabilities"], {"images": images})[0], onnxruntime.__version__


def openvino_runner(model: str, threads: int, _: str) -> tuple[Callable[[Any], Any], str]:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # it would report to its maker
    import openvino

    core = openvino.Core()
    network = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_NUM_THREADS": threads})
    return lambda images: network({"images": images})["probabilities"], openvino.__version__


def open_peer(options: dict[str, Any]) -> Opened:
    library = options["library"]
    opener = {"onnxruntime": onnxruntime_runner, "openvino": openvino_runner}[library]
    run, version = opener(options["model"], options["threads"], options["device"])
    pool = ThreadPoolExecutor(options["threads"])

    def answer(paths: list[str]) -> list[Answer]:
        found = []
        for start in range(0, len(paths), BATCH):
            pictures = list(pool.map(read, paths[start : start + BATCH]))
            good = [picture for picture in pictures if picture is not None]
            rows = iter(run(np.stack(good)) if good else ())
            found += [UNREAD if picture is None else answer_of(next(rows)) for picture in pictures]
        return found

    where = "" if options["device"] == "cpu" else f" on {options['device']}"
    return Opened(answer, f"full AlexNet, FP32 file, {library}{where}, Pillow", False, {library: version})


def answer_of(row: Any) -> Answer:
    return Answer(LABELS[int(row.argmax())], float(row.max()))


if __name__ == "__main__":
    main(open_peer)
