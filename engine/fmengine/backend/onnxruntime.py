"""ONNX Runtime on the CPU: the embedded default, on any machine."""

from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from ..errors import ModelError, UnavailableError, format_install_command
from ..model.detector import DetectorFile
from ..model.file import ModelFile
from ..model.spec import Precision
from ..options import BackendOptions
from ..system.cores import usable_cores
from ..system.fork import PerProcess
from ..system.telemetry import import_onnxruntime
from ..types import Outputs
from .protocol import describe_threads

PROVIDER = "CPUExecutionProvider"
FATAL = 4  # the lowest severity that it prints: all that fails is raised besides


class OnnxRuntimeBackend:
    """See `fmengine.backend.protocol.Backend`."""

    name: ClassVar[str] = "onnxruntime"
    # FP16 last: there is no half precision on a CPU, ONNX Runtime inserts Casts and computes in FP32.
    precisions: ClassVar[tuple[Precision, ...]] = ("int8", "fp32", "fp16")

    def __init__(self, model: ModelFile | DetectorFile, options: BackendOptions) -> None:
        try:
            self._library = import_onnxruntime()
        except ImportError as error:
            raise UnavailableError(
                f"ONNX Runtime cannot be imported ({error}); install it with: {format_install_command('cpu')}"
            ) from error
        self._outputs: type[Outputs] = model.spec.outputs
        self._output_names = model.spec.output_names
        self._streams = options.streams or 1
        self._threads = max(1, (options.threads or usable_cores()) // self._streams)
        make = partial(_make_session, self._library, model, self._threads, spinning=options.spinning)
        self._session = PerProcess(make)

    @classmethod
    def open(cls, model: ModelFile | DetectorFile, options: BackendOptions) -> Self:
        return cls(model, options)

    def run(self, images: npt.NDArray[np.uint8]) -> Outputs:
        session = self._session.value or self._session.remake()
        return self._outputs(*session.run(self._output_names, {"images": images}))

    def describe(self) -> dict[str, str]:
        return {
            "backend": self.name,
            "library": f"onnxruntime {self._library.__version__}",
            "device": "cpu",
            "threads": describe_threads(self._threads, self._streams),
        }

    def close(self) -> None:
        self._session.close()


def _make_session(library: Any, model: ModelFile | DetectorFile, threads: int, *, spinning: bool) -> Any:
    settings = library.SessionOptions()
    if not spinning:
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.intra_op_num_threads = threads
    settings.log_severity_level = FATAL
    try:
        # From the bytes that were checked, so that the file cannot change in between, and external
        # data (weights in other files) cannot be reached.
        session = library.InferenceSession(model.data, settings, providers=[PROVIDER])
    except Exception as error:  # ONNX Runtime's exceptions have no public base class
        raise ModelError(f"ONNX Runtime refuses {model.path}: {error}") from error
    if (active := session.get_providers()) != [PROVIDER]:
        raise UnavailableError(f"ONNX Runtime runs on {active} instead of {PROVIDER}")
    check_signature(model, session)
    return session


def check_signature(model: ModelFile | DetectorFile, session: "onnxruntime.InferenceSession") -> None:  # type: ignore[name-defined]  # noqa: F821
    """Check that a session takes and gives the tensors that its model file describes.

    Raises:
        ModelError: if it does not.
    """
    names, shape = model.spec.output_names, list(model.spec.input_shape(1)[1:])
    inputs = {node.name: (node.type, node.shape[1:]) for node in session.get_inputs()}
    outputs = {node.name: node.type for node in session.get_outputs()}
    if inputs != {"images": ("tensor(uint8)", shape)} or {outputs.get(name) for name in names} != {
        "tensor(float)"
    }:
        raise ModelError(
            f"{model.path} has inputs {inputs} and outputs {outputs}; expected `images`: uint8 {shape} after the "
            f"batch, and float {' and '.join(f'`{name}`' for name in names)}"
        )
