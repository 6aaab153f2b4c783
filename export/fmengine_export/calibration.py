"""The real pictures that INT8 is calibrated on."""

from pathlib import Path

import click
import numpy as np

from fmengine.decode import decode
from fmengine.errors import DataError, SourceError
from fmengine.limits import Limits
from fmengine.preprocess import Color, Fit, Pixels, preprocess
from fmengine.sources import walk
from fmengine_train.model import AlexNetConfig

# Enough that no scale moves any more, few enough to calibrate in seconds.
CALIBRATION_PICTURES = 512


def read_pictures(folders: tuple[Path, ...], config: AlexNetConfig, fit: Fit) -> Pixels:
    """An even choice of the folders' pictures, preprocessed; files that are no pictures are passed over.

    Returns:
        uint8 `[N, C, H, W]`, some 512 of them.

    Raises:
        DataError: for a path that is no folder, or folders without a picture.
    """
    color: Color = "gray" if config.channels == 1 else "rgb"
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder; --calibrate takes a folder of pictures")
    paths = [path for folder in folders for path in walk(str(folder))]
    step = max(1, len(paths) // CALIBRATION_PICTURES)
    pictures = []
    for path in paths[::step]:
        try:
            pictures.append(preprocess(decode(path, color, Limits()), config.height, config.width, color, fit))
        except SourceError as error:
            click.echo(f"note: {path}: {error.message}", err=True)
    if not pictures:
        raise DataError(f"no picture to calibrate on in {', '.join(map(str, folders))}")
    return np.stack(pictures)
