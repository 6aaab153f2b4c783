"""The model file: its document round-trips, and every damage is a `ModelError` with a way out."""

import dataclasses
import json
import random
from pathlib import Path

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from fmengine.errors import ModelError
from fmengine.model.file import DEFAULT_MODEL, available_models, load_model_file, resolve, seal
from fmengine.model.spec import METADATA_KEY, PRECISIONS, InputSpec, ModelSpec
from fmengine.types import COLORS, FITS

SPEC = ModelSpec(
    name="tiny",
    labels=("happy", "sad"),
    height=2,
    width=2,
    color="gray",
    fit="crop",
    precision="fp32",
    mean=(128,),
    std=(64.0,),
)


def tiny_onnx(metadata: dict[str, str]) -> bytes:
    """A valid model of one node."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "tiny", value[:1], value[1:])
    model = helper.make_model(graph)
    helper.set_model_props(model, metadata)
    return model.SerializeToString()


def sealed(document: str) -> bytes:
    return seal(tiny_onnx({"before": "other metadata", METADATA_KEY: document, "after": ""}))


def written(folder: Path, data: bytes) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(data)
    return path


def error_of(path: str | Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model_file(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def refused(folder: Path, data: bytes) -> bool:
    try:
        load_model_file(written(folder, data))
    except ModelError:
        return True
    return False


@pytest.fixture(scope="module")
def tiny() -> bytes:
    return sealed(SPEC.to_json())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One folder for all the examples that Hypothesis draws."""
    return tmp_path_factory.mktemp("models")


# The document.


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    color = draw(st.sampled_from(COLORS))
    channels = 1 if color == "gray" else 3
    positive = st.floats(0, exclude_min=True, allow_nan=False, allow_infinity=False)
    text = st.text(max_size=20)
    return ModelSpec(
        name=draw(text.filter(lambda name: name[:1] != "." and not set(name) & set("/\\\0"))),
        labels=tuple(draw(st.lists(text, min_size=2, max_size=5, unique=True))),
        height=draw(st.integers(1, 4096)),
        width=draw(st.integers(1, 4096)),
        color=color,
        fit=draw(st.sampled_from(FITS)),
        precision=draw(st.sampled_from(PRECISIONS)),
        mean=tuple(draw(st.lists(st.integers(0, 255), min_size=channels, max_size=channels))),
        std=tuple(draw(st.lists(positive, min_size=channels, max_size=channels))),
        temperature=draw(positive),
        unsure_below=draw(st.floats(0, 1)),
        training_data=draw(text),
        accuracy=draw(st.dictionaries(text, st.dictionaries(text, st.integers()), max_size=2)),
        weights_sha256=draw(text),
    )


@pytest.mark.slow
@given(spec=specs())
def test_document_round_trip(spec):
    assert ModelSpec.from_json(spec.to_json()) == spec
    assert ModelSpec.from_json(spec.to_json().encode()) == spec


@settings(max_examples=50, deadline=None)
@given(spec=specs())
def test_file_round_trip(spec, folder):
    file = load_model_file(written(folder, sealed(spec.to_json())))
    assert dataclasses.replace(file.spec, file_sha256=spec.file_sha256) == spec
    assert file.spec.file_sha256 != spec.file_sha256
    assert file.data == file.path.read_bytes()


def test_sealed_file_is_still_onnx(tiny):
    model = onnx.load_model_from_string(tiny)
    onnx.checker.check_model(model)
    props = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(props[METADATA_KEY])["labels"] == ["happy", "sad"]


def test_sealing_again_changes_nothing(tiny):
    assert seal(tiny) == tiny


def test_input_shape():
    assert SPEC.input_shape(32) == (32, 1, 2, 2)
    rgb = dataclasses.replace(SPEC, color="rgb", mean=(1, 2, 3), std=(1.0, 2.0, 3.0))
    assert rgb.input_shape(1) == (1, 3, 2, 2)


BAD_FIELDS = [
    ("labels", ["happy"]),
    ("labels", ["happy", "happy"]),
    ("labels", []),
    ("labels", None),
    ("labels", [["a"], ["b"]]),
    ("height", 0),
    ("height", 4097),
    ("height", "tall"),
    ("width", -1),
    ("width", None),
    ("color", "bgr"),
    ("color", {}),
    ("fit", "zoom"),
    ("precision", "int4"),
    ("filter", "lanczos"),
    ("mean", [128, 128]),
    ("mean", [128.5]),
    ("mean", [-1]),
    ("mean", [256]),
    ("mean", ["128"]),
    ("std", []),
    ("std", [0]),
    ("std", [-1.0]),
    ("std", [float("nan")]),
    ("std", [float("inf")]),
    ("std", ["64"]),
    ("std", 64.0),
    ("temperature", 0),
    ("temperature", -1.0),
    ("temperature", float("nan")),
    ("temperature", float("inf")),
    ("temperature", 10**400),
    ("temperature", None),
    ("unsure_below", -0.1),
    ("unsure_below", 1.1),
    ("unsure_below", float("nan")),
    ("unsure_below", "half"),
    # What would be taken for granted later, far from here: in a name, a row, an array's shape, `info`.
    ("name", 5),
    ("name", "../out"),
    ("name", ".hidden"),
    ("labels", [1, 2]),
    ("labels", "ab"),
    ("height", 1.5),
    ("height", True),
    ("accuracy", []),
    ("training_data", {}),
    ("weights_sha256", None),
    ("features", -1),
    ("features", 2.5),
    ("features", 65537),
]


@pytest.mark.parametrize(("name", "value"), BAD_FIELDS, ids=lambda value: str(value)[:12])
def test_bad_field_is_refused_by_name(name, value):
    document = json.loads(SPEC.to_json()) | {name: value}
    with pytest.raises(ModelError, match=rf"\b{name}\b"):
        ModelSpec.from_json(json.dumps(document))


def test_unknown_and_missing_fields_are_named():
    document = json.loads(SPEC.to_json()) | {"colour": "gray"}
    del document["labels"]
    with pytest.raises(ModelError, match="colour, labels"):
        ModelSpec.from_json(json.dumps(document))


def test_optional_fields_may_be_absent():
    document = json.loads(SPEC.to_json())
    del document["temperature"], document["accuracy"]
    assert ModelSpec.from_json(json.dumps(document)) == SPEC


def test_a_file_without_features_has_two_outputs():
    document = json.loads(SPEC.to_json())
    del document["features"]  # as files of an older fmengine
    assert ModelSpec.from_json(json.dumps(document)).output_names == ("logits", "probabilities")
    assert dataclasses.replace(SPEC, features=256).output_names == ("logits", "probabilities", "features")


@pytest.mark.parametrize("version", [None, 0, 2, "1"])
def test_other_version_says_what_to_do(version):
    document = json.loads(SPEC.to_json()) | {"version": version}
    with pytest.raises(ModelError, match="export it again, or update fmengine"):
        ModelSpec.from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"text"', "[" * 100_000, b"\xff\xfe\xfa"])
def test_no_json_object(text):
    with pytest.raises(ModelError):
        ModelSpec.from_json(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
field_names = st.sampled_from([field.name for field in dataclasses.fields(ModelSpec)])


@settings(max_examples=300)
@given(changes=st.dictionaries(field_names, json_values, min_size=1, max_size=3))
def test_any_value_in_any_field_is_taken_or_a_model_error(changes):
    try:
        spec = ModelSpec.from_json(json.dumps(json.loads(SPEC.to_json()) | changes))
    except ModelError:
        return
    assert spec.input_shape(1) == (1, spec.channels, spec.height, spec.width)


# The file.


def varint(value: int) -> bytes:
    data = b""
    while value > 0x7F:
        data, value = data + bytes([value & 0x7F | 0x80]), value >> 7
    return data + bytes([value])


def chunk(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def hand_made() -> bytes:
    """The fewest bytes that are a model file: a version, an empty graph and the document."""
    entry = chunk(1, METADATA_KEY.encode()) + chunk(2, SPEC.to_json().encode())
    return seal(b"\x08\x0a" + chunk(7, b"") + chunk(14, entry))


def test_hand_made_file_is_taken(folder):
    assert load_model_file(written(folder, hand_made())).spec.labels == SPEC.labels


def test_every_changed_byte_is_refused(folder):
    data = hand_made()
    for position in range(len(data)):
        for change in (0x01, 0x20, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[position] ^= change
            assert refused(folder, bytes(damaged)), (position, change)


def test_every_truncation_is_refused(folder):
    data = hand_made()
    for length in range(len(data)):
        assert refused(folder, data[:length]), length


def test_appended_bytes_are_refused(folder, tiny):
    for more in (b"\0", b"\n", b"\x08\x0a", chunk(14, b""), tiny):
        assert refused(folder, tiny + more), more


def test_changed_bytes_of_the_shipped_model_are_refused(folder):
    data = load_model_file(resolve(None, ("int8",))).data
    for position in random.Random(7).sample(range(len(data)), 200):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        assert refused(folder, bytes(damaged)), position


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=300))
def test_random_bytes_are_refused(data, folder):
    assert refused(folder, data)


@settings(max_examples=300, deadline=None)
@given(position=st.integers(0, 10_000), data=st.binary(min_size=1, max_size=30))
def test_random_bytes_inside_are_refused(position, data, folder):
    model = hand_made()
    position %= len(model)
    damaged = model[:position] + data + model[position + len(data) :]
    assert damaged == model or refused(folder, damaged)


@pytest.mark.parametrize(
    "data",
    [
        chunk(7, b"")[:1] + varint(2**63 - 1),  # a graph of exabytes
        chunk(7, b"")[:1] + b"\xff" * 11,  # a length that never ends
        b"\x0b",  # a group: no such thing in ONNX
        b"\x00\x00",  # field 0: no such thing in protobuf
        chunk(7, b"") + chunk(14, b"\xff"),
        chunk(7, b"") + chunk(14, chunk(1, METADATA_KEY.encode())),  # a key without a value
        chunk(7, b"") + chunk(14, b"\x08\x01\x10\x01"),  # key and value are numbers
    ],
)
def test_hostile_protobuf_is_refused(folder, data):
    assert refused(folder, data)


def test_damage_is_called_damage(tmp_path, tiny):
    position = tiny.index(b"Identity")
    path = written(tmp_path, tiny[:position] + b"identity" + tiny[position + 8 :])
    assert "is damaged" in error_of(path)


def test_digest_written_by_hand_is_refused(tmp_path):
    """A file that was never sealed carries zeros."""
    path = written(tmp_path, tiny_onnx({METADATA_KEY: SPEC.to_json()}))
    assert "is damaged" in error_of(path)


def test_document_without_digest(tmp_path):
    document = json.loads(SPEC.to_json())
    del document["file_sha256"]
    path = written(tmp_path, tiny_onnx({METADATA_KEY: json.dumps(document)}))
    assert "no digest" in error_of(path)


def test_document_larger_than_any(tmp_path):
    document = dataclasses.replace(SPEC, training_data="x" * 2**20).to_json()
    with pytest.raises(ModelError, match="larger than 1,048,576 bytes"):
        sealed(document)
    data = tiny_onnx({METADATA_KEY: document})
    assert "larger than 1,048,576 bytes" in error_of(written(tmp_path, data))


def test_onnx_without_metadata_says_how_to_add_it(tmp_path):
    assert "fmengine export --describe" in error_of(written(tmp_path, tiny_onnx({"author": "somebody"})))


def test_no_onnx(tmp_path):
    for data in (b"", b"hello, world", b"PK\x03\x04" + bytes(100)):
        assert "not an ONNX model" in error_of(written(tmp_path, data))


def test_missing_file_lists_the_shipped_models(tmp_path):
    message = error_of(tmp_path / "missing.onnx")
    assert available_models()
    assert all(name in message for name in available_models())


@pytest.mark.parametrize("name", ["nul\0.onnx", "x" * 300 + ".onnx", "file/below.onnx"])
def test_impossible_path_is_a_model_error(tmp_path, name):
    (tmp_path / "file").touch()
    error_of(tmp_path / name)


def test_folder_is_no_model(tmp_path):
    assert "is a folder" in error_of(tmp_path)


# Finding it.


def test_default_is_the_first_precision_that_is_shipped():
    assert resolve(None, ("fp32", "int8")).name == f"{DEFAULT_MODEL}.int8.onnx"
    assert resolve(DEFAULT_MODEL, ("fp16", "int8")).name == f"{DEFAULT_MODEL}.fp16.onnx"


@pytest.mark.parametrize("name", ["resnet", "", "x" * 300, "../models"])
def test_unknown_name_lists_the_shipped_models(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_model_file(resolve(name, ("int8",)))
    assert name == "" or all(model in str(caught.value) for model in available_models())


@pytest.mark.parametrize("name", available_models())
def test_name_with_a_precision_is_that_file(name):
    assert resolve(name, ("fp32",)).name == f"{name}.onnx"


@pytest.mark.parametrize("name", ["../models/alexnet-slim.int8", "./alexnet-slim.int8", "alexnet-slim."])
def test_name_with_a_precision_leads_nowhere_else(name):
    with pytest.raises(ModelError, match="no model"):
        resolve(name, ("fp32",))


def test_precision_that_is_not_shipped():
    with pytest.raises(ModelError, match="fp32"):
        resolve(None, ("fp32",))


def test_path_is_used_as_it_is(tmp_path):
    assert resolve(tmp_path / "any.onnx", ("int8",)) == tmp_path / "any.onnx"
    (tmp_path / "odd-name").touch()
    assert resolve(tmp_path / "odd-name", ("int8",)) == tmp_path / "odd-name"


def test_shipped_models_are_sound():
    for name in available_models():
        stem, precision = name.rsplit(".", 1)
        spec = load_model_file(resolve(stem, (precision,))).spec
        assert (spec.name, spec.precision) == (stem, precision)
        assert len(spec.weights_sha256) == 64
    families = {load_model_file(resolve(DEFAULT_MODEL, (p,))).spec.weights_sha256 for p in ("int8", "fp16")}
    assert len(families) == 1, "the precisions of one family come from the same weights"


def test_input_travels_as_one_value_and_enters_no_document():
    spec = dataclasses.replace(SPEC, height=40, width=56, color="gray", fit="pad", mean=(128,), std=(64.0,))
    before = spec.to_json()
    assert spec.input == InputSpec(40, 56, "gray", "pad")
    assert spec.input is spec.input
    assert (spec.input.channels, spec.input.shape, spec.input.size) == (1, (1, 40, 56), (56, 40))
    assert spec.input_shape(2) == (2, *spec.input.shape)
    assert spec.to_json() == before
    assert ModelSpec.from_json(before) == spec
    assert dataclasses.replace(spec, height=41).input.height == 41


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"color": "cmyk"}, "color 'cmyk'; expected one of gray, rgb"),
        ({"fit": "squash"}, "fit 'squash'; expected one of crop, pad, stretch"),
        ({"height": 0}, "height 0, width 8; expected 1 or more"),
        ({"width": -1}, "height 8, width -1; expected 1 or more"),
    ],
)
def test_input_that_no_picture_fits_is_refused(wrong, expected):
    with pytest.raises(ValueError, match=expected):
        InputSpec(**{"height": 8, "width": 8} | wrong)
