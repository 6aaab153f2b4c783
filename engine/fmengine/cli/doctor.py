"""`fmengine doctor`: what this machine has, what works, what would be chosen."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from ..backends import BACKENDS, GPU_BACKENDS
from ..doctor import Diagnosis, as_document, diagnose, environment, problems
from ..errors import OutputError

FAILED = 1
MACHINE_LACKS = 4


@click.command()
@click.option(
    "--backend",
    type=click.Choice(["auto", *BACKENDS]),
    default="auto",
    show_default=True,
    help="Exit with 4 if this one does not work.",
)
@click.option("--device", type=click.IntRange(0), default=0, show_default=True, help="Index of the GPU.")
@click.option("--json", "as_json", is_flag=True, help="Everything as one JSON object.")
@click.option(
    "--verify", is_flag=True, help="Run the proofs that need a GPU; exit with 1 unless all of them pass."
)
@click.option("--output", type=click.Path(path_type=Path), help="Write everything as one JSON file.")
@click.option("--model", help="To verify with: a model file, or the name of a shipped model.")
@click.option(
    "--soak", type=click.FloatRange(0), default=600.0, show_default=True, help="Seconds of the longest proof."
)
@click.option(
    "--pictures",
    type=click.IntRange(1),
    default=20_000,
    show_default=True,
    help="Through the preprocessing kernel.",
)
def doctor(
    backend: str,
    device: int,
    as_json: bool,
    verify: bool,
    output: Path | None,
    model: str | None,
    soak: float,
    pictures: int,
) -> None:
    """Show the machine, its libraries, which backends work and why not, and what `auto` takes."""
    if verify:
        _check_backend(backend)
    facts, diagnoses = environment(), diagnose(device)
    document = as_document(facts, diagnoses)
    if not as_json:
        _show(facts, diagnoses)
    works = any(d.works for d in diagnoses if backend in ("auto", d.backend))
    verdict = "passed"
    if verify:
        document["verification"] = _verify(backend, model, device, pictures, soak)
        verdict = document["verification"]["verdict"]
        works = works and any(d.works and d.backend in document["verification"]["backends"] for d in diagnoses)
    if as_json:
        click.echo(json.dumps(document, indent=2))
    if output is not None:
        _write(output, document)
    if not works:
        sys.exit(MACHINE_LACKS)
    if verdict != "passed":
        sys.exit(FAILED)


def _show(facts: dict[str, str], diagnoses: list[Diagnosis]) -> None:
    for name, value in facts.items():
        click.echo(f"{name:18} {value}")
    click.echo("\nbackends, in the order in which `auto` tries them:")
    for diagnosis in diagnoses:
        verdict = "works" if diagnosis.works else "does not work"
        click.echo(f"  {diagnosis.backend:17} {verdict}: {diagnosis.detail}")
    taken = next((diagnosis.backend for diagnosis in diagnoses if diagnosis.chosen), "nothing")
    click.echo(f"`auto` takes {taken}")
    for problem in problems(facts):
        click.echo(f"problem: {problem}")


def _check_backend(backend: str) -> None:
    if backend not in ("auto", *GPU_BACKENDS):
        raise click.UsageError(f"{backend} runs on the CPU; --verify proves {', '.join(GPU_BACKENDS)}")


def _verify(backend: str, model: str | None, device: int, pictures: int, soak: float) -> dict[str, Any]:
    from ..gpu.verify import Effort, Proof, summarise
    from ..gpu.verify import verify as run

    def tell(proof: Proof) -> None:
        click.echo(f"{proof.verdict:8} {proof.name} ({proof.seconds} s): {proof.detail}", err=True)

    proofs = run(backend, model, device, Effort(pictures=pictures, soak=soak), tell)
    verdict = summarise(proofs)
    click.echo(f"verification {verdict}", err=True)
    return {
        "verdict": verdict,
        "backends": list(GPU_BACKENDS) if backend == "auto" else [backend],
        "proofs": [proof._asdict() for proof in proofs],
    }


def _write(path: Path, document: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
