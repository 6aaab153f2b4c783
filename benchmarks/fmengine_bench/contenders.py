"""Measures the engine and its peers on the same pictures, in turn, with accuracy beside speed."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from fmengine.backend.protocol import DeviceBackend
from fmengine.engine import Engine
from fmengine.errors import FmengineError, UnavailableError
from fmengine.system.files import write_file

from .metrics import Accuracy, compute_accuracy
from .peers import PEERS, Worker, check_peers, find_folder, select_device
from .timing import REST, Figure, estimate_median

OURS = "fmengine"
SHARE = 8  # a slow peer gets every eighth picture in a turn, so that turns stay short
SLOW = 1000  # pictures a second

Answer = Callable[[Sequence[str]], tuple[float, Sequence[str | None]]]


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


def measure_contenders(
    engine: Engine,
    paths: Sequence[str],
    names: Sequence[str],
    rounds: int,
    threads: int,
    targets: dict[str, str],
    notify: Callable[[str], None],
) -> tuple[list[Contender], dict[str, str]]:
    """Measure peers beside the engine; return the figures, and those that failed with the reason.

    Raises:
        FmengineError: for a peer that is unknown.
        UnavailableError: for one that is not installed, or needs a GPU that the engine is not on.
    """
    check_peers(names, name_device(engine))

    def ours(part: Sequence[str]) -> tuple[float, Sequence[str | None]]:
        began = time.perf_counter()
        labels = [getattr(result, "label", None) for result in engine.predict_many(part)]
        return time.perf_counter() - began, labels

    device = name_device(engine)
    with ExitStack() as stack:
        failed: dict[str, str] = {}
        systems: dict[str, Answer] = {OURS: ours}
        descriptions: dict[str, dict[str, object]] = {
            OURS: {"what": "through Engine.predict_many", "trained": True}
        }
        for name in names:
            notify(f"starting {name}")
            worker = stack.enter_context(Worker(PEERS[name]))
            try:
                descriptions[name] = worker.open(
                    threads, prepare_network(name), select_device(PEERS[name], device)
                )
                systems[name] = _make_answer(worker)
            except FmengineError as error:
                failed[name] = str(error)
        return _measure_in_turn(systems, descriptions, paths, rounds, targets, notify, failed), failed


def name_device(engine: Engine) -> str:
    """Name the device that the engine computes on, and that peers use if they can: `cpu`, or `cuda:N`."""
    return f"cuda:{engine.backend.device_index}" if isinstance(engine.backend, DeviceBackend) else "cpu"


def prepare_network(name: str) -> Path | None:
    """Write the full AlexNet, untrained, which costs the same, for peers that run an ONNX file; else None."""
    if PEERS[name].script != "onnx_alexnet.py":
        return None
    path = find_folder(PEERS[name]).parent / "alexnet.fp32.onnx"
    if not path.exists():
        from .frontier import make_model_file, make_untrained_alexnet

        write_file(path, make_model_file(make_untrained_alexnet()).data)
    return path


def _make_answer(worker: Worker) -> Answer:
    def answer(part: Sequence[str]) -> tuple[float, Sequence[str | None]]:
        reply = worker.answer(part)
        return float(reply["seconds"]), list(reply["labels"])

    return answer


def _measure_in_turn(
    systems: dict[str, Answer],
    descriptions: dict[str, dict[str, object]],
    paths: Sequence[str],
    rounds: int,
    targets: dict[str, str],
    notify: Callable[[str], None],
    failed: dict[str, str],
) -> list[Contender]:
    """Give each system its turn in every round; those that fail are moved to `failed`."""
    parts: dict[str, Sequence[str]] = {}
    labels: dict[str, Sequence[str | None]] = {}
    rates: dict[str, list[float]] = {name: [] for name in systems}
    for number in range(rounds + 1):
        notify(f"round {number} of {rounds}" if number else "a round to warm up")
        for name, answer in list(systems.items()):
            time.sleep(REST)
            try:
                seconds, found = answer(parts.get(name, paths))
            except UnavailableError as error:
                failed[name] = str(error)
                del systems[name]
                continue
            if number:
                rates[name].append(len(parts[name]) / seconds)
            else:  # shows which are slow
                labels[name] = found
                slow = len(paths) / seconds < SLOW and len(paths) >= 64 * SHARE
                parts[name] = paths[::SHARE] if slow else paths
    contenders = []
    for name in systems:
        ratios = [own / other for own, other in zip(rates[OURS], rates[name], strict=True)]
        known = {path: label for path, label in zip(paths, labels[name], strict=True) if path in targets}
        trained = descriptions[name].get("trained")
        contenders.append(
            Contender(
                name,
                str(descriptions[name].get("what", "")),
                estimate_median(rates[name]),
                None if name == OURS else estimate_median(ratios),
                compute_accuracy(list(known.values()), [targets[path] for path in known]) if trained else None,
                sum(label is None for label in labels[name]),
                dict(descriptions[name].get("versions", {})),  # type: ignore[call-overload]
            )
        )
    return contenders
