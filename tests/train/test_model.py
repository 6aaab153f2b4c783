"""The network: torchvision's AlexNet and the slim one, in one class."""

import dataclasses

import pytest
import torch

from fmengine_train.model import ARCHITECTURES, AlexNet, AlexNetConfig

# Of torchvision.models.AlexNet(num_classes=2), torchvision 0.29.
TORCHVISION = {
    "features.0.weight": (64, 3, 11, 11),
    "features.0.bias": (64,),
    "features.3.weight": (192, 64, 5, 5),
    "features.3.bias": (192,),
    "features.6.weight": (384, 192, 3, 3),
    "features.6.bias": (384,),
    "features.8.weight": (256, 384, 3, 3),
    "features.8.bias": (256,),
    "features.10.weight": (256, 256, 3, 3),
    "features.10.bias": (256,),
    "classifier.1.weight": (4096, 9216),
    "classifier.1.bias": (4096,),
    "classifier.4.weight": (4096, 4096),
    "classifier.4.bias": (4096,),
    "classifier.6.weight": (2, 4096),
    "classifier.6.bias": (2,),
}


def on_meta(config: AlexNetConfig) -> AlexNet:
    """The network without memory for its weights: shapes cost nothing."""
    with torch.device("meta"):
        return AlexNet(config)


def count(model: AlexNet) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def small(name: str = "alexnet-slim", **changes: int) -> AlexNet:
    torch.manual_seed(0)
    return AlexNet(dataclasses.replace(ARCHITECTURES[name], height=40, width=40, **changes)).eval()


def test_full_network_has_the_shapes_of_torchvision() -> None:
    model = on_meta(ARCHITECTURES["alexnet"])
    assert {name: tuple(parameter.shape) for name, parameter in model.named_parameters()} == TORCHVISION
    assert count(model) == 57_012_034


def test_both_architectures_are_one_class_of_eight_layers() -> None:
    for config in ARCHITECTURES.values():
        model = on_meta(config)
        assert type(model) is AlexNet
        kinds = [type(layer) for layer in model.modules() if hasattr(layer, "weight") and layer.weight.ndim > 1]
        assert kinds == [torch.nn.Conv2d] * 5 + [torch.nn.Linear] * 3


def test_the_maps_of_each_architecture() -> None:
    sizes = {}
    for name, config in ARCHITECTURES.items():
        x = torch.empty(1, config.channels, config.height, config.width, device="meta")
        maps = []
        for layer in on_meta(config).eval().features:
            x = layer(x)
            maps.append(x.shape[2])
        sizes[name] = list(dict.fromkeys(maps))
    assert sizes == {"alexnet": [55, 27, 13, 6], "alexnet-slim": [40, 19, 9, 4]}


def test_slim_network_is_gray_and_small() -> None:
    model = on_meta(ARCHITECTURES["alexnet-slim"])
    assert model.features[0].weight.shape == (24, 1, 5, 5)
    assert model.features[0].bias is None  # BatchNorm has one
    assert model.classifier[-1].weight.shape == (2, 256)
    assert count(model) < 57_012_034 / 40


@pytest.mark.parametrize(("name", "smallest"), [("alexnet", 63), ("alexnet-slim", 29)])
def test_too_small_an_input_is_refused_with_the_smallest_that_fits(name: str, smallest: int) -> None:
    config = ARCHITECTURES[name]
    with pytest.raises(ValueError, match=f"{smallest - 1}×{smallest - 1} pixels is too small.* {smallest} rows"):
        on_meta(dataclasses.replace(config, height=smallest - 1, width=smallest - 1))
    model = on_meta(dataclasses.replace(config, height=smallest, width=smallest)).eval()
    logits = model(torch.empty(1, config.channels, smallest, smallest, device="meta"))
    assert logits.shape == (1, 2)


def test_height_and_width_may_differ() -> None:
    config = dataclasses.replace(ARCHITECTURES["alexnet-slim"], height=40, width=72)
    assert on_meta(config).eval()(torch.empty(3, 1, 40, 72, device="meta")).shape == (3, 2)


def test_uint8_and_float_levels_give_the_same_logits() -> None:
    model = small()
    images = torch.randint(0, 256, (2, 1, 40, 40), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(model(images), model(images.float()))


def test_normalisation_is_part_of_the_network() -> None:
    model = small()
    seen = []
    model.features[0].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    levels = torch.tensor([0, 64, 128, 255], dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 1, 40, 40)
    model(levels)
    assert seen[0][:, 0, 0, 0].tolist() == [-2, -1, 0, 127 / 64]


def test_untrained_network_is_undecided() -> None:
    with torch.inference_mode():
        probabilities = small(outputs=3).train()(torch.randint(0, 256, (4, 1, 40, 40))).softmax(1)
    assert probabilities == pytest.approx(1 / 3, abs=0.2)


def test_batch_norm_and_dropout_are_options() -> None:
    model = on_meta(dataclasses.replace(ARCHITECTURES["alexnet-slim"], batch_norm=False, dropout=0.1))
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in model.modules())
    assert [layer.p for layer in model.modules() if isinstance(layer, torch.nn.Dropout)] == [0.1, 0.1]
