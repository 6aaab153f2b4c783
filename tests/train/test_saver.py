"""Checkpoints are written in the background: none is lost but by a kill, and no epoch waits."""

import threading

import pytest

from fmengine.errors import OutputError
from fmengine_train import saver as module
from fmengine_train.saver import Saver, Snapshot


def snapshot(epoch: int) -> Snapshot:
    return Snapshot(epoch, {}, {}, None)


def test_the_first_is_written_at_once_and_the_last_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    written: list[int] = []
    saver = Saver(lambda snapshot: written.append(snapshot.epoch))
    saver.keep(snapshot(0))
    for epoch in range(1, 8):
        saver.offer(snapshot(epoch))
        if saver._writing is not None:
            saver._writing.result()
        now[0] += module.SECONDS / 3
    saver.flush()
    saver.flush()
    assert written == [1, 4, 7]
    saver.offer(snapshot(8))
    saver.flush()
    assert written == [1, 4, 7, 8]


def test_no_epoch_waits_for_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.0)
    written: list[int] = []
    go_on = threading.Event()

    def write(snapshot: Snapshot) -> None:
        assert go_on.wait(60)
        written.append(snapshot.epoch)

    saver = Saver(write)
    for epoch in (1, 2, 3):
        saver.offer(snapshot(epoch))
    assert written == []
    go_on.set()
    saver.flush()
    assert written == [1, 3]  # whoever is passed over, is passed over for a later one


def test_a_run_that_began_and_finished_nothing_writes_nothing() -> None:
    written: list[int] = []
    saver = Saver(lambda snapshot: written.append(snapshot.epoch))
    saver.keep(snapshot(0))
    saver.flush()
    assert written == []
    assert saver.latest.epoch == 0


def test_a_disk_that_fills_up_ends_the_run_with_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.0)

    def write(snapshot: Snapshot) -> None:
        raise OutputError("no room")

    saver = Saver(write)
    saver.offer(snapshot(1))
    assert saver._writing is not None
    saver._writing.exception()
    with pytest.raises(OutputError, match="no room"):
        saver.offer(snapshot(2))
    with pytest.raises(OutputError, match="no room"):
        saver.flush()
