"""Draws pictures for whoever has none at hand. They are no faces."""

from pathlib import Path

import numpy as np
import simplejpeg


def draw_pictures(folder: Path, count: int = 512) -> list[str]:
    """Write pictures of smooth noise, as JPEG of 48 to 200 pixels a side; return their paths."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        side = int(rng.integers(48, 201))
        waves = np.add.outer(
            np.sin(np.arange(side) / rng.uniform(2, 20)), np.cos(np.arange(side) / rng.uniform(2, 20))
        )
        levels = np.clip(128 + 50 * waves + rng.normal(0, 6, (side, side)), 0, 255).astype(np.uint8)
        path = folder / f"{number:04d}.jpg"
        path.write_bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(levels[..., None]), 90, "GRAY"))
        paths.append(str(path))
    return paths
