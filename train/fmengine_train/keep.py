"""Keep a finished teacher in half precision, half the size: `python -m fmengine_train.keep RUN TARGET`."""

from pathlib import Path

import click
import torch

from fmengine.cli import main

from .checkpoint import load_network, save_model


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
def keep(run: Path, target: Path) -> None:
    """Write RUN's weights to TARGET, a safetensors file in FP16; `--teacher` and `--initial` take it."""
    network, document = load_network(run)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_model(target, network, document, torch.float16)
    click.echo(target)


if __name__ == "__main__":
    main(keep, "python -m fmengine_train.keep")
