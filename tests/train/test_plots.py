"""Plots: whole epochs, and labels of any script, or their numbers."""

import warnings
from collections.abc import Sequence

import matplotlib
import pytest
from matplotlib.figure import Figure

from fmengine_train import plots
from fmengine_train.metrics import Scores


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is encoded."""
    made: list[Figure] = []
    encode = plots._encode_png

    def keep(figure: Figure) -> bytes:
        made.append(figure)
        return encode(figure)

    monkeypatch.setattr(plots, "_encode_png", keep)
    return made


def plot(labels: Sequence[str]) -> None:
    count = len(labels)
    confusion = [[int(i == j) for j in range(count)] for i in range(count)]
    scores = Scores(count, 0.1, 1.0, 1.0, [1.0] * count, confusion)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a glyph that is missing is one, on stderr
        plots.plot_confusion(scores, labels)


def ticks(figure: Figure) -> list[str]:
    return [tick.get_text() for tick in figure.axes[0].get_yticklabels()]


def test_epochs_are_whole(figures: list[Figure]) -> None:
    names = ("train_loss", "val_loss", "train_accuracy", "val_accuracy")
    plots.plot_curves([{"epoch": epoch, **dict.fromkeys(names, 0.5)} for epoch in (1, 2)])
    assert all(float(tick).is_integer() for axes in figures[0].axes for tick in axes.get_xticks())


@pytest.mark.parametrize("labels", [("happy", "sad"), ("a,b", '"c"'), ("$\\foo$", "x_y"), ("радость", "θλίψη")])
def test_labels_are_drawn_as_they_are(figures: list[Figure], labels: tuple[str, ...]) -> None:
    plot(labels)
    assert ticks(figures[0]) == list(labels)


@pytest.mark.parametrize("labels", [("x" * 200, "sad"), ("\U000105c0", "sad")], ids=["long", "no font has it"])
def test_labels_that_cannot_be_drawn_are_numbered(figures: list[Figure], labels: tuple[str, ...]) -> None:
    plot(labels)
    assert ticks(figures[0]) == ["0", "1"]
    assert figures[0].axes[0].get_ylabel() == "label, by its number in training.json"


@pytest.mark.parametrize("labels", [("سعيد", "حزين"), ("שמח", "עצוב"), ("开心", "悲伤")])
def test_any_script_is_drawn_or_numbered_without_a_word(figures: list[Figure], labels: tuple[str, ...]) -> None:
    plot(labels)
    drawn = plots.find_fonts("".join(labels)) is not None
    assert ticks(figures[0]) == (list(labels) if drawn else ["0", "1"])


def test_an_older_matplotlib_does_not_draw_from_right_to_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matplotlib, "__version__", "3.10.1")
    assert plots.find_fonts("سعيد") is None
    assert plots.find_fonts("happy") is not None
