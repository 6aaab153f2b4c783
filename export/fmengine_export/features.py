"""Adds the output `features` to a model file of an older fmengine, which had none.

    python -m fmengine_export.features IN.onnx OUT.onnx

The file's weights and what it answers stay, bit for bit: one node more reads what the last layer reads.
"""

import sys
from dataclasses import replace
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from fmengine.errors import FmengineError, ModelError
from fmengine.model.file import ModelFile, load_model_file
from fmengine.system.files import write_file

from .graph import Graph, append_features, describe


def add_features(file: ModelFile) -> bytes:
    """Write a model file anew, with the output `features`.

    Raises:
        ModelError: for a file that has it already, or was not exported by fmengine.
    """
    if file.spec.features:
        raise ModelError(f"{file.path} gives features already, {file.spec.features} of each picture")
    model = onnx.load_from_string(file.data)
    graph = Graph(list(model.graph.node))
    try:
        append_features(graph)
    except StopIteration:
        raise ModelError(
            f"{file.path} does not end in a fully connected layer (Gemm), as the files that fmengine exports do; "
            "add the output `features` where it is made, and its width to the metadata"
        ) from None
    model.graph.node.append(graph.nodes[-1])
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    shape = next(value for value in inferred if value.name == "features").type.tensor_type.shape
    width = shape.dim[1].dim_value
    model.graph.output.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", width]))
    onnx.checker.check_model(model, full_check=True)
    return describe(model, replace(file.spec, features=width))


def main(arguments: list[str]) -> int:
    """Write the second file from the first; a fault is one line on stderr."""
    if len(arguments) != 2:
        print("usage: python -m fmengine_export.features IN.onnx OUT.onnx", file=sys.stderr)
        return 2
    try:
        write_file(Path(arguments[1]), add_features(load_model_file(arguments[0])))
    except FmengineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
