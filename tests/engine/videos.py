"""Videos for tests, made of the gate's portrait: one face, which is happy, on a gray canvas."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

from PIL import Image

import fmengine

PORTRAIT = Path(fmengine.__file__).parent / "check" / "portrait.png"
SIZE = (208, 160)
FACE = (78, 96)
RATE = 30

Places = Sequence[tuple[int, int]]  # left and top of each face in a frame


def draw(places: Places, size: tuple[int, int] = SIZE) -> Image.Image:
    """Draw a frame with a face at each place."""
    face = Image.open(PORTRAIT).convert("RGB").resize(FACE)
    picture = Image.new("RGB", size, (90, 110, 120))
    for place in places:
        picture.paste(face, place)
    return picture


def moving(count: int, *, by: int = 3) -> list[Places]:
    """List the places of one face that moves to the right."""
    return [[(10 + by * i, 30)] for i in range(count)]


def write_video(
    path: Path,
    frames: Iterable[Places | Image.Image],
    *,
    size: tuple[int, int] = SIZE,
    codec: str = "mpeg4",
    times: Sequence[float] | None = None,
    rotation: int = 0,
    **options: str,
) -> Path:
    """Write frames, at `RATE` or at times in seconds."""
    import av

    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.bit_rate = 4_000_000
        stream.codec_context.time_base = Fraction(1, 60_000)
        if rotation:
            stream.set_display_rotation(rotation)
        container.start_encoding()  # without frames the file would have no head
        for number, content in enumerate(frames):
            picture = content if isinstance(content, Image.Image) else draw(content, size)
            frame = av.VideoFrame.from_image(picture)
            frame.pts = round(60_000 * (number / RATE if times is None else times[number]))
            frame.time_base = Fraction(1, 60_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_sound(path: Path) -> Path:
    """Write a file of sound alone."""
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44_100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 44_100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
