"""`fmengine doctor`: show the machine, which backends work on it, and which `auto` takes."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ..backend.diagnose import Diagnosis, describe_environment, diagnose, make_document
from ..backend.registry import BACKENDS, GPU_BACKENDS, load_backend_class
from ..model.file import load_model_file, resolve
from ..options import BackendOptions
from ..pipeline.trial import Trial, try_workers
from ..pipeline.worker_count import choose_worker_count
from ..system.cache import Cache, CacheError
from ..system.cores import usable_cores
from ..system.files import check_target, write_file
from .console import inform, print_data, print_json, to_json
from .parameters import allow_untrusted_engine

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
@click.option("--output", type=click.Path(path_type=Path), help="Write everything as one JSON file, x.json.")
@click.option("--overwrite", is_flag=True, help="Replace an output file that exists.")
@click.option(
    "--model", help="What backends are tried with: a model file, an engine file, or the name of a shipped model."
)
@allow_untrusted_engine
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
    overwrite: bool,
    model: str | None,
    allow_untrusted_engine: bool,
    soak: float,
    pictures: int,
) -> None:
    """Show the machine, its libraries, which backends work and why not, what `auto` takes, and the workers."""
    if verify:
        _check_backend(backend)
    if output is not None:
        check_target(output, (".json",), overwrite=overwrite)
    options = BackendOptions(device=device, allow_untrusted_engine=allow_untrusted_engine)
    facts, diagnoses = describe_environment(), diagnose(options, model)
    document = make_document(facts, diagnoses)
    document["problems"] += _find_cache_problems()
    document["workers"] = _describe_workers(diagnoses, model)
    if not as_json:
        _show(document, diagnoses)
    works = any(d.works for d in diagnoses if backend in ("auto", d.backend))
    verdict = "passed"
    if verify:
        document["verification"] = _verify(backend, model, options, pictures, soak)
        verdict = document["verification"]["verdict"]
        works = works and any(d.works and d.backend in document["verification"]["backends"] for d in diagnoses)
    if as_json:
        print_json(document)
    if output is not None:
        write_file(output, to_json(document, indent=2) + "\n")
    if not works:
        sys.exit(MACHINE_LACKS)
    if verdict != "passed":
        sys.exit(FAILED)


def _show(document: dict[str, Any], diagnoses: list[Diagnosis]) -> None:
    for name, value in document["environment"].items():
        print_data(f"{name:18} {value}")
    print_data("\nbackends, in the order in which `auto` tries them:")
    for diagnosis in diagnoses:
        verdict = "works" if diagnosis.works else "does not work"
        print_data(f"  {diagnosis.backend:17} {verdict}: {diagnosis.detail}")
    chosen = next((diagnosis.backend for diagnosis in diagnoses if diagnosis.chosen), "nothing")
    print_data(f"`auto` takes {chosen}")
    print_data(f"workers of a long job: {_word_workers(document['workers'])}")
    for problem in document["problems"]:
        print_data(f"problem: {problem}")


def _describe_workers(diagnoses: list[Diagnosis], model: str | None) -> dict[str, Any]:
    """Describe how many worker processes a long job takes here, why, and what came of starting one."""
    count = choose_worker_count("auto", usable_cores())
    trial = Trial(False, "no backend works")
    for name in (diagnosis.backend for diagnosis in diagnoses if diagnosis.chosen):
        file = load_model_file(resolve(model, load_backend_class(name).precisions))
        trial = try_workers(name, file, on_gpu=name in GPU_BACKENDS)
    return count._asdict() | asdict(trial)


def _word_workers(found: dict[str, Any]) -> str:
    """Say the same in words."""
    words = f"{found['number']}, {found['reason']}" if found["number"] else f"none: {found['reason']}"
    if not found["works"]:
        return words if found["problem"] == found["reason"] else f"{words}; does not work: {found['problem']}"
    memory = "" if found["memory_bytes"] is None else f", and takes {found['memory_bytes'] / 1024**2:.0f} MB"
    first, start = 1e3 * found["first_seconds"], 1e3 * found["next_seconds"]
    return f"{words}; works: the first is ready in {first:.0f} ms, another in {start:.0f} ms{memory}"


def _find_cache_problems() -> list[str]:
    """List what keeps fmengine from caching what it builds and measures."""
    try:
        Cache().load("doctor", {})  # opens the folder
    except CacheError as error:
        return [f"{error}; until then `auto` measures at every start"]
    return []


def _check_backend(backend: str) -> None:
    if backend not in ("auto", *GPU_BACKENDS):
        raise click.UsageError(f"{backend} runs on the CPU; --verify proves {', '.join(GPU_BACKENDS)}")


def _verify(
    backend: str, model: str | None, options: BackendOptions, pictures: int, soak: float
) -> dict[str, Any]:
    from ..check.proofs import Effort, Proof, summarise, verify_gpu

    def report(proof: Proof) -> None:
        inform(f"{proof.verdict:8} {proof.name} ({proof.seconds} s): {proof.detail}", **proof._asdict())

    proofs = verify_gpu(backend, model, options, Effort(pictures=pictures, soak=soak), report)
    verdict = summarise(proofs)
    inform(f"verification {verdict}", verdict=verdict)
    return {
        "verdict": verdict,
        "backends": list(GPU_BACKENDS) if backend == "auto" else [backend],
        "proofs": [proof._asdict() for proof in proofs],
    }
