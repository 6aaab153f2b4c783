"""Runs teachers on every picture, so that a student learns from their answers beside the labels.

Hinton, Vinyals, Dean: "Distilling the Knowledge in a Neural Network", 2015. The teachers answer once, before
the first epoch, from several views of each picture. Their answer is worth more than a doubtful label, and serves
where a picture has none.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fmengine.cli.console import track
from fmengine.errors import DataError

from .checkpoint import ANSWERS, load_network, read_tensors, weights_sha256, write_tensors
from .data import Dataset, Item, load
from .distributed import World
from .feed import open_feed
from .hints import standardise
from .networks import Network
from .steps import autocast
from .views import make_views

BATCH = 256  # pictures; bounds memory
VIEWS, WARP_STRENGTH = 4, 0.6


def teach(
    data: Dataset,
    items: list[Item],
    teachers: Sequence[Path],
    weight: float,
    folder: Path,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
    dtype: torch.dtype = torch.float32,
    world: World = World(),  # noqa: B008 - immutable
) -> None:
    """Replace the data's answers by a blend of labels and teachers, and give the teachers' hints with them.

    Args:
        data: from `load`; pictures without a label get the teachers' answer alone.
        items: that the data were loaded from.
        teachers: checkpoints that know all of the data's labels; they may know more, and see other sizes.
        weight: of the teachers' answer where there is a label, 0 to 1.
        folder: keeps the answers, so that `--resume` need not run the teachers again.
        device: that the teachers run on.
        dtype: of mixed precision.
        world: the processes that train one model; the first one's answers count, and it writes them.

    Raises:
        DataError: for a teacher that lacks a label, or processes with other teachers.
    """
    networks = [_load_teacher(path, data.labels) for path in teachers]
    kept, key = folder / ANSWERS, _digest_inputs(data, items, [network for network, _ in networks])
    world.check_agreement("their teachers and pictures", key)
    taught = _read_answers(kept, key)
    if taught is None:
        each = [_answer_all(*network, data.labels, items, folder, device, dtype) for network in networks]
        taught = {
            "answers": torch.stack([answers for answers, _ in each]).mean(0),
            "hints": torch.cat([standardise(embeddings) for _, embeddings in each], dim=1),
        }
        if world.first:
            write_tensors(kept, taught, {"key": key})
    taught = world.take_first(taught)
    answers, data.hints = taught["answers"].numpy(), taught["hints"].numpy()
    known = data.targets >= 0
    data.answers[known] += weight * (answers[known] - data.answers[known])
    data.answers[~known] = answers[~known]


def _load_teacher(path: Path, labels: tuple[str, ...]) -> tuple[Network, dict[str, Any]]:
    """Load a teacher that knows the labels, and its document."""
    teacher, document = load_network(path)
    if missing := [label for label in labels if label not in document["labels"]]:
        raise DataError(
            f"the teacher {path} knows {', '.join(document['labels'])}, but not {', '.join(missing)}; "
            "expected all labels that are trained"
        )
    return teacher, document


def _digest_inputs(data: Dataset, items: list[Item], teachers: list[Network]) -> str:
    """Compute the digest of what the answers depend on: the teachers, the labels and the pictures' names.

    Other pictures under the same names are noticed by the data's fingerprint.
    """
    parts = [
        "answers and hints",
        data.labels,
        VIEWS - 2,  # as older runs counted them
        WARP_STRENGTH,
        *map(weights_sha256, teachers),
        *(item.name for item in items),
    ]
    return hashlib.sha256(os.fsencode("\n".join(map(str, parts)))).hexdigest()


def _read_answers(path: Path, key: str) -> dict[str, Tensor] | None:
    """Read answers that were kept; None if there are none, or they depend on something else."""
    if not path.exists():
        return None
    tensors, document = read_tensors(path)
    return tensors if document.get("key") == key else None


def _answer_all(
    teacher: Network,
    document: dict[str, Any],
    labels: tuple[str, ...],
    items: list[Item],
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Compute what `_average` returns for every item; on the CPU."""
    columns = [document["labels"].index(label) for label in labels]
    config = teacher.config
    shape = (config.channels, config.height, config.width)
    pictures = load(items, labels, shape, document["fit"], folder, "reading for a teacher").pixels
    teacher = teacher.to(device).to(memory_format=torch.channels_last)
    feed = open_feed((pictures,), device)
    batches = [np.arange(start, min(start + BATCH, len(items))) for start in range(0, len(items), BATCH)]
    taken = track(feed.take(batches), len(batches), "batches", caption="asking a teacher", keep=False)
    parts = []
    with autocast(device, dtype):
        for number, (images,) in enumerate(taken):
            generator = torch.Generator(device).manual_seed(number * BATCH)
            parts.append(_average(teacher, make_views(images, VIEWS, WARP_STRENGTH, generator), columns))
    answers, embeddings = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    return answers, embeddings


def _average(teacher: Network, views: list[Tensor], columns: list[int]) -> tuple[Tensor, Tensor]:
    """Average probabilities of some labels, `[N, K]`, and embeddings, `[N, D]`, over views of a batch."""
    with torch.inference_mode():
        embeddings = [teacher.embed(view) for view in views]
        answers = [teacher.last(embedding)[:, columns].float().softmax(1) for embedding in embeddings]
    return torch.stack(answers).mean(0), torch.stack(embeddings).float().mean(0)
