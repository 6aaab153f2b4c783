"""The engine builder over TensorRT-RTX, which parses and builds on machines without a GPU.

A pass says that NVIDIA's parser and type checker take our model and that our control flow is right. It does
not say that TensorRT 11 builds it, nor how fast or exact the engine is on a GPU.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.params import quick_first

from fmengine.errors import ModelError, UnavailableError
from fmengine.model.detector import DetectorFile, load_detector_file
from fmengine.model.file import ModelFile, load_model_file, resolve
from fmengine.system.nvidia import Gpu
from fmengine.trt import build as builder
from fmengine.trt import library as libraries
from fmengine.trt.build import build_engine, check_types, make_engine_key
from fmengine.trt.library import get_logger, load_library
from fmengine.trt.profile import BuildError, BuildOptions, Profile

pytestmark = pytest.mark.timeout(120)
rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed; tests/requirements.txt names it")
FILE = load_model_file(resolve(None, ("fp16",)))
ARCHITECTURES = ["7.5", "8.0", "8.6", "8.9", "12.0", "12.1"]


def changed(change: Callable[[onnx.GraphProto], None]) -> ModelFile:
    """The shipped model with a change to its graph; digests are not the builder's business."""
    model = onnx.load_model_from_string(FILE.data)
    change(model.graph)
    return ModelFile(Path("changed.fp16.onnx"), model.SerializeToString(), FILE.spec)


def node(graph: onnx.GraphProto, output: str) -> onnx.NodeProto:
    return next(node for node in graph.node if node.output[0] == output)


def parsed(model: ModelFile | DetectorFile) -> Any:
    logger = get_logger(rtx)
    network = rtx.Builder(logger).create_network(builder._make_network_flags(rtx))
    builder._parse(rtx, network, model, logger)
    return network


# Builds


def test_the_detector_builds_for_pictures_of_any_size() -> None:
    profile = Profile(1, 1, 1, sides=(32, 640, 2048))
    file = load_detector_file(precisions=("fp16",))
    assert len(build_engine(rtx, file, BuildOptions((profile,), compute_capabilities=("8.6",)))) > 100_000
    network = parsed(file)
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    shapes = {output.name: tuple(output.shape) for output in outputs}
    assert shapes == file.spec.output_shapes(-1)
    assert {output.dtype for output in outputs} == {rtx.DataType.FLOAT}


@pytest.mark.parametrize("capability", quick_first(ARCHITECTURES))
def test_the_shipped_model_builds(capability: str) -> None:
    """Built again it has the same size; TensorRT-RTX 1.7 numbers internal tensors, and orders the two outputs, in
    one of a few ways from build to build, also in fresh processes with one thread."""
    options = BuildOptions.for_batch(64, compute_capabilities=(capability,))
    engines = [build_engine(rtx, FILE, options) for _ in range(2)]
    assert len(engines[0]) == len(engines[1]) > 1_000_000


def test_an_engine_for_several_architectures_holds_more() -> None:
    one = build_engine(rtx, FILE, BuildOptions(compute_capabilities=("8.6",)))
    several = build_engine(rtx, FILE, BuildOptions(compute_capabilities=("8.6", "8.9", "12.0")))
    assert len(several) > len(one)


def test_progress_begins_grows_and_ends() -> None:
    seen: list[tuple[str, int, int]] = []
    build_engine(rtx, FILE, BuildOptions(compute_capabilities=("8.6",)), progress=lambda *told: seen.append(told))
    steps = [done for name, done, _ in seen if name == seen[0][0]]
    assert steps[0] == 0
    assert steps == sorted(steps)
    assert len([step for step in steps if 0 < step < steps[-1]]) > 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_exception_while_progress_is_told_ends_the_build_as_itself(error: type[BaseException]) -> None:
    """Ctrl-C in a build of minutes: Python raises it in here, and TensorRT would swallow it."""

    def interrupted(phase: str, done: int, total: int) -> None:
        if done:
            raise error

    with pytest.raises(error):
        build_engine(rtx, FILE, BuildOptions(compute_capabilities=("8.6",)), progress=interrupted)


# Types


def test_every_heavy_layer_of_the_shipped_model_is_half() -> None:
    check_types(rtx, parsed(FILE))


def to_float(graph: onnx.GraphProto) -> None:
    """The third convolution in FP32, between two Casts: a graph that is strongly typed, and slow."""
    convolution = node(graph, "conv3.sum")
    x, *parameters = convolution.input
    for tensor in graph.initializer:
        if tensor.name in parameters:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    position = list(graph.node).index(convolution)
    convolution.input[0], convolution.output[0] = "wide", "wide_sum"
    graph.node.insert(position, helper.make_node("Cast", [x], ["wide"], to=TensorProto.FLOAT))
    graph.node.insert(position + 2, helper.make_node("Cast", ["wide_sum"], ["conv3.sum"], to=TensorProto.FLOAT16))


def test_one_convolution_in_fp32_is_refused_by_name() -> None:
    with pytest.raises(BuildError, match=r"not in half precision: conv3\.sum \(FLOAT\); export the model again"):
        build_engine(rtx, changed(to_float), BuildOptions())


def test_a_network_without_heavy_layers_is_refused() -> None:
    network = SimpleNamespace(num_layers=0)
    with pytest.raises(BuildError, match="no convolution and no matrix product"):
        check_types(rtx, network)


# What TensorRT cannot read


def wrong_type(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        if tensor.name == node(graph, "conv2.sum").input[1]:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))


def unknown_operator(graph: onnx.GraphProto) -> None:
    node(graph, "conv4.relu").op_type = "Frobnicate"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (wrong_type, r"`input` type is Half but `kernel` is of type Float"),
        (unknown_operator, r"Frobnicate|Plugin not found"),
    ],
)
def test_a_graph_that_cannot_be_read_is_told_in_the_parsers_words(
    change: Callable[[onnx.GraphProto], None], words: str
) -> None:
    with pytest.raises(ModelError, match=f"(?s)tensorrt_rtx cannot read changed.fp16.onnx: node .*({words})"):
        build_engine(rtx, changed(change), BuildOptions())


def test_no_onnx_at_all_is_told() -> None:
    with pytest.raises(ModelError, match="cannot read"):
        build_engine(rtx, ModelFile(Path("x.onnx"), b"nonsense", FILE.spec), BuildOptions())


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_another_precision_is_refused_with_the_file_to_use(precision: str) -> None:
    spec = dataclasses.replace(FILE.spec, precision=precision)
    with pytest.raises(ModelError, match=f"is {precision}; .* use alexnet-slim.fp16.onnx, or export it with"):
        build_engine(rtx, ModelFile(Path("x.onnx"), b"", spec), BuildOptions())


def test_quantised_pixels_are_refused_by_the_parser() -> None:
    """An INT8 file that says that it is FP16: uint8 Q/DQ is nothing that TensorRT takes."""
    file = load_model_file(resolve(None, ("int8",)))
    with pytest.raises(ModelError, match="cannot read"):
        build_engine(rtx, ModelFile(file.path, file.data, FILE.spec), BuildOptions())


# Options


@pytest.mark.parametrize("sizes", [(0, 1, 1), (8, 4, 16), (1, 32, 16), (16, 8, 4)])
def test_an_impossible_profile_is_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(BuildError, match="expected 1 ≤ min ≤ opt ≤ max"):
        Profile(*sizes)


@pytest.mark.parametrize("options", [{"optimization_level": 9}, {"optimization_level": -1}, {"workspace": -1}])
def test_impossible_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(BuildError, match="expected 0 to 5, and bytes from 0"):
        BuildOptions(**options)


def test_no_profile_is_refused() -> None:
    with pytest.raises(BuildError, match="no profile is given"):
        build_engine(rtx, FILE, BuildOptions(profiles=()))


@pytest.mark.parametrize(
    ("max_batch", "expected"), [(1, [(1, 1, 1)]), (64, [(1, 1, 1), (1, 32, 64)]), (3, [(1, 1, 1), (1, 1, 3)])]
)
def test_profiles_for_a_batch(max_batch: int, expected: list[tuple[int, int, int]]) -> None:
    assert BuildOptions.for_batch(max_batch).profiles == tuple(Profile(*sizes) for sizes in expected)


@pytest.mark.parametrize("capability", ["9.0", "10.0", "eight"])
def test_an_unknown_architecture_is_refused_with_the_known(capability: str) -> None:
    with pytest.raises(
        BuildError, match=rf"does not build for compute capability {capability}; it does for 7\.5, 8\.0"
    ):
        build_engine(rtx, FILE, BuildOptions(compute_capabilities=(capability,)))


def test_a_build_that_fails_says_why() -> None:
    """`CURRENT` needs a GPU: TensorRT-RTX returns None and tells its logger."""
    model = changed(lambda graph: None)
    library = SimpleNamespace(**{name: getattr(rtx, name) for name in dir(rtx)})
    library.ComputeCapability = SimpleNamespace(__members__={"SM00": rtx.ComputeCapability.CURRENT})
    with pytest.raises(BuildError, match=r"Its log: .*(CUDA|cuda)"):
        build_engine(library, model, BuildOptions(compute_capabilities=("0.0",)))


# The library


def fake(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    module = ModuleType("tensorrt")
    module.__version__ = version
    monkeypatch.setattr(libraries, "import_module", lambda name: module)


@pytest.mark.parametrize("version", ["10.12.0.36", "10.16.1.11", "11.4.0.106"])
def test_versions_that_are_known(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    fake(monkeypatch, version)
    assert load_library("tensorrt").__version__ == version


@pytest.mark.parametrize("version", ["8.6.1", "10.11.0.33", "12.0.0"])
def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    fake(monkeypatch, version)
    with pytest.raises(
        UnavailableError, match=rf"tensorrt {version} is installed; expected 10\.12 to 11\.x: pip install"
    ):
        load_library("tensorrt")


def test_a_missing_library_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.setattr(libraries, "import_module", missing)
    with pytest.raises(UnavailableError, match=r"libnvinfer.so.11.*pip install '\.\[gpu\]'"):
        load_library("tensorrt")


def test_a_library_that_does_not_start_is_unavailable() -> None:
    def refuses(logger: object) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    library = SimpleNamespace(__name__="tensorrt", ILogger=rtx.ILogger, Builder=refuses)
    with pytest.raises(UnavailableError, match="tensorrt does not start: pybind11"):
        build_engine(library, FILE, BuildOptions())


# The key


GPU = Gpu("NVIDIA A10", (8, 6), 72, "driver 570, CUDA 12.8")
DEFAULT = BuildOptions()


def test_the_key_changes_with_everything_that_an_engine_depends_on() -> None:
    def key(
        library: object = rtx,
        model: ModelFile = FILE,
        options: BuildOptions = DEFAULT,
        gpu: Gpu | None = GPU,
    ) -> str:
        return str(sorted(make_engine_key(library, model, options, gpu).items()))

    other_library = SimpleNamespace(__name__="tensorrt_rtx", __version__="1.8.0")
    other_model = ModelFile(FILE.path, FILE.data + b"\0", FILE.spec)
    keys = [
        key(),
        key(library=other_library),
        key(model=other_model),
        key(options=BuildOptions.for_batch(32)),
        key(options=BuildOptions(optimization_level=5)),
        key(gpu=GPU._replace(name="NVIDIA A40")),
        key(gpu=GPU._replace(compute_capability=(8, 9))),
        key(gpu=GPU._replace(driver="driver 580, CUDA 12.8")),
        key(gpu=GPU._replace(multiprocessors=71)),
        key(gpu=None),
    ]
    assert len(set(keys)) == len(keys)
    assert key() == key()


# Timings, over a configuration that notes what it is given: TensorRT-RTX times nothing


class Config:
    def __init__(self, takes: set[bytes]) -> None:
        self.takes, self.set = takes, []

    def create_timing_cache(self, content: bytes) -> SimpleNamespace:
        return SimpleNamespace(content=content)

    def set_timing_cache(self, cache: SimpleNamespace, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.set.append(cache.content)
        return cache.content in self.takes


def test_what_was_learned_is_used() -> None:
    config = Config({b"known", b""})
    builder._set_timings(config, b"known", None)
    assert config.set == [b"known"]


def test_what_another_gpu_learned_is_left_aside() -> None:
    config = Config({b""})
    builder._set_timings(config, b"of another GPU", None)
    assert config.set == [b"of another GPU", b""]


def test_no_timings_at_all_is_an_error() -> None:
    with pytest.raises(BuildError, match="refuses an empty timing cache"):
        builder._set_timings(Config(set()), b"", SimpleNamespace(messages=[]))
