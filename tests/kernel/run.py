"""Run the kernel alone on one's own arrays: `make kernel-run IN=x.npz OUT=y.npz`.

IN holds `image_0`, `image_1`, …, uint8 `[H, W]` or `[H, W, C]` in RGB order, and `size`, the rows and columns
of the output. OUT gets `out`, uint8 `[N, 1, H, W]`. Optional in IN: `boxes`, int `[N, 4]` of left, top, right
and bottom (else each picture as a whole), `bgr`, bool `[N]`, and `channels`, 3 for an RGB output.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from .host import HostKernel, pack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    try:
        with np.load(arguments.source) as file:
            names = sorted((name for name in file.files if name.startswith("image_")), key=lambda n: int(n[6:]))
            pictures = [file[name] for name in names]
            optional = {name: file[name] for name in ("boxes", "bgr", "channels") if name in file.files}
            height, width = (int(value) for value in file["size"])
    except (OSError, KeyError, ValueError) as error:
        sys.exit(f"cannot read {arguments.source}: {error}\n{__doc__}")
    if not pictures or any(picture.dtype != np.uint8 for picture in pictures):
        sys.exit(f"{arguments.source} holds no uint8 array called image_0\n{__doc__}")
    whole = [(0, 0, picture.shape[1], picture.shape[0]) for picture in pictures]
    boxes = [tuple(int(v) for v in box) for box in optional["boxes"]] if "boxes" in optional else whole
    bgr = [bool(value) for value in optional.get("bgr", [False] * len(pictures))]
    buffer, geometries = pack(pictures, boxes, bgr=bgr)
    channels = int(optional.get("channels", 1))
    out = HostKernel(arguments.library).run(geometries, buffer.ctypes.data, channels, height, width)
    np.savez(arguments.target, out=out)
    print(f"{arguments.target}: out, uint8 {list(out.shape)}")


if __name__ == "__main__":
    main()
