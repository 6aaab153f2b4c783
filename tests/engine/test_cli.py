"""The command line as a shell sees it: exit codes, what goes to which stream, and interruptions."""

import csv
import dataclasses
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner
from command_line import COMMAND, KEYS, NAMES, environment, json_rows, paths_of, refused, run
from PIL import Image
from tests.fuzz.oracle import pixels as definition
from tests.page import Page
from tests.params import quick_first

import fmengine
from fmengine.backend.registry import BACKENDS
from fmengine.cli import cli
from fmengine.model.file import available_models, seal
from fmengine.model.spec import METADATA_KEY, ModelSpec

# Rows.


def test_portrait_is_happy(portrait):
    out, err = run("infer", portrait)
    assert re.fullmatch(rf"{re.escape(str(portrait))}  happy  (0\.[5-9]\d\d|1\.000)\n", out)
    assert "1 happy" in err


def test_a_line_a_picture_in_order(faces):
    out, err = run("infer", "--batch", faces)
    assert [line.split("  ")[0] for line in out.splitlines()] == NAMES
    assert all(re.fullmatch(r".+  (happy|sad)  [01]\.\d{3}  flat", line) for line in out.splitlines())
    assert "6 pictures" in err


def test_json_rows_have_the_documented_keys(faces):
    out, err = run("infer", faces, "missing.png", "--json", code=3)
    *rows, failed = json_rows(out)
    assert [row["path"] for row in rows] == NAMES
    for row in rows:
        assert set(row) == KEYS
        assert row["error"] is None
        assert set(row["probabilities"]) == {"happy", "sad"}
        assert row["confidence"] == row["probabilities"][row["label"]] == max(row["probabilities"].values())
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=2e-6)
    assert set(failed) == KEYS
    assert failed["label"] is failed["confidence"] is failed["probabilities"] is failed["reason"] is None
    assert failed["error"] == {"kind": "not_found", "message": "no such file"}
    assert "1 failed" in err


def test_failures_cost_no_other_row(faces):
    (faces / "broken.png").write_bytes(b"no picture")
    (faces / "empty.png").touch()
    (faces / "link.png").symlink_to("missing")
    out, _ = run("infer", "--batch", faces, "--json", code=3)
    rows = {row["path"]: row for row in json_rows(out)}
    kinds = {path: row["error"]["kind"] for path, row in rows.items() if row["error"]}
    assert kinds == {
        "faces/broken.png": "not_an_image",
        "faces/empty.png": "empty",
        "faces/link.png": "not_found",
    }
    good, _ = run("infer", *NAMES, "--json")
    assert [rows[name] for name in NAMES] == json_rows(good)


@pytest.mark.slow
def test_answers_do_not_depend_on_the_batch_size(faces):
    outputs = {run("infer", faces, "--json", "--batch-size", size)[0] for size in (1, 4, 64)}
    assert len(outputs) == 1


def test_list_on_stdin(faces):
    names = b"faces/a.png\nfaces/b.jpg\n"
    out, _ = run("infer", "-", "--json", stdin=names)
    assert [row["path"] for row in json_rows(out)] == ["faces/a.png", "faces/b.jpg"]
    assert run("infer", "-", "--json", stdin=names.replace(b"\n", b"\0"))[0] == out


def test_glob_on_the_command_line(faces):
    out, _ = run("infer", "faces/**/*.png", "--json")
    assert [row["path"] for row in json_rows(out)] == [
        n for n in NAMES if n.endswith("g") and n[6:] not in (".hidden.png", "b.jpg")
    ]


def test_odd_names_are_flagged(faces):
    name = os.fsencode("faces") + b"/\xff\n.png"
    shutil.copy("faces/a.png", name)
    out, _ = run("infer", faces, "--json")
    row = next(row for row in json_rows(out) if set(row) != KEYS)
    assert (row["path"], row["path_encoding"]) == ("faces/%FF%0A.png", "percent")
    assert row["error"] is None


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_output_file_and_report(faces, suffix):
    (faces / "broken.png").write_bytes(b"no picture")
    out, err = run("infer", faces, "--output", f"x.{suffix}", "--report", "x.html", code=3)
    assert out == ""
    assert "7 pictures" in err
    text = Path(f"x.{suffix}").read_text()
    rows = json_rows(text) if suffix == "jsonl" else list(csv.DictReader(text.splitlines()))
    assert sorted(row["path"] for row in rows) == sorted([*NAMES, "faces/broken.png"])
    assert len(Page(Path("x.html")).cards) == 7


def test_report_of_printed_rows(faces):
    out, _ = run("infer", faces, "--json", "--report", "x.html")
    assert len(json_rows(out)) == 6
    assert len(Page(Path("x.html")).cards) == 6


def test_thumbnails_beside_a_report(faces, monkeypatch):
    """They are told of, and are no pictures of the next run; files of others there are found before the work."""
    monkeypatch.setattr("fmengine.pages.images.INSIDE", 100)

    def infer(*options):  # in this process, where the bound is lower
        return CliRunner().invoke(
            cli, ["infer", "--batch", "faces", "--report", "faces/x.html", *options, "--json"]
        )

    assert "its thumbnails: faces/x_files" in infer().stderr
    done = infer("--overwrite")
    assert [row["path"] for row in json_rows(done.stdout)] == NAMES
    assert len(Page(faces / "x.html").thumbnails) == len(NAMES)
    shutil.copy(faces / "a.png", faces / "x_files" / "mine.png")
    (faces / "x.html").unlink()
    assert "holds files of yours" in str(infer().exception)
    done = infer("--overwrite")
    assert sorted(row["path"] for row in json_rows(done.stdout)) == sorted([*NAMES, "faces/x_files/mine.png"])
    assert (faces / "x_files" / "mine.png").exists()


@pytest.mark.parametrize("way", quick_first([["--batch"], []]), ids=["batch", "source"])
@pytest.mark.parametrize("place", quick_first(["", "below/"]))
def test_own_files_inside_the_folder_are_no_rows(faces, way, place):
    own = ["--output", faces / f"{place}x.jsonl", "--report", faces / f"{place}x.html"]
    run("infer", *way, faces, *own)
    # A run that was killed while it wrote the state leaves this behind.
    (faces / f"{place}.x.jsonl.state.json.tmp").touch()
    run("infer", *way, faces, *own, "--resume")
    assert paths_of(faces / f"{place}x.jsonl") == NAMES
    run("infer", *way, faces, *own, "--overwrite")
    assert paths_of(faces / f"{place}x.jsonl") == NAMES


@pytest.mark.slow
def test_own_files_are_known_under_other_names(faces):
    Path("link").symlink_to("faces")
    run("infer", "link", "--output", faces / "x.jsonl", "--report", "link/x.html")
    own = ["--output", Path("link/x.jsonl").absolute(), "--report", faces / "x.html"]
    run("infer", "link", "faces/x.*", *own, "--resume")
    assert paths_of(faces / "x.jsonl") == [name.replace("faces", "link", 1) for name in NAMES]


@pytest.mark.slow
def test_counts_are_said_as_people_say_them(faces):
    assert run("infer", "faces/a.png")[1].startswith("1 picture: 1 ")
    run("infer", faces, "--output", "x.jsonl")
    assert run("infer", faces, "--output", "x.jsonl", "--resume")[1].startswith("no new pictures; 6 had a row")


# Refusals.


def test_nothing_to_do():
    assert "give a SOURCE" in refused("infer")


def test_missing_folder(tmp_path):
    assert "does not exist" in refused("infer", "--batch", tmp_path / "missing")


def test_missing_folder_is_noticed_before_anything_is_done(faces):
    assert "missing does not exist" in refused(
        "infer", "--batch", faces, "--batch", "missing", "--output", "x.jsonl"
    )
    assert not Path("x.jsonl").exists()


def test_file_as_folder(faces):
    assert "is not a folder" in refused("infer", "--batch", faces / "a.png")


def test_empty_folder(tmp_path):
    assert "no files" in refused("infer", "--batch", tmp_path, "--output", tmp_path / "x.jsonl")
    assert os.listdir(tmp_path) == []


@pytest.mark.timeout(60)
def test_folder_of_a_socket_and_a_pipe_is_empty(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "s"))
        assert "no files" in refused("infer", "--batch", tmp_path)


def test_empty_list(tmp_path):
    assert "no files" in refused("infer", "-", cwd=tmp_path)


def test_glob_without_a_match(tmp_path):
    assert "nothing matches" in refused("infer", "*.png", cwd=tmp_path)


def test_bad_models(faces):
    Path("text.onnx").write_text("hello")
    assert "not an ONNX model" in refused("infer", faces, "--model", "text.onnx")
    for name in ("missing.onnx", "resnet"):
        err = refused("infer", faces, "--model", name)
        assert all(model in err for model in available_models())


def test_bad_options(faces):
    for options in (["--batch-size", 0], ["--threads", -1], ["--resume"], ["--unknown"], ["--output", "x.txt"]):
        assert "Not an error we foresaw" not in refused("infer", faces, *options)


def test_unknown_backend_lists_the_backends(faces):
    err = refused("infer", faces, "--backend", "abacus")
    assert all(name in err for name in ["auto", *BACKENDS])


def test_unknown_command():
    assert "infre" in refused("infre")


def test_existing_output_and_report_are_left_alone(faces):
    for option, name in (("--output", "x.jsonl"), ("--report", "x.html")):
        Path(name).write_text("precious")
        err = refused("infer", faces, option, name)
        assert "--overwrite" in err
        assert Path(name).read_text() == "precious"


@pytest.mark.parametrize("name", ["missing/x.html", "faces/a.png/x.html", "faces/a.png", "x.txt"])
def test_report_that_cannot_be_written_is_noticed_before_the_work(faces, name):
    assert f"cannot write {name}" in refused("infer", faces, "--report", name, "--overwrite")


# Interruptions.

MANY = 3000


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("many") / "faces"
    folder.mkdir()
    for shade in range(10):
        Image.new("L", (8, 8), 25 * shade).save(folder / f"{shade:04}.png")
    for number in range(10, MANY - 1):
        os.link(folder / f"{number % 10:04}.png", folder / f"{number:04}.png")
    (folder / "broken.png").touch()
    return folder


@pytest.fixture(scope="module")
def whole(many) -> list[str]:
    """The rows of an uninterrupted run."""
    output = many.parent / "whole.jsonl"
    run("infer", "--batch", many, "--output", output, code=3)
    return output.read_text().splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_run_goes_on(many, whole, tmp_path, number):
    output = tmp_path / "x.jsonl"
    arguments = ["infer", "--batch", str(many), "--output", str(output), "--batch-size", "4"]
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stderr=subprocess.PIPE,
        env=environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    while process.poll() is None and not (output.exists() and output.stat().st_size):
        time.sleep(0.002)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert b"Traceback" not in err
    assert number == signal.SIGKILL or b"go on with --resume" in err
    kept = output.read_text()
    rows = kept[: kept.rfind("\n") + 1].splitlines()
    assert 0 < len(rows) < MANY
    assert number == signal.SIGKILL or kept.endswith("\n")
    assert rows == whole[: len(rows)]
    _, err = run(*arguments, "--resume", code=3)
    assert f"{len(rows)} had a row already" in err.replace(",", "")
    assert sorted(output.read_text().splitlines()) == sorted(whole)


def test_resume_without_an_output_starts_one(faces):
    run("infer", faces, "--output", "x.jsonl", "--resume")
    assert paths_of(Path("x.jsonl")) == NAMES


def test_resume_of_a_finished_run_adds_nothing(faces):
    (faces / "broken.png").touch()
    run("infer", faces, "--output", "x.csv", code=3)
    before = Path("x.csv").read_bytes()
    run("infer", faces, "--output", "x.csv", "--resume", code=3)
    assert Path("x.csv").read_bytes() == before


def test_resume_takes_new_pictures_whose_names_look_alike(faces):
    shutil.copy(faces / "a.png", faces / "a%0A.png")
    run("infer", faces, "--output", "x.jsonl")
    shutil.copy(faces / "a.png", faces / "a\n.png")
    run("infer", faces, "--output", "x.jsonl", "--resume")
    assert paths_of(Path("x.jsonl")).count("faces/a%0A.png") == 2


@pytest.mark.slow
def test_resume_of_a_list_that_holds_a_path_twice(faces):
    names = b"faces/a.png\nfaces/a.png\nfaces/b.jpg\n"
    run("infer", "-", "--output", "x.jsonl", stdin=names[:12])
    run("infer", "-", "--output", "x.jsonl", "--resume", stdin=names)
    assert paths_of(Path("x.jsonl")) == names.decode().split()


def test_resume_with_another_model_is_refused(faces):
    run("infer", faces, "--output", "x.jsonl", "--model", next(p for p in model_files() if "int8" in p.name))
    other = next(path for path in model_files() if "int8" not in path.name)
    err = refused("infer", faces, "--output", "x.jsonl", "--resume", "--model", other)
    assert "model" in err


def model_files() -> list[Path]:
    return sorted((Path(fmengine.__file__).parent / "model" / "shipped").glob("*.onnx"))


def test_reader_that_goes_away(faces):
    """As `head` does."""
    Path("list").write_text("faces/a.png\n" * 2000)
    command = [*COMMAND, "infer", "-", "--json", "--batch-size", "4"]
    with Path("list").open() as names:
        process = subprocess.Popen(
            command, stdin=names, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
        )
    json.loads(process.stdout.readline())
    process.stdout.close()
    err = process.stderr.read().decode()
    process.stderr.close()
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    assert process.wait(60) == 0


# The rest.


@pytest.mark.parametrize(
    "arguments",
    quick_first([["infer", "faces"], ["--help"], ["info"], ["doctor"], ["--version"]], quick=2),
    ids=lambda arguments: arguments[0].strip("-"),
)
def test_torch_is_never_imported(faces, arguments):
    command = [sys.executable, "-X", "importtime", "-m", "fmengine", *arguments]
    done = subprocess.run(command, capture_output=True, check=True, text=True, env=environment())
    modules = [line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if "|" in line]
    assert "fmengine.cli" in modules
    assert not [module for module in modules if module.split(".")[0] in ("torch", "onnx", "matplotlib", "jinja2")]


def test_completion_needs_no_extra():
    """What pressing the tabulator after `fmengine` runs; torch takes seconds, and may be missing."""
    completion = {"_FMENGINE_COMPLETE": "bash_complete", "COMP_WORDS": "fmengine ", "COMP_CWORD": "1"}
    command = [sys.executable, "-X", "importtime", "-m", "fmengine"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(**completion))
    assert all(f"plain,{name}\n" in done.stdout for name in ("infer", "train", "eval"))
    assert not re.search(r"\| +torch$", done.stderr, re.MULTILINE)


def test_help():
    out, err = run("--help")
    assert err == ""
    for command in ("infer", "train", "export", "parity", "eval", "info", "doctor"):
        assert re.search(rf"^  {command} ", out, re.MULTILINE)
    assert run("-h")[0] == out
    out, _ = run("infer", "--help")
    for option in ("--batch", "--output", "--resume", "--overwrite", "--report", "--json", "--model", "--backend"):
        assert option in out


def test_version():
    out, _ = run("--version")
    assert out == f"fmengine, version {fmengine.__version__}\n"


def test_doctor():
    out, _ = run("doctor")
    assert "`auto` takes onnxruntime" in out
    document = json.loads(run("doctor", "--json")[0])
    assert set(document) == {"environment", "backends", "problems", "workers"}
    chosen = [backend["backend"] for backend in document["backends"] if backend["chosen"]]
    assert len(chosen) == 1
    assert document["environment"]["fmengine"] == fmengine.__version__


def test_info():
    out, _ = run("info")
    assert "happy, sad" in out
    assert "verified" in out
    assert "features       256 numbers a picture" in out
    document = json.loads(run("info", "--json")[0])
    assert (document["labels"], document["features"]) == (["happy", "sad"], 256)
    assert document["path"] in run("info", document["path"])[0]
    assert refused("info", "resnet").count(available_models()[0]) == 1


@pytest.mark.parametrize("name", available_models())
def test_a_shipped_model_by_the_name_that_errors_list(faces, name):
    document = json.loads(run("info", name, "--json")[0])
    assert f"{document['name']}.{document['precision']}" == name
    assert run("infer", "faces/a.png", "--model", name)[0].startswith("faces/a.png  ")


def test_a_shipped_model_that_a_backend_does_not_run(faces):
    err = refused("infer", faces, "--model", "alexnet-slim.int8", "--backend", "tensorrt", code=4)
    assert "driver" in err, "a machine without a GPU says so first"
    err = refused("infer", faces, "--model", "alexnet-slim.fp32")
    assert all(name in err for name in available_models())


def test_json_is_valid_whatever_a_model_says_of_itself(tmp_path):
    """Python reads and writes NaN and Infinity, which no other reader of JSON takes."""
    onnx = pytest.importorskip("onnx", reason="writes the model file")
    model = onnx.load(model_files()[0])
    (entry,) = (entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    spec = ModelSpec.from_json(entry.value)
    accuracy = {"a": {"accuracy": float("nan"), "count": [float("inf")]}}
    entry.value = dataclasses.replace(spec, accuracy=accuracy).to_json()
    (tmp_path / "odd.onnx").write_bytes(seal(model.SerializeToString()))

    def reject(name: str) -> None:
        raise AssertionError(name)

    out, _ = run("info", tmp_path / "odd.onnx", "--json")
    assert json.loads(out, parse_constant=reject)["accuracy"] == {"a": {"accuracy": None, "count": [None]}}
    assert '"count": [null]' in run("info", tmp_path / "odd.onnx")[0]


# No home folder, as an unknown user has in a container.


@pytest.mark.slow
def test_a_user_without_a_home(faces):
    program = "import os, pwd; from fmengine.cli import main\n"
    program += "def nobody(number): raise KeyError(number)\n"
    program += "pwd.getpwuid = nobody\n"
    environ = environment()
    for name in ("HOME", "FMENGINE_CACHE", "XDG_CACHE_HOME"):
        environ.pop(name, None)

    def answered(*arguments: str) -> tuple[str, str]:
        command = [sys.executable, "-c", program + "main()", *arguments]
        done = subprocess.run(command, capture_output=True, env=environ, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    told = "there is no home folder to keep a cache in; set FMENGINE_CACHE to a folder of your own"
    (problem,) = json.loads(answered("doctor", "--json")[0])["problems"]
    assert problem.startswith(told)
    out, err = answered("--log-json", "infer", "faces/a.png")
    assert out.startswith("faces/a.png  ")
    assert find_spec("openvino") is None or f"the fastest backend cannot be remembered: {told}" in err


@pytest.mark.slow
def test_a_home_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    out, _ = run("doctor", FMENGINE_CACHE=str(tmp_path / "file" / "cache"))
    assert f"problem: cannot use the cache folder {tmp_path}/file/cache: Not a directory" in out


# Files that are written.


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("x.txt", "the name must end in .json"),
        ("missing/x.json", "there is no folder missing"),
        ("old.json", "old.json exists; replace it with --overwrite"),
        ("folder.json", "it is not a regular file"),
    ],
)
def test_doctor_checks_its_output_before_it_works(tmp_path, name, told):
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "old.json").write_text("precious")
    err = refused("doctor", "--output", name, cwd=tmp_path)
    assert told in err
    assert (tmp_path / "old.json").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["folder.json", "old.json"]


@pytest.mark.slow
def test_doctor_replaces_its_output_where_it_may(tmp_path):
    (tmp_path / "old.json").write_text("old")
    out, _ = run("doctor", "--json", "--output", "old.json", "--overwrite", cwd=tmp_path)
    assert (tmp_path / "old.json").read_text() == out


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("x.txt", "the name must end in .jsonl or .csv or .parquet"),
        ("missing/x.jsonl", "there is no folder missing"),
        ("faces/a.png/x.jsonl", "there is no folder faces/a.png"),
        ("folder.jsonl", "it is not a regular file"),
    ],
)
def test_infer_checks_its_output_before_it_works(faces, name, told):
    """Before a model is loaded, and before anything is read: the list would never end."""
    Path("folder.jsonl").mkdir()
    read, write = os.pipe()
    command = [*COMMAND, "infer", "-", "--model", "missing.onnx", "--overwrite", "--output", name]
    done = subprocess.run(command, stdin=read, capture_output=True, env=environment(), timeout=60)
    os.close(write)
    assert done.returncode == 2
    assert told in done.stderr.decode()
    assert sorted(os.listdir()) == ["faces", "folder.jsonl"]


def test_a_decoder_on_the_gpu_is_not_isolated(faces):
    assert "leave --jpeg gpu out" in refused("infer", faces, "--isolate", "--jpeg", "gpu")


@pytest.mark.slow
def test_labels_that_are_columns_of_a_csv(faces):
    onnx = pytest.importorskip("onnx", reason="writes the model file")
    model = onnx.load(model_files()[0])
    (entry,) = (entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    entry.value = dataclasses.replace(ModelSpec.from_json(entry.value), labels=("error", "reason")).to_json()
    Path("odd.onnx").write_bytes(seal(model.SerializeToString()))
    arguments = ["infer", faces, "--model", "odd.onnx", "--output"]
    err = refused(*arguments, "x.csv")
    assert "a CSV file has a column 'reason' already" in err
    assert "choose .jsonl or .parquet" in err
    assert not Path("x.csv").exists()
    _, err = run(*arguments, "x.jsonl", "--report", "x.html")  # also where a label is called `error`
    assert re.match(r"6 pictures: (\d (error|reason), ){1,2}0 failed; not to be trusted: 6 flat\n", err)


def test_reasons_are_counted(faces, portrait):
    _, err = run("infer", portrait, "faces/a.png", "faces/b.jpg", "missing.png", code=3)
    assert re.match(r"4 pictures: .*, 1 failed; not to be trusted: 2 flat\n", err)
    assert "trusted" not in run("infer", portrait)[1]


def test_damaged_model(tmp_path):
    data = bytearray(model_files()[0].read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "damaged.onnx").write_bytes(data)
    for command in (["info", "damaged.onnx"], ["infer", "a.png", "--model", "damaged.onnx"]):
        assert "is damaged" in refused(*command, cwd=tmp_path)


def test_debug_shows_where():
    for arguments in (["--debug", "infer"], ["infer", "--debug"]):
        _, err = run(*arguments, "a.png", "--model", "resnet", code=2)
        assert "Traceback" in err
        assert "ModelError" in err
    assert refused("infer", "a.png", "--model", "resnet").startswith("fmengine: no model 'resnet'")


def test_no_colour_on_a_terminal_either(faces):
    """With NO_COLOR also a terminal gets plain text."""
    main, other = os.openpty()
    command = [*COMMAND, "infer", "faces", "--unknown"]
    subprocess.run(command, stdout=other, stderr=other, env=environment(NO_COLOR="1"))
    os.close(other)
    assert b"\x1b[" not in os.read(main, 65536)
    os.close(main)


@pytest.mark.slow
def test_a_bar_where_somebody_sees_it_and_nothing_else_is_written(faces):
    def seen(*arguments: str, rows_too: bool = False) -> str:
        main, other = os.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("4H", 24, 120, 0, 0))  # no bar without a width
        out = other if rows_too else subprocess.DEVNULL
        done = subprocess.run([*COMMAND, *arguments], stdout=out, stderr=other, env=environment())
        assert done.returncode == 0
        os.close(other)
        text = os.read(main, 65536).decode()
        os.close(main)
        return text

    count = len(list(faces.iterdir()))
    assert re.search(rf"\b{count} pictures \[00:", seen("infer", "faces", "--output", "x.jsonl"))
    files = [str(path) for path in faces.glob("*.*")]
    assert f" {len(files)}/{len(files)} [00:" in seen("infer", *files), "the total is known where all are files"
    run("infer", *files[:2], "--output", "y.jsonl")
    resumed = seen("infer", *files, "--output", "y.jsonl", "--resume")
    assert f" 2/{len(files)} [00:" in resumed
    assert f" {len(files)}/{len(files)} [00:" in resumed
    assert "pictures [" in seen("infer", "faces")
    assert "pictures [" not in seen("infer", "faces", rows_too=True)
    assert "pictures [" not in seen("--log-json", "infer", "faces")


@pytest.mark.slow
def test_unsure_answers_and_other_options_on_resume(faces):
    run("infer", faces, "--output", "x.jsonl", "--unsure-below", "1")
    assert {row["label"] for row in map(json.loads, Path("x.jsonl").read_text().splitlines())} == {"unsure"}
    _, err = run("infer", faces, "--output", "x.jsonl", "--resume", code=2)
    assert "it was made with unsure_below 1.0, now it is 0.0" in err
    run("infer", faces, "--unsure-below", "recommended")
    for wrong in ("2", "-1", "nan", "often"):
        _, err = run("infer", faces, "--unsure-below", wrong, code=2)
        assert "expected a confidence from 0 to 1, or `recommended`" in err


# Limits, isolation and logs.


def log_lines(err: str) -> list[dict]:
    return [json.loads(line) for line in err.splitlines()]


@pytest.mark.parametrize(
    ("option", "kind"),
    [(["--max-pixels", "255"], "too_large"), (["--max-bytes", "40"], "file_too_large")],
    ids=["pixels", "bytes"],
)
@pytest.mark.parametrize("more", quick_first([[], ["--isolate"]]), ids=["plain", "isolated"])
def test_limits_are_settable(faces, option, kind, more):
    out, _ = run("infer", faces / "a.png", "--json", *option, *more, code=3)
    assert json_rows(out)[0]["error"]["kind"] == kind
    run("infer", faces / "a.png", "--max-pixels", "256", "--max-bytes", "1K", *more)


@pytest.mark.slow
def test_a_higher_limit_than_pillows(tmp_path):
    """180 million pixels in 200 kB: beyond where Pillow refuses by itself."""
    Image.new("1", (15_000, 12_000)).save(tmp_path / "large.png")
    out, _ = run("infer", tmp_path / "large.png", "--json", code=3)
    assert json_rows(out)[0]["error"]["kind"] == "too_large"
    for more in ([], ["--isolate"]):
        run("infer", tmp_path / "large.png", "--max-pixels", "200000000", *more)


@pytest.mark.slow
def test_isolation_changes_no_row(faces):
    (faces / "broken.png").touch()
    run("infer", faces, "--output", "plain.jsonl", code=3)
    run("infer", faces, "--output", "isolated.jsonl", "--isolate", "--report", "x.html", code=3)
    assert Path("isolated.jsonl").read_text() == Path("plain.jsonl").read_text()
    assert len(Page(Path("x.html")).thumbnails) == len(NAMES)


def test_limits_of_workers_need_workers(faces):
    assert "add it" in refused("infer", faces, "--max-seconds", "3")
    assert "add it" in refused("infer", faces, "--max-memory", "1G")


@pytest.mark.parametrize("size", ["", "0", "-1", "1.5G", "1T", "many"])
def test_sizes_that_are_none(faces, size):
    assert "such as 300000, 64M or 2G" in refused("infer", faces, "--max-bytes", size)


@pytest.mark.slow
def test_other_limits_on_resume_are_refused(faces):
    run("infer", faces, "--output", "x.jsonl")
    options = ["--output", "x.jsonl", "--resume"]
    assert "max_pixels" in refused("infer", faces, *options, "--max-pixels", "1000")
    assert "max_bytes" in refused("infer", faces, *options, "--max-bytes", "1M")
    run("infer", faces, *options, "--isolate")  # which is what one wants after a crash


@pytest.mark.parametrize("in_flight", quick_first(["2", "1", "5"]))
def test_pictures_in_flight(faces, in_flight):
    out, _ = run("infer", faces, "--in-flight", in_flight)
    assert out == run("infer", faces)[0]


def test_json_lines_on_stderr(faces):
    (faces / "broken.png").touch()
    out, err = run("infer", faces, "--output", "x.jsonl", "--log-json", code=3)
    assert out == ""
    lines = log_lines(err)
    assert all(line.keys() >= {"time", "level", "logger", "message"} for line in lines)
    assert [(line["path"], line["kind"]) for line in lines if "kind" in line] == [("faces/broken.png", "empty")]
    assert lines[0]["message"] == "model loaded"
    assert lines[0]["backend"] == "onnxruntime"
    assert len(lines[0]["model_sha256"]) == 64
    (summary,) = (line for line in lines if "pictures" in line)
    assert summary["pictures"] == len(NAMES) + 1
    assert summary["failed"] == 1
    assert sum(summary["counts"].values()) == len(NAMES)


@pytest.mark.parametrize("place", [0, 1], ids=["before", "after"])
def test_errors_are_json_lines_too(faces, place):
    arguments: list[object] = ["infer", faces, "--model", "missing.onnx"]
    arguments.insert(place, "--log-json")
    (line,) = log_lines(refused(*arguments))
    assert (line["level"], line["error"], line["exit_code"]) == ("error", "ModelError", 2)
    (line,) = log_lines(refused("infer", "--log-json"))
    assert (line["level"], line["exit_code"]) == ("error", 2)
    (line,) = log_lines(run("infer", faces, "--model", "missing.onnx", "--log-json", "--debug", code=2)[1])
    assert "Traceback" in line["traceback"]


def broken_tiff() -> bytes:
    """A picture of which libtiff complains on stderr by itself."""
    import io

    buffer = io.BytesIO()
    Image.new("L", (64, 64), 9).save(buffer, "TIFF", compression="tiff_lzw")
    data = bytearray(buffer.getvalue())
    data[9:13] = b"\xff" * 4  # of the codes, which follow the header
    return bytes(data)


@pytest.mark.slow
def test_decoders_in_c_are_not_heard(faces):
    (faces / "broken.tif").write_bytes(broken_tiff())
    _, loud = run("infer", faces, "--output", "x.jsonl", "--debug", code=3)
    _, err = run("infer", faces, "--output", "y.jsonl", code=3)
    assert "LZWDecode" in loud, "it does complain"
    assert re.fullmatch(rf"{len(NAMES) + 1} pictures: .*\nrows: y\.jsonl\n", err)


def test_a_full_disk_behind_stdout(faces):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, "infer", faces], stdout=full, stderr=subprocess.PIPE, env=environment(), timeout=120
        )
    assert done.returncode == 2
    assert done.stderr.decode() == (
        "fmengine: cannot write to stdout: No space left on device; rows printed before it are whole\n"
    )


@pytest.mark.slow
def test_a_folder_that_goes_away_under_the_output(faces):
    """Rows go on into the file that nobody finds any more; what cannot be kept is said."""
    Path("out").mkdir()
    for number in range(3000):
        os.link(faces / "a.png", faces / f"x{number}.png")
    process = subprocess.Popen(
        [*COMMAND, "infer", faces, "--output", "out/x.jsonl", "--batch-size", "1"],
        stderr=subprocess.PIPE,
        env=environment(),
    )
    while not Path("out/x.jsonl").exists() and process.poll() is None:
        time.sleep(0.002)
    while Path("out").exists():  # files come and go in it meanwhile
        shutil.rmtree("out", ignore_errors=True)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert b"cannot write out/x.jsonl: No such file or directory" in err
    assert b"Traceback" not in err


def test_unsure_answers_on_a_report(faces):
    run("infer", faces, "--unsure-below", "1", "--report", "x.html")
    assert [card["answer"] for card in Page(Path("x.html")).cards] == ["unsure"] * len(NAMES)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:::PIL")
def test_hostile_images_as_one_folder(hostile_images, tmp_path):
    """One row a file, exit 3, memory within bounds, and an answer for all that Pillow opens."""
    output = tmp_path / "x.jsonl"
    command = [*COMMAND, "infer", "--batch", hostile_images, "--output", output]
    # Through a process of its own: what is forked here counts what this one had at its most.
    program = "import os, subprocess, sys; _, status, used = os.wait4(subprocess.Popen(sys.argv[1:]).pid, 0); "
    program += "print(os.waitstatus_to_exitcode(status), used.ru_maxrss)"
    done = subprocess.run(
        [sys.executable, "-c", program, *command], capture_output=True, text=True, env=environment(), timeout=120
    )
    code, kilobytes = map(int, done.stdout.split())
    assert code == 3
    assert kilobytes * 1024 < 600e6
    files = sorted(str(path) for path in hostile_images.rglob("*") if path.is_file())
    rows = json_rows(output.read_text())
    assert sorted(row["path"] for row in rows) == files
    assert len(done.stderr.splitlines()) == 2
    with fmengine.Engine.load() as engine:
        for row in rows:
            pixels = definition(Path(row["path"]).read_bytes(), "gray", fmengine.Limits())
            if pixels is None:
                # Pillow opens LAB, and does not convert it.
                assert row["error"] or "lab" in row["path"].lower()
            else:
                answer = engine.predict(pixels)
                assert row["label"] == answer.label, row
                assert row["probabilities"] == {k: round(p, 6) for k, p in answer.probabilities.items()}
