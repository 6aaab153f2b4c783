"""The real pictures that INT8 is calibrated on."""

from functools import partial
from pathlib import Path

import numpy as np

from fmengine.cli.console import warn
from fmengine.errors import DataError, SourceError
from fmengine.image.decode import try_decode
from fmengine.image.preprocess import preprocess
from fmengine.jobs.rows import escape_path
from fmengine.jobs.sources import walk
from fmengine.model.spec import InputSpec
from fmengine.types import Fit, InputBatch
from fmengine_train.model import AlexNetConfig

# Enough that no scale moves any more, few enough to calibrate in seconds.
CALIBRATION_PICTURES = 512


def read_pictures(folders: tuple[Path, ...], config: AlexNetConfig, fit: Fit) -> InputBatch:
    """Choose pictures of folders evenly, and preprocess them; files that are no pictures are left out.

    Returns:
        uint8 `[N, C, H, W]`, some 512 of them.

    Raises:
        DataError: for a path that is no folder, or folders without a picture.
    """
    spec = InputSpec(config.height, config.width, "gray" if config.channels == 1 else "rgb", fit)
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder; --calibrate takes a folder of pictures")
    paths = [path for folder in folders for path in walk(str(folder))]
    step = max(1, len(paths) // CALIBRATION_PICTURES)
    make = partial(preprocess, spec=spec)
    pictures = []
    for path in paths[::step]:
        made = try_decode(path, spec.color, make)
        if isinstance(made, SourceError):
            warn(f"note: {escape_path(path)}: {made.message}")
        else:
            pictures.append(made)
    if not pictures:
        raise DataError(f"no picture to calibrate on in {', '.join(map(str, folders))}")
    return InputBatch(np.stack(pictures))
