"""Folding: the plain list of layers answers as the network that it was made from."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from fmengine_export.fold import Network, fold
from fmengine_export.quantize import activations
from fmengine_train.model import ARCHITECTURES, AlexNet


def make(name: str, batch_norm: bool) -> AlexNet:
    """A network whose running statistics, scales and shifts are anything but 0 and 1."""
    torch.manual_seed(0)
    shape = {"height": 63, "width": 71, "widths": (4, 6, 8, 6, 5), "hidden": (7, 6), "outputs": 3}
    model = AlexNet(dataclasses.replace(ARCHITECTURES[name], batch_norm=batch_norm, **shape)).eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, -1.5, 1.5)
            nn.init.normal_(layer.bias)
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.1, 3)
        elif isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            nn.init.normal_(layer.bias)
    nn.init.normal_(model.classifier[-1].weight)
    return model


def run(network: Network, model: AlexNet, images: torch.Tensor) -> torch.Tensor:
    return activations((images - model.mean) / model.std, network)[-1]


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_folded_layers_answer_as_the_network(name: str, batch_norm: bool) -> None:
    model = make(name, batch_norm)
    images = torch.randint(0, 256, (8, model.config.channels, 63, 71)).float()
    with torch.inference_mode():
        expected = model(images)
        logits = run(fold(model), model, images)
    assert float(expected.std(0).max()) > 0.01  # pictures make a difference
    assert float((logits - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_running_statistics_count() -> None:
    model = make("alexnet-slim", batch_norm=True)
    before = fold(model)
    model.features[1].running_mean[0] += 1
    model.features[1].running_var[1] *= 2
    after = fold(model)
    assert before.convolutions[0].bias[0] != after.convolutions[0].bias[0]
    assert not np.array_equal(before.convolutions[0].weight[1], after.convolutions[0].weight[1])


@pytest.mark.parametrize(("name", "stem"), [("alexnet", (4, 2)), ("alexnet-slim", (2, 2))])
def test_five_convolutions_and_three_linears_remain(name: str, stem: tuple[int, int]) -> None:
    network = fold(make(name, batch_norm=True))
    assert [(c.stride, c.padding) for c in network.convolutions] == [stem, (1, 2), (1, 1), (1, 1), (1, 1)]
    assert [c.pool for c in network.convolutions] == [True, True, False, False, True]
    assert len(network.linears) == 3
    assert all(layer.weight.dtype == layer.bias.dtype == np.float32 for layer in network.layers)


def test_folding_leaves_the_network_as_it_was() -> None:
    model = make("alexnet-slim", batch_norm=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fold(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
