"""What teachers say of every picture, to learn from beside the labels.

Hinton, Vinyals, Dean: "Distilling the Knowledge in a Neural Network", 2015. The teachers answer once, before
the first epoch, for each picture as it is and mirrored; what they say of a label that someone doubts, or of a
picture that has none, is worth more than the label.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from fmengine.errors import DataError

from .checkpoint import load_network
from .data import Dataset, Item, load
from .networks import Network

BATCH = 256


def teach(data: Dataset, items: list[Item], teachers: Sequence[Path], weight: float, folder: Path) -> None:
    """Replace the data's answers by a blend of labels and teachers.

    Args:
        data: from `load`; pictures without a label get the teachers' answer alone.
        items: that the data were loaded from.
        teachers: checkpoints that know at least the data's labels; they may know more, and see other sizes.
        weight: of the teachers' answer where there is a label, 0 to 1.
        folder: for memory-mapped pictures in the teachers' sizes.

    Raises:
        DataError: for a teacher that lacks a label.
    """
    answers = np.mean([_ask(path, data.labels, items, folder) for path in teachers], axis=0)
    known = data.targets >= 0
    data.answers[known] += weight * (answers[known] - data.answers[known])
    data.answers[~known] = answers[~known]


def _ask(path: Path, labels: tuple[str, ...], items: list[Item], folder: Path) -> npt.NDArray[np.float32]:
    """One teacher's probabilities of the labels for every item, `[N, K]`; other labels are left aside."""
    teacher, document = load_network(path)
    if missing := [label for label in labels if label not in document["labels"]]:
        raise DataError(
            f"the teacher {path} knows {', '.join(document['labels'])}, but not {', '.join(missing)}; "
            "expected all labels that are trained"
        )
    columns = [document["labels"].index(label) for label in labels]
    config = teacher.config
    shape = (config.channels, config.height, config.width)
    pictures = load(items, labels, shape, document["fit"], folder, f"reading for {path.name}").pixels
    bar = tqdm(range(0, len(items), BATCH), f"asking {path.name}", unit=" batches", disable=None, leave=False)
    parts = [_probabilities(teacher, torch.from_numpy(pictures[start : start + BATCH]), columns) for start in bar]
    return np.concatenate(parts)


def _probabilities(teacher: Network, images: torch.Tensor, columns: list[int]) -> npt.NDArray[np.float32]:
    """The mean over a batch and its mirror image."""
    with torch.inference_mode():
        views = [teacher(view)[:, columns].softmax(1) for view in (images, images.flip(3))]
    answers: npt.NDArray[np.float32] = torch.stack(views).mean(0).numpy()
    return answers
