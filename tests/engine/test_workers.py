"""Worker processes give the answers that threads give, bit for bit, whatever they are asked and wherever."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image
from tests.engine.processes import WAIT, children, is_running, plant, start_workers, wait_until, workers
from tests.jpegs import in_scans
from tests.params import quick_first

from fmengine import Engine, Failure, Isolation, Kind, Prediction, UnavailableError
from fmengine.model.file import get_shipped_folder, seal
from fmengine.pipeline.stages import STAGES

pytestmark = [pytest.mark.timeout(180), pytest.mark.filterwarnings("ignore:::PIL")]

LONG = 2000  # paths, for which `auto` starts workers in these tests
BODIES = {"workers": {}, "isolated": {"isolate": Isolation()}}


def refuse(*_: object) -> None:
    raise AssertionError("a picture that is a worker's to decode is decoded in the engine's process")


def load_with_workers(**options: object) -> Engine:
    """An engine whose workers run; what is encoded it cannot decode itself, so that every answer is theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fmengine.pipeline.stages.decode_bytes", refuse)
        engine = Engine.load(**{"workers": 2, "backend": "onnxruntime"} | options)
    start_workers(engine)
    return engine


@pytest.fixture(scope="module")
def threads() -> Iterator[Engine]:
    with Engine.load(workers="threads", threads=2, backend="onnxruntime") as engine:
        yield engine


@pytest.fixture(scope="module", params=BODIES)
def processes(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with load_with_workers(**BODIES[request.param]) as engine:
        yield engine


@pytest.fixture(scope="module")
def pictures(portrait_pixels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures of every sort, and what is none."""
    folder = tmp_path_factory.mktemp("sorts")
    face = Image.fromarray(portrait_pixels)
    face.save(folder / "color.jpg")
    face.save(folder / "color.png")
    face.convert("L").resize((48, 48)).save(folder / "gray.jpg")
    face.convert("L").resize((48, 48)).save(folder / "gray.png")
    face.resize((400, 300)).save(folder / "larger.webp")
    face.resize((2000, 1500)).save(folder / "photograph.jpg")  # 9 MB decoded
    face.resize((1800, 1700)).save(folder / "photograph.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    face.save(folder / "turned.jpg", exif=turned)
    Image.new("L", (48, 48), 90).save(folder / "flat.png")
    (folder / "truncated.jpg").write_bytes((folder / "color.jpg").read_bytes()[:-900])
    (folder / "corrupt.png").write_bytes((folder / "color.png").read_bytes()[:900] + bytes(900))
    (folder / "text.jpg").write_text("no picture")
    (folder / "empty.jpg").touch()
    (folder / "huge.jpg").write_bytes(in_scans(60_000, 60_000, 3))
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    os.symlink("missing", folder / "dangling.jpg")
    for name in ("a\nb.jpg", "é.jpg", "\udcff.jpg", "-", " "):
        shutil.copy(folder / "gray.jpg", folder / name)
    return folder


def sources_of(pictures: Path) -> list[str]:
    missing = ["missing.jpg", "nul\0.jpg", "\ud800.jpg", "x" * 300, "x" * 70_000]
    return [*sorted(str(path) for path in pictures.iterdir()), *(str(pictures / name) for name in missing)]


def compare(processes: Engine, threads: Engine, sources: object, **options: object) -> list:
    """Hold the answers of workers against those of threads, and return them."""
    found = list(processes.predict_many(sources, **options))
    expected = list(threads.predict_many(sources, **options))
    assert found == expected
    assert [answer.source for answer in found] == [answer.source for answer in expected]
    return found


# The same answers


def test_paths_of_every_sort(processes, threads, pictures):
    sources = sources_of(pictures)
    found = compare(processes, threads, sources)
    kinds = {answer.kind for answer in found if isinstance(answer, Failure)}
    assert kinds >= {Kind.TRUNCATED, Kind.EMPTY, Kind.TOO_LARGE, Kind.NOT_FOUND}
    assert sum(isinstance(answer, Prediction) for answer in found) >= 14
    assert {answer.reason for answer in found if isinstance(answer, Prediction)} >= {None, "flat"}


def test_encoded_pictures_of_every_sort(processes, threads, pictures):
    encoded = [path.read_bytes() for path in sorted(pictures.iterdir()) if path.is_file()]
    compare(processes, threads, encoded)
    compare(processes, threads, [bytearray(data) for data in encoded])
    compare(processes, threads, [memoryview(data) for data in encoded])


@pytest.mark.parametrize("body", BODIES)
def test_sources_of_all_kinds_in_turn(threads, pictures, portrait_pixels, body):
    """Paths and encoded pictures, which are the workers', between images, which are not."""
    path = pictures / "color.jpg"
    with Image.open(pictures / "turned.jpg") as image, Engine.load(workers=2, **BODIES[body]) as processes:
        start_workers(processes)
        each = [
            str(path),
            path.read_bytes(),
            portrait_pixels,
            path,
            image,
            "missing",
            b"",
            portrait_pixels[::2, ::2],
        ]
        each += ["nul\0.jpg", bytearray(path.read_bytes())]
        order = np.random.default_rng(5).integers(0, len(each), 300)
        for shift in (0, 1, 3):  # which begin with one that is encoded: a list of others is left to threads
            compare(processes, threads, [each[shift], *(each[place] for place in order)])
            compare(processes, threads, [each[place] for place in order], batch_size=5)
        file = io.BytesIO(path.read_bytes())
        assert list(processes.predict_many([str(path), file])) == [threads.predict(path)] * 2


@pytest.mark.parametrize("name", ["gray.jpg", "photograph.jpg", "missing.jpg", "truncated.jpg"])
def test_one_picture(processes, threads, pictures, name):
    for source in (str(pictures / name), pictures / name):
        compare(processes, threads, [source])


def test_nothing(processes):
    for sources in ([], (), iter([])):
        assert list(processes.predict_many(sources)) == []


def make_generator(sources: list[str]) -> Iterator[str]:
    yield from sources


@pytest.mark.parametrize("feed", ["auto", "caller"])
@pytest.mark.parametrize(
    "kind", [list, tuple, iter, make_generator, dict.fromkeys], ids=lambda kind: kind.__name__
)
def test_sources_given_as_anything_that_can_be_iterated(processes, threads, pictures, kind, feed):
    sources = [path for path in sources_of(pictures) if "photograph" not in path]
    found = list(processes.predict_many(kind(sources), feed=feed))
    assert found == list(threads.predict_many(sources))
    assert [answer.source for answer in found] == sources


@pytest.mark.parametrize(
    "options", [{"batch_size": 1}, {"batch_size": 7}, {"in_flight": 1}, {"in_flight": 5}], ids=str
)
def test_chunks_of_any_size(processes, threads, pictures, options):
    sources = [path for path in sources_of(pictures) if "photograph" not in path] * 5
    for given in (sources, iter(sources)):
        assert list(processes.predict_many(given, **options)) == list(threads.predict_many(sources))


@pytest.mark.slow
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(
    "options",
    [{"max_batch": 1}, {"max_batch": 3}, {"max_batch": 200}, {"unsure_below": 0.999}, {"scaled_jpeg": True}],
    ids=str,
)
def test_engines_of_any_setting(pictures, body, options):
    sources = sources_of(pictures) * 2
    with (
        load_with_workers(**options, **BODIES[body]) as processes,
        Engine.load(workers="threads", **options) as threads,
    ):
        compare(processes, threads, sources)
        if "unsure_below" in options:
            assert "unsure" in {
                answer.label for answer in processes.predict_many(sources) if answer.__class__ is Prediction
            }


@pytest.fixture(scope="module")
def change_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a model of the shipped one, with another specification of its input."""

    def change(**fields: object) -> Path:
        model = onnx.load(get_shipped_folder() / "alexnet-slim.int8.onnx")
        graph, entry = model.graph, next(e for e in model.metadata_props if e.key == "fmengine.model")
        document = json.loads(entry.value) | {"name": "changed", "file_sha256": "0" * 64} | fields
        if document["color"] == "rgb":  # of whose channels the network sees the mean
            document |= {"mean": [128] * 3, "std": [64.0] * 3}
            for node in graph.node:
                node.input[:] = ["gray" if name == "images" else name for name in node.input]
            graph.input[0].type.tensor_type.shape.dim[1].dim_value = 3
            steps = [
                helper.make_node("Cast", ["images"], ["levels"], to=TensorProto.FLOAT),
                helper.make_node("ReduceMean", ["levels"], ["mean_level"], axes=[1], keepdims=1),
                helper.make_node("Cast", ["mean_level"], ["gray"], to=TensorProto.UINT8),
            ]
            for step in reversed(steps):
                graph.node.insert(0, step)
        entry.value = json.dumps(document)
        path = tmp_path_factory.mktemp("changed") / "changed.int8.onnx"
        path.write_bytes(seal(model.SerializeToString()))
        return path

    return change


@pytest.mark.slow
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("fields", [{"color": "rgb"}, {"fit": "pad"}, {"color": "rgb", "fit": "stretch"}], ids=str)
def test_models_of_any_input(change_model, pictures, body, fields):
    model, sources = change_model(**fields), sources_of(pictures)
    with (
        load_with_workers(model=model, **BODIES[body]) as processes,
        Engine.load(model, "onnxruntime", workers="threads") as threads,
    ):
        compare(processes, threads, sources)


@pytest.mark.slow
def test_a_model_that_answers_with_no_numbers(change_model, pictures):
    """Which is the model's doing, and no worker's."""
    model = onnx.load(change_model())
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    broken = helper.make_node("Sum", ["unbroken", "nan"], [softmax.output[0]])
    softmax.output[0] = "unbroken"
    model.graph.node.append(broken)
    model.graph.initializer.append(helper.make_tensor("nan", TensorProto.FLOAT, [2], [float("nan"), 0.0]))
    path = pictures.parent / "broken.int8.onnx"
    entry = next(e for e in model.metadata_props if e.key == "fmengine.model")
    entry.value = json.dumps(json.loads(entry.value) | {"file_sha256": "0" * 64})
    path.write_bytes(seal(model.SerializeToString()))
    sources = [str(pictures / name) for name in ("gray.jpg", "missing", "color.jpg")]
    with (
        load_with_workers(model=path) as processes,
        Engine.load(path, "onnxruntime", workers="threads") as threads,
    ):
        found = compare(processes, threads, sources)
    assert [answer.kind for answer in found] == ["not_finite", "not_found", "not_finite"]


@pytest.mark.slow
def test_hostile_files(hostile_images, threads):
    sources = sorted(str(path) for path in hostile_images.rglob("*") if path.is_file())
    with load_with_workers() as processes:
        compare(processes, threads, sources)


@pytest.mark.parametrize("body", BODIES)
def test_observed_stages_are_those_of_the_workers_too(pictures, body):
    seen: list[tuple[str, float, float]] = []
    sources = [str(pictures / "gray.jpg")] * 100
    with load_with_workers(**BODIES[body]) as processes:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fmengine.pipeline.stages.decode_bytes", refuse)
            with processes.observe(lambda *observation: seen.append(observation)):
                assert {type(answer) for answer in processes.predict_many(sources)} == {Prediction}
        stages = [stage for stage, _, _ in seen]
        assert set(stages) == set(STAGES)
        assert stages.count("read") == stages.count("decode") == 100
        assert all(begin <= end for _, begin, end in seen)
        assert max(end for _, _, end in seen) - min(begin for _, begin, _ in seen) < WAIT, "of one clock"
        seen.clear()
        list(processes.predict_many(sources))
        assert not seen


# Where the engine is


def test_a_relative_path_starts_where_the_engine_is_now(processes, threads, pictures, tmp_path, monkeypatch):
    for name in ("gray.jpg", "color.jpg"):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(pictures / name, folder / "x.jpg")
    expected = {name: threads.predict(pictures / name) for name in ("gray.jpg", "color.jpg")}
    for name in ("gray.jpg", "color.jpg", "gray.jpg"):
        monkeypatch.chdir(tmp_path / name)
        found = list(processes.predict_many(["x.jpg", "./x.jpg", "../gray.jpg/x.jpg", str(pictures / "gray.jpg")]))
        assert found == [expected[name]] * 2 + [expected["gray.jpg"]] * 2


def test_a_folder_that_took_the_name_of_the_last_one(processes, threads, pictures, tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    for name in ("gray.jpg", "color.jpg"):
        folder.mkdir()
        shutil.copy(pictures / name, folder / "x.jpg")
        monkeypatch.chdir(folder)
        compare(processes, threads, ["x.jpg"] * 200, batch_size=1)
        folder.rename(tmp_path / f"{name}.before")


def test_a_folder_that_is_gone(processes, threads, pictures, tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(pictures / "gray.jpg", folder / "x.jpg")
    monkeypatch.chdir(folder)
    compare(processes, threads, ["x.jpg"] * 10)
    shutil.rmtree(folder)
    found = compare(processes, threads, ["x.jpg", str(pictures / "gray.jpg"), "x.jpg"])
    assert [getattr(answer, "kind", None) for answer in found] == [Kind.NOT_FOUND, None, Kind.NOT_FOUND]


@pytest.mark.parametrize("make", [np.str_, type("Name", (str,), {})], ids=["numpy", "own"])
def test_text_of_a_subclass_is_a_path_for_workers_too(processes, pictures, make):
    for answer in processes.predict_many([make(pictures / "gray.jpg")] * 3):
        assert isinstance(answer, Prediction)


# Which job has workers, and what becomes of them


def test_a_short_job_starts_no_process(pictures):
    before = children()
    with Engine.load() as engine:
        list(engine.predict_many([str(pictures / "gray.jpg")] * 50))
        list(engine.predict_many(iter([str(pictures / "gray.jpg")] * 50)))
        engine.predict(pictures / "gray.jpg")
        assert children() == before


@pytest.mark.parametrize("kind", quick_first([list, iter]), ids=["list", "iterator"])
def test_a_long_job_does(pictures, kind, monkeypatch):
    monkeypatch.setattr("fmengine.engine.usable_cores", lambda: 2)
    monkeypatch.setattr("fmengine.engine.find_long_job", lambda cores: LONG)
    before = workers()
    with Engine.load() as engine:
        most = 0
        for _ in engine.predict_many(kind([str(pictures / "gray.jpg")] * LONG * 2)):
            most = max(most, len(workers() - before)) if most < 2 else most
        wait_until(lambda: len(workers() - before) == 2, "worker")
    assert workers() == before


def test_they_end_with_the_engine(pictures):
    before = children()
    with load_with_workers() as engine:
        list(engine.predict_many([str(pictures / "gray.jpg")] * 50))
        assert children() > before
    assert children() == before


@pytest.mark.parametrize("body", BODIES)
def test_those_of_a_job_that_was_dropped_are_replaced_for_the_next(threads, pictures, body):
    """Nobody waits for what they were at; but the next job must not be left to threads for good."""
    sources = [str(pictures / "gray.jpg")] * 4000
    with Engine.load(workers=2, **BODIES[body]) as processes:
        others = workers() - (own := start_workers(processes))
        stream = processes.predict_many(sources)
        next(stream)
        stream.close()
        wait_until(lambda: not workers() >= own, "end of the workers that were at work")
        assert list(processes.predict_many(sources[:200])) == list(threads.predict_many(sources[:200]))
        wait_until(lambda: len(workers() - others) == 2, "replaced worker")


@pytest.mark.parametrize("body", BODIES)
def test_two_jobs_at_once_share_them(threads, pictures, body):
    sources = [str(pictures / name) for name in ("gray.jpg", "color.jpg", "missing", "color.png")] * 100
    expected = list(threads.predict_many(sources))
    found: dict[int, list] = {}
    with Engine.load(workers=2, **BODIES[body]) as processes:
        start_workers(processes)

        def ask(number: int) -> None:
            found[number] = list(processes.predict_many(sources if number % 2 else iter(sources)))

        asking = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join(WAIT)
    assert found == dict.fromkeys(range(4), expected)


# After a fork. The script runs in a process of its own, which must not hang.

FORKED = """
import os, signal, sys, time, traceback
from fmengine import Engine, Isolation
from tests.jpegs import in_scans
from tests.engine.processes import children, servers, start_workers, wait_until, workers
picture, isolate = sys.argv[1], sys.argv[2] == "isolated"
engine = Engine.load(workers=2, isolate=Isolation() if isolate else None)
start_workers(engine)
sources = [picture, "missing"] * 300
expected = list(engine.predict_many(sources))

def use():
    for _ in range(3):
        assert list(engine.predict_many(sources)) == expected
        assert list(engine.predict_many(iter(sources))) == expected

def fork(what):
    child = os.fork()
    if child == 0:
        signal.alarm(100)
        try:
            what()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return child

def succeeded(child):
    return os.waitpid(child, 0)[1] == 0
"""


def run(script: str, *arguments: object, **environment: str) -> None:
    command = [sys.executable, "-c", FORKED + textwrap.dedent(script), *map(str, arguments)]
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=150, env=os.environ | {"PYTHONPATH": path} | environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("isolate", ["", "isolated"])
def test_parent_and_children_have_workers_of_their_own(pictures, isolate):
    run(
        """
        before = workers()
        half_read = engine.predict_many(sources * 5)
        answers = [next(half_read)]

        def begin_anew():
            assert not workers(), "those of the parent"
            use()
            wait_until(lambda: len(workers()) == 2, "worker")
            use()
            assert not workers() & before
            engine.close()
            assert not workers()

        begun = [fork(begin_anew) for _ in range(2)]
        use()
        assert all(map(succeeded, begun))
        assert workers() >= before, "a child ended a worker of the parent's"
        answers += half_read
        assert answers == expected * 5
        """,
        pictures / "gray.jpg",
        isolate,
    )


@pytest.mark.slow
@pytest.mark.parametrize("isolate", ["", "isolated"])
def test_a_child_that_closes_the_engine_or_just_ends_leaves_the_parents_alone(pictures, isolate):
    run(
        """
        before = workers()
        assert succeeded(fork(engine.close))
        assert succeeded(fork(lambda: None))
        child = os.fork()
        if child == 0:
            sys.exit(0)  # as a program does, with what runs at its end
        assert succeeded(child)
        use()
        assert workers() == before
        engine.close()
        assert not children()
        """,
        pictures / "gray.jpg",
        isolate,
    )


@pytest.mark.slow
def test_a_fork_while_workers_start(pictures):
    run(
        """
        other = Engine.load(workers=2)
        for _ in range(4):
            other.close()
            other = Engine.load(workers=2)
            other.start_workers()
            time.sleep(0.03)
            child = fork(lambda: [use(), other.close(), engine.close()])
            assert list(other.predict_many(sources)) == expected
            assert succeeded(child)
        use()
        """,
        pictures / "gray.jpg",
        "",
    )


@pytest.mark.slow
def test_a_child_that_was_forked_while_workers_start_keeps_none_of_them_alive(pictures):
    """It holds copies of what the parent has open: of sockets by which a server sees that its engine is gone, and
    of whatever the start of a server waits for."""
    script = """
        other = Engine.load(workers=2)
        other.start_workers()
        wait_until(lambda: len(servers()) == 2, "server")
        child = os.fork()
        if child == 0:
            signal.alarm(100)
            time.sleep(1000)
        wait_until(lambda: len(workers()) == 4, "worker")
        print(child, *servers(), *workers(), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", FORKED + textwrap.dedent(script), str(pictures / "gray.jpg"), ""]
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
    ) as process:
        child, *rest = map(int, process.stdout.readline().split())
        try:
            wait_until(lambda: not any(map(is_running, rest)), "end of the workers")
            assert is_running(child)
        finally:
            os.kill(child, signal.SIGKILL)


# What the process has, and lacks


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("os.memfd_create", None, "they need Linux's memfd"),
        ("sys.frozen", True, "this program is frozen"),
        ("sys.executable", "", "Python is embedded: sys.executable is ''"),
        ("sys.executable", None, "Python is embedded: sys.executable is None"),
        ("sys.executable", "/usr/bin/blender", "Python is embedded"),
    ],
)
def test_where_there_can_be_no_workers_threads_answer(pictures, monkeypatch, name, value, says):
    before = children()
    monkeypatch.setattr("fmengine.engine.usable_cores", lambda: 2)
    monkeypatch.setattr("fmengine.engine.find_long_job", lambda cores: LONG)
    if name == "os.memfd_create":
        monkeypatch.delattr(name)
    else:
        monkeypatch.setattr(name, value, raising=False)
    with Engine.load() as engine:
        assert {answer.label for answer in engine.predict_many([str(pictures / "gray.jpg")] * LONG)} == {"happy"}
        assert children() == before
    for asked in ({"workers": 2}, {"isolate": Isolation()}):
        with pytest.raises(UnavailableError, match=says):
            Engine.load(**asked)


CANNOT_FORK = """
    import os
    def fork():
        raise BlockingIOError(11, "Resource temporarily unavailable")
    os.fork = fork
"""


@pytest.mark.parametrize("how", ["no Python", "no fork", "no import"])
def test_where_workers_do_not_start_threads_answer_with_a_warning(pictures, how, monkeypatch, tmp_path, caplog):
    says = {
        "no Python": "cannot start worker processes",
        "no fork": "cannot start another worker process: .*Resource temporarily unavailable",
        "no import": "the server of worker processes ended with 1",
    }[how]
    if how == "no Python":
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python3"))
    else:
        code = CANNOT_FORK if how == "no fork" else "import sys; sys.modules['simplejpeg'] = None"
        for name, value in plant(code, tmp_path / "site").items():
            monkeypatch.setenv(name, value)
    sources = [str(pictures / "gray.jpg")] * 500
    with Engine.load(workers=2) as engine:
        for _ in range(3):
            assert {answer.label for answer in engine.predict_many(sources)} == {"happy"}
        wait_until(lambda: caplog.records, "warning")
        assert [record.levelname for record in caplog.records] == ["WARNING"], "one, however many jobs"
        caplog.clear()
    with Engine.load(isolate=Isolation(), workers=2) as engine:
        for ask in (engine.predict, lambda source: list(engine.predict_many([source]))):
            with pytest.raises(UnavailableError, match=says):
                ask(sources[0])


@pytest.mark.slow
@pytest.mark.parametrize("files", [0, 3, 12])
@pytest.mark.parametrize("isolate", ["", "isolated"])
def test_too_many_open_files(pictures, files, isolate):
    """The workers are killed, and there is room for so many descriptors when others are to take their place."""
    run(
        """
        import logging, resource
        from fmengine import UnavailableError
        logging.disable()
        limit = int(sys.argv[3])
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        for worker in workers():
            os.kill(worker, signal.SIGKILL)
        held = []
        try:
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        for _ in range(limit):
            os.close(held.pop())
        try:
            found = list(engine.predict_many(sources))
            wrong = {answer.kind for answer in found if not hasattr(answer, "label")} - {"not_found"}
            assert found == expected or (not isolate and wrong == {"unreadable"}), found[:3]
        except UnavailableError as error:
            assert isolate and "Too many open files" in str(error)
        for file in held:
            os.close(file)
        use()
        """,
        pictures / "gray.jpg",
        isolate,
        files,
    )


@pytest.mark.slow
@pytest.mark.parametrize("megabytes", [64, 256])
def test_little_address_space(pictures, megabytes):
    run(
        """
        import logging, resource
        logging.disable()
        other = Engine.load(workers=2)
        list(other.predict_many([picture] * 3, batch_size=1))
        page = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (page + int(sys.argv[3]) * 2**20, resource.RLIM_INFINITY))
        assert list(other.predict_many(sources)) == expected
        """,
        pictures / "gray.jpg",
        "",
        megabytes,
    )


@pytest.mark.slow
def test_signals_that_the_program_ignores_or_blocks(pictures, tmp_path):
    """A worker's end is seen all the same, and a message to one that is gone ends nobody."""
    (tmp_path / "crash.jpg").write_bytes((pictures / "gray.jpg").read_bytes() + b"segfault")
    planted = plant(
        """
        import os, signal, simplejpeg
        whole = simplejpeg.decode_jpeg_header
        def decode_jpeg_header(data, *arguments):
            if bytes(data[-8:]) == b"segfault": os.kill(os.getpid(), signal.SIGSEGV)
            return whole(data, *arguments)
        if "-P" in __import__("sys").orig_argv: simplejpeg.decode_jpeg_header = decode_jpeg_header
    """,
        tmp_path / "site",
    )
    path = planted["PYTHONPATH"] + os.pathsep + str(Path(__file__).parents[2])
    run(
        """
        engine.close()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD, signal.SIGALRM, signal.SIGSEGV, signal.SIGTERM])
        for options in ({}, {"isolate": Isolation()}):
            engine = Engine.load(workers=2, **options)
            start_workers(engine)
            (found,) = engine.predict_many([sys.argv[3]])
            assert "died of SIGSEGV" in found.message, found
            use()
            for worker in workers():
                os.kill(worker, signal.SIGKILL)
            use()
            for server in children():
                os.kill(server, signal.SIGKILL)
            use()
            engine.close()
        """,
        pictures / "gray.jpg",
        "",
        tmp_path / "crash.jpg",
        PYTHONPATH=path,
    )


@pytest.mark.slow
def test_standard_streams_that_are_closed(pictures):
    """A daemon may have none: what it opens next is 0, 1 or 2, and a child has those for itself."""
    run(
        """
        for stream in (0, 1, 2):
            os.close(stream)
        other = Engine.load(workers=2)
        start_workers(other)
        assert list(other.predict_many(sources)) == expected
        """,
        pictures / "gray.jpg",
        "",
    )
