"""Plots the curves and the confusion matrix of a run, as PNG."""

import io
from collections.abc import Sequence

from matplotlib.figure import Figure

from .metrics import Scores


def plot_curves(history: Sequence[dict[str, float]]) -> bytes:
    """Plot loss and accuracy over the epochs, training and validation."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        axes.plot(epochs, [row[f"train_{name}"] for row in history], label="training (augmented)")
        axes.plot(epochs, [row[f"val_{name}"] for row in history], label="validation (averaged weights)")
        axes.set(xlabel="epoch", ylabel=name)
        axes.grid(alpha=0.3)
        axes.legend()
    return _encode_png(figure)


def plot_confusion(scores: Scores, labels: Sequence[str]) -> bytes:
    """Plot counts of each label against each answer, shaded by the share of the label."""
    figure = Figure(figsize=(1.6 + 1.2 * len(labels), 1.2 + 1.1 * len(labels)), layout="constrained")
    axes = figure.subplots()
    shares = [[n / max(1, sum(row)) for n in row] for row in scores.confusion]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, row in enumerate(scores.confusion):
        for j, count in enumerate(row):
            color = "white" if shares[i][j] > 0.5 else "black"
            axes.text(j, i, f"{count}\n{shares[i][j]:.1%}", ha="center", va="center", color=color)
    axes.set_xticks(range(len(labels)), labels, parse_math=False)  # a label may hold $
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.set(xlabel="answer", ylabel="label", title=f"validation accuracy {scores.accuracy:.2%} of {scores.count}")
    return _encode_png(figure)


def _encode_png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, dpi=120)
    return file.getvalue()
