"""The full AlexNet in ONNX Runtime or OpenVINO, called plainly: Pillow in threads, batches of 64."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image
from serve import Answer, Opened, main

BATCH = 64
LABELS = ("happy", "sad")


def read(path: str) -> Any:
    image = Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
    return np.asarray(image).transpose(2, 0, 1)


def onnxruntime_runner(model: str, threads: int) -> tuple[Callable[[Any], Any], str]:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["probabilities"], {"images": images})[0], onnxruntime.__version__


def openvino_runner(model: str, threads: int) -> tuple[Callable[[Any], Any], str]:
    import openvino

    core = openvino.Core()
    network = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_NUM_THREADS": threads})
    return lambda images: network({"images": images})["probabilities"], openvino.__version__


def open_peer(options: dict[str, Any]) -> Opened:
    library = options["library"]
    opener = {"onnxruntime": onnxruntime_runner, "openvino": openvino_runner}[library]
    run, version = opener(options["model"], options["threads"])
    pool = ThreadPoolExecutor(options["threads"])

    def answer(paths: list[str]) -> list[Answer]:
        found = []
        for start in range(0, len(paths), BATCH):
            rows = run(np.stack(list(pool.map(read, paths[start : start + BATCH]))))
            found += [Answer(LABELS[int(row.argmax())], float(row.max())) for row in rows]
        return found

    return Opened(answer, f"full AlexNet, FP32 file, {library}, Pillow", False, {library: version})


if __name__ == "__main__":
    main(open_peer)
