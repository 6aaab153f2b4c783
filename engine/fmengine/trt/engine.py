"""A TensorRT engine on its GPU: loaded, checked, and enqueued on streams."""

from typing import Any

from ..errors import BackendError, DeviceError, NoRoomError
from ..model.detector import DetectorSpec
from ..model.spec import ModelSpec
from .library import is_rtx, take_messages
from .profile import Profile


class EngineFileError(BackendError):
    """An engine does not load, or does not match the model file."""


def deserialise_engine(
    library: Any, logger: Any, engine: bytes, spec: ModelSpec | DetectorSpec
) -> tuple[Any, Any]:
    """Deserialise an engine, and check that its tensors are those of the model.

    Returns:
        The library's engine, and its runtime, which must live as long.

    Raises:
        EngineFileError: with TensorRT's messages.
    """
    logger.messages.clear()
    try:
        runtime = library.Runtime(logger)
    except Exception as error:  # pybind's TypeError where the library cannot start
        raise EngineFileError(f"{library.__name__} does not start: {error}. {take_messages(logger)}") from error
    made = runtime.deserialize_cuda_engine(engine)
    if made is None:
        raise EngineFileError(
            f"{library.__name__} {library.__version__} does not load this engine of {len(engine):,} bytes; it "
            f"must be built by the same version, for this GPU. {take_messages(logger)}"
        )
    _check_tensors(library, made, spec)
    return made, runtime


def _check_tensors(library: Any, engine: Any, spec: ModelSpec | DetectorSpec) -> None:
    """Refuse an engine whose tensors are not those of the model file."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    tensors = {
        name: (engine.get_tensor_mode(name), engine.get_tensor_dtype(name), tuple(engine.get_tensor_shape(name)))
        for name in names
    }
    images = tuple(-1 if isinstance(size, str) else size for size in spec.input_shape(-1))
    expected: dict[str, Any] = {"images": (library.TensorIOMode.INPUT, library.DataType.UINT8, images)}
    for name, shape in spec.output_shapes(-1).items():
        expected[name] = (library.TensorIOMode.OUTPUT, library.DataType.FLOAT, shape)
    if tensors != expected:
        raise EngineFileError(f"the engine has the tensors {tensors}; expected {expected}: build it again")


def create_context(engine: Any, logger: Any, *settings: Any) -> Any:
    """Create an execution context of a deserialised engine.

    Raises:
        NoRoomError: if there is no room for it.
    """
    context = engine.create_execution_context(*settings)
    if context is None:
        raise NoRoomError(
            f"TensorRT cannot make an execution context, which needs {int(engine.device_memory_size_v2):,} bytes "
            f"on the GPU. {take_messages(logger)}"
        )
    return context


class Network:
    """A deserialised engine. Use it within its context.

    Attributes:
        profiles: the batch sizes that it takes.
        capturable: whether its runs may be captured into CUDA graphs.
    """

    def __init__(self, library: Any, logger: Any, engine: bytes, spec: ModelSpec) -> None:
        """Load an engine.

        Raises:
            EngineFileError: with TensorRT's messages.
        """
        self._library, self._logger, self._spec = library, logger, spec
        self._engine, self._runtime = deserialise_engine(library, logger, engine, spec)
        # TensorRT-RTX compiles kernels while it runs, and makes graphs of its own.
        self.capturable = not is_rtx(library)
        shapes = [
            self._engine.get_tensor_profile_shape("images", index)
            for index in range(self._engine.num_optimization_profiles)
        ]
        self.profiles = tuple(Profile(int(low[0]), int(best[0]), int(high[0])) for low, best, high in shapes)

    def create_execution(self, profile: int, addresses: dict[str, int], stream: Any) -> "Execution":
        """Create an execution context on one profile, that reads and writes at these addresses.

        Raises:
            NoRoomError: if there is no room for it.
            DeviceError: if TensorRT refuses.
        """
        context = create_context(self._engine, self._logger, *self._make_runtime_settings())
        # The first profile is chosen already; choosing another is work on the stream.
        if profile and not context.set_optimization_profile_async(profile, stream.handle):
            raise DeviceError(f"TensorRT cannot choose profile {profile}. {take_messages(self._logger)}")
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise DeviceError(f"TensorRT refuses {address:#x} for {name}. {take_messages(self._logger)}")
        return Execution(context, self._spec, self._logger)

    def create_class_execution(
        self, profile: int, batch: int, addresses: dict[str, int], stream: Any
    ) -> "Execution":
        """See `fmengine.gpu.network.LoadedNetwork`."""
        return self.create_execution(profile, addresses, stream)

    def _make_runtime_settings(self) -> list[Any]:
        """Make a context's settings: TensorRT-RTX is to compile for each shape, and to capture graphs."""
        if self.capturable:
            return []
        settings = self._engine.create_runtime_config()
        strategies = self._library.DynamicShapesKernelSpecializationStrategy
        settings.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        settings.cuda_graph_strategy = self._library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return [settings]

    def close(self) -> None:
        """Release everything, after all that was made from it."""
        self._engine = self._runtime = None


class Execution:
    """One execution context. Its addresses never change; its batch size does, unless a graph holds it."""

    def __init__(self, context: Any, spec: ModelSpec, logger: Any) -> None:
        self._context, self._spec, self._logger = context, spec, logger
        self._batch = 0

    def enqueue(self, batch: int, stream: Any) -> None:
        """Put a run over `batch` pictures into a stream.

        Raises:
            DeviceError: if TensorRT refuses.
        """
        if batch != self._batch:  # naming the shape again would cost time, and a graph its context
            self._batch = 0
            if not self._context.set_input_shape("images", self._spec.input_shape(batch)):
                raise DeviceError(f"TensorRT refuses a batch of {batch}. {take_messages(self._logger)}")
            self._batch = batch
        if not self._context.execute_async_v3(stream.handle):
            raise DeviceError(f"TensorRT cannot run a batch of {batch}. {take_messages(self._logger)}")

    def free(self) -> None:
        """Free the context's memory."""
        self._context = None
