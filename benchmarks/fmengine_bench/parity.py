"""Compares the exported files with the PyTorch model, on real pictures.

Three levels: the pixels that reach the network, the logits, the decisions. FP16 arithmetic is proven with
PyTorch in half precision, which rounds every layer's activations; ONNX Runtime on a CPU inserts Casts and
computes FP16 graphs in FP32, so its figures for the FP16 file speak of the weights alone.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fmengine.check.compare import PARITY, PARITY_FEATURES, compare, compare_features, compare_logits
from fmengine.cli.console import track
from fmengine.engine import Engine
from fmengine.errors import DataError, ModelError, SourceError
from fmengine.image.decode import try_decode
from fmengine.jobs.rows import escape_path
from fmengine.types import DecodedImage, NetworkInput
from fmengine.wording import pluralise
from fmengine_train.checkpoint import weights_sha256
from fmengine_train.model import AlexNet

from .definition import preprocess as define
from .metrics import Z95
from .pytorch import Answers, answer_in_fp16, answer_in_fp32, measure_activations, split_batches

HALF_MAX = 65504.0  # the largest finite FP16 number


@dataclass(frozen=True)
class Form:
    """How far one form of the model is from the reference, on the pictures that both have an answer for.

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
        features: `max` of the absolute differences, mean and least cosine of a picture's, if both have them.
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
    breaches: list[str]
    features: dict[str, float] | None = None


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
    inputs, targets, unreadable = _preprocess(files, engines)
    *prepared_by_each, defined = inputs
    temperature = float(document["temperature"])
    reference = answer_in_fp32(model, defined, temperature)
    forms = []
    for engine, prepared in zip(engines, prepared_by_each, strict=True):
        outputs = [engine.backend.run(batch) for batch in split_batches(prepared)]
        features = [o.features for o in outputs if o.features is not None]
        answers = Answers(
            np.concatenate([o.logits for o in outputs]).astype(np.float64),
            np.concatenate([o.probabilities for o in outputs]).astype(np.float64),
            np.concatenate(features).astype(np.float64) if features else None,
        )
        differing = (int((prepared != defined).sum()), prepared.size)
        forms.append(
            compare_form(
                escape_path(engine.model_path.name), engine.spec.precision, answers, reference, targets, differing
            )
        )
    half = answer_in_fp16(model, defined, temperature)
    forms.append(compare_form("PyTorch fp16", "fp16", half, reference, targets, (0, defined.size)))
    largest = measure_activations(model, defined)
    breaches = [
        f"{layer}: the largest activation {value:.0f} is over a quarter of FP16's {HALF_MAX:.0f}"
        for layer, value in largest.items()
        if not value < HALF_MAX / 4
    ]
    return ParityReport(len(defined), unreadable, forms, largest, breaches)


def compare_form(
    name: str,
    precision: str,
    found: Answers,
    reference: Answers,
    targets: npt.NDArray[np.int64] | None,
    pixels: tuple[int, int] = (0, 0),
) -> Form:
    """Compare one form's answers with the reference's.

    Args:
        name: of the form.
        precision: whose tolerance holds.
        found: the form's answers.
        reference: PyTorch's answers in FP32.
        targets: indices of the right labels, where they are known.
        pixels: differing pixels against the definition, and how many were compared.
    """
    finite, expected_finite = (np.isfinite(a.probabilities).all(axis=1) for a in (found, reference))
    answered = finite & expected_finite
    comparison = compare(found.probabilities[answered], reference.probabilities[answered], PARITY[precision])
    accuracy = None
    if targets is not None:
        answers, expected = found.probabilities.argmax(axis=1), reference.probabilities.argmax(axis=1)
        accuracy = _compare_accuracy(finite & (answers == targets), expected_finite & (expected == targets))
    features = None
    if found.features is not None and reference.features is not None:
        features = asdict(compare_features(found.features[answered], reference.features[answered]))
    pictures, unanswered = len(found.probabilities), int((~answered).sum())
    return Form(
        name=name,
        precision=precision,
        pixels=pixels,
        logits=asdict(compare_logits(found.logits[answered], reference.logits[answered])),
        unanswered=unanswered,
        flips=comparison.flips,
        flip_margins=sorted(comparison.margins[comparison.flipped].round(6).tolist()),
        probability={"max": comparison.largest, "mean": comparison.mean},
        accuracy=accuracy,
        breaches=[
            *_input_breaches(pixels[0], unanswered, pictures),
            *(comparison.breaches if unanswered < pictures else ()),
            *(_list_feature_breaches(features, precision) if features and unanswered < pictures else ()),
        ],
        features=features,
    )


def _input_breaches(pixels: int, unanswered: int, pictures: int) -> Iterator[str]:
    """Name differing pixels and missing answers, of which none are allowed."""
    if pixels:
        differ = "pixel differs" if pixels == 1 else "pixels differ"
        yield f"{pixels} {differ} from the definition of preprocessing; allowed are 0"
    if unanswered:
        yield f"{unanswered} of {pluralise(pictures, 'picture')} without a number for an answer; allowed are 0"


def _list_feature_breaches(features: dict[str, float], precision: str) -> Iterator[str]:
    """Name features that point elsewhere than the reference's."""
    least = PARITY_FEATURES[precision]
    if not features["cosine"] >= least:
        yield f"features have a cosine of {features['cosine']:.6f} on average; expected {least} or more"


def _compare_accuracy(right: npt.NDArray[np.bool_], reference_right: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Compute both accuracies and their difference, with half its 95 % interval for paired answers."""
    difference = right.astype(float) - reference_right.astype(float)
    return {
        "form": float(right.mean()),
        "reference": float(reference_right.mean()),
        "difference": float(difference.mean()),
        "half_interval": float(Z95 * difference.std() / len(difference) ** 0.5),
    }


def _preprocess(
    files: list[tuple[str, int | None]], engines: list[Engine]
) -> tuple[list[npt.NDArray[np.uint8]], npt.NDArray[np.int64] | None, list[str]]:
    """Return the network's inputs by each engine, and last by the definition; targets; what cannot be read."""
    inputs, targets, unreadable = [], [], []
    for path, target in track(files, len(files), "pictures", caption="preprocessing by the definition"):
        made = try_decode(path, engines[0].spec.color, partial(_preprocess_one, path, engines))
        if isinstance(made, SourceError):
            unreadable.append(f"{escape_path(path)}: {made.message}")
        else:
            inputs.append(made)
            targets.append(target)
    if not inputs:
        raise DataError(f"{pluralise(len(files), 'file')}, and none is a picture; the first: {unreadable[0]}")
    labelled = None if None in targets else np.array(targets, dtype=np.int64)
    return [np.stack(column) for column in zip(*inputs, strict=True)], labelled, unreadable


def _preprocess_one(path: str, engines: Sequence[Engine], image: DecodedImage) -> list[NetworkInput]:
    """Preprocess one picture. The engines come first: they refuse what is too large for the definition to take."""
    return [*(engine.prepare(path) for engine in engines), define(image, engines[0].spec.input)]


def as_text(report: ParityReport) -> str:
    """Format the report as a table for a terminal."""
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
        if form.features:
            lines.append(
                f"  features   max {form.features['max']:.2g}, cosine {form.features['cosine']:.6f}, "
                f"the smallest {form.features['min_cosine']:.6f}"
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


def list_pictures(root: Path, labels: tuple[str, ...]) -> list[tuple[str, int | None]]:
    """List pictures below a folder, with labels if it has a folder for each."""
    from fmengine.jobs.sources import walk

    from .labelled import list_labelled_files

    if all((root / label).is_dir() for label in labels):
        return list(list_labelled_files(root, labels))
    return [(path, None) for path in walk(str(root))]
