"""Plots the curves and the confusion matrix of a run, as PNG."""

import io
import unicodedata
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.ticker import MaxNLocator

from .metrics import Scores

LONGEST = 24  # characters of a label beside a row of the confusion matrix


def plot_curves(history: Sequence[dict[str, float]]) -> bytes:
    """Plot loss and accuracy over the epochs, training and validation."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        axes.plot(epochs, [row[f"train_{name}"] for row in history], label="training (augmented)")
        axes.plot(epochs, [row[f"val_{name}"] for row in history], label="validation (averaged weights)")
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    return _encode_png(figure)


def plot_confusion(scores: Scores, labels: Sequence[str]) -> bytes:
    """Plot counts of each label against each answer, shaded by the share of the label.

    Labels that are too long, or that no font here can draw, are numbered as `labels` in training.json, from 0.
    """
    figure = Figure(figsize=(1.6 + 1.2 * len(labels), 1.2 + 1.1 * len(labels)), layout="constrained")
    axes = figure.subplots()
    shares = [[n / max(1, sum(row)) for n in row] for row in scores.confusion]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, row in enumerate(scores.confusion):
        for j, count in enumerate(row):
            color = "white" if shares[i][j] > 0.5 else "black"
            axes.text(j, i, f"{count}\n{shares[i][j]:.1%}", ha="center", va="center", color=color)
    fonts = find_fonts("".join(labels))
    drawn = fonts is not None and max(map(len, labels)) <= LONGEST
    names = list(labels) if drawn else [str(number) for number in range(len(labels))]
    where = "" if drawn else ", by its number in training.json"
    _name_ticks(axes, names, fonts if drawn else None)
    title = f"validation accuracy {scores.accuracy:.2%} of {scores.count}"
    axes.set(xlabel=f"answer{where}", ylabel=f"label{where}", title=title)
    return _encode_png(figure)


def find_fonts(text: str) -> list[str] | None:
    """Find installed font families that together draw a text; None where a character is in none of them.

    Right-to-left script is shaped by Matplotlib 3.11 and newer, and not drawn by older ones.
    """
    old = tuple(map(int, matplotlib.__version__.split(".")[:2])) < (3, 11)
    if old and any(unicodedata.bidirectional(letter) in ("R", "AL", "AN") for letter in text):
        return None
    own = FontProperties()
    families, missing = list(own.get_family()), {ord(letter) for letter in text if not letter.isspace()}
    missing -= get_font(findfont(own)).get_charmap().keys()
    for entry in fontManager.ttflist if missing else ():
        try:
            covered = missing & get_font(entry.fname).get_charmap().keys()
        except (OSError, RuntimeError):  # removed since Matplotlib listed it, or damaged
            continue
        # Matplotlib's own "Last Resort" has a box with a code for every character there is.
        if covered and entry.style == "normal" and not entry.name.startswith("Last Resort"):
            families.append(entry.name)
            missing -= covered
        if not missing:
            break
    return None if missing else families


def _name_ticks(axes: Axes, names: Sequence[str], fonts: list[str] | None) -> None:
    style: dict[str, Any] = {"parse_math": False, **({"family": fonts} if fonts else {})}  # a label may hold $
    axes.set_xticks(range(len(names)), names, **style)
    axes.set_yticks(range(len(names)), names, **style)
    if max(map(len, names)) > 10:  # beside one another they would overlap
        axes.tick_params(axis="x", labelrotation=60)


def _encode_png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, dpi=120)
    return file.getvalue()
