"""Serves what every peer's script has in common, with the standard library alone: they have no fmengine.

One JSON object a line: `open` and `answer` come in on stdin, replies go out on stdout. From a shell a script is a
whole job, as a user would run it: `python torch_alexnet.py FOLDER OUTPUT --threads 2`.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """A label and its score for a path; no label where the picture cannot be read.

    Of a photograph the boxes of its faces (left, top, right, bottom) and their labels instead.
    """

    label: str | None
    score: float
    faces: list[tuple[float, float, float, float, str]] | None = None


UNREAD = Answer(None, 0.0)


class Opened(NamedTuple):
    """A system that is ready: how it answers, how it is run, and whether its weights were trained."""

    answer: Callable[[list[str]], list[Answer]]
    what: str
    trained: bool
    versions: dict[str, str]


Open = Callable[[dict[str, Any]], Opened]


def main(open_peer: Open) -> None:
    """Serve over stdin and stdout, or do one job where a folder is given."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?")
    parser.add_argument("output", nargs="?")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--model")
    parser.add_argument("--library")
    parser.add_argument("--device", default="cpu", help="of PyTorch and ONNX Runtime: cpu, or cuda:N")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--half", action="store_true")
    options = vars(parser.parse_args())
    if options["folder"]:
        _job(open_peer(options), options["folder"], options["output"])
    else:
        _serve(open_peer, options)


def _job(opened: Opened, folder: str, output: str) -> None:
    paths = sorted(str(path) for path in Path(folder).rglob("*") if path.is_file())
    with Path(output).open("w", encoding="utf-8") as file:
        for path, answer in zip(paths, opened.answer(paths), strict=True):
            file.write(json.dumps({"path": path, "label": answer.label, "confidence": answer.score}) + "\n")


def _serve(open_peer: Open, options: dict[str, Any]) -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print to stdout; their output must not end up between the replies
    opened: Opened | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "open":
                opened = open_peer(options | request)
                reply: dict[str, Any] = {
                    "what": opened.what,
                    "trained": opened.trained,
                    "versions": opened.versions,
                }
            else:
                assert opened is not None
                began = time.perf_counter()
                answers = opened.answer(request["paths"])
                reply = {"seconds": time.perf_counter() - began, "labels": [a.label for a in answers]}
                reply["faces"] = [a.faces for a in answers]
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
