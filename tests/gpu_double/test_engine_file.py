"""What `fmengine export` writes is run, on what it was built for, if nobody else can have written it."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from fmengine import Engine, ModelError
from fmengine.cli.infer import infer
from fmengine.cli.info import info
from fmengine.errors import BackendError, RefusedModelError, UnavailableError
from fmengine.model.engine_file import UntrustedEngineError
from fmengine.model.file import load_model_file
from fmengine.options import BackendOptions
from fmengine.system.manifest import pack
from fmengine_bench import on_gpu, verdict
from fmengine_export.cli import export

from ..params import quick_first
from . import driver, shuffles

if driver.FOUND:
    from fmengine.gpu.tensorrt import TensorRtBackend

    from . import tensorrt_double

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nothing_is_left")]
BOTH = quick_first(["tensorrt", "tensorrt-rtx"])
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
MANY = 200  # operations of the driver: the gate alone runs over 200, a load without it about 100


@pytest.fixture
def never_loaded(monkeypatch):
    """No byte of any engine reaches TensorRT."""
    if driver.FOUND:
        reached = lambda *_: pytest.fail("an engine was deserialised")  # noqa: E731
        monkeypatch.setattr(tensorrt_double.Runtime, "deserialize_cuda_engine", reached)


def write_engine(folder: Path, form: str = "tensorrt", *options: object) -> Path:
    """Export the shipped model as an engine, for batches of 16 at most."""
    arguments = [shuffles.FP16, "--to", form, "--max-batch", 16, "--output", folder, *options]
    result = CliRunner().invoke(export, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.exception
    return Path(result.stdout.strip())


def check_runs(path: Path, count: int = 10, **options) -> None:
    with Engine.load(path, **options) as engine:
        shuffles.check(list(engine.predict_many(shuffles.pictures(count))), count)


# Answers


@pytest.mark.parametrize("form", BOTH)
def test_an_exported_engine_has_the_cpus_answers(form, tmp_path):
    path = write_engine(tmp_path, form)
    builds = tensorrt_double.Builder.builds
    for seed in range(3):
        driver.shuffle(seed)
        with Engine.load(str(path)) as engine:
            assert (engine.backend.name, engine.spec.labels) == (form, ("happy", "sad"))
            assert [attempt.name for attempt in engine.attempts] == [form]
            shuffles.check(list(engine.predict_many(shuffles.pictures(60))), 60)
            shuffles.check([engine.predict(shuffles.pictures(1)[0])], 1)
    assert tensorrt_double.Builder.builds == builds  # it is never built again


def test_its_own_largest_batch_holds(tmp_path):
    path = write_engine(tmp_path)
    with Engine.load(path, max_batch=64) as large, Engine.load(path, max_batch=4) as small:
        assert (large.max_batch, small.max_batch) == (16, 4)
        for engine in (large, small):
            shuffles.check(list(engine.predict_many(shuffles.pictures(40))), 40)


def test_infer_takes_it_as_a_model(tmp_path):
    path = write_engine(tmp_path)
    for index, pixels in enumerate(shuffles.pictures(20)):
        Image.fromarray(pixels).save(tmp_path / f"{index:02}.png")
    rows = {}
    for model in (path, shuffles.FP16):
        options = ["--json", "--model", model, "--backend", "auto" if model == path else "onnxruntime"]
        result = CliRunner().invoke(infer, [*map(str, options), *map(str, sorted(tmp_path.glob("*.png")))])
        assert result.exit_code == 0, result.output
        rows[model] = [json.loads(line) for line in result.stdout.splitlines()]
    for row, right in zip(rows[path], rows[shuffles.FP16], strict=True):
        assert (row["path"], row["label"]) == (right["path"], right["label"])
        assert row["confidence"] == pytest.approx(right["confidence"], abs=shuffles.NEAR)


def test_bench_judges_and_opens_it_again(tmp_path, monkeypatch):
    """By the bytes that run: the file may be gone, or another, meanwhile."""
    path = write_engine(tmp_path)
    path.chmod(0o666)
    pictures = []
    for index, pixels in enumerate(shuffles.pictures(6)):
        pictures.append(str(tmp_path / f"{index}.png"))
        Image.fromarray(pixels).save(pictures[-1])
    monkeypatch.setattr(on_gpu, "EVENTS", 1)
    monkeypatch.setattr(on_gpu, "STREAMS", (1,))
    with Engine.load(path, allow_untrusted_engine=True) as engine:
        path.unlink()
        assert verdict.judge(engine, pictures).passed
        assert "tensorrt, graphs, 1 stream" in {
            way.name for way in on_gpu.measure_ways(engine, 2, lambda _: None, turn=0.001)
        }


def test_info_says_what_it_is_and_runs_nothing_of_it(tmp_path, never_loaded):
    path = write_engine(tmp_path)
    path.chmod(0o666)
    result = CliRunner().invoke(info, [str(path), "--json"])
    document = json.loads(result.stdout)
    assert (document["labels"], document["precision"]) == (["happy", "sad"], "fp16")
    engine = document["engine"]
    assert (engine["backend"], engine["max_batch"]) == ("tensorrt", "16")
    assert "built by tensorrt 11.4.0.106 for test double 0, compute capability 8.6, " in engine["engine"]
    assert "no: cannot trust" in engine["trusted"]
    path.chmod(0o600)
    assert "yes: only you can have written it" in CliRunner().invoke(info, [str(path)]).stdout


# The machine that it is for


def check_names_both(path: Path, *parts: str, **options) -> None:
    """Loading is one error that the machine is another, with these parts in this order."""
    with pytest.raises(UnavailableError) as caught:
        Engine.load(path, **options)
    words = str(caught.value)
    positions = [words.index(part) for part in parts]
    assert positions == sorted(positions), words
    assert caught.value.exit_code == 4
    assert "\n" not in words


def test_on_another_gpu_both_are_named(tmp_path, never_loaded):
    path = write_engine(tmp_path)
    there, here = "test double 0, compute capability 8.6", "test double 1, compute capability 8.9"
    again = f"Build it again here: fmengine export {path} --to tensorrt"
    check_names_both(path, there, "here is", here, again, device=1)


def test_ahead_of_time_it_runs_on_the_gpus_that_it_was_built_for(tmp_path):
    one = write_engine(tmp_path, "tensorrt-rtx", "--compute-capability", "8.9")
    check_names_both(one, "compute capability 8.9", "here is", "test double 0, compute capability 8.6", device=0)
    both = write_engine(tmp_path, "tensorrt-rtx", "--compute-capability", "8.6,8.9")
    check_runs(both, device=0)
    check_runs(both, device=1)


@pytest.mark.parametrize("form", BOTH)
def test_with_another_version_both_are_named(form, tmp_path, monkeypatch, never_loaded):
    path = write_engine(tmp_path, form)
    module = sys.modules[MODULES[form]]
    built = f"{module.__name__} {module.__version__}"
    version = {"tensorrt": "10.13.3.9", "tensorrt-rtx": "1.8.0.1"}[form]
    monkeypatch.setattr(module, "__version__", version)
    check_names_both(path, f"was built by {built} for", f"here is {module.__name__} {version} with")


def test_it_can_be_built_again_from_its_own_file(tmp_path, monkeypatch):
    path = write_engine(tmp_path)
    monkeypatch.setattr(sys.modules["tensorrt"], "__version__", "10.13.3.9")
    arguments = [str(path), "--to", "tensorrt", "--output", str(tmp_path), "--overwrite"]
    assert CliRunner().invoke(export, arguments).exit_code == 0
    check_runs(path)


def test_what_tensorrt_does_not_load_is_never_built_again(tmp_path, monkeypatch):
    """Ahead of time for the library's own choice of GPUs, it alone knows whether this is one of them."""
    path = write_engine(tmp_path, "tensorrt-rtx")
    monkeypatch.setitem(tensorrt_double.faults, "deserialize", True)
    builds = tensorrt_double.Builder.builds
    with pytest.raises(BackendError, match=r"by tensorrt_rtx .* for many GPUs .*, on test double 0, .*Its log"):
        Engine.load(path)
    assert tensorrt_double.Builder.builds == builds


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime-cuda", "tensorrt-rtx"])
def test_another_backend_is_an_error_that_names_both(name, tmp_path, never_loaded):
    path = write_engine(tmp_path)
    with pytest.raises(RefusedModelError, match=f"is an engine of tensorrt, which {name} does not run"):
        Engine.load(path, name)


# The gate


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("form", BOTH)
def test_the_gate_is_passed_once_on_each_gpu(form, tmp_path):
    path = write_engine(tmp_path, form, *(["--compute-capability", "8.6,8.9"] if form == "tensorrt-rtx" else []))
    operations = []
    for device in (0, 0, *([1, 1] if form == "tensorrt-rtx" else [])):
        before = driver.count("operations")
        check_runs(path, device=device)
        operations.append(driver.count("operations") - before > MANY)
    assert operations == [True, False] * (len(operations) // 2)


@pytest.mark.usefixtures("own_cache")
def test_an_engine_that_answers_otherwise_is_refused_each_time(tmp_path, monkeypatch):
    path = write_engine(tmp_path)
    monkeypatch.setitem(tensorrt_double.faults, "skew", np.float32([0.02, -0.02]))
    for _ in range(2):
        with pytest.raises(BackendError, match=r"the engine is refused\. profile 0, batches of 1") as caught:
            Engine.load(path)
        assert caught.value.exit_code == 1
    monkeypatch.delitem(tensorrt_double.faults, "skew")
    check_runs(path)


@pytest.mark.usefixtures("own_cache")
def test_without_a_reference_on_the_cpu_the_gate_is_not_skipped(tmp_path, monkeypatch):
    path = write_engine(tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UnavailableError, match="onnxruntime"):
        Engine.load(path)


# Trust


def alter(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def take_manifest_off(path: Path) -> None:
    path.write_bytes(path.read_bytes().partition(b"\n")[2])


def take_manifest_of_another(path: Path) -> None:
    other = write_engine(path.parent, "tensorrt-rtx", "--max-batch", 8)
    manifest = other.read_bytes().partition(b"\n")[0]
    path.write_bytes(manifest + b"\n" + path.read_bytes().partition(b"\n")[2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: alter(path, -1), "cut short or altered"),
        (lambda path: alter(path, 5000), "cut short or altered"),  # in the model file
        (lambda path: alter(path, 0), "it has no manifest"),
        (cut, "cut short or altered"),
        (take_manifest_off, "it has no manifest; it was not built by fmengine"),
        (take_manifest_of_another, "cut short or altered"),
        (lambda path: path.write_bytes(b""), "it has no manifest"),
        (lambda path: path.write_bytes(pack({"gpu": "any"}, b"x")), "its manifest is of another form"),
        (Path.unlink, "no such file"),
    ],
)
@pytest.mark.parametrize("allowed", [False, True])
def test_what_is_not_whole_is_refused_whatever_is_allowed(damage, message, allowed, tmp_path, never_loaded):
    path = write_engine(tmp_path)
    damage(path)
    with pytest.raises(ModelError, match=message) as caught:
        Engine.load(path, allow_untrusted_engine=allowed)
    assert caught.value.exit_code == 2


def let_group_write(path: Path) -> Path:
    path.chmod(0o660)
    return path


def let_others_write_the_folder(path: Path) -> Path:
    path.parent.chmod(0o777)
    return path


def give_away(path: Path) -> Path:
    try:
        os.chown(path, 12345, -1)
    except PermissionError:
        pytest.skip("only root can give a file to another user")
    return path


def link(path: Path) -> Path:
    made = path.with_name("link.engine")
    made.symlink_to(path)
    return made


def link_folder(path: Path) -> Path:
    made = path.parent.with_name("linked")
    made.symlink_to(path.parent)
    return made / path.name


@pytest.mark.parametrize(
    ("expose", "reason"),
    [
        (let_group_write, "others may write it"),
        (let_others_write_the_folder, "others may write it"),
        (give_away, "it belongs to user 12345, and this process runs as"),
        (link, "cannot trust .*link.engine: Too many levels of symbolic links"),
        (link_folder, "cannot trust the folder .*linked: Not a directory"),
    ],
)
def test_what_others_could_have_written_runs_only_where_that_is_allowed(expose, reason, tmp_path, monkeypatch):
    (tmp_path / "engines").mkdir(mode=0o700)
    path = expose(write_engine(tmp_path / "engines"))
    with monkeypatch.context() as patch:
        reached = lambda *_: pytest.fail("an engine was deserialised")  # noqa: E731
        patch.setattr(tensorrt_double.Runtime, "deserialize_cuda_engine", reached)
        with pytest.raises(UntrustedEngineError, match=reason) as caught:
            Engine.load(path)
    assert "executable code and runs with all your rights" in str(caught.value)
    assert "--allow-untrusted-engine (allow_untrusted_engine=True)" in str(caught.value)
    assert caught.value.exit_code == 2
    check_runs(path, allow_untrusted_engine=True)


def test_a_backend_that_is_opened_directly_asks_too(tmp_path, never_loaded):
    path = write_engine(tmp_path)
    path.chmod(0o666)
    with pytest.raises(UntrustedEngineError, match="others may write it"):
        TensorRtBackend.open(load_model_file(path), BackendOptions())
