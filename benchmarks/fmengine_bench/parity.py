"""Parity: do the exported files answer as the PyTorch model does, on real pictures?

Three levels: the pixels that reach the network, the logits, the decisions. FP16 arithmetic is proven with
PyTorch in half precision, which rounds every layer's activations; ONNX Runtime on a CPU inserts Casts and
computes FP16 graphs in FP32, so its figures for the FP16 file speak of the weights alone.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fmengine.cli.console import track
from fmengine.engine import Engine
from fmengine.errors import DataError, ModelError, SourceError
from fmengine.jobs.rows import printable
from fmengine.pipeline.attempt import try_picture
from fmengine.types import DecodedImage, InputBatch, NetworkInput
from fmengine.wording import pluralise
from fmengine_export.fold import fold
from fmengine_export.quantize import activations
from fmengine_train.checkpoint import weights_sha256
from fmengine_train.model import AlexNet

from .definition import preprocess as define
from .metrics import Z95

HALF_MAX = 65504.0  # the largest finite FP16 number
BATCH = 64


@dataclass(frozen=True)
class Tolerance:
    """How far a form may be from PyTorch in FP32.

    Attributes:
        probability: largest change of any picture's confidence; None where single pictures may move more.
        mean_probability: mean change of the confidence.
        flips: largest share of pictures whose label changes.
    """

    probability: float | None
    mean_probability: float
    flips: float


# FP32: the same arithmetic in another order; sums of some thousand products differ in the last bits.
# FP16: 11 bits of mantissa, about 1e-3 relative a layer; a label may turn where the two are even.
# INT8: 7-bit weights and 8-bit activations; the price is stated as flips, which go both ways, and as the
#       accuracy difference beside it, which is what costs.
TOLERANCES = {
    "fp32": Tolerance(probability=1e-4, mean_probability=1e-5, flips=0.0),
    "fp16": Tolerance(probability=0.02, mean_probability=2e-3, flips=0.001),
    "int8": Tolerance(probability=None, mean_probability=0.02, flips=0.015),
}


@dataclass(frozen=True)
class Form:
    """One form of the model against the reference. Figures are those of the pictures that both have an answer for.

    Attributes:
        name: file, or `PyTorch fp16`.
        precision: whose tolerance holds.
        pixels: differing pixels against the definition, and how many were compared.
        logits: `max`, `mean`, `p99` of the absolute differences, and the `cosine` over all.
        unanswered: pictures that the form, or the reference, answers with what is no number.
        flips: pictures whose label changed.
        flip_margins: the reference's distance between its top two probabilities, of each flip.
        probability: largest and mean change of a confidence.
        accuracy: the form's, the reference's, their difference and half its 95 % interval, if labelled.
        breaches: what is over the tolerance, in words; empty if all is well.
    """

    name: str
    precision: str
    pixels: tuple[int, int]
    logits: dict[str, float]
    unanswered: int
    flips: int
    flip_margins: list[float]
    probability: dict[str, float]
    accuracy: dict[str, float] | None
    breaches: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ParityReport:
    """All forms, and the largest activation of each layer against what FP16 holds."""

    pictures: int
    unreadable: list[str]
    forms: list[Form]
    activations: dict[str, float]
    breaches: list[str]

    @property
    def passed(self) -> bool:
        return not self.breaches and not any(form.breaches for form in self.forms)


@dataclass(frozen=True)
class Answers:
    """Logits and probabilities of every picture, float64 `[N, K]`."""

    logits: npt.NDArray[np.float64]
    probabilities: npt.NDArray[np.float64]


def run_parity(
    model: AlexNet, document: dict[str, Any], engines: Iterable[Engine], files: list[tuple[str, int | None]]
) -> ParityReport:
    """Compare PyTorch with every engine, and with itself in half precision.

    Args:
        model: the network in PyTorch, in evaluation mode.
        document: of its checkpoint; its temperature counts.
        engines: one for each exported file.
        files: pictures, with the index of their label where it is known.

    Raises:
        ModelError: for a file that was not exported from these weights.
        DataError: if no picture can be read.
    """
    digest = weights_sha256(model)
    engines = list(engines)
    for engine in engines:
        if engine.spec.weights_sha256 != digest:
            raise ModelError(
                f"{engine.model_path} comes from other weights than the checkpoint "
                f"({engine.spec.weights_sha256[:12] or 'none stated'}, not {digest[:12]}); export it again"
            )
    inputs, targets, unreadable = _prepare(files, engines)
    *prepared_by_each, defined = inputs
    temperature = float(document["temperature"])
    reference = _answers(_torch_logits(model, defined), temperature)
    forms = []
    for engine, prepared in zip(engines, prepared_by_each, strict=True):
        outputs = [engine.backend.run(batch) for batch in _batches(prepared)]
        answers = Answers(
            np.concatenate([o.logits for o in outputs]).astype(np.float64),
            np.concatenate([o.probabilities for o in outputs]).astype(np.float64),
        )
        differing = (int((prepared != defined).sum()), prepared.size)
        forms.append(
            compare(
                printable(engine.model_path.name), engine.spec.precision, answers, reference, targets, differing
            )
        )
    half = _answers(_half_logits(model, defined), temperature)
    forms.append(compare("PyTorch fp16", "fp16", half, reference, targets, (0, defined.size)))
    largest = _largest_activations(model, defined)
    breaches = [
        f"{layer}: the largest activation {value:.0f} is over a quarter of FP16's {HALF_MAX:.0f}"
        for layer, value in largest.items()
        if not value < HALF_MAX / 4
    ]
    return ParityReport(len(defined), unreadable, forms, largest, breaches)


def compare(
    name: str,
    precision: str,
    form: Answers,
    reference: Answers,
    targets: npt.NDArray[np.int64] | None,
    pixels: tuple[int, int] = (0, 0),
) -> Form:
    """One form's figures, and what of them is over its tolerance."""
    finite, expected_finite = (np.isfinite(a.probabilities).all(axis=1) for a in (form, reference))
    answered = finite & expected_finite
    distance = np.abs(form.logits - reference.logits)[answered]
    change = np.abs(form.probabilities - reference.probabilities).max(axis=1)[answered]
    answers, expected = form.probabilities.argmax(axis=1), reference.probabilities.argmax(axis=1)
    flipped = answered & (answers != expected)
    accuracy = None
    if targets is not None:
        accuracy = _accuracy(finite & (answers == targets), expected_finite & (expected == targets))
    ordered = np.sort(reference.probabilities[flipped], axis=1)
    figures = Form(
        name=name,
        precision=precision,
        pixels=pixels,
        logits={
            "max": _over(distance, np.max),
            "mean": _over(distance, np.mean),
            "p99": _over(distance, partial(np.quantile, q=0.99)),
            "cosine": _cosine(form.logits[answered], reference.logits[answered]),
        },
        unanswered=int((~answered).sum()),
        flips=int(flipped.sum()),
        flip_margins=sorted((ordered[:, -1] - ordered[:, -2]).round(6).tolist()),
        probability={"max": _over(change, np.max), "mean": _over(change, np.mean)},
        accuracy=accuracy,
    )
    figures.breaches.extend(_breaches(figures, len(flipped)))
    return figures


def _breaches(form: Form, pictures: int) -> Iterator[str]:
    allowed = TOLERANCES[form.precision]
    if form.pixels[0]:
        differ = "pixel differs" if form.pixels[0] == 1 else "pixels differ"
        yield f"{form.pixels[0]} {differ} from the definition of preprocessing; allowed are 0"
    if form.unanswered:
        total = pluralise(pictures, "picture")
        yield f"{form.unanswered} of {total} without a number for an answer; allowed are 0"
    if form.unanswered == pictures:
        return
    if allowed.probability is not None and not form.probability["max"] <= allowed.probability:
        yield f"a confidence moves by {form.probability['max']:.2g}; allowed is {allowed.probability}"
    if not form.probability["mean"] <= allowed.mean_probability:
        yield f"confidences move by {form.probability['mean']:.2g} on average, over {allowed.mean_probability}"
    # One label may turn in a set too small to hold the share.
    if form.flips > max(allowed.flips * pictures, 1 if allowed.flips else 0):
        yield f"labels turned: {form.flips} of {pictures}; allowed are {allowed.flips:.1%}"


def _over(values: npt.NDArray[np.float64], figure: Callable[[npt.NDArray[np.float64]], Any]) -> float:
    """A figure of values; NaN where there are none."""
    return float(figure(values)) if values.size else math.nan


def _accuracy(right: npt.NDArray[np.bool_], reference_right: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Accuracies and their difference, with half its 95 % interval for paired answers."""
    difference = right.astype(float) - reference_right.astype(float)
    return {
        "form": float(right.mean()),
        "reference": float(reference_right.mean()),
        "difference": float(difference.mean()),
        "half_interval": float(Z95 * difference.std() / len(difference) ** 0.5),
    }


def _prepare(
    files: list[tuple[str, int | None]], engines: list[Engine]
) -> tuple[list[npt.NDArray[np.uint8]], npt.NDArray[np.int64] | None, list[str]]:
    """The network's inputs by each engine, and last by the definition; targets; what cannot be read."""
    inputs, targets, unreadable = [], [], []
    for path, target in track(files, len(files), "pictures", caption="preprocessing by the definition"):
        made = try_picture(path, engines[0].spec.color, partial(_inputs_of, path, engines))
        if isinstance(made, SourceError):
            unreadable.append(f"{printable(path)}: {made.message}")
        else:
            inputs.append(made)
            targets.append(target)
    if not inputs:
        raise DataError(f"{pluralise(len(files), 'file')}, and none is a picture; the first: {unreadable[0]}")
    labelled = None if None in targets else np.array(targets, dtype=np.int64)
    return [np.stack(column) for column in zip(*inputs, strict=True)], labelled, unreadable


def _inputs_of(path: str, engines: Sequence[Engine], image: DecodedImage) -> list[NetworkInput]:
    """One picture's inputs. The engines' come first: they refuse what is too large for the definition to take."""
    return [*(engine.prepare(path) for engine in engines), define(image, engines[0].spec.input)]


def _torch_logits(model: AlexNet, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    with torch.inference_mode():
        parts = [model(torch.from_numpy(batch)).double() for batch in _batches(images)]
    return torch.cat(parts).numpy()


def _half_logits(model: AlexNet, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """The exported layers in half precision: every layer's activations are rounded to FP16."""
    network = fold(model)
    with torch.inference_mode():
        parts = [activations(_normalised(model, batch).half(), network)[-1].double() for batch in _batches(images)]
    return torch.cat(parts).numpy()


def _largest_activations(model: AlexNet, images: npt.NDArray[np.uint8]) -> dict[str, float]:
    """The largest absolute value that each layer gives, before rounding could hide it."""
    network = fold(model)
    largest = [0.0] * len(network.layers)
    with torch.inference_mode():
        for batch in _batches(images):
            outputs = activations(_normalised(model, batch), network)
            largest = [max(old, float(output.abs().max())) for old, output in zip(largest, outputs, strict=True)]
    convolutions = len(network.convolutions)
    return {f"{'conv' if i < convolutions else 'fc'}{i + 1}": value for i, value in enumerate(largest)}


def _normalised(model: AlexNet, batch: npt.NDArray[np.uint8]) -> torch.Tensor:
    return (torch.from_numpy(batch).float() - model.mean) / model.std


def _answers(logits: npt.NDArray[np.float64], temperature: float) -> Answers:
    scaled = logits / temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return Answers(logits, exponentials / exponentials.sum(axis=1, keepdims=True))


def _cosine(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Of all pictures' logits as one vector: single pictures near the boundary have logits near zero."""
    return float((a * b).sum() / max(1e-12, np.linalg.norm(a) * np.linalg.norm(b)))


def _batches(images: npt.NDArray[np.uint8]) -> Iterator[InputBatch]:
    return (InputBatch(images[start : start + BATCH]) for start in range(0, len(images), BATCH))


def as_text(report: ParityReport) -> str:
    """The report as a table for a terminal."""
    lines = [f"{pluralise(report.pictures, 'picture')}, reference: PyTorch in FP32"]
    lines += [f"  left out {text}" for text in report.unreadable]
    for form in report.forms:
        lines.append(f"{form.name}: {'BREACH' if form.breaches else 'equal within tolerance'}")
        if form.name != "PyTorch fp16":
            lines.append(f"  pixels     {form.pixels[0]} of {form.pixels[1]:,} differ from the definition")
        lines.append(
            f"  logits     max {form.logits['max']:.2g}, mean {form.logits['mean']:.2g}, "
            f"p99 {form.logits['p99']:.2g}, cosine {form.logits['cosine']:.6f}"
        )
        margins = f", the widest between {form.flip_margins[-1]:.3f} apart" if form.flip_margins else ""
        without = f"; without an answer: {form.unanswered}" if form.unanswered else ""
        lines.append(
            f"  decisions  labels turned: {form.flips}{margins}{without}; confidence moves by "
            f"{form.probability['max']:.2g} at most, {form.probability['mean']:.2g} on average"
        )
        if form.accuracy:
            a = form.accuracy
            lines.append(
                f"  accuracy   {a['form']:.2%}, PyTorch {a['reference']:.2%}, difference "
                f"{100 * a['difference']:+.2f} ± {100 * a['half_interval']:.2f} points"
            )
        lines += [f"  breach: {breach}" for breach in form.breaches]
    largest = ", ".join(f"{layer} {value:.1f}" for layer, value in report.activations.items())
    lines.append(f"largest activations: {largest} (FP16 holds {HALF_MAX:.0f})")
    return "\n".join([*lines, *(f"breach: {breach}" for breach in report.breaches)])


def pictures_of(root: Path, labels: tuple[str, ...]) -> list[tuple[str, int | None]]:
    """Pictures below a folder, with labels if it has a folder for each."""
    from fmengine.jobs.sources import walk

    from .labelled import labelled_files

    if all((root / label).is_dir() for label in labels):
        return list(labelled_files(root, labels))
    return [(path, None) for path in walk(str(root))]
