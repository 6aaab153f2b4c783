"""Reads and writes the files of a run: safetensors for tensors, JSON for the rest, never pickle.

`checkpoint.safetensors` holds all that `--resume` needs; `model.safetensors` the weights that
`fmengine export` takes. Each carries its JSON document in the safetensors header, and is
replaced atomically.
"""

import dataclasses
import hashlib
import json
import os
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

import fmengine
from fmengine.errors import DataError, ModelError, OutputError
from fmengine.jobs.rows import escape_path
from fmengine.system.files import write_file

from .mobilenet import MobileNetConfig
from .model import AlexNet, AlexNetConfig
from .networks import Config, Network, build
from .recipe import Recipe

KEY = "fmengine"  # of the JSON document in the safetensors header
CHECKPOINT, MODEL = "checkpoint.safetensors", "model.safetensors"
ANSWERS = "answers.safetensors"  # of the teachers: one run may begin with those of another
RUN_FILES = (CHECKPOINT, MODEL, "training.json", "metrics.csv", "curves.png", "confusion.png")
KINDS: dict[str, type[Config]] = {"AlexNet": AlexNetConfig, "MobileNet": MobileNetConfig}


def open_run(folder: Path, *, resume: bool) -> None:
    """Make a run folder, or check that a run can begin or be resumed in the one that exists.

    Raises:
        OutputError: for a folder that cannot be written, that holds a run where none is resumed, or other things
            than the run to resume.
    """
    try:
        held = [name for name in os.listdir(folder) if not name.startswith(".")] if os.path.lexists(folder) else []
        if not resume and set(held) & set(RUN_FILES):
            raise OutputError(
                f"{folder} holds a run already; go on with {format_resume_command(folder)}, or choose "
                "another --run folder"
            )
        if resume and CHECKPOINT not in held and (others := sorted(set(held) - {ANSWERS})):
            raise OutputError(
                f"{folder} holds {', '.join(map(escape_path, others[:3]))} and no {CHECKPOINT} to go on from; "
                "give the folder of the run, or choose another --run folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # permissions alone do not show a read-only drive
    except OSError as error:
        raise OutputError(f"cannot write into the run folder {folder}: {error.strerror}") from error


def format_resume_command(folder: Path) -> str:
    """Format the command that goes on with a run."""
    return f"`fmengine train --resume --run {shlex.quote(escape_path(str(folder)))}`"


def read_recipe(path: Path, document: dict[str, Any]) -> Recipe:
    """Read the recipe that a checkpoint, with this document, was made with.

    Raises:
        ModelError: if it is no checkpoint to resume, or one of another version.
    """
    if "data_fingerprint" not in document:
        raise ModelError(f"{path} is no checkpoint to go on from; use a new --run folder")
    try:
        # An older version's recipe lacks newer names: those had the default, and the last epoch shipped.
        return Recipe.from_dict({"keep": "last"} | document["recipe"])
    except (DataError, KeyError, TypeError) as error:
        raise make_version_error(path, document, error) from error


def make_version_error(path: Path, document: dict[str, Any], error: Exception) -> ModelError:
    """Make the error for a checkpoint that another version wrote in another form."""
    return ModelError(
        f"{path} is of another version: fmengine {document.get('version', 'unknown')} wrote it, and "
        f"{fmengine.__version__} cannot go on from it ({error}); go on with that version, or use "
        "a new --run folder"
    )


def check_recipe(path: Path, document: dict[str, Any], recipe: Recipe) -> None:
    """Check that a checkpoint, with this document, can be resumed with this recipe; it may have more epochs.

    Raises:
        DataError: if it was made with another one.
        ModelError: if it is no checkpoint to resume, or one of another version.
    """
    old, new = read_recipe(path, document).to_dict(), recipe.to_dict()
    if new["epochs"] > old["epochs"]:
        del new["epochs"]
    if changed := _describe_differences(old, new):
        raise DataError(
            f"{path} was made with another recipe: {changed}; leave those options out (--epochs can be raised, "
            "nothing else changed), or use a new --run"
        )


def _describe_differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    return ", ".join(f"{key} was {old.get(key)!r}, is {new[key]!r}" for key in new if old.get(key) != new[key])


def write_tensors(path: Path, tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
    """Write tensors and a JSON document as one safetensors file.

    Raises:
        OutputError: if it cannot be written; an old file stays.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_file(path, save(contiguous, metadata={KEY: json.dumps(document, allow_nan=False)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Raises:
        ModelError: for a file that is missing, damaged, or not from `fmengine train`.
    """
    with _open(path) as (file, document):
        return {name: file.get_tensor(name) for name in file.keys()}, document  # noqa: SIM118 (no mapping)


def read_document(path: Path) -> dict[str, Any]:
    """Read the JSON document alone, which takes no time; raises as `read_tensors` does."""
    with _open(path) as (_, document):
        return document


@contextmanager
def _open(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Open a safetensors file, with the JSON document in its header."""
    try:
        with path.open("rb") as opened, safe_open(_name_in_utf8(path, opened.fileno()), framework="pt") as file:
            document = json.loads((file.metadata() or {}).get(KEY, "null"))
            if not isinstance(document, dict):
                raise ModelError(f"{path} is safetensors, but not a checkpoint of `fmengine train`")
            yield file, document
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise ModelError(f"cannot read the checkpoint {path}: {error}") from error


def _name_in_utf8(path: Path, descriptor: int) -> str:
    """Name an open file for safetensors, which takes no name that is not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return f"/dev/fd/{descriptor}"
    return str(path)


def save_model(
    path: Path, model: Network, document: dict[str, Any], tensors: dict[str, Tensor] | None = None
) -> None:
    """Write the weights of the model, with the configuration that rebuilds the network.

    Args:
        path: of the safetensors file.
        model: an AlexNet or a teacher.
        document: what else is written beside the weights.
        tensors: the weights; by default, the model's own.
    """
    config = {"network": type(model).__name__, "config": dataclasses.asdict(model.config)}
    write_tensors(path, model.state_dict() if tensors is None else tensors, document | config)


def load_model(path: str | Path) -> tuple[AlexNet, dict[str, Any]]:
    """Rebuild a trained AlexNet; see `load_network`.

    Raises:
        ModelError: also for a teacher, which cannot be exported.
    """
    model, document = load_network(path)
    if not isinstance(model, AlexNet):
        raise ModelError(f"{path} holds a {type(model).__name__}, a teacher; expected an AlexNet")
    return model, document


def load_network(path: str | Path) -> tuple[Network, dict[str, Any]]:
    """Rebuild a trained network from `model.safetensors`, or from the run folder that holds it.

    Returns:
        The network in evaluation mode and FP32, and the document written beside its weights.

    Raises:
        ModelError: for a file that is missing, damaged or from elsewhere.
    """
    path = find_model(Path(path))
    tensors, document = read_tensors(path)
    try:
        config: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in document["config"].items()}
        with torch.device("meta"):
            model = build(KINDS[document["network"]](**config))
        model.load_state_dict(tensors, assign=True)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{path} does not hold a network of this version; expected the model.safetensors of "
            f"`fmengine train`: {error}"
        ) from error
    return model.float().eval(), document


def find_model(path: Path) -> Path:
    """Return a run folder's `model.safetensors`, or the file itself."""
    return path / MODEL if path.is_dir() else path


def weights_sha256(model: Network) -> str:
    """Compute the digest of the FP32 weights: the name, shape and bytes of each tensor, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as named tensors; hyperparameters come from the recipe."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{index}.{key}": torch.as_tensor(value)
        for index, entry in state.items()
        for key, value in entry.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restore an optimizer's state from what `flatten_optimizer` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
