"""The GPU backends over the test double: the real pycuda, the real kernel compiled for the CPU, real threads."""

import gc
import json
import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from fmengine import Engine, Failure, FmengineError, Isolation, Prediction, SourceError
from fmengine.backend.registry import open_backend
from fmengine.check.gate import draw_gate_pictures
from fmengine.cli.infer import infer
from fmengine.errors import BackendError, DeviceError, ModelError, NoRoomError, UnavailableError
from fmengine.gpu.copier import Copier
from fmengine.model.file import load_model_file
from fmengine.options import BackendOptions
from fmengine.types import PackedImages
from fmengine_bench import bench, on_gpu
from fmengine_bench.bench_text import as_text
from fmengine_bench.drawn import draw_pictures
from fmengine_bench.limits import Best, Peak
from fmengine_bench.scenarios import Server
from fmengine_bench.timing import estimate_median
from tests.engine.processes import start_workers

from . import driver, shuffles

if driver.FOUND:
    from fmengine.gpu.runner import Runner
    from fmengine.gpu.tensorrt import TensorRtBackend

    from . import onnxruntime_double, tensorrt_double

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nothing_is_left")]
FILE = load_model_file(shuffles.FP16)


def load(**options) -> Engine:
    return Engine.load(shuffles.FP16, "tensorrt", **({"max_batch": 16} | options))


@contextmanager
def backend(file=FILE, **options):
    opened = TensorRtBackend.open(file, BackendOptions(**({"max_batch": 16} | options)))
    try:
        yield opened
    finally:
        opened.close()


def images(count: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, FILE.spec.input_shape(count), np.uint8)


# Answers


def test_infer_gives_the_cpus_rows_for_100_pictures_in_20_orders(tmp_path):
    """`fmengine infer`, as the shell calls it; half of the files are JPEG."""
    for index, pixels in enumerate(shuffles.pictures(100)):
        Image.fromarray(pixels).save(tmp_path / f"{index:03}.{'jpg' if index % 2 else 'png'}", quality=95)

    def rows(backend: str, batch: int) -> list[dict]:
        options = ["--json", "--model", str(shuffles.FP16), "--batch", str(tmp_path), "--batch-size", str(batch)]
        result = CliRunner().invoke(infer, [*options, "--backend", backend])
        assert result.exit_code == 0, result.output
        return [json.loads(line) for line in result.stdout.splitlines()]

    wanted = rows("onnxruntime", 64)
    assert len(wanted) == 100
    for seed in range(20):
        print(f"seed {seed}")
        driver.shuffle(seed)
        for row, right in zip(rows("tensorrt", 16 if seed % 2 else 7), wanted, strict=True):
            assert (row["path"], row["label"], row["error"]) == (right["path"], right["label"], None)
            assert row["confidence"] == pytest.approx(right["confidence"], abs=shuffles.NEAR)


@pytest.mark.parametrize("name", ["tensorrt-rtx", "onnxruntime-cuda"])
def test_the_other_backends_have_the_cpus_answers_too(name, monkeypatch):
    if name == "onnxruntime-cuda":
        from . import onnxruntime_double

        onnxruntime_double.install(monkeypatch)
    for seed in range(3):
        shuffles.shuffle(seed, 100, name)


def test_what_onnxruntime_prints_of_runs_that_succeed_reaches_nobody(monkeypatch, capfd):
    onnxruntime_double.install(monkeypatch)
    with load() as _, Engine.load(shuffles.FP16, "onnxruntime-cuda", max_batch=4) as engine:
        shuffles.check(list(engine.predict_many(shuffles.pictures(10))), 10)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["tensorrt-rtx", "onnxruntime-cuda"])
def test_what_makes_its_own_graphs_is_between_two_of_ours(name, monkeypatch):
    onnxruntime_double.install(monkeypatch)
    for graphs in (True, False):
        options = BackendOptions(max_batch=16, graphs=graphs)
        opened, _, _ = open_backend(name, str(shuffles.FP16), options)
        try:
            before = driver.count("graph launches")
            answers = opened.run(images(19))
            launched = driver.count("graph launches") - before
            assert launched == (4 if graphs else 0)  # of 16 and of 3
            said = "batches of 1, 8, 16, around the network" if graphs else "off"
            assert opened.describe()["cuda graphs"] == said
            with backend() as other:
                np.testing.assert_array_equal(answers.logits, other.run(images(19)).logits)
        finally:
            opened.close()


@pytest.mark.parametrize("fault", ["session", "capture"])
def test_where_onnxruntime_makes_no_graph_it_runs_without(fault, monkeypatch):
    onnxruntime_double.install(monkeypatch)
    monkeypatch.setitem(onnxruntime_double.faults, fault, True)
    with Engine.load(shuffles.FP16, "onnxruntime-cuda", max_batch=16) as engine:
        shuffles.check(list(engine.predict_many(shuffles.pictures(40))), 40)
        said = engine.backend.describe()["cuda graphs"]
        if fault == "capture":
            assert said.startswith("none: the network's library cannot make one: ")
        else:
            assert said == "batches of 1, 8, 16, around the network"


def test_a_flat_picture_is_called_flat():
    """From host memory, in any size, among others, and through the pool's parts."""
    flat = [np.full((9, 7), 200, np.uint8), np.zeros((300, 200, 3), np.uint8), np.full((1, 1), 3, np.uint8)]
    with load() as engine:
        mixed = [*shuffles.pictures(9), *flat, *shuffles.pictures(9)]
        reasons = [answer.reason for answer in engine.predict_many(mixed)]
        assert [index for index, reason in enumerate(reasons) if reason == "flat"] == [9, 10, 11]
        assert engine.predict(flat[1]).reason == "flat"


@pytest.mark.parametrize("streams", [1, 2, 3, 4])
@pytest.mark.parametrize("graphs", [True, False])
def test_streams_and_graphs_change_no_bit(streams, graphs):
    batch = images(40)
    with backend() as usual, backend(streams=streams, graphs=graphs) as other:
        for left, right in zip(usual.run(batch), other.run(batch), strict=True):
            np.testing.assert_array_equal(left, right)
        assert other.streams == streams
        assert other.describe()["cuda graphs"] == ("batches of 1, 8, 16" if graphs else "off")


def test_every_batch_is_one_graph_launch():
    with backend() as opened:
        before = driver.count("graph launches")
        for size, more in ((1, 1), (16, 1), (15, 1), (3, 1), (33, 3)):  # 33: two of 16, and one
            opened.run(images(size))
            assert driver.count("graph launches") == before + more, size
            before += more


@pytest.mark.parametrize("size", [1, 15, 16, 17, 100])
def test_no_batch_is_truncated(size):
    with backend() as opened:
        logits, probabilities, features = opened.run(images(size))
        assert logits.shape == probabilities.shape == (size, 2)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
        assert features.shape == (size, FILE.spec.features)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx", "onnxruntime-cuda"])
def test_embeddings_are_the_cpus(name, monkeypatch):
    pictures = shuffles.pictures(40)
    with Engine.load(shuffles.FP16, "onnxruntime") as engine:
        expected = np.stack(list(engine.embed_many(pictures)))
    if name == "onnxruntime-cuda":
        onnxruntime_double.install(monkeypatch)
    for seed in range(2):
        driver.shuffle(seed)
        with Engine.load(shuffles.FP16, name, max_batch=16) as engine:
            found = np.stack(list(engine.embed_many(pictures)))
            np.testing.assert_allclose(found, expected, atol=1e-5)
            assert (engine.embed(pictures[7]) == found[7]).all()


def test_a_picture_has_one_answer_in_any_batch():
    batch = images(40)
    with backend() as opened:
        whole = opened.run(batch).probabilities
        parts = [opened.run(batch[index : index + 1]).probabilities for index in range(40)]
        np.testing.assert_array_equal(whole, np.concatenate(parts))


@pytest.mark.parametrize("shape", [(48, 48), (48, 48, 1), (30, 70, 3), (90, 40, 4)])
@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_an_array_of_images_has_the_answers_of_each(shape, channels):
    stack = np.random.default_rng(4).integers(0, 256, (40, *shape), np.uint8)
    with load() as engine:
        found = engine.predict_batch(stack, channels=channels)
        wanted = [list(engine.predict(image, channels=channels).probabilities.values()) for image in stack]
        np.testing.assert_array_equal(found.probabilities, np.float32(wanted))
        before = driver.count("graph launches")
        engine.predict_batch(stack)
        assert driver.count("graph launches") == before + 3  # two of 16, one of 8


def test_a_picture_too_long_for_one_launch_is_among_others():
    """Its batch takes three launches and no graph; the next one takes the graph again."""
    large = np.random.default_rng(5).integers(0, 256, (1100, 1040), np.uint8)
    small = shuffles.pictures(9)[:5]
    with load() as engine, Engine.load(shuffles.FP16, "onnxruntime") as cpu:
        wanted = cpu.predict(large).confidence
        for mixed in ([large], [*small, large, *small], [large, large]):
            found = [answer.confidence for answer in engine.predict_many(mixed) if isinstance(answer, Prediction)]
            assert len(found) == len(mixed)
            assert found[5 if len(mixed) > 2 else -1] == pytest.approx(wanted, abs=shuffles.NEAR)
        before = driver.count("graph launches")
        engine.predict(small[0])
        assert driver.count("graph launches") == before + 1


def collect_what_was_not_started(runner) -> None:
    runner.stage(images(3)[:, 0])
    runner._answers.expect()
    runner.collect()


@pytest.mark.parametrize("chunk", [1000, 4096])
def test_photographs_are_copied_by_several_threads(chunk, monkeypatch):
    """In lists of one size and of several, and as one array; odd strides too."""
    monkeypatch.setattr("fmengine.gpu.copier.usable_cores", lambda: 4)
    monkeypatch.setattr("fmengine.gpu.copier.CHUNK_BYTES", chunk)
    for module in ("copier", "staging"):
        monkeypatch.setattr(f"fmengine.gpu.{module}.PARALLEL_BYTES", 20_000)
    rng = np.random.default_rng(6)
    same = rng.integers(0, 256, (9, 101, 97, 3), np.uint8)
    several = [rng.integers(0, 256, (70 + 9 * i, 55), np.uint8) for i in range(9)]
    with load() as engine:
        alone = [np.float32(list(engine.predict(image).probabilities.values())) for image in [*same, *several]]
        assert any(thread.name.startswith("fmengine-copy") for thread in threading.enumerate())
        for batch in (list(same), same, same[:, ::-1][:, ::-1], several):
            found = engine.backend.run_pictures(batch)
            np.testing.assert_array_equal(found.probabilities, alone[9:] if batch is several else alone[:9])
    assert not any(thread.name.startswith("fmengine-copy") for thread in threading.enumerate())


def test_answers_of_another_batch_are_an_error():
    """What a GPU that loses a launch would give."""
    with backend() as opened:
        opened.run(images(3))
        with (
            opened.context.use(),
            pytest.raises(DeviceError, match=r"batch \d+ is done, and the answers are those"),
        ):
            opened.pool.with_runner(collect_what_was_not_started)
        assert len(opened.run(images(3)).logits) == 3  # and the next batch is answered


def test_a_picture_that_leads_out_of_its_batch_is_an_error():
    with backend() as opened:
        opened.run(images(3))

        def break_out(runner) -> None:
            stage = runner.preprocessor.staging.stage

            def hijack(pictures, stream) -> None:
                stage(pictures, stream)
                runner.preprocessor.staging._pictures["pixels"][1] = 1 << 30

            runner.preprocessor.staging.stage = hijack
            try:
                runner.run(images(3)[:, 0])
            finally:
                runner.preprocessor.staging.stage = stage

        with (
            opened.context.use(),
            pytest.raises(DeviceError, match="picture 1 of a batch leads out of its memory"),
        ):
            opened.pool.with_runner(break_out)
        assert len(opened.run(images(5)).logits) == 5


def test_a_class_that_there_is_no_room_for_is_left_out(monkeypatch, caplog):
    capture = Runner._capture_class

    def refuse(self, most):
        if most == 16:
            raise NoRoomError("no room for 16")
        return capture(self, most)

    monkeypatch.setattr(Runner, "_capture_class", refuse)
    with backend() as opened:
        assert opened.describe()["cuda graphs"] == "batches of 1, 8"
        assert "batches of 16 run without a CUDA graph: no room for 16" in caplog.text
        assert len(opened.run(images(40)).logits) == 40


def test_threads_share_an_engine():
    with load() as engine, ThreadPoolExecutor(8) as threads:
        wanted = shuffles.expected(100)
        rounds = [threads.submit(lambda: list(engine.predict_many(shuffles.pictures(100)))) for _ in range(6)]
        singles = [threads.submit(engine.predict, picture) for picture in shuffles.pictures(100)]
        for answers in rounds:
            shuffles.check(answers.result(), 100)
        assert [answer.result().label for answer in singles] == [answer.label for answer in wanted]


def test_engines_and_gpus_live_side_by_side():
    with load() as first, load() as second, load(device=1) as other:
        for _ in range(3):
            for engine in (first, other, second):
                shuffles.check(list(engine.predict_many(shuffles.pictures(30))), 30)
        assert "GPU 1, test double 1" in other.backend.describe()["device"]
        first.close()
        shuffles.check(list(second.predict_many(shuffles.pictures(30))), 30)


def test_stages_are_timed():
    with backend() as opened:
        outputs, stages = opened.time_stages(shuffles.pictures(10))
        np.testing.assert_array_equal(outputs.logits, opened.run_pictures(shuffles.pictures(10)).logits)
        assert all(stage > 0 for stage in stages)


def test_a_picture_that_cannot_be_read_takes_no_other_with_it():
    mixed = [*shuffles.pictures(10)[:5], b"no picture", *shuffles.pictures(10)[5:], np.zeros((0, 3), np.uint8)]
    with load() as engine:
        answers = list(engine.predict_many(mixed))
        assert [answer.kind for answer in answers if isinstance(answer, Failure)] == ["not_an_image", "empty"]
        shuffles.check([answer for answer in answers if not isinstance(answer, Failure)], 10)


class Tensor:
    """On a GPU, as it says, and nothing else that it says is of use."""

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, **_):
        raise KeyError("storage")


class Name:
    def __fspath__(self):
        raise RuntimeError("a fault")


def test_odd_sources_take_no_other_with_them():
    view = memoryview(b"bytes")
    view.release()
    odd = [Tensor(), Name(), view, None]
    mixed = [*shuffles.pictures(10)[:5], *odd, *shuffles.pictures(10)[5:]]
    with load() as engine:
        answers = list(engine.predict_many(mixed))
        assert all(isinstance(answer, Failure) and answer.message for answer in answers[5:9])
        shuffles.check(answers[:5] + answers[9:], 10)


def test_large_pictures_wait_small(monkeypatch):
    """What would fill the host's memory is preprocessed by the CPU, to the same bits."""
    monkeypatch.setattr("fmengine.pipeline.stages.MAX_HELD", 1000)
    with load() as engine:
        shuffles.check(list(engine.predict_many(shuffles.pictures(60))), 60)


# The engine file


@pytest.mark.usefixtures("own_cache")
def test_an_engine_is_built_and_held_against_the_cpu_once():
    with backend() as opened:
        largest = max(passed.largest for passed in opened.passed)
    paths = ["profile 0", *["profile 1"] * 3, "graph of 1", *["graph of 8"] * 3, *["graph of 16"] * 3]
    batches = [1, 1, 9, 16, 1, 2, 5, 8, 9, 13, 16]
    assert [(p.path, p.batch) for p in opened.passed] == list(zip(paths, batches, strict=True))
    assert largest < 1e-6
    runs = driver.count("operations")
    with backend():
        pass
    assert tensorrt_double.Builder.builds == 1
    assert driver.count("operations") - runs < 100  # the gate alone runs over 200


@pytest.mark.usefixtures("own_cache")
def test_an_engine_that_answers_otherwise_is_refused(monkeypatch):
    monkeypatch.setitem(tensorrt_double.faults, "skew", np.float32([0.02, -0.02]))
    with pytest.raises(BackendError, match=r"the engine is refused\. profile 0, batches of 1: picture 0"):
        load()
    with Engine.load(shuffles.FP16) as engine:  # `auto` goes on, and says why
        assert engine.backend.name == "onnxruntime"
        assert "the engine is refused" in engine.attempts[0].reason


@pytest.mark.usefixtures("own_cache")
def test_an_engine_that_does_not_load_is_built_again(monkeypatch, caplog):
    with backend():  # built, so that the builder has brought a logger
        pass
    monkeypatch.setitem(tensorrt_double.faults, "deserialize", True)  # once
    with backend() as opened:
        assert len(opened.run(images(3)).logits) == 3
    assert "building the engine again: tensorrt 11.4.0.106 does not load this engine" in caplog.text
    assert "Its log: Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed" in caplog.text


def test_what_one_library_says_reaches_the_other(monkeypatch):
    """The process's first logger is written to, whichever library brought it."""
    with Engine.load(shuffles.FP16, "tensorrt", max_batch=4), monkeypatch.context() as patch:
        patch.setitem(tensorrt_double.faults, "context", True)
        with pytest.raises(BackendError, match=r"Its log: .*out of memory"):
            Engine.load(shuffles.FP16, "tensorrt-rtx", max_batch=4)


def test_where_an_application_has_a_logger_of_its_own_the_reason_may_be_there(monkeypatch):
    class Own(tensorrt_double.ILogger):
        def log(self, severity, message):
            said.append(message)

    said = []
    tensorrt_double.register(Own())
    monkeypatch.setitem(tensorrt_double.faults, "context", True)
    with pytest.raises(BackendError, match="an application that gave TensorRT a logger before"):
        load()
    assert "out of memory" in said


# Bad input


def test_a_closed_engine_says_so():
    engine = load()
    raw = engine.backend
    engine.close()
    engine.close()
    for use in (lambda: engine.predict(shuffles.pictures(1)[0]), lambda: raw.run(images(1))):
        with pytest.raises(FmengineError, match=r"this engine is closed; load another with Engine.load\(\)"):
            use()


def test_closing_waits_for_what_runs():
    opened = TensorRtBackend.open(FILE, BackendOptions(max_batch=16))
    outcomes = []

    def work() -> None:
        try:
            while True:
                outcomes.append(len(opened.run(images(40)).logits))
        except FmengineError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    while len(outcomes) < 4:
        pass
    opened.close()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert set(outcomes) == {40, "this engine is closed; load another with Engine.load()"}


def test_an_engine_that_nobody_closes_gives_back_what_it_holds():
    engine = load()
    engine.predict(shuffles.pictures(1)[0])
    del engine
    gc.collect()
    assert not driver.live()


def test_an_engine_does_not_survive_a_fork():
    with load() as engine:
        ours, theirs = multiprocessing.Pipe()
        if (child := os.fork()) == 0:
            try:
                engine.predict(shuffles.pictures(1)[0])
            except DeviceError as error:
                theirs.send(str(error))
            try:
                load()
            except UnavailableError as error:
                theirs.send(str(error))
            os._exit(0)
        os.waitpid(child, 0)
        assert "used after a fork" in ours.recv()
        assert "the NVIDIA driver does not start: CUDA_ERROR_NOT_INITIALIZED" in ours.recv()
        shuffles.check([engine.predict(shuffles.pictures(1)[0])], 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((1, 1, 8, 8), np.uint8), r"\(1, 1, 8, 8\); expected uint8 \(1, 1, \d+, \d+\)"),
        (images(1)[:0], "N from 1"),
        (images(1).astype(np.float32), "images of float32"),
    ],
)
def test_images_of_another_type_or_shape_are_refused(wrong, message):
    with backend() as opened:
        with pytest.raises(ModelError, match=message):
            opened.run(wrong)
        assert len(opened.run(images(2)).logits) == 2


@pytest.mark.parametrize("fit", ["stretch", "pad"])
def test_a_strip_is_refused_as_on_the_cpu(fit):
    """The GPU would take it: an answer must not depend on where it is made."""
    strip = np.broadcast_to(np.zeros(1, np.uint8), (500_000, 16)).copy()
    with backend(replace(FILE, spec=replace(FILE.spec, fit=fit))) as opened:
        with pytest.raises(SourceError, match="a strip of 16×500000 pixels") as caught:
            opened.run_pictures([strip])
        assert caught.value.kind == "too_large"
        assert len(opened.run_pictures(shuffles.pictures(2)).logits) == 2


def test_a_picture_that_does_not_fit_fails_alone(monkeypatch):
    monkeypatch.setattr("fmengine.pipeline.stages.MAX_HELD", 1 << 30)  # else the CPU would preprocess it
    strip = np.zeros((9, 3_000_000), np.uint8)
    with load() as engine:
        driver.set_fault("memory", 60 << 20)
        some = shuffles.pictures(10)
        answers = list(engine.predict_many([*some[:5], strip, *some[5:]], batch_size=11))
        assert isinstance(answers[5], Failure)
        assert answers[5].kind == "too_large"
        assert "27,000,000 bytes are needed" in answers[5].message
        shuffles.check(answers[:5] + answers[6:], 10)
        with pytest.raises(SourceError, match=r"GPU 0 has no room: .* bytes are needed"):
            engine.predict(strip)


def test_isolated_decoding_gives_the_same_answers(tmp_path):
    """Workers send pictures that are as small as the network's input; the kernel makes the same bits of them."""
    paths = []
    for number, picture in enumerate(shuffles.pictures(12)):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(picture).save(paths[-1])
    paths.insert(5, tmp_path / "missing.png")
    with load() as plain, load(isolate=Isolation()) as isolated:
        assert list(isolated.predict_many(paths)) == list(plain.predict_many(paths))
        assert list(isolated.predict_many(paths, in_flight=2)) == list(plain.predict_many(paths))


@pytest.mark.parametrize("fault", ["none", "device", "nan"])
def test_workers_decode_for_a_gpu(fault, tmp_path, monkeypatch):
    """And their answers stay in columns; where a batch fails, each picture is asked for alone."""
    paths = []
    for number, picture in enumerate(shuffles.pictures(40)):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(picture).save(paths[-1])
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n")
    with load(workers=2) as engine:
        start_workers(engine)
        run, calls = engine.backend.run_pictures, []

        def fail_on_many(images):
            calls.append(len(images))
            answers = run(images)
            if len(images) == 1 or fault == "none":
                return answers
            if fault == "nan":
                return answers._replace(probabilities=np.full_like(answers.probabilities, np.nan))
            raise SourceError("too_large", "no room for all of them")

        monkeypatch.setattr(engine.backend, "run_pictures", fail_on_many)
        found = list(engine.predict_many([*paths[:20], str(broken), "missing.png", *paths[20:]] * 3))
        assert len(found) == 3 * 42
        assert driver.count("registered") == 2  # arenas
        for start in (0, 42, 84):
            kinds = [answer.kind for answer in found[start + 20 : start + 22]]
            assert kinds == ["not_an_image", "not_found"]
            if fault != "nan":
                shuffles.check(found[start : start + 20] + found[start + 22 : start + 42], 40)
        if fault == "nan":
            assert {answer.kind for answer in found} == {"not_an_image", "not_found", "not_finite"}
        assert max(calls) > 1
    assert not driver.live()


@pytest.mark.parametrize("refused", [False, True])
def test_images_of_workers_go_up_from_where_they_are(refused, tmp_path, monkeypatch, caplog):
    """Where the system refuses that, as containers may, they are copied, and it is said once."""
    driver.set_fault("refuse registration", refused)
    paths = []
    for number, picture in enumerate(shuffles.pictures(40)):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(picture).save(paths[-1])
    with load(workers=2) as engine:
        start_workers(engine)
        copied, copy = [], Copier.copy
        monkeypatch.setattr(Copier, "copy", lambda *arguments: copied.append(1) or copy(*arguments))
        shuffles.check(list(engine.predict_many(paths)), 40)
        assert bool(copied) == refused
        assert driver.count("registered") == (0 if refused else 2)
    assert caplog.text.count("does not read the memory of worker processes by itself") == refused
    assert ("CUDA_ERROR_NOT_PERMITTED" in caplog.text) == refused


def test_what_a_worker_writes_in_flight_changes_its_own_answers_alone():
    """A decoder that was taken over can write to its pixels at any time; where they are, it cannot change."""
    with load() as engine:
        stop = threading.Event()
        packed = PackedImages.pack(shuffles.pictures(40))
        unregister = engine.backend.register_memory(packed.memory)

        def scribble():
            rng = np.random.default_rng(0)
            while not stop.is_set():
                packed.memory[:] = rng.integers(0, 256, 1)

        with ThreadPoolExecutor(1) as thread:
            scribbling = thread.submit(scribble)
            try:
                for _ in range(20):
                    outputs = engine.backend.run_pictures(packed)
                    assert len(outputs.probabilities) == 40
                    shuffles.check(list(engine.predict_many(shuffles.pictures(10))), 10)
            finally:
                stop.set()
            scribbling.result()
        unregister()
    assert not driver.live()


def test_faces_of_photographs_are_cut_out_for_a_gpu():
    """The detector runs on the CPU; crops are parts of the photograph, whose rows lie apart."""
    photographs = [np.asarray(Image.new("RGB", (400, 300), (90, 120, 110))).copy() for _ in range(3)]
    portrait = draw_gate_pictures()[-1]
    height, width = portrait.shape[:2]
    for number, photograph in enumerate(photographs[:2]):
        for left in (10, 200)[: number + 1]:
            photograph[60 : 60 + height, left : left + width] = portrait
    with load() as engine, Engine.load(shuffles.FP16, "onnxruntime", threads=1) as cpu:
        found = list(engine.predict_scenes(photographs))
        assert [len(scene.faces) for scene in found] == [1, 2, 0]
        for scene, photograph in zip(found, photographs, strict=True):
            for face, other in zip(scene.faces, cpu.find_faces(photograph).faces, strict=True):
                assert face.crop == other.crop
                assert face.prediction.label == other.prediction.label
                assert abs(face.prediction.confidence - other.prediction.confidence) < shuffles.NEAR
            assert engine.find_faces(photograph) == scene
    assert not driver.live()


def test_a_batch_that_does_not_fit_is_cut_smaller(monkeypatch):
    """24 MB at once do not fit; 12 do."""
    pictures = [np.full((1024, 1024), level, np.uint8) for level in range(0, 240, 10)]
    with load(max_batch=32) as engine:
        wanted = [engine.predict(picture).probabilities for picture in pictures]
    with load(max_batch=32) as engine:
        driver.set_fault("memory", 65 << 20)
        answers = list(engine.predict_many(pictures, batch_size=24))
        assert [answer.probabilities for answer in answers] == wanted


def test_fewer_streams_where_there_is_no_room_for_all(caplog):
    with backend(streams=1):
        made = driver.count("allocations made")
    driver.set_fault("fail allocations from", 2 * made + 4)
    with backend(streams=64) as opened:
        driver.set_fault("fail allocations from", 0)
        assert opened.streams < 64
        assert f"{opened.streams} streams instead of 64: GPU 0 has no room" in caplog.text
        assert len(opened.run(images(40)).logits) == 40


# Machines


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        ("init=100", "the NVIDIA driver does not start: CUDA_ERROR_NO_DEVICE; see `nvidia-smi`"),
        ("devices=0", "the NVIDIA driver does not start: CUDA_ERROR_NO_DEVICE; see `nvidia-smi`"),
        ("init=803", "the NVIDIA driver does not start: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH; see `nvidia-smi`"),
        (
            "driver=12040",
            "pycuda was built for CUDA 13.0, and this driver speaks CUDA 12.4: update the driver, or build pycuda "
            "again with the headers of CUDA 12: pip install --no-cache-dir --force-reinstall pycuda",
        ),
        ("devices=1", "no GPU 1: this machine has 1, numbered from 0"),
    ],
)
def test_a_machine_that_lacks_something_is_told(machine, message, monkeypatch):
    import subprocess
    import sys

    code = (
        "from fmengine import Engine, FmengineError\n"
        "try: Engine.load(backend='tensorrt', device=1)\n"
        "except FmengineError as error: print(error.exit_code, error)\n"
        "print(Engine.load(device=1).attempts[0])"
    )
    monkeypatch.setenv("GPU_DOUBLE", machine)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    told, attempt = done.stdout.splitlines()
    assert told == f"4 {message}"
    assert attempt == f"Attempt(name='tensorrt', reason={message!r})"


def test_a_pycuda_for_another_driver_is_told(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(UnavailableError, match=r"pycuda cannot be imported .*pip install '\.\[gpu\]'"):
        load()
    assert not driver.live()


# Benchmarks


def noting_zeros(method, zeros):
    """The method, which notes of each batch of images whether all of it is 0."""

    def call(self, batch):
        zeros.append(isinstance(batch, np.ndarray) and not batch.any())
        return method(self, batch)

    return call


def test_bench_measures_graphs_streams_and_transfers(tmp_path, monkeypatch):
    """Every part is there and is printed; the timings are those of no GPU."""
    rate = estimate_median([100.0])
    monkeypatch.setattr(
        bench, "measure_server", lambda *_: Server(10.0, rate, [(100.0, 1.0)])
    )  # searches for long
    monkeypatch.setattr(bench, "measure_ways", partial(on_gpu.measure_ways, turn=0.01))
    monkeypatch.setattr(on_gpu, "EVENTS", 3)
    monkeypatch.setattr(on_gpu, "STREAMS", (1, 2))
    every, seen = on_gpu._run_on_every_stream, []
    monkeypatch.setattr(on_gpu, "_run_on_every_stream", lambda b, *rest: (seen.append(b.streams), every(b, *rest)))
    onnxruntime_double.install(monkeypatch)
    paths = draw_pictures(tmp_path, 12)
    effort = bench.Effort(0.01, 5, 2)
    zeros = []
    with load(max_batch=4) as engine:
        for name in ("run", "time_stages"):
            timed = getattr(TensorRtBackend, name)
            monkeypatch.setattr(TensorRtBackend, name, noting_zeros(timed, zeros))
        report = bench.run(engine, paths, effort)
        monkeypatch.setattr(
            bench, "measure_gpu_peak", lambda _: Peak({"fp32": Best(1.0, 1.0, 2)}, *2 * [Best(1.0, 1.0, 2)])
        )
        alone, parts = report.single_stream["the network alone"], report.parts_on_gpu
        _, _, rooflines = bench._measure_limit(engine, effort, alone, parts)
    assert zeros
    assert not any(zeros)  # which would flatter a GPU
    assert [(line.part, line.batch, line.measured.rounds) for line in rooflines] == [
        (part, batch, 2) for part in ("preprocessing", "network") for batch in (1, 4)
    ]
    assert "preprocessing, batch 4: " in as_text(replace(report, rooflines=rooflines))
    for each in report.parts_on_gpu:
        assert min(part.median for part in each.host.values()) > 0
        assert f"-bound at batch {each.batch}: the host works" in "".join(report.holds_back)
    for name in ("host: stage", "host: launch", "host: rows", "GPU: upload", "GPU: network", "GPU: download"):
        assert f"  {name} " in as_text(report)
    assert [way.name for way in report.ways_on_gpu] == [
        f"{kind}, {streams}"
        for kind in ("tensorrt, graphs", "tensorrt", "onnxruntime-cuda, graphs", "onnxruntime-cuda")
        for streams in ("1 stream", "2 streams")
    ]
    for way in report.ways_on_gpu:
        around = ", around the network" if way.name.startswith("onnx") else ""
        assert way.graphs == (f"batches of 1, 4{around}" if "graphs" in way.name else "off")
        for batch in (1, 4):
            assert min(way.network[batch].low, way.with_transfers[batch].low, *way.host[batch].values()) > 0
        assert way.rate.median > 0
    assert set(seen) == {1, 2}
    assert list(report.serial.device) == ["host-to-device", "preprocess", "network", "device-to-host"]
    assert (report.peak, report.pictures_a_joule, report.verdict.pixels) == (None, None, None)
    assert bench.find_pci_address(engine) == "0000:01:00.0"
    text = as_text(report)
    for part in (
        "the network alone, no transfers",
        "on the host: stage",
        "on the GPU, by its events",
        "peak: not measured",
        "energy: ",
    ):
        assert part in text


def test_a_rate_counts_every_streams_pictures(monkeypatch):
    """By the mean call, as throughput is; one picture's latency is the median one, as in single stream."""
    monkeypatch.setattr(
        on_gpu,
        "time_calls",
        lambda calls, rounds, turn, min_calls: {name: rounds * [[6.0, 9.0, 15.0]] for name in calls},
    )
    monkeypatch.setattr(on_gpu, "EVENTS", 1)
    with load(max_batch=4) as engine:
        found = on_gpu.measure_ways(engine, 2, lambda _: None)
    assert [way.rate.median for way in found] == 2 * [400, 800, 1600]
    assert {way.with_transfers[1].median for way in found} == {9}


def test_streams_that_there_is_no_room_for_are_not_measured(monkeypatch):
    monkeypatch.setattr(TensorRtBackend, "streams", property(lambda self: 1))
    monkeypatch.setattr(on_gpu, "EVENTS", 1)
    said = []
    with load(max_batch=4) as engine:
        found = on_gpu.measure_ways(engine, 2, said.append, turn=0.001)
    assert [way.name for way in found] == ["tensorrt, graphs, 1 stream", "tensorrt, 1 stream"]
    assert "tensorrt, 4 streams is not measured: the GPU has room for 1" in said
