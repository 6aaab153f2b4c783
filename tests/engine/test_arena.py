"""An arena's parts lie beside each other: what one slot holds is no other's, and all is within its memory."""

import mmap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmengine import Engine
from fmengine.model.spec import ModelSpec
from fmengine.pipeline.arena import NO_PICTURE, SLOTS, Arena, Layout
from fmengine.pipeline.batch import ALIGNMENT


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    with Engine.load(backend="onnxruntime") as engine:
        return engine.spec


def regions(arena: Arena) -> list[np.ndarray]:
    found: list[np.ndarray] = [arena.pulse]
    for slot in arena.slots:
        found += [slot.rows, slot.places, slot.pixels]
        if slot.batch is not None:
            found += [slot.batch.inputs, slot.batch.probabilities, slot.batch.flat]
    return [region for region in found if region.size]


@given(st.integers(1, 200), st.booleans(), st.integers(0, 5000))
def test_nothing_overlaps(spec: ModelSpec, capacity: int, network: bool, pixels: int) -> None:
    layout = Layout(capacity, spec if network else None, pixels)
    memory = np.zeros(layout.size, np.uint8)
    arena = Arena(layout, memory)
    assert layout.size % mmap.PAGESIZE == 0
    assert len(arena.slots) == SLOTS
    begin = memory.__array_interface__["data"][0]
    spans = sorted((r.__array_interface__["data"][0] - begin, r.nbytes) for r in regions(arena))
    ends = [at + size for at, size in spans]
    assert all(end <= at for end, (at, _) in zip(ends, spans[1:], strict=False)), "two of them share bytes"
    assert ends[-1] <= layout.size
    assert all(at % ALIGNMENT == 0 for at, _ in spans)


def test_shapes(spec: ModelSpec) -> None:
    layout = Layout(10, spec, 300)
    arena = Arena(layout, bytearray(layout.size))
    assert arena.pulse.tolist() == [0, 0, 0]
    for slot in arena.slots:
        assert slot.rows.shape == (10,)
        assert slot.places.shape == (10, 4)
        assert slot.pixels.shape == (300,)
        assert slot.batch is not None
        assert slot.batch.inputs.shape == (10, *spec.input_shape(1)[1:])
        assert slot.batch.probabilities.shape == (10, len(spec.labels))
        assert slot.batch.flat.shape == (10,)
    assert NO_PICTURE > 10_000


def test_without_a_network_there_is_no_batch() -> None:
    layout = Layout(4, pixel_bytes=100)
    assert [slot.batch for slot in Arena(layout, bytearray(layout.size)).slots] == [None] * SLOTS


def test_two_processes_see_the_same(spec: ModelSpec) -> None:
    layout = Layout(8, spec, 64)
    memory = mmap.mmap(-1, layout.size)
    ours, theirs = Arena(layout, memory), Arena(layout, memory)
    for number, region in enumerate(regions(theirs)):
        region.reshape(-1).view(np.uint8)[:] = number + 1
    for number, region in enumerate(regions(ours)):
        assert (region.reshape(-1).view(np.uint8) == number + 1).all(), "another part was written over it"
