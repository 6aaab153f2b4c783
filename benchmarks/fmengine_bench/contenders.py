"""Ours and its peers on the same pictures, in turn, with accuracy beside speed."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from fmengine.backend.registry import DeviceBackend
from fmengine.engine import Engine
from fmengine.errors import FmengineError, UnavailableError
from fmengine.system.files import write_file

from .metrics import Accuracy, accuracy_of
from .peers import PEERS, Worker, device_for, folder_of, require
from .timing import REST, Figure, figure

OURS = "fmengine"
SHARE = 8  # a peer is given every eighth picture in a turn where it is slow, so that turns stay short
SLOW = 1000  # pictures a second

Ask = Callable[[Sequence[str]], tuple[float, Sequence[str | None]]]


@dataclass(frozen=True)
class Contender:
    """One system.

    Attributes:
        name: of the peer, or `OURS`.
        what: it is and how it was run.
        rate: pictures a second from files, warm, over the rounds.
        times: that ours is as fast, the ratio within each round; None for ours.
        accuracy: where a picture without a label is not right; None where the right ones are not known or its
            weights are untrained.
        unread: pictures that it could not read, of those that ours could.
        versions: of its libraries.
    """

    name: str
    what: str
    rate: Figure
    times: Figure | None
    accuracy: Accuracy | None
    unread: int
    versions: dict[str, str]


def against(
    engine: Engine,
    paths: Sequence[str],
    names: Sequence[str],
    rounds: int,
    threads: int,
    targets: dict[str, str],
    say: Callable[[str], None],
) -> tuple[list[Contender], dict[str, str]]:
    """Measure peers beside the engine. Also gives those that failed, and why: the others' figures stand.

    Raises:
        FmengineError: for a peer that is unknown.
        UnavailableError: for one that is not installed, or needs a GPU that the engine is not on.
    """
    require(names, device_of(engine))

    def ours(part: Sequence[str]) -> tuple[float, Sequence[str | None]]:
        began = time.perf_counter()
        labels = [getattr(result, "label", None) for result in engine.predict_many(part)]
        return time.perf_counter() - began, labels

    device = device_of(engine)
    with ExitStack() as stack:
        failed: dict[str, str] = {}
        asks: dict[str, Ask] = {OURS: ours}
        told: dict[str, dict[str, object]] = {OURS: {"what": "through Engine.predict_many", "trained": True}}
        for name in names:
            say(f"starting {name}")
            worker = stack.enter_context(Worker(PEERS[name]))
            try:
                told[name] = worker.open(threads, network_for(name), device_for(PEERS[name], device))
                asks[name] = _asker(worker)
            except FmengineError as error:
                failed[name] = str(error)
        return _in_turn(asks, told, paths, rounds, targets, say, failed), failed


def device_of(engine: Engine) -> str:
    """Where it computes, and where those peers do that can: `cpu`, or `cuda:N`."""
    return f"cuda:{engine.backend.device_index}" if isinstance(engine.backend, DeviceBackend) else "cpu"


def network_for(name: str) -> Path | None:
    """The full AlexNet in FP32 for the peers that run an ONNX file: untrained, which costs the same."""
    if PEERS[name].script != "onnx_alexnet.py":
        return None
    path = folder_of(PEERS[name]).parent / "alexnet.fp32.onnx"
    if not path.exists():
        from .frontier import as_file, untrained_alexnet

        write_file(path, as_file(untrained_alexnet()).data)
    return path


def _asker(worker: Worker) -> Ask:
    def ask(part: Sequence[str]) -> tuple[float, Sequence[str | None]]:
        reply = worker.answer(part)
        return float(reply["seconds"]), list(reply["labels"])

    return ask


def _in_turn(
    asks: dict[str, Ask],
    told: dict[str, dict[str, object]],
    paths: Sequence[str],
    rounds: int,
    targets: dict[str, str],
    say: Callable[[str], None],
    failed: dict[str, str],
) -> list[Contender]:
    parts: dict[str, Sequence[str]] = {}
    labels: dict[str, Sequence[str | None]] = {}
    rates: dict[str, list[float]] = {name: [] for name in asks}
    for number in range(rounds + 1):
        say(f"round {number} of {rounds}" if number else "a round to warm up")
        for name, ask in list(asks.items()):
            time.sleep(REST)
            try:
                seconds, found = ask(parts.get(name, paths))
            except UnavailableError as error:
                failed[name] = str(error)
                del asks[name]
                continue
            if number:
                rates[name].append(len(parts[name]) / seconds)
            else:  # shows who is slow
                labels[name] = found
                slow = len(paths) / seconds < SLOW and len(paths) >= 64 * SHARE
                parts[name] = paths[::SHARE] if slow else paths
    contenders = []
    for name in asks:
        ratios = [ours / theirs for ours, theirs in zip(rates[OURS], rates[name], strict=True)]
        known = {path: label for path, label in zip(paths, labels[name], strict=True) if path in targets}
        trained = told[name].get("trained")
        contenders.append(
            Contender(
                name,
                str(told[name].get("what", "")),
                figure(rates[name]),
                None if name == OURS else figure(ratios),
                accuracy_of(list(known.values()), [targets[path] for path in known]) if trained else None,
                sum(label is None for label in labels[name]),
                dict(told[name].get("versions", {})),  # type: ignore[call-overload]
            )
        )
    return contenders
