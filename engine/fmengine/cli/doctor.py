"""`fmengine doctor`: what this machine has, what works, what would be chosen."""

import json
import sys

import click

from ..backends import BACKENDS
from ..doctor import as_document, diagnose, environment, problems

MACHINE_LACKS = 4


@click.command()
@click.option(
    "--backend",
    type=click.Choice(["auto", *BACKENDS]),
    default="auto",
    show_default=True,
    help="Exit with 4 if this one does not work.",
)
@click.option("--json", "as_json", is_flag=True, help="Everything as one JSON object.")
def doctor(backend: str, as_json: bool) -> None:
    """Show the machine, its libraries, which backends work and why not, and what `auto` takes."""
    facts, diagnoses = environment(), diagnose()
    if as_json:
        click.echo(json.dumps(as_document(facts, diagnoses), indent=2))
    else:
        for name, value in facts.items():
            click.echo(f"{name:16} {value}")
        click.echo("\nbackends, in the order in which `auto` tries them:")
        for diagnosis in diagnoses:
            verdict = "works" if diagnosis.works else "does not work"
            click.echo(f"  {diagnosis.backend:14} {verdict}: {diagnosis.detail}")
        taken = next((diagnosis.backend for diagnosis in diagnoses if diagnosis.chosen), "nothing")
        click.echo(f"`auto` takes {taken}")
        for problem in problems(facts):
            click.echo(f"problem: {problem}")
    if not any(d.works for d in diagnoses if backend in ("auto", d.backend)):
        sys.exit(MACHINE_LACKS)
