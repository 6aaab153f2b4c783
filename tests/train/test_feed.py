"""Batches come alike from the host's memory, from a device's, and in blocks."""

import numpy as np
import pytest
import torch

from fmengine_train.feed import BlockFeed, Feed, HostFeed, ResidentFeed, open_feed

CPU = torch.device("cpu")
RANDOM = np.random.default_rng(0)
ARRAYS = (
    RANDOM.integers(0, 256, (50, 1, 6, 5), dtype=np.uint8),
    np.arange(50),
    RANDOM.random((50, 2), dtype=np.float32),
    np.empty((50, 0), np.float16),
)
PICTURE = 30 + 8 + 8  # bytes of a row
BATCHES = [np.sort(rows) for rows in np.array_split(RANDOM.permutation(50), 7)]  # of 8 and of 7


@pytest.mark.parametrize(
    "feed",
    [HostFeed(ARRAYS), ResidentFeed(ARRAYS, CPU), BlockFeed(ARRAYS, CPU, 20 * PICTURE), BlockFeed(ARRAYS, CPU, 1)],
    ids=["host", "resident", "blocks of two batches", "blocks of one batch"],
)
def test_batches_hold_their_rows_in_order(feed: Feed) -> None:
    taken = list(feed.take(BATCHES))
    assert len(taken) == len(BATCHES)
    for rows, batch in zip(BATCHES, taken, strict=True):
        for array, tensor in zip(ARRAYS, batch, strict=True):
            assert torch.equal(tensor, torch.from_numpy(array[rows]))


def test_a_block_is_gathered_while_the_one_before_it_is_used() -> None:
    """And one alone: memory holds two blocks, however many there are."""
    feed, gathered = BlockFeed(ARRAYS, CPU, 1), []
    gather = feed._gather
    feed._gather = lambda block: gathered.append(block) or gather(block)  # type: ignore[method-assign, func-returns-value]
    taken = feed.take(BATCHES)
    for number in range(1, len(BATCHES)):
        next(taken)
        assert len(gathered) <= number + 1
    assert len(list(taken)) == 1


def test_a_feed_shrinks_until_a_picture_is_left() -> None:
    feed: Feed | None = ResidentFeed(ARRAYS, CPU)
    sizes = []
    while (feed := feed.shrink()) is not None:
        assert isinstance(feed, BlockFeed)
        sizes.append(feed._block_bytes)
        assert len(list(feed.take(BATCHES))) == len(BATCHES)
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) > 3
    assert HostFeed(ARRAYS).shrink() is None


def test_pictures_are_kept_on_a_gpu_where_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU is one in name: the memory that it says is free decides."""
    gpu = torch.device("cuda")
    needed = sum(array.nbytes for array in ARRAYS)
    held: list[torch.device] = []
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: held.append(device) or tensor)
    for free, kind in ((2 * needed, ResidentFeed), (2 * needed - 2, BlockFeed)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 80 << 30))
        assert isinstance(open_feed(ARRAYS, gpu), kind)
    assert held == [gpu] * len(ARRAYS)
    assert isinstance(open_feed(ARRAYS, CPU), HostFeed)
