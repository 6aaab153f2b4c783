"""Make the thumbnails of pages: small JPEG files of the pictures that rows name."""

import io
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import SourceError
from ..image.decode import try_decode
from ..options import Isolation, Limits
from ..system.cores import usable_cores
from ..types import DecodedImage
from .rows import Row, decode_path

THUMBNAIL = 192  # pixels of the longer side at most: sharp on a phone's screen
CHUNK = 256  # pictures; bounds memory
Shrink = Callable[[str], DecodedImage | SourceError]


def add_thumbnails(
    rows: Iterable[Row], limits: Limits, isolate: Isolation | None = None
) -> Iterator[tuple[Row, bytes]]:
    """Yield each row with its thumbnail, in order; a failure has none. Threads make a chunk at a time.

    Args:
        rows: of `rows.to_row`.
        limits: of a picture; those that it was labelled with.
        isolate: limits of worker processes that decode; those that it was labelled with.
    """
    iterator, threads = iter(rows), usable_cores()
    with ExitStack() as stack:
        shrink: Shrink = partial(try_decode, color="rgb", make=make_thumbnail, limits=limits)
        if isolate is not None:
            shrink = stack.enter_context(_open_workers(limits, isolate, threads))

        def make_or_skip(row: Row) -> bytes:
            if row["error"]:
                return b""
            image = shrink(decode_path(row))
            # It may have changed since it was labelled, or there is no memory for it now.
            return b"" if isinstance(image, SourceError) else encode_thumbnail(image)

        pool = stack.enter_context(ThreadPoolExecutor(threads))
        while chunk := list(islice(iterator, CHUNK)):
            yield from zip(chunk, pool.map(make_or_skip, chunk), strict=True)


@contextmanager
def _open_workers(limits: Limits, isolate: Isolation, count: int) -> Iterator[Shrink]:
    """Give a function that makes a thumbnail in a worker process."""
    # Here, for it takes time to import, and needs Linux.
    from ..pipeline.worker_setup import set_up_shrinking
    from ..pipeline.workers import Workers

    setup = set_up_shrinking("rgb", limits, isolate, make=f"{__name__}:make_thumbnail", arguments={})
    with closing(Workers(setup, count)) as processes:
        yield processes.decode


def make_thumbnail(image: DecodedImage, side: int = THUMBNAIL) -> DecodedImage:
    """Make an image, uint8 `[H, W, 3]`, of another, whose longer side has so many pixels, or fewer if it had."""
    scale = min(1.0, side / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return DecodedImage(np.asarray(Image.fromarray(image).convert("RGB").resize(size, Image.Resampling.BICUBIC)))


def read_thumbnail(path: Path) -> bytes:
    """Make the thumbnail of a file of ours as JPEG; empty where it is gone."""
    image = try_decode(str(path), "rgb", make_thumbnail, Limits())
    return b"" if isinstance(image, SourceError) else encode_thumbnail(image)


def encode_thumbnail(image: DecodedImage) -> bytes:
    """Encode a small image as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=82)
    return buffer.getvalue()
