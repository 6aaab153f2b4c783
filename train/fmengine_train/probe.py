"""Fits the last layer alone, on what the other layers see in the pictures: a linear probe, in seconds.

Alain, Bengio: "Understanding Intermediate Layers Using Linear Classifier Probes", 2016.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmengine.cli.console import track

from .feed import Feed, Rows
from .networks import Network
from .views import make_views

BATCH = 256  # pictures; bounds memory
VIEWS, WARP_STRENGTH = 6, 0.3
ENOUGH = 30_000  # views of all pictures together: more of them take minutes, and the answers stay
STEPS = 100  # of LBFGS at most: it has converged by then


def fit_last_layer(
    network: Network, feed: Feed, rows: Rows, penalty: float, class_weights: Tensor | None = None
) -> None:
    """Fit the last layer to the training pictures by L2-regularised multinomial logistic regression.

    It is fitted from zero, whatever it held, to several views of each picture; the other layers stay.

    Args:
        network: whose last layer is replaced.
        feed: of images, targets, answers `[N, K]` to learn, and hints.
        rows: to fit it to.
        penalty: of the squared weights, for embeddings with a standard deviation of 1 in each column.
        class_weights: of the loss, `[K]`.
    """
    embeddings, answers = _embed_views(network, feed, rows)
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


def _embed_views(network: Network, feed: Feed, rows: Rows) -> tuple[Tensor, Tensor]:
    """Compute embeddings `[V·N, D]` of all views of the pictures, and the answers `[V·N, K]` to learn."""
    generator = torch.Generator(network.last.weight.device).manual_seed(0)
    training = network.training
    network.eval()
    embeddings, answers = [], []
    count = max(1, min(VIEWS, ENOUGH // max(1, len(rows))))  # of each picture
    batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    with torch.no_grad():
        taken = track(feed.take(batches), len(batches), "batches", caption="features", keep=False)
        for images, _, learned, _ in taken:
            views = make_views(images, count, WARP_STRENGTH, generator)
            embeddings += [network.embed(view) for view in views]
            answers += [learned] * len(views)
    network.train(training)
    return torch.cat(embeddings).float(), torch.cat(answers)
