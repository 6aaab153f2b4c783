"""`fmengine info`: show the metadata of a model file."""

import dataclasses
from typing import Any

import click

from ..jobs.rows import escape_text
from ..model.engine_file import BuiltEngine
from ..model.file import available_models, load_model_file, resolve
from .console import print_data, print_json, to_json


@click.command()
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="The whole document as JSON.")
def info(model: str | None, as_json: bool) -> None:
    """Show the metadata of MODEL, a model file, an engine file or the name of a shipped model."""
    file = load_model_file(resolve(model, ("int8", "fp16", "fp32")))
    spec = file.spec
    if as_json:
        engine = {"engine": _describe_engine(file.engine)} if file.engine else {}
        print_json({"path": str(file.path)} | dataclasses.asdict(spec) | engine)
        return
    measured = [f"{source}: {_describe_scores(scores)}" for source, scores in spec.accuracy.items()]
    rows = {
        "file": f"{file.path} ({len(file.data) / 1e6:.2f} MB)",
        "model": f"{spec.name}, {spec.precision}",
        "labels": ", ".join(spec.labels),
        "input": f"uint8[N, {spec.channels}, {spec.height}, {spec.width}], {spec.color}, fit {spec.fit}",
        "features": f"{spec.features} numbers a picture" if spec.features else "none: `embed` needs them",
        "normalisation": f"(x - {spec.mean}) / {spec.std}, inside the graph",
        "temperature": f"{spec.temperature:.4f}; unsure below {spec.unsure_below:.3f}",
        "trained on": spec.training_data or "not stated",
        "validation": "; ".join(measured) or "not stated",
        "weights": f"sha256 {spec.weights_sha256 or 'not stated'}",
        "digest": f"sha256 {spec.file_sha256}, verified",
        "shipped": ", ".join(available_models()),
    }
    if file.engine is not None:
        rows["file"] = f"{file.path} (a model file of {len(file.data) / 1e6:.2f} MB, and its engine)"
        rows |= {name.replace("_", " "): value for name, value in _describe_engine(file.engine).items()}
    for name, value in rows.items():
        print_data(f"{name:14} {escape_text(value)}")


def _describe_engine(engine: BuiltEngine) -> dict[str, str]:
    """Describe an engine in its file, of which nothing is run here."""
    return {
        "engine": f"{len(engine.data) / 1e6:.2f} MB, built by {engine.describe()}",
        "backend": engine.backend,
        "max_batch": str(engine.max_batch),
        "trusted": f"no: {engine.distrust}" if engine.distrust else "yes: only you can have written it",
    }


def _describe_scores(scores: Any) -> str:
    """Describe scores as `fmengine export` writes them; a model described by hand may hold others."""
    try:
        balanced = f"balanced {scores['balanced_accuracy']:.2%}"
        return f"{scores['accuracy']:.2%} of {scores['count']} ({balanced})"
    except (KeyError, TypeError, ValueError):
        return to_json(scores)
