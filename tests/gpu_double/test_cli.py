"""The command line over the test double, as a shell sees it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from . import shuffles
from .conftest import environment

pytestmark = [pytest.mark.outside, pytest.mark.slow]


def run(*arguments: object, code: int = 0, **more: str) -> tuple[str, str]:
    command = [sys.executable, "-m", "fmengine", *map(str, arguments)]
    done = subprocess.run(command, env=environment() | more, capture_output=True, text=True, timeout=200)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """100 pictures, JPEG and PNG, and one that is none."""
    for index, pixels in enumerate(shuffles.pictures(100)):
        ending = "jpg" if index % 2 else "png"
        Image.fromarray(pixels).save(tmp_path / f"{index:03}.{ending}", quality=95)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    return tmp_path


def test_infer_gives_the_cpus_rows_in_two_orders(folder):
    """A file's bytes too: what the CPU decodes is the same for both."""
    options = ["infer", "--json", "--model", shuffles.FP16, "--batch", folder]
    rows = {}
    for seed, backend in ((0, "onnxruntime"), (1, "tensorrt"), (2, "tensorrt")):
        out, _ = run(*options, "--backend", backend, "--batch-size", 16, code=3, GPU_DOUBLE_SEED=str(seed))
        rows[seed] = [json.loads(line) for line in out.splitlines()]
        assert len(rows[seed]) == 101
    for seed in (1, 2):
        for row, right in zip(rows[seed], rows[0], strict=True):
            assert (row["path"], row["label"]) == (right["path"], right["label"])
            if row["error"] is None:
                np.testing.assert_allclose(row["confidence"], right["confidence"], atol=1e-6)


def test_infer_on_a_gpu_that_is_not_there(folder):
    options = ["infer", "--batch", folder, "--backend", "tensorrt", "--device", 5]
    out, err = run(*options, code=4)
    assert out == ""
    assert "no GPU 5: this machine has 2, numbered from 0" in err


def test_an_exported_engine_is_run_and_what_keeps_it_from_running_is_one_line(folder, tmp_path):
    """Exit codes: 4 where this machine is another, 2 where the file is at fault."""
    out, _ = run("export", shuffles.FP16, "--to", "tensorrt", "--output", tmp_path / "engines")
    engine = Path(out.strip())
    options = ["infer", folder / "000.png", "--model", engine]
    assert run(*options)[0].count("\n") == 1
    out, _ = run("eval", engine, write_labelled(tmp_path, folder), "--json")
    assert json.loads(out)[0]["count"] == 8
    out, _ = run("doctor", "--model", engine, "--json")
    backends = {row["backend"]: row for row in json.loads(out)["backends"]}
    assert backends["tensorrt"]["chosen"]
    assert "is an engine of tensorrt, which onnxruntime does not run" in backends["onnxruntime"]["detail"]

    def check_error(*options: object, code: int, message: str) -> None:
        out, err = run(*options, code=code)
        assert out == ""
        assert message in err
        assert err.count("\n") == 1

    check_error(*options, "--device", 1, code=4, message="here is tensorrt 11.4.0.106 with test double 1")
    check_error(*options, "--backend", "onnxruntime", code=2, message="an engine of tensorrt, which onnxruntime")
    engine.chmod(0o666)
    check_error(*options, code=2, message="--allow-untrusted-engine")
    check_error("eval", engine, tmp_path / "labelled", code=2, message="--allow-untrusted-engine")
    assert run(*options, "--allow-untrusted-engine")[0].count("\n") == 1
    engine.write_bytes(engine.read_bytes()[:-1])
    check_error(*options, "--allow-untrusted-engine", code=2, message="cut short or altered")


def write_labelled(root: Path, pictures: Path) -> Path:
    """A folder of pictures for each label."""
    for index, label in enumerate(("happy", "sad")):
        (root / "labelled" / label).mkdir(parents=True)
        for number in range(index, 8, 2):
            name = f"{number:03}.{'jpg' if number % 2 else 'png'}"
            (root / "labelled" / label / name).write_bytes((pictures / name).read_bytes())
    return root / "labelled"


def test_doctor_tells_what_works_and_what_auto_takes():
    out, _ = run("doctor", "--json")
    document = json.loads(out)
    backends = {row["backend"]: row for row in document["backends"]}
    assert backends["tensorrt"]["works"]
    (chosen,) = [name for name, row in backends.items() if row["chosen"]]
    assert "test double 0" in backends["tensorrt"]["detail"]
    details = [row["detail"] for row in backends.values()]
    assert any(f"works; {chosen} is taken: of many it answers" in detail for detail in details)
    assert "without the CUDA provider" in backends["onnxruntime-cuda"]["detail"]
    assert run("doctor", "--backend", "onnxruntime-cuda", code=4)


def test_verify_writes_a_report_that_never_says_more_than_was_run(tmp_path):
    report = tmp_path / "report.json"
    options = ["doctor", "--verify", "--backend", "tensorrt", "--soak", "0.5", "--pictures", "100"]
    _, err = run(*options, "--output", report, code=1)  # compute-sanitizer is not here
    verification = json.loads(report.read_text())["verification"]
    assert verification["verdict"] == "incomplete"
    verdicts = {proof["name"]: proof["verdict"] for proof in verification["proofs"]}
    assert [name for name, verdict in verdicts.items() if verdict == "not run"] == [
        f"preprocessing kernel under compute-sanitizer {tool}" for tool in ("memcheck", "racecheck", "initcheck")
    ]
    assert set(verdicts.values()) == {"passed", "not run"}
    assert "verification incomplete" in err


def test_verify_without_a_gpu_runs_nothing_and_says_why(tmp_path):
    report = tmp_path / "report.json"
    run("doctor", "--verify", "--output", report, code=4, GPU_DOUBLE="devices=0")
    verification = json.loads(report.read_text())["verification"]
    assert {proof["verdict"] for proof in verification["proofs"]} == {"not run"}
    assert "CUDA_ERROR_NO_DEVICE" in verification["proofs"][0]["detail"]


def test_verify_refuses_a_cpu_backend():
    _, err = run("doctor", "--verify", "--backend", "onnxruntime", code=2)
    assert "runs on the CPU; --verify proves tensorrt, tensorrt-rtx, onnxruntime-cuda" in err
