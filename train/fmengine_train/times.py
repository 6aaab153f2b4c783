"""Adds up how long runs took: `python -m fmengine_train.times METRICS...`, each a run's metrics.csv."""

import csv
from pathlib import Path

import click

from fmengine.cli import main
from fmengine.cli.console import print_data
from fmengine.errors import DataError
from fmengine.jobs.rows import escape_path

from .summary import format_duration


@click.command()
@click.argument("metrics", nargs=-1, required=True, type=click.Path(path_type=Path))
def times(metrics: tuple[Path, ...]) -> None:
    """Print epochs and hours of each run, and of all."""
    total = 0.0
    for path in metrics:
        seconds = _read_seconds(path)
        total += sum(seconds)
        # A run's own file lies in its folder; a kept one is named after it.
        name = path.parent.name if path.name == "metrics.csv" else path.name.removesuffix(".metrics.csv")
        epochs = "epoch " if len(seconds) == 1 else "epochs"
        print_data(f"{escape_path(name):<24}{len(seconds):4} {epochs} {format_duration(sum(seconds)):>9}")
    print_data(f"{'together':<24}{'':12}{format_duration(total):>8}")


def _read_seconds(path: Path) -> list[float]:
    """Read the seconds of each epoch."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [float(row["seconds"]) for row in csv.DictReader(file)]
    except (OSError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}; expected the metrics.csv of a run") from error


if __name__ == "__main__":
    main(times, "python -m fmengine_train.times")
