"""Begins a network with weights that were trained before: of a run, or of a model file.

    python -m fmengine_train.pretrained RUN… train/fmengine_train/shipped/alexnet-slim.safetensors

writes the mean of some runs' weights in half precision, as they ship: of runs that trained a shipped model on, to
tell more expressions apart than it answers with. Labels of one's own do better from there.
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmengine.errors import DataError, ModelError
from fmengine.model.file import available_models, load_model_file, resolve

from .checkpoint import load_network, write_tensors
from .checks import suggest_name
from .model import AlexNetConfig
from .networks import CONFIGS, Config, Network
from .onnx_weights import build_from_onnx

SHIPPED = Path(__file__).parent / "shipped"
ALIKE = ("labels", "fit", "training_data")  # of the documents of runs whose mean is taken
LUMA = (0.299, 0.587, 0.114)  # of R, G and B in a gray level
# What may differ between a trained network and the one that begins with its weights.
FREE: dict[str, Any] = {"outputs": 1, "dropout": 0.0, "channels": 1, "height": 1, "width": 1}


@dataclass(frozen=True)
class Pretrained:
    """A trained network to begin with.

    Attributes:
        name: as it was given.
        network: in FP32.
        labels: of its outputs.
        fit: what is done to pictures of another aspect ratio.
    """

    name: str
    network: Network
    labels: tuple[str, ...]
    fit: str = "crop"


def load_pretrained(source: str, labels: Sequence[str] = ()) -> Pretrained:
    """Load the network to begin with.

    Args:
        source: the name of a shipped model, an FP32 or FP16 model file, a run folder, or its model.safetensors.
        labels: that are to be learned: of those that a shipped model does not answer with, the weights that know
            more of them come.

    Raises:
        ModelError: where there is none, or none that can be trained.
    """
    path = Path(source)
    shipped = {name.rpartition(".")[0] for name in available_models()}
    if source not in shipped and (path.is_dir() or path.suffix == ".safetensors"):
        return _load_run(source, path)
    if source in shipped and (wider := SHIPPED / f"{source}.safetensors").exists():
        known = load_model_file(resolve(source, ("fp16",))).spec.labels
        if not set(labels) <= set(known):
            return _load_run(source, wider)
    try:
        path = resolve(source, ("fp16", "fp32"))
    except ModelError as error:
        raise ModelError(
            f"no model {source!r} to begin with; expected {' or '.join(sorted(shipped))}, an .onnx file of ours "
            "in FP32 or FP16, a run folder, or its model.safetensors"
        ) from error
    file = load_model_file(path)
    return Pretrained(source, build_from_onnx(file), file.spec.labels, file.spec.fit)


def _load_run(name: str, path: Path) -> Pretrained:
    network, document = load_network(path)
    return Pretrained(name, network, tuple(document["labels"]), document["fit"])


def write_shipped(runs: Sequence[Path], target: Path) -> None:
    """Write the mean of runs' weights in half precision, with what is needed to build the network again.

    Runs that went on from the same weights lie so near each other that their mean is right more often than each
    (Wortsman et al.: "Model Soups", 2022).

    Raises:
        DataError: for runs of different networks, labels or pictures.
        ModelError: if one is no run.
        OutputError: if it cannot be written.
    """
    networks, documents = zip(*map(load_network, runs), strict=True)
    described = [
        (dataclasses.replace(network.config, dropout=0.0), *(document[key] for key in ALIKE))
        for network, document in zip(networks, documents, strict=True)
    ]
    if any(other != described[0] for other in described):
        raise DataError(f"{', '.join(map(str, runs))}: expected runs of one network, the same labels and pictures")
    states = [network.state_dict() for network in networks]
    means = {
        name: torch.stack([state[name] for state in states]).mean(0).half() if first.is_floating_point() else first
        for name, first in states[0].items()
    }
    kept = ("network", "config", *ALIKE)
    write_tensors(target, means, {key: documents[0][key] for key in kept})


def describe_network(pretrained: Pretrained) -> dict[str, Any]:
    """Return the recipe's values that build the network's architecture again.

    Raises:
        DataError: for a network that no recipe builds.
    """
    config = pretrained.network.config
    models = [model for model, known in CONFIGS.items() if _strip(known, known) == _strip(config, known)]
    if not models:
        raise DataError(f"{pretrained.name} holds a network that no recipe builds: {_describe(config)}")
    color = "gray" if config.channels == 1 else "rgb"
    values = {"model": models[0], "color": color, "size": config.height, "fit": pretrained.fit}
    if isinstance(config, AlexNetConfig):
        norm = "batch" if config.batch_norm else "none"
        return values | {"widths": config.widths, "hidden": config.hidden, "norm": norm}
    return values


def _strip(config: Config, like: Config) -> Config:
    """Set what a recipe can change as another configuration has it: what is left names the architecture."""
    if isinstance(config, AlexNetConfig) and isinstance(like, AlexNetConfig):
        layers = {"widths": like.widths, "hidden": like.hidden, "batch_norm": like.batch_norm}
        config = dataclasses.replace(config, **layers)  # type: ignore[arg-type]
    return dataclasses.replace(config, **FREE)


def compare_input(pretrained: Pretrained, config: Config) -> list[str]:
    """List what another colour or size costs, before time is spent.

    Raises:
        DataError: for another architecture, whose weights fit nowhere.
    """
    old = pretrained.network.config
    if type(old) is not type(config) or dataclasses.replace(old, **FREE) != dataclasses.replace(config, **FREE):
        raise DataError(
            f"{pretrained.name} holds a network of another architecture, {_describe(old)}; expected "
            f"{_describe(config)}: leave out --recipe, --model, widths, hidden and norm to take it as it is"
        )
    notes = []
    if old.channels < config.channels:
        notes.append(
            f"{pretrained.name} sees gray: its first layer is spread over red, green and blue as luma is, so it "
            "answers as before, and has to learn what colour tells"
        )
    elif old.channels > config.channels:
        notes.append(f"{pretrained.name} sees colour: its first layer is summed, and colour is lost")
    if (old.height, old.width) != (config.height, config.width):
        notes.append(
            f"{pretrained.name} takes {old.width}×{old.height} pixels, not {config.width}×{config.height}: layers "
            "of another shape begin fresh, and the others see faces of another size; leave out --size to keep "
            "all that it knows"
        )
    return notes


def list_new_labels(pretrained: Pretrained, labels: Sequence[str]) -> list[str]:
    """List notes on labels that resemble one of the network's, and are perhaps misspelt."""
    unused = [label for label in pretrained.labels if label not in labels]
    return [
        f"class {label} is new to {pretrained.name}{question}"
        for label in labels
        if label not in pretrained.labels and (question := suggest_name(label, unused))
    ]


def transfer_weights(model: Network, labels: Sequence[str], pretrained: Pretrained) -> None:
    """Copy trained weights into a fresh network.

    The last layer takes its rows by the labels' names; a label that is new keeps its fresh row. The first layer
    is spread over colours or summed; a layer of another shape, after another input size, stays fresh.

    Args:
        model: fresh.
        labels: of its outputs.
        pretrained: of the same architecture.

    Raises:
        DataError: for another architecture.
    """
    compare_input(pretrained, model.config)
    known = list(pretrained.labels)
    rows = [(row, known.index(label)) for row, label in enumerate(labels) if label in known]
    fresh, old = model.state_dict(), pretrained.network.state_dict()
    *_, weight, bias = fresh  # the last layer's, in either family
    with torch.no_grad():
        for name, tensor in old.items():
            if name in (weight, bias):
                for row, other in rows:
                    fresh[name][row] = tensor[other]
            elif name in ("mean", "std"):
                continue  # one level for each channel, the same in both
            elif fresh[name].shape == tensor.shape:
                fresh[name].copy_(tensor)
            elif tensor.ndim == 4:
                fresh[name].copy_(_convert_color(tensor, fresh[name].shape[1]))


def _convert_color(weight: Tensor, channels: int) -> Tensor:
    """Convert a first layer's weights to another number of channels, so that gray pictures keep their answers."""
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return weight * torch.tensor(LUMA).view(1, -1, 1, 1)


def _describe(config: Config) -> str:
    values = dataclasses.asdict(config)
    return f"{type(config).__name__.removesuffix('Config')} " + ", ".join(
        f"{name} {values[name]}" for name in ("stem", "widths", "hidden", "batch_norm") if name in values
    )


if __name__ == "__main__":
    *sources, output = map(Path, sys.argv[1:])
    write_shipped(sources, output)
