"""INT8: what rounding may cost, and that nothing is lost beyond it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fmengine_export import quantize
from fmengine_export.fold import Convolution, Linear, Network, fold
from fmengine_export.quantize import WEIGHT_LEVELS, activations, calibrate, quantize_weights
from fmengine_train.checkpoint import load_model


def random_layer(seed: int, shape: tuple[int, ...], size: float, bias: float) -> Linear | Convolution:
    rng = np.random.default_rng(seed)
    channels = 10.0 ** rng.uniform(-2, 2, (shape[0], *[1] * (len(shape) - 1)))  # of very different ranges
    weight = (rng.normal(0, size, shape) * channels).astype(np.float32)
    offsets = rng.normal(0, bias, shape[0]).astype(np.float32)
    return Linear(weight, offsets) if len(shape) == 2 else Convolution(weight, offsets, 1, 0)


layers = st.builds(
    random_layer,
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(1, 1), (5, 7), (3, 4, 3, 3), (8, 1, 5, 5)]),
    size=st.floats(1e-3, 10),
    bias=st.floats(0, 5),
)
scales = st.floats(1e-4, 1)


def restored(layer: Linear | Convolution, input_scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights and bias as the integers give them back, and the scale of each weight."""
    integers = quantize_weights(layer, input_scale)
    scale = integers.weight_scale.astype(np.float64)
    shaped = scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
    return integers.weight * shaped, integers.bias * (input_scale * scale), shaped


def assume_biases_fit(layer: Linear | Convolution, input_scale: float) -> None:
    """Leave out biases that are beyond 32 bits in units of the weights' own scale: see the test of those."""
    largest = np.abs(layer.weight.reshape(len(layer.weight), -1)).max(axis=1).astype(np.float64)
    assume((np.abs(layer.bias) * WEIGHT_LEVELS < 2**29 * input_scale * largest).all())


@settings(deadline=None)
@given(layers, scales)
def test_types_shapes_and_range(layer: Linear | Convolution, input_scale: float) -> None:
    assume_biases_fit(layer, input_scale)
    integers = quantize_weights(layer, input_scale)
    assert (integers.weight.dtype, integers.bias.dtype) == (np.int8, np.int32)
    assert integers.weight_scale.dtype == np.float32
    assert integers.weight.shape == layer.weight.shape
    assert integers.bias.shape == integers.weight_scale.shape == layer.bias.shape
    levels = np.abs(integers.weight.astype(int)).reshape(len(layer.weight), -1)
    assert (levels.max(axis=1) == WEIGHT_LEVELS).all()  # every channel uses its whole range, and no more


@settings(deadline=None)
@given(layers, scales)
def test_rounding_moves_by_half_a_level_at_most(layer: Linear | Convolution, input_scale: float) -> None:
    assume_biases_fit(layer, input_scale)
    weight, bias, scale = restored(layer, input_scale)
    assert (np.abs(weight - layer.weight) <= 0.5001 * scale).all()
    assert (np.abs(bias - layer.bias) <= 0.5001 * scale.reshape(-1) * input_scale).all()


@settings(deadline=None)
@given(layers)
def test_a_channel_does_not_depend_on_its_neighbours(layer: Linear | Convolution) -> None:
    assume_biases_fit(layer, 0.1)
    whole = quantize_weights(layer, 0.1)
    alone = quantize_weights(Linear(layer.weight[:1].reshape(1, -1), layer.bias[:1]), 0.1)
    assert np.array_equal(alone.weight.reshape(-1), whole.weight[0].reshape(-1))
    assert alone.bias[0] == whole.bias[0]


@pytest.mark.parametrize("weight", [0.0, 1e-15, 1e-9])
def test_a_channel_with_hardly_any_weights_keeps_its_bias(weight: float) -> None:
    # BatchNorm with a gamma near zero folds to this: the bias alone is the channel's answer.
    layer = Linear(np.full((1, 4), weight, np.float32), np.array([0.7], np.float32))
    assert restored(layer, 1 / 64)[1] == pytest.approx([0.7], rel=1e-3)


def test_quantized_weights_are_golden() -> None:
    layer = Linear(
        np.array([[0.63, -0.315, 0.0], [-6.3, 6.3, 0.05]], np.float32), np.array([0.1, -1.0], np.float32)
    )
    integers = quantize_weights(layer, 0.5)
    assert integers.weight.tolist() == [[63, -32, 0], [-63, 63, 0]]
    assert integers.weight_scale == pytest.approx([0.01, 0.1])
    assert integers.bias.tolist() == [20, -20]


# Calibration


def identity() -> Network:
    """Two layers that give their input back, cut off at zero."""
    one, zero = np.ones((1, 1, 1, 1), np.float32), np.zeros(1, np.float32)
    return Network([Convolution(one, zero, 1, 0)], [Linear(np.ones((1, 64), np.float32), zero)])


def noise(count: int, low: int = 0, high: int = 256) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, (count, 1, 8, 8), dtype=np.uint8)


def test_even_activations_use_the_whole_range() -> None:
    (scale,) = calibrate(identity(), noise(200), 0, 1.0)
    assert scale == pytest.approx(1.0, rel=0.02)


def test_scales_follow_the_normalisation() -> None:
    (scale,) = calibrate(identity(), noise(200, 128), 128, 64.0)
    assert 255 * scale == pytest.approx(127 / 64, rel=0.05)


def test_a_single_outlier_does_not_take_the_range_from_the_rest() -> None:
    pictures = noise(4000, 0, 100)
    pictures[0, 0, 0, 0] = 255
    network = identity()
    network.convolutions[0] = Convolution(
        np.full((1, 1, 1, 1), 1.0, np.float32), np.full(1, 0.37, np.float32), 1, 0
    )
    (scale,) = calibrate(network, pictures, 0, 1.0)
    assert 99.37 <= 255 * scale <= 255.37 * 1.001


def test_a_dead_layer_gets_a_scale_all_the_same() -> None:
    (scale,) = calibrate(identity(), np.zeros((2, 1, 8, 8), np.uint8), 128, 64.0)
    assert 0 < scale < 1


def test_scales_do_not_depend_on_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = calibrate(identity(), noise(50), 10, 3.0)
    monkeypatch.setattr(quantize, "CALIBRATION_BATCH", 7)
    assert calibrate(identity(), noise(50), 10, 3.0) == expected


def test_a_trained_networks_scales_lie_within_its_activations(tiny_run: Path) -> None:
    network = fold(load_model(tiny_run)[0])
    images = np.random.default_rng(0).integers(0, 256, (32, 1, 40, 40), dtype=np.uint8)
    tops = [float(a.max()) for a in activations((torch.from_numpy(images).float() - 128) / 64, network)]
    scales = calibrate(network, images, 128, 64.0)
    assert len(scales) == len(network.layers) - 1
    for scale, top in zip(scales, tops, strict=False):
        assert 0.29 * top <= 255 * scale <= 1.001 * top
