"""What a worker says of its arena is checked before anything is read there."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmengine.pipeline.arena import Arena, Layout
from fmengine.pipeline.messages import Answer, NonsenseError
from fmengine.pipeline.reply import read_reply

PIXELS = 1000
NUMBERS = st.one_of(st.integers(-3, 40), st.sampled_from([PIXELS, 2**16, 2**24, 2**31 - 1, -(2**31)]))


@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, st.integers(-1, 5)), min_size=1, max_size=3))
def test_no_image_leads_out_of_its_slot(places: list[tuple[int, int, int, int]]) -> None:
    layout = Layout(4, pixel_bytes=PIXELS)
    slot = Arena(layout, bytearray(layout.size)).slots[0]
    slot.rows[:4] = range(4)
    slot.places[: len(places)] = places
    possible = all(
        at >= 0 and h > 0 and w > 0 and c in (0, 1, 3) and at + h * w * max(c, 1) <= PIXELS
        for at, h, w, c in places
    )
    answer = Answer(1, 0, len(places))
    if not possible:
        with pytest.raises(NonsenseError, match="an image of"):
            read_reply(answer, slot, network=False, copy=False)
        return
    images = read_reply(answer, slot, network=False, copy=False).images
    shapes = [(h, w, c) if c else (h, w) for _, h, w, c in places]
    assert [image.shape for image in images] == shapes
    assert all(np.shares_memory(image, slot.pixels) for image in images)


def test_where_images_are_is_copied_before_it_is_checked() -> None:
    """A worker that was taken over changes it afterwards, and reaches nothing."""
    layout = Layout(4, pixel_bytes=PIXELS)
    slot = Arena(layout, bytearray(layout.size)).slots[0]
    slot.places[0] = 0, 10, 10, 0
    images = read_reply(Answer(1, 0, 1), slot, network=False, copy=False).images
    slot.places[0] = 2**30, 2**15, 2**15, 3
    assert images[0].shape == (10, 10)
