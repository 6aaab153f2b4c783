"""Fits the last layer alone, on what the other layers see in the pictures: a linear probe, in seconds.

Alain, Bengio: "Understanding Intermediate Layers Using Linear Classifier Probes", 2016.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmengine.cli.console import track

from .augment import warp
from .data import Dataset
from .networks import Network

BATCH = 256  # pictures; bounds memory
# The picture, its mirror image, and views turned, scaled and shifted by up to 0.3 of what augmentation does.
WARPS, WARP_STRENGTH = 4, 0.3
VIEWS = 30_000  # of all pictures together that are enough: more of them take minutes, and the answers stay
STEPS = 100  # of LBFGS at most: it has converged by then


def fit_last_layer(network: Network, data: Dataset, penalty: float, class_weights: Tensor | None = None) -> None:
    """Fit the last layer to the training pictures by L2-regularised multinomial logistic regression.

    It is fitted from zero, whatever it held, to several views of each picture; the other layers stay.

    Args:
        network: whose last layer is replaced.
        data: to fit it to.
        penalty: of the squared weights, for embeddings with a standard deviation of 1 in each column.
        class_weights: of the loss, `[K]`.
    """
    embeddings, answers = _embed_views(network, data)
    mean, deviation = embeddings.mean(0), embeddings.std(0).clamp_min(1e-3)
    columns = (embeddings - mean) / deviation
    weight = torch.zeros(answers.shape[1], columns.shape[1], device=columns.device, requires_grad=True)
    bias = torch.zeros(answers.shape[1], device=columns.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def compute_loss() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(columns, weight, bias), answers, class_weights)
        loss = loss + penalty * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(compute_loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        last: nn.Linear = network.last
        last.weight.copy_(weight / deviation)
        last.bias.copy_(bias - last.weight @ mean)


def _embed_views(network: Network, data: Dataset) -> tuple[Tensor, Tensor]:
    """Compute embeddings `[V·N, D]` of all views of the training pictures, and the answers `[V·N, K]` to learn."""
    generator = torch.Generator().manual_seed(0)
    device = network.last.weight.device
    training = network.training
    network.eval()
    embeddings, answers = [], []
    count = max(1, min(2 + WARPS, VIEWS // max(1, len(data.train))))  # of each picture
    starts = range(0, len(data.train), BATCH)
    with torch.no_grad():
        for start in track(starts, len(starts), "batches", caption="features", keep=False):
            rows = data.train[start : start + BATCH]
            levels = torch.from_numpy(data.pixels[rows]).to(device).float()
            views = [levels, levels.flip(3)][:count]
            views += [warp(levels, generator, WARP_STRENGTH) for _ in range(2, count)]
            embeddings += [network.embed(view.contiguous(memory_format=torch.channels_last)) for view in views]
            answers += [torch.from_numpy(data.answers[rows]).to(device)] * len(views)
    network.train(training)
    return torch.cat(embeddings).float(), torch.cat(answers)
