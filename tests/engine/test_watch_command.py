"""`fmengine watch`: its rows, its files, its end, and what it refuses before any work."""

import csv
import fcntl
import json
import os
import re
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from command_line import COMMAND, environment, json_rows, refused, run
from PIL import ImageColor
from videos import RATE, SIZE, moving, write_video

from fmengine import Engine, Frame
from fmengine.errors import OutputError
from fmengine.media.annotate import COLORS, AnnotatedVideo, draw_faces
from fmengine.media.rows import RowFile, to_rows

av = pytest.importorskip("av", reason="PyAV is missing: pip install '.[video]'")

COUNT = 8
KEYS = ["time", "frame", "id", "box", "score", "landmarks", "label", "confidence", "probabilities", "reason"]
OPTIONS = ("--backend", "onnxruntime", "--threads", "1")
TIMES = [0, 0.05, 0.1, 0.3, 0.31, 0.5, 0.7, 0.75]


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """One face that moves, at a variable frame rate, and leaves before the last frame."""
    places = [*moving(COUNT - 1), []]
    return write_video(tmp_path_factory.mktemp("videos") / "moving.mp4", places, times=TIMES)


@pytest.fixture(scope="module")
def frames(video: Path) -> Iterator[list[Frame]]:
    with Engine.load(backend="onnxruntime", threads=1) as engine, engine.watch(video) as watch:
        yield list(watch)


def read_video(path: Path) -> list[tuple[float, np.ndarray]]:
    with av.open(str(path)) as container:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


# Rows


def test_a_line_a_face(video: Path) -> None:
    out, err = run("watch", video, *OPTIONS)
    lines = [line.split("  ") for line in out.splitlines()]
    assert [float(line[0]) for line in lines] == TIMES[:-1], "a frame without a face gives no row"
    assert [line[1] for line in lines] == ["-", "-", *["1"] * 5]
    assert {line[2] for line in lines} == {"happy"}
    assert all(re.fullmatch(r"\d+,\d+,\d+,\d+", line[4]) for line in lines)
    assert err == "8 frames, 0 dropped, 0 damaged, 7 faces, 1 track\n"


def test_rows_are_those_of_the_api_wherever_they_go(video: Path, frames: list[Frame], tmp_path: Path) -> None:
    out, _ = run("watch", video, *OPTIONS, "--json")
    rows = json_rows(out)
    assert [list(row) for row in rows] == [KEYS] * 7
    for row, frame in zip(rows, frames, strict=False):
        (face,) = frame.faces
        assert (row["frame"], row["id"], row["reason"]) == (frame.index, face.id, None)
        assert row["time"] == pytest.approx(frame.time, abs=1e-6)
        assert row["box"] == pytest.approx(face.box, abs=0.1)
        assert row["probabilities"] == pytest.approx(face.prediction.probabilities, abs=1e-4)
        assert len(row["landmarks"]) == 5

    lines, err = run("watch", video, *OPTIONS, "--output", "rows.jsonl", cwd=tmp_path)
    assert lines == ""
    assert err.endswith("rows: rows.jsonl\n")
    assert (tmp_path / "rows.jsonl").read_text() == out
    run("watch", video, *OPTIONS, "--output", "rows.csv", cwd=tmp_path)
    with (tmp_path / "rows.csv").open(newline="") as file:
        for cells, row in zip(csv.DictReader(file), json_rows(out), strict=True):
            assert float(cells["time"]) == row["time"]
            assert cells["id"] == ("" if row["id"] is None else str(row["id"]))
            assert [float(cells[edge]) for edge in ("left", "top", "right", "bottom")] == row["box"]
            assert float(cells["happy"]) == row["probabilities"]["happy"]
            assert [float(cells["nose_x"]), float(cells["nose_y"])] == row["landmarks"][2]


def test_a_label_that_is_a_column_or_a_formula(tmp_path: Path, frames: list[Frame]) -> None:
    with pytest.raises(OutputError, match="column 'left' already"):
        RowFile(tmp_path / "x.csv", ["left", "right"])
    with RowFile(tmp_path / "x.csv", ["=1+1", "sad"]) as file:
        (row,) = to_rows(frames[0])
        file.write([row | {"label": "=1+1", "probabilities": {"=1+1": 0.9, "sad": 0.1}}])
    head, line = (tmp_path / "x.csv").read_text().splitlines()
    assert ",'=1+1,sad," in head
    assert ",'=1+1,0.99" in line


@pytest.mark.parametrize(
    ("options", "count"),
    [(["--max-frames", "3"], 3), (["--seconds", "0.305"], 5), (["--every", "0.25"], 4)],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_part_of_a_video(video: Path, options: list[str], count: int) -> None:
    _, err = run("watch", video, *OPTIONS, *options)
    assert err.startswith(f"{count} frames, 0 dropped")


# The annotated video


def test_the_annotated_video_has_the_sources_time_stamps(video: Path, tmp_path: Path) -> None:
    _, err = run("watch", video, *OPTIONS, "--annotated", "seen.mp4", cwd=tmp_path)
    assert err.endswith("annotated: seen.mp4\n")
    assert os.listdir(tmp_path) == ["seen.mp4"]
    made = read_video(tmp_path / "seen.mp4")
    assert [stamp for stamp, _ in made] == pytest.approx(TIMES, abs=1e-4)
    plain = read_video(video)
    moved = [float(abs(a.astype(int) - b).mean()) for (_, a), (_, b) in zip(made, plain, strict=True)]
    assert made[0][1].shape == (SIZE[1], SIZE[0], 3)
    assert moved[-1] < 3 < min(moved[:-1]), "a box is drawn where a face is, and nothing elsewhere"


def test_a_face_keeps_its_colour_and_text_stays_inside(frames: list[Frame]) -> None:
    canvas = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    colors = set()
    for frame in frames[2:7]:
        picture = np.asarray(draw_faces(canvas, frame.faces))
        left, _, _, bottom = (round(edge) for edge in frame.faces[0].box)
        colors.add(tuple(picture[bottom - 12 : bottom, left - 2 : left + 3].max(axis=(0, 1)).tolist()))
        assert not picture[bottom + 4 :].any()
    assert colors == {ImageColor.getrgb(COLORS[0])}
    assert not canvas.any(), "the frame itself is not drawn into"


def test_frames_of_another_or_an_odd_size_fit_in(tmp_path: Path, frames: list[Frame]) -> None:
    with AnnotatedVideo(tmp_path / "x.mp4") as video:
        for frame, size in zip(frames, [(65, 49), (65, 49), (130, 98)], strict=False):
            video.write(frame, np.zeros((size[1], size[0], 3), np.uint8))
    assert [image.shape for _, image in read_video(tmp_path / "x.mp4")] == [(50, 66, 3)] * 3


def test_x264_only_where_it_is_asked_for(video: Path, tmp_path: Path) -> None:
    if "libx264" not in av.codecs_available:
        pytest.skip("this PyAV has no x264")
    names = []
    for codec in ("mpeg4", "h264"):
        run("watch", video, *OPTIONS, "--annotated", f"{codec}.mp4", "--codec", codec, cwd=tmp_path)
        with av.open(str(tmp_path / f"{codec}.mp4")) as container:
            names.append(container.streams.video[0].codec_context.name)
    assert names == ["mpeg4", "h264"]


# The end


def test_ctrl_c_finishes_the_files(tmp_path: Path) -> None:
    source = f"lavfi:testsrc2=size=288x216:rate={RATE},realtime"
    command = [*COMMAND, "watch", source, *OPTIONS, "--annotated", "seen.mp4", "--output", "rows.jsonl"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    partial = tmp_path / ".seen.mp4.tmp"
    while process.poll() is None:
        time.sleep(0.01)
        with suppress(FileNotFoundError):  # it is tried, and removed, before the work
            if partial.stat().st_size > 30_000:
                break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    summary, *rest = err.splitlines()
    assert rest[-1] == "fmengine: interrupted"
    frames = int(summary.split()[0])
    assert len(read_video(tmp_path / "seen.mp4")) == frames >= 2
    assert sorted(os.listdir(tmp_path)) == ["rows.jsonl", "seen.mp4"]


def test_a_file_that_is_cut_short_has_its_rows_and_exits_with_3(video: Path, tmp_path: Path) -> None:
    path = write_video(tmp_path / "long.mp4", moving(60, by=1), movflags="faststart")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    out, err = run("watch", path, *OPTIONS, "--every", "0.2", "--annotated", "x.mp4", code=3, cwd=tmp_path)
    summary, error = err.splitlines()
    assert summary.startswith(f"{len(out.splitlines())} frames")
    assert error.startswith(f"fmengine: {path}: the file is cut short")
    assert len(read_video(tmp_path / "x.mp4")) == len(out.splitlines())


def test_one_line_that_is_written_over_on_a_terminal(video: Path) -> None:
    main, other = os.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    command = [*COMMAND, "watch", str(video), *OPTIONS]
    done = subprocess.run(command, stdout=other, stderr=other, env=environment())
    os.close(other)
    text = os.read(main, 65536).decode()
    os.close(main)
    assert done.returncode == 0
    assert text.startswith("\r0:00.0  1 face: 1 happy")
    assert text.endswith("8 frames, 0 dropped, 0 damaged, 7 faces, 1 track\r\n")
    assert ",130" not in text, "rows would scroll the line away"


# What is refused before the work


def test_files_that_exist_are_refused(video: Path, tmp_path: Path) -> None:
    for name, option in (("x.jsonl", "--output"), ("x.mp4", "--annotated")):
        (tmp_path / name).write_text("kept")
        err = refused("watch", video, option, name, cwd=tmp_path)
        assert err == f"fmengine: {name} exists; replace it with --overwrite\n"
        assert (tmp_path / name).read_text() == "kept"
    run("watch", video, *OPTIONS, "--output", "x.jsonl", "--overwrite", cwd=tmp_path)
    assert len((tmp_path / "x.jsonl").read_text().splitlines()) == 7


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["missing.mp4"], 3, "missing.mp4: no such file"),
        (["missing.mp4", "--output", "x.txt"], 2, "must end in .jsonl or .csv"),
        (["missing.mp4", "--annotated", "x.avi"], 2, "must end in .mp4"),
        (["missing.mp4", "--every", "-1"], 2, "--every"),
        ([], 2, "SOURCE"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    assert words in refused("watch", *arguments, cwd=tmp_path, code=code)
    assert not os.listdir(tmp_path)


def test_what_is_watched_is_not_written_over(video: Path, tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(video.read_bytes())
    assert "is what is watched" in refused("watch", "x.mp4", "--annotated", "./x.mp4", "--overwrite", cwd=tmp_path)
    assert (tmp_path / "x.mp4").read_bytes() == video.read_bytes()


def test_without_pyav_the_extra_is_named(video: Path, tmp_path: Path) -> None:
    (tmp_path / "av.py").write_text("raise ImportError('missing')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [*COMMAND, "watch", str(video)]
    done = subprocess.run(command, env=environment(PYTHONPATH=path), capture_output=True, text=True)
    assert done.returncode == 4
    assert done.stderr.startswith(
        "fmengine: videos and cameras need PyAV; install it with: pip install '.[video]'"
    )


def test_log_lines_are_json(video: Path) -> None:
    _, err = run("--log-json", "watch", video, *OPTIONS, "--max-frames", "4")
    (line,) = [json.loads(line) for line in err.splitlines() if "dropped" in line]
    assert (line["frames"], line["dropped"], line["faces"], line["tracks"]) == (4, 0, 4, 1)
