"""The teacher that begins with a face recogniser's weights: they mean the same in it, whatever BatchNorm does."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor
from torch.nn import functional as F

from fmengine.errors import DataError, ModelError, OutputError
from fmengine_train.checkpoint import load_model, load_network, save_model
from fmengine_train.faceres import NAMES, faceres, fill, read
from fmengine_train.mobilenet import BLOCKS, MobileNet, MobileNetConfig

SIZE = 64


def weights(seed: int = 0, channels: int = 3) -> dict[str, np.ndarray]:
    """Such as faceres-deep.json describes: kernels `[height, width, in, out]`, BatchNorm folded or as a factor."""
    rng, found = np.random.default_rng(seed), {}

    def add(name: str, shape: tuple[int, ...], scale: float, offset: float = 0.0) -> None:
        found[name] = (rng.normal(offset, scale, shape)).astype(np.float32)

    for name, inputs, outputs in zip(NAMES, *widths(channels), strict=True):
        if "_dw_" in name:
            add(f"{name}/depthwise_kernel", (3, 3, inputs, 1), 0.4)
            add(f"{name}_bn/batchnorm_1/mul", (outputs,), 0.1, 1.0)
        else:
            side = 3 if name == "conv1" else 1
            add(f"{name}/convolution/merged_input", (side, side, inputs, outputs), (2 / side**2 / inputs) ** 0.5)
        add(f"{name}_bn/batchnorm_1/sub", (outputs,), 0.3, 0.2)
    return found


def widths(channels: int) -> tuple[list[int], list[int]]:
    """Channels into and out of every layer."""
    outputs, last = [32], 32
    for width, _ in BLOCKS:
        outputs += [last, width]
        last = width
    return [channels, *outputs[:-1]], outputs


def graph(folder: Path, tensors: dict[str, np.ndarray]) -> Path:
    """A TensorFlow.js graph model's two files."""
    entries = [{"name": name, "shape": list(t.shape), "dtype": str(t.dtype)} for name, t in tensors.items()]
    (folder / "faceres.bin").write_bytes(b"".join(tensor.tobytes() for tensor in tensors.values()))
    path = folder / "faceres.json"
    path.write_text(json.dumps({"weightsManifest": [{"paths": ["faceres.bin"], "weights": entries}]}))
    return path


def as_tensorflow_does(tensors: dict[str, np.ndarray], x: Tensor) -> Tensor:
    """The graph's own steps, with TensorFlow's "same" padding computed from its definition."""
    strides = {"conv1": 2} | {f"conv_dw_{block}": stride for block, (_, stride) in enumerate(BLOCKS, 1)}
    found = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    for name in NAMES:
        stride = strides.get(name, 1)
        depthwise = "_dw_" in name
        kernel = found[f"{name}/depthwise_kernel" if depthwise else f"{name}/convolution/merged_input"]
        total = [max(0, (-(-side // stride) - 1) * stride + kernel.shape[0] - side) for side in x.shape[2:]]
        x = F.pad(x, (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2))
        kernel = kernel.permute(2, 3, 0, 1) if depthwise else kernel.permute(3, 2, 0, 1)
        x = F.conv2d(x, kernel, stride=stride, groups=x.shape[1] if depthwise else 1)
        if depthwise:
            x = x * found[f"{name}_bn/batchnorm_1/mul"].view(1, -1, 1, 1)
        x = (x + found[f"{name}_bn/batchnorm_1/sub"].view(1, -1, 1, 1)).clamp(0, 6)
    return x


@pytest.mark.parametrize("channels", [1, 3])
def test_the_weights_mean_the_same_here(tmp_path: Path, channels: int) -> None:
    """A gray picture is one of three equal channels; BatchNorm's own statistics change nothing."""
    tensors = weights()
    network = MobileNet(MobileNetConfig(channels=channels, height=SIZE, width=SIZE))
    pictures = torch.randint(0, 256, (24, channels, SIZE, SIZE), generator=torch.Generator().manual_seed(1))
    fill(network, read(graph(tmp_path, tensors)), pictures.to(torch.uint8))
    others = torch.randint(0, 256, (3, channels, SIZE, SIZE), generator=torch.Generator().manual_seed(2))
    levels = network.normalise(others.to(torch.uint8))
    with torch.no_grad():
        expected = as_tensorflow_does(tensors, levels.expand(-1, 3, -1, -1))
        got = network.eval().layers(levels)
        # In training BatchNorm takes the batch's own statistics: of the pictures it was filled from, the same.
        levels = network.normalise(pictures.to(torch.uint8))
        trained, filled = network.train().layers(levels), as_tensorflow_does(tensors, levels.expand(-1, 3, -1, -1))
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)
    assert (trained - filled).abs().mean() < 0.05 * filled.abs().mean()


@pytest.mark.slow
def test_a_run_begins_with_the_weights(drawn_faces: Path, tmp_path: Path) -> None:
    model, run = graph(tmp_path, weights()), tmp_path / "run"
    result = CliRunner().invoke(faceres, [str(model), str(drawn_faces / "train"), str(run)])
    assert result.exit_code == 0, result.output
    network, document = load_network(run)
    assert isinstance(network, MobileNet)
    assert document["labels"] == []
    first = torch.from_numpy(weights()["conv1/convolution/merged_input"]).permute(3, 2, 0, 1).sum(1, keepdim=True)
    torch.testing.assert_close(network.layers[0].convolution.weight, first)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "no TensorFlow.js graph model"),
        ("[", "no TensorFlow.js graph model"),
        ('{"weightsManifest": [{"paths": ["none.bin"], "weights": []}]}', "none.bin"),
        (
            '{"weightsManifest": [{"paths": [], "weights": [{"name": "a", "shape": [1], "dtype": "uint8"}]}]}',
            "a is not in float32",
        ),
        (
            '{"weightsManifest": [{"paths": [], "weights": [{"name": "a", "shape": [0], "dtype": "float32", '
            '"quantization": {"dtype": "float16"}}]}]}',
            "a is not in float32",
        ),
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "model.json"
    path.write_text(text)
    with pytest.raises(ModelError, match=r"expected faceres-deep\.json") as caught:
        read(path)
    assert said in str(caught.value)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    network = MobileNet(MobileNetConfig(height=32, width=32))
    pictures = torch.zeros(16, 1, 32, 32)
    with pytest.raises(ModelError, match="not the weights of faceres-deep"):
        fill(network, {"conv1/convolution/merged_input": torch.zeros(3, 3, 3, 32)}, pictures)
    wider = read(graph(tmp_path, weights())) | {"conv_pw_1/convolution/merged_input": torch.zeros(1, 1, 32, 65)}
    with pytest.raises(ModelError, match="not the weights of faceres-deep"):
        fill(network, wider, pictures)


def test_a_few_pictures_are_too_few(tmp_path: Path, drawn_faces: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    (few / "broken.png").write_bytes(b"no picture")
    for path in sorted((drawn_faces / "train" / "happy").iterdir())[:3]:
        (few / path.name).write_bytes(path.read_bytes())
    result = CliRunner().invoke(faceres, [str(graph(tmp_path, weights())), str(few), str(tmp_path / "run")])
    assert isinstance(result.exception, DataError)
    assert "only 3 pictures could be read" in str(result.exception)


def test_a_model_that_is_there_is_replaced_if_asked_for(tmp_path: Path, drawn_faces: Path) -> None:
    model, folder = tmp_path / "none.json", tmp_path / "run"
    model.write_text("no graph")
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"old")
    arguments = [str(model), str(drawn_faces / "train"), str(folder)]
    refused = CliRunner().invoke(faceres, arguments)
    assert isinstance(refused.exception, OutputError)
    assert "exists; replace it with --overwrite" in str(refused.exception)
    assert isinstance(CliRunner().invoke(faceres, [*arguments, "--overwrite"]).exception, ModelError)
    assert (folder / "model.safetensors").read_bytes() == b"old"
    taken = CliRunner().invoke(faceres, [str(model), str(drawn_faces / "train"), str(model)])
    assert isinstance(taken.exception, OutputError)


@pytest.mark.parametrize("size", [32, 33, 112])
def test_any_size_from_thirty_two_gives_a_logit_a_label(size: int) -> None:
    network = MobileNet(MobileNetConfig(outputs=7, height=size, width=size + 5)).eval()
    assert network(torch.zeros(2, 1, size, size + 5)).shape == (2, 7)


def test_levels_are_counted_from_the_mean() -> None:
    network = MobileNet(MobileNetConfig(mean=115, std=2.0))
    levels = torch.tensor([0, 115, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    assert network.normalise(levels).flatten().tolist() == [-57.5, 0, 70]


def test_a_smaller_input_is_refused() -> None:
    with pytest.raises(ValueError, match="31×112 pixels; expected 32 or more"):
        MobileNet(MobileNetConfig(height=31))


def test_it_is_kept_and_found_again(tmp_path: Path) -> None:
    network = MobileNet(MobileNetConfig(outputs=3, height=40, width=48)).eval()
    save_model(tmp_path / "model.safetensors", network, {"labels": ["a", "b", "c"]})
    loaded, _ = load_network(tmp_path)
    assert loaded.config == network.config
    x = torch.randint(0, 256, (2, 1, 40, 48)).to(torch.uint8)
    torch.testing.assert_close(loaded(x), network(x))


def test_a_teacher_is_not_exported(tmp_path: Path) -> None:
    save_model(tmp_path / "teacher.safetensors", MobileNet(MobileNetConfig()), {})
    with pytest.raises(ModelError, match="holds a MobileNet, a teacher; expected an AlexNet"):
        load_model(tmp_path / "teacher.safetensors")
