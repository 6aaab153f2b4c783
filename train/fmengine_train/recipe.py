"""Defines how a model is trained: every hyperparameter, its default and its unit, in one dataclass.

A recipe file is TOML with these names as keys; `train/recipes/` holds those of the shipped models.
"""

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmengine.errors import DataError
from fmengine.types import FITS, Fit

LISTS = {"classes": "names", "widths": "whole numbers", "hidden": "whole numbers"}  # what each list holds


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters. The defaults follow the reference recipe: 100 epochs, on a GPU."""

    model: str = "alexnet-slim"  # a key of `networks.CONFIGS`
    color: str = ""  # gray or rgb; empty: the architecture's own
    size: int = 0  # rows and columns of the input in pixels; 0: the architecture's own
    widths: tuple[int, ...] = ()  # channels of AlexNet's five convolutions; empty: its own
    norm: str = ""  # batch: BatchNorm after AlexNet's convolutions; none; empty: the architecture's own
    hidden: tuple[int, ...] = ()  # outputs of AlexNet's first two fully connected layers; empty: its own
    fit: Fit = "crop"  # what is done to pictures of another aspect ratio: crop, pad, stretch
    classes: tuple[str, ...] = ()  # folders to use, in the order of the outputs; empty: all, by name
    validation: float = 0.1  # share held out, by a hash of the file name, where the data have no split

    epochs: int = 100
    probe: float = 0.0  # L2 penalty of the last layer, which the first epoch fits alone; 0: no such epoch
    keep: str = "best"  # the epoch that ships: the best one on half of the validation pictures, or the last
    patience: int = 0  # epochs without a better one after which training stops; 0: it never does
    batch_size: int = 128
    optimizer: str = "adamw"  # adamw or sgd (Nesterov momentum 0.9)
    learning_rate: float = 1e-3  # at the end of the warm-up
    layer_decay: float = 1.0  # of the learning rate, from each layer to the one before it
    warmup: float = 3.0  # epochs of linear warm-up; a cosine to zero follows
    weight_decay: float = 0.05
    label_smoothing: float = 0.05
    label_votes: float = 2.0  # how many voters the label counts as, where people voted on a picture
    teacher_weight: float = 0.7  # of the teachers' answer beside the label, where there are teachers
    hint_weight: float = 0.0  # of guessing what the teachers' last layers see, beside the answers' loss
    mixup: float = 0.0  # share of the batches that blend pairs of pictures and their labels
    class_weights: str = "balanced"  # balanced (inverse frequency) or none
    dropout: float = 0.5
    ema: float = 0.998  # decay a step of the averaged weights, which are the ones that ship
    clip_norm: float = 5.0  # largest norm of the gradient
    precision: str = "auto"  # auto: the fastest that the device computes in; or fp32, bf16, fp16 by name
    compile: bool = False  # by torch.compile, for a minute, so that a GPU runs fewer kernels a step
    augment: float = 1.0  # strength of the augmentation; 0 turns it off
    harsh: float = 0.0  # share of the pictures that are overexposed, and of those in strong noise
    seed: int = 0

    def __post_init__(self) -> None:
        # One row a choice or a range, so that a typing mistake costs a second and not a night.
        choices = {
            "fit": FITS,
            "color": ("", "gray", "rgb"),
            "norm": ("", "batch", "none"),
            "optimizer": ("adamw", "sgd"),
            "class_weights": ("balanced", "none"),
            "keep": ("best", "last"),
            "precision": ("auto", "fp32", "bf16", "fp16"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                alternatives = ", ".join(repr(value) for value in allowed)
                raise DataError(f"recipe: {name} is {getattr(self, name)!r}; expected one of {alternatives}")
        ranges = {
            "size": (0, 4096),
            "validation": (0.0, 0.9),
            "epochs": (1, 1_000_000),
            "batch_size": (2, 1_000_000),  # BatchNorm needs two pictures
            "learning_rate": (1e-9, 10.0),  # 0 would learn nothing
            "layer_decay": (0.01, 1.0),
            "probe": (0.0, 1000.0),
            "patience": (0, 1_000_000),
            "warmup": (0.0, 1_000_000.0),
            "weight_decay": (0.0, 10.0),
            "label_smoothing": (0.0, 0.9),
            "label_votes": (0.0, 1000.0),
            "teacher_weight": (0.0, 1.0),
            "hint_weight": (0.0, 1000.0),
            "mixup": (0.0, 1.0),
            "dropout": (0.0, 0.95),
            "ema": (0.0, 0.99999),
            "clip_norm": (1e-6, 1e6),
            "augment": (0.0, 2.0),
            "harsh": (0.0, 1.0),
            "seed": (0, 2**31 - 1),
        }
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise DataError(f"recipe: {name} is {getattr(self, name)}; expected {low} to {high}")
        if self.patience and self.keep == "last":
            raise DataError("recipe: patience waits for a better epoch; expected keep to be 'best', not 'last'")
        for name in ("widths", "hidden"):
            if any(not 1 <= width <= 65_536 for width in getattr(self, name)):
                raise DataError(f"recipe: {name} is {list(getattr(self, name))}; expected 1 to 65536 each")

    @classmethod
    def load(cls, path: Path | None, overrides: dict[str, Any], base: dict[str, Any] | None = None) -> "Recipe":
        """Read a recipe file, if any, lay it over `base`, and `overrides` over both.

        Raises:
            DataError: for a file that is no TOML, or a name that is no hyperparameter.
        """
        values: dict[str, Any] = {}
        if path is not None:
            try:
                values = tomllib.loads(path.read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
                raise DataError(f"cannot read the recipe {path}: {error}") from error
        return cls.from_dict((base or {}) | values | overrides)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Recipe":
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if unknown := sorted(values.keys() - fields.keys()):
            raise DataError(f"recipe: unknown {', '.join(unknown)}; known are {', '.join(fields)}")
        for name, value in values.items():
            default = fields[name].default
            if not _fits(value, default, name):
                expected = f"list of {LISTS[name]}" if name in LISTS else type(default).__name__
                raise DataError(f"recipe: {name} is {value!r}; expected a {expected}")
        return cls(**values | {name: tuple(values[name]) for name in LISTS if name in values})

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {name: list(getattr(self, name)) for name in LISTS}


def _fits(value: Any, default: Any, name: str) -> bool:
    """Check that a value has its default's type; whole numbers serve for float, True and False for no number."""
    if name in LISTS:
        item = str if LISTS[name] == "names" else int
        return isinstance(value, list | tuple) and all(type(entry) is item for entry in value)
    if isinstance(value, bool):
        return isinstance(default, bool)
    return isinstance(value, int | float if isinstance(default, float) else type(default))
