"""Times photographs: faces found and answered, ours and peers with detectors of their own, in turn.

    python -m fmengine_bench.scenes scenes/ --against face-api,fer

Each photograph is made a JPEG whose long side has 640 pixels, once, before. Where the folder has a `faces.json`
(`{"name": {"faces": [[left, top, right, bottom], …], "ignore": […]}}`), what was found is held against its boxes.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from PIL import Image

from fmengine.cli import main
from fmengine.cli.console import inform, print_data
from fmengine.engine import Engine
from fmengine.errors import DataError, FmengineError
from fmengine.system.cores import usable_cores
from fmengine.types import Scene

from .contenders import OURS
from .peers import SCENE_PEERS, Worker, check_peers, parse_names
from .timing import estimate_median

SIDE = 640
QUALITY = 92
COVERED = 0.4  # intersection over union from which on a box is that of a face
Box = Sequence[float]


@dataclass(frozen=True)
class Found:
    """What a system finds in photographs.

    Attributes:
        seconds: of each round.
        faces: boxes by photograph.
    """

    seconds: list[float] = field(default_factory=list)
    faces: list[list[Box]] = field(default_factory=list)


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--against", default="", help="Peers between commas: face-api, fer.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--copies", type=click.IntRange(1), default=1, show_default=True, help="Of each photograph a round.")
def scenes(folder: Path, against: str, rounds: int, copies: int) -> None:
    names = parse_names(against)
    if unknown := [name for name in names if name not in SCENE_PEERS]:
        raise FmengineError(f"{', '.join(unknown)} brings no detector; available are {', '.join(SCENE_PEERS)}")
    check_peers(names)
    with tempfile.TemporaryDirectory() as scratch:
        paths, known = _gather(folder, Path(scratch))
        found = _measure(paths, names, rounds, copies)
    count = len(paths)
    print_data(f"{count} photographs of {SIDE} pixels, {copies} times, {usable_cores()} threads, {rounds} rounds")
    for name, each in found.items():
        rate = estimate_median([count * copies / seconds for seconds in each.seconds])
        times = estimate_median(
            [theirs / ours for theirs, ours in zip(each.seconds, found[OURS].seconds, strict=True)]
        )
        print_data(
            f"{name:<12}{rate.median:9.1f} photographs/s [{rate.low:.1f}, {rate.high:.1f}]"
            f"{times.median:8.2f} ×  [{times.low:.2f}, {times.high:.2f}]  {_judge(each.faces, known)}"
        )


def _gather(folder: Path, scratch: Path) -> tuple[list[str], list[dict[str, list[Box]]]]:
    """Write each photograph as a JPEG of `SIDE` pixels; return their paths, and what is known of each."""
    document = folder / "faces.json"
    boxes: dict[str, Any] = json.loads(document.read_text(encoding="utf-8")) if document.exists() else {}
    paths: list[str] = []
    known: list[dict[str, list[Box]]] = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in (".jpg", ".jpeg", ".png", ".webp"):
            continue
        with Image.open(path) as image:
            scale = SIDE / max(image.size)
            size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
            target = scratch / f"{len(paths):04}.jpg"
            image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(target, quality=QUALITY)
        paths.append(str(target))
        known.append(
            {
                kind: [[scale * side for side in box] for box in boxes.get(path.name, {}).get(kind, [])]
                for kind in ("faces", "ignore")
            }
            if boxes
            else {}
        )
    if not paths:
        raise DataError(f"no photographs in {folder}; expected jpg, png or webp files")
    return paths, known


def _measure(paths: list[str], names: Sequence[str], rounds: int, copies: int) -> dict[str, Found]:
    found: dict[str, Found] = {}
    shares: dict[str, float] = {}
    workers: dict[str, Worker] = {}
    with Engine.load() as engine:
        try:
            for name in names:
                workers[name] = Worker(SCENE_PEERS[name])
                inform(f"{name}: {workers[name].open(usable_cores(), None)['what']}")
            for number in range(-1, rounds):  # the first warms up
                for name in (OURS, *names):
                    seconds, faces = (
                        _answer(engine, paths * copies) if name == OURS else _ask(workers[name], paths * copies)
                    )
                    each = found.setdefault(name, Found([], faces[: len(paths)]))
                    if number >= 0:
                        each.seconds.append(seconds)
                        inform(f"… round {number + 1}, {name}: {seconds:.2f} s")
        finally:
            for worker in workers.values():
                worker.__exit__(None, None, None)
        with engine.observe(lambda stage, begin, end: shares.update({stage: shares.get(stage, 0) + end - begin})):
            _answer(engine, paths)
    total = sum(shares.values())
    inform(", ".join(f"{stage} {seconds / total:.0%}" for stage, seconds in shares.items()) + " of ours")
    return found


def _answer(engine: Engine, paths: list[str]) -> tuple[float, list[list[Box]]]:
    began = time.perf_counter()
    results = list(engine.predict_scenes(paths))
    seconds = time.perf_counter() - began
    return seconds, [[face.box for face in each.faces] if isinstance(each, Scene) else [] for each in results]


def _ask(worker: Worker, paths: list[str]) -> tuple[float, list[list[Box]]]:
    reply = worker.answer(paths)
    return reply["seconds"], [[face[:4] for face in faces or []] for faces in reply["faces"]]


def _judge(faces: list[list[Box]], known: list[dict[str, list[Box]]]) -> str:
    """Say how many faces were found, and how many of them are known, where that is."""
    count = sum(map(len, faces))
    if not any(known):
        return f"{count} faces"
    right = wrong = 0
    for found, boxes in zip(faces, known, strict=True):
        right += sum(any(compute_iou(box, other) >= COVERED for other in found) for box in boxes["faces"])
        every = boxes["faces"] + boxes["ignore"]
        wrong += sum(not any(compute_iou(box, other) >= COVERED / 2 for other in every) for box in found)
    total = sum(len(boxes["faces"]) for boxes in known)
    return f"{right} of {total} faces, {wrong} boxes of none"


def compute_iou(one: Box, other: Box) -> float:
    width, height = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = ((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return shared / (sum(areas) - shared)


if __name__ == "__main__":
    main(scenes, "python -m fmengine_bench.scenes")
