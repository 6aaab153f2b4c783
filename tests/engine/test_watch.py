"""`Engine.watch`: videos, streams and cameras, from a file to faces with ids."""

import gc
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from videos import FACE, RATE, SIZE, Places, draw, moving, write_sound, write_video

from fmengine import ClosedError, Engine, Frame, Kind, Limits, Reason, SourceError, UnavailableError
from fmengine.media import reader
from fmengine.media.reader import Clock
from fmengine.media.smoothing import ExponentialMean
from fmengine.media.source import parse_source
from fmengine.media.video import TimedFrame

av = pytest.importorskip("av", reason="PyAV is missing: pip install '.[video]'")

COUNT = 16


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine.load(backend="onnxruntime", threads=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def video(folder: Path) -> Path:
    """One face that moves, with the index in front so that what is cut off is at the end."""
    return write_video(folder / "moving.mp4", moving(COUNT), movflags="faststart")


def ids_of(frames: list[Frame]) -> list[list[int | None]]:
    """Ids of each frame's faces, from left to right."""
    return [[face.id for face in sorted(frame.faces, key=lambda face: face.box[0])] for frame in frames]


def fail(frames: Iterator[Frame]) -> tuple[list[Frame], SourceError]:
    """Return what comes before a source's error, and the error."""
    found: list[Frame] = []
    with pytest.raises(SourceError) as raised:
        found.extend(frames)
    assert list(frames) == [], "an error is raised once"
    return found, raised.value


# Frames and faces


def test_a_file_gives_every_frame(engine: Engine, video: Path) -> None:
    with engine.watch(video) as watch:
        frames = list(watch)
        assert next(watch, None) is None
    assert [frame.index for frame in frames] == list(range(COUNT))
    assert [frame.time for frame in frames] == pytest.approx([i / RATE for i in range(COUNT)], abs=1e-4)
    assert {frame.size for frame in frames} == {SIZE}
    assert ids_of(frames) == [[None], [None], *[[1]] * (COUNT - 2)]
    assert (watch.frames, watch.faces, watch.tracks) == (COUNT, COUNT, 1)
    assert (watch.dropped, watch.damaged) == (0, 0)
    for i, frame in enumerate(frames):
        (face,) = frame.faces
        assert face.prediction.label == "happy"
        assert (face.box[0] + face.box[2]) / 2 == pytest.approx(10 + 3 * i + FACE[0] / 2, abs=6)


def test_faces_that_pass_each_other_keep_their_ids(engine: Engine, folder: Path) -> None:
    size = (320, 220)
    places = [[(5 + 9 * i, 2), (235 - 9 * i, 118)] for i in range(26)]
    frames = list(engine.watch(write_video(folder / "cross.mp4", places, size=size), search_size=320))
    faces = [sorted(frame.faces, key=lambda face: face.box[1]) for frame in frames[2:]]
    assert {tuple(face.id for face in pair) for pair in faces} in ({(1, 2)}, {(2, 1)})


def test_another_face_gets_another_id(engine: Engine, folder: Path) -> None:
    nobody: list[Places] = [[]] * 40
    places = [*[[(10, 30)]] * 6, *nobody, *[[(110, 30)]] * 6]
    watch = engine.watch(write_video(folder / "leaves.mp4", places))
    frames = list(watch)
    given = [number for ids in ids_of(frames) for number in ids]
    assert given == [None, None, 1, 1, 1, 1, None, None, 2, 2, 2, 2]
    assert all(not frame.faces for frame in frames[8:44])
    assert watch.tracks == 2


def test_answers_are_means_of_what_the_network_says_of_each_frame(engine: Engine, video: Path) -> None:
    mean = ExponentialMean()
    with engine.watch(video) as watch:
        for frame in watch:
            (alone,) = engine.find_faces(watch.image).faces
            (face,) = frame.faces
            assert face.box == alone.box
            expected = mean.add([*alone.prediction.probabilities.values()], frame.time)
            assert [*face.prediction.probabilities.values()] == pytest.approx(expected.tolist())
            assert face.prediction.confidence == pytest.approx(max(expected))


def test_the_threshold_is_held_against_the_mean(video: Path) -> None:
    with Engine.load(backend="onnxruntime", threads=1, unsure_below=0.9999) as engine:
        (face,) = next(engine.watch(video)).faces
    assert (face.prediction.label, face.prediction.reason) == ("unsure", Reason.UNSURE)


@pytest.mark.parametrize("color_range", ["tv", "pc"])
@pytest.mark.parametrize("matrix", ["bt709", "smpte170m"])
def test_a_frame_is_the_same_picture_as_its_png(
    engine: Engine, folder: Path, matrix: str, color_range: str
) -> None:
    """The levels of a gray model are those of the decoded RGB, in the frame's own range and matrix."""
    path = folder / f"{matrix}-{color_range}.mp4"
    write_video(path, moving(1), codec="mpeg4")
    tags = f"setparams=range={color_range}:colorspace={matrix}"
    for source in (path, f"lavfi:testsrc2=size=128x96:duration=0.1,format=yuv420p,{tags}"):
        with engine.watch(source) as watch:
            frame = next(watch)
            Image.fromarray(watch.image).save(folder / "frame.png")
            scene = engine.find_faces(folder / "frame.png")
            for face, alone in zip(frame.faces, scene.faces, strict=True):
                assert face.box == alone.box
                assert face.prediction.probabilities == pytest.approx(alone.prediction.probabilities)
            np.testing.assert_array_equal(engine.preprocess(folder / "frame.png"), engine.preprocess(watch.image))


@pytest.mark.parametrize(("levels", "low", "span", "chroma_span"), [("tv", 16, 219, 224), ("pc", 0, 255, 255)])
@pytest.mark.parametrize(("matrix", "red_of_v", "blue_of_u"), [(1, 1.5748, 1.8556), (6, 1.402, 1.772)])
def test_colors_are_of_the_matrix_and_the_range_that_a_frame_names(
    levels: str, low: int, span: int, chroma_span: int, matrix: int, red_of_v: float, blue_of_u: float
) -> None:
    """1 is BT.709 and 6 is BT.601, in FFmpeg's numbers."""
    frame = av.VideoFrame(16, 16, "yuv420p")
    frame.colorspace, frame.color_range = matrix, {"tv": 1, "pc": 2}[levels]
    for plane, level in zip(frame.planes, (120, 100, 160), strict=True):
        plane.update(bytes([level]) * plane.buffer_size)
    red, _, blue = TimedFrame(0, 0.0, 0.0, frame).to_image()[8, 8].tolist()
    luma = (120 - low) * 255 / span
    assert red == pytest.approx(luma + red_of_v * 32 * 255 / chroma_span, abs=2)
    assert blue == pytest.approx(luma - blue_of_u * 28 * 255 / chroma_span, abs=2)


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_frames_are_turned_upright(engine: Engine, folder: Path, rotation: int) -> None:
    if not hasattr(av.VideoStream, "set_display_rotation"):
        pytest.skip("this PyAV cannot write rotations")
    turned = draw([(30, 40)]).rotate(-rotation, expand=True)  # which is clockwise by `rotation`, as a camera lies
    path = write_video(folder / f"turned{rotation}.mp4", [turned] * 2, size=turned.size, rotation=rotation)
    with engine.watch(path) as watch:
        frame = next(watch)
        assert abs(watch.image.astype(int) - np.asarray(draw([(30, 40)]))).mean() < 6
    assert frame.size == SIZE
    (face,) = frame.faces
    right_eye, _, _, right_mouth, _ = face.landmarks
    assert right_eye[1] < right_mouth[1]


# Time


def test_time_stamps_are_those_of_a_variable_frame_rate(engine: Engine, folder: Path) -> None:
    times = [0, 0.02, 0.05, 0.2, 0.21, 0.5, 1.25]
    path = write_video(folder / "variable.mp4", moving(len(times)), times=times)
    assert [frame.time for frame in engine.watch(path)] == pytest.approx(times, abs=1e-3)


@pytest.mark.parametrize(("every", "expected"), [(0.1, range(0, COUNT, 3)), (0.25, [0, 8, 15]), (9.0, [0])])
def test_frames_may_be_left_out(engine: Engine, video: Path, every: float, expected: list[int]) -> None:
    watch = engine.watch(video, every=every)
    assert [frame.index for frame in watch] == list(expected)
    assert watch.dropped == 0, "nobody wanted them"


def test_a_transport_stream_begins_at_zero(engine: Engine, folder: Path) -> None:
    path = write_video(folder / "late.ts", moving(4), times=[5.0, 5.1, 5.2, 5.4])
    assert [frame.time for frame in engine.watch(path)] == pytest.approx([0, 0.1, 0.2, 0.4], abs=1e-3)


def test_a_clock_never_goes_back() -> None:
    clock = Clock()
    clock.begin(10.0)
    assert [clock.read(stamp, 0.5) for stamp in (10.0, 11.0, None, 12.0)] == [0.0, 1.0, 1.5, 2.0]
    assert [clock.read(stamp, 0.5) for stamp in (3.0, 3.25)] == [2.5, 2.75], "as where two videos were joined"
    clock.begin(None, gap=7.0)
    assert [clock.read(stamp, 0.5) for stamp in (900.0, 901.0)] == [9.75, 10.75], "as of a camera that came back"


# What is damaged, or is none


def test_a_damaged_middle_is_left_out_and_counted(engine: Engine, folder: Path) -> None:
    path = write_video(folder / "damaged.mp4", moving(24), movflags="faststart")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 600] = np.random.default_rng(1).bytes(600)
    path.write_bytes(data)
    whole, corrupt = [], 0
    with av.open(str(path)) as container:
        for packet in container.demux():
            with suppress(av.error.InvalidDataError):
                for frame in packet.decode():
                    corrupt += frame.is_corrupt
                    whole += [] if frame.is_corrupt else [frame.time]
    assert corrupt, "what FFmpeg decodes in silence, though it is not whole"
    watch = engine.watch(path)
    frames = list(watch)
    assert [frame.time for frame in frames] == whole
    assert watch.damaged == 24 - len(whole)
    assert frames[-1].index == 23, "it goes on behind the damage"


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_a_file_that_is_cut_short_is_an_error_after_its_good_frames(
    engine: Engine, folder: Path, suffix: str
) -> None:
    whole = folder / f"long{suffix}"
    options = {"movflags": "faststart"} if suffix == ".mp4" else {}
    write_video(whole, moving(60, by=1), **options)
    data = whole.read_bytes()
    path = folder / f"short{suffix}"
    path.write_bytes(data[: len(data) // 3])
    frames, error = fail(engine.watch(path, every=0.2))
    assert error.kind is Kind.TRUNCATED
    assert str(error).startswith(f"{path}: the file is cut short")
    assert frames
    assert sum(1 for _ in engine.watch(whole, every=0.2)) == 10


def test_a_name_that_looks_like_a_protocol_is_a_file(
    engine: Engine, video: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    Path("concat:a|b.mp4").write_bytes(video.read_bytes())
    assert next(engine.watch("concat:a|b.mp4")).index == 0


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda folder: folder / "missing.mp4", Kind.NOT_FOUND, "no such file"),
        (lambda folder: folder, Kind.NOT_A_FILE, "expected a video file"),
        (lambda folder: write(folder / "empty.mp4", b""), Kind.EMPTY, "no bytes"),
        (lambda folder: write(folder / "text.mp4", b"no video at all" * 99), Kind.CORRUPT, "finds no video"),
        (lambda folder: write_sound(folder / "sound.m4a"), Kind.UNSUPPORTED, "it has audio, and no video"),
        (lambda folder: write_video(folder / "nothing.avi", []), Kind.EMPTY, "no frames"),
        (lambda folder: write_video(folder / "nothing.mkv", []), Kind.EMPTY, "ends before its first frame"),
        (lambda folder: write_video(folder / "nothing.mp4", []), Kind.UNSUPPORTED, "no stream, and no video"),
        (lambda folder: "lavfi:testsrc2=size=nonsense", Kind.UNSUPPORTED, "filter graph"),
        (lambda folder: "/dev/video97", Kind.NOT_FOUND, "no such file, camera"),
        (lambda folder: "http://127.0.0.1:9/x", Kind.UNREADABLE, "refused"),
        (lambda folder: 3, Kind.UNSUPPORTED, "int is no video"),
    ],
)
def test_what_is_no_video_is_one_clear_error(
    engine: Engine, tmp_path: Path, make: Callable[[Path], str | Path], kind: Kind, words: str
) -> None:
    with pytest.raises(SourceError, match=words) as raised:
        list(engine.watch(make(tmp_path)))
    assert raised.value.kind is kind


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_frames_over_the_limit_are_not_decoded(video: Path) -> None:
    limits = Limits(max_pixels=SIZE[0] * SIZE[1] - 1)
    with (
        Engine.load(backend="onnxruntime", threads=1, limits=limits) as engine,
        pytest.raises(SourceError, match="208×160 are over the limit of 33,279") as raised,
    ):
        engine.watch(video)
    assert raised.value.kind is Kind.TOO_LARGE


def test_without_pyav_the_error_names_the_extra(
    engine: Engine, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UnavailableError, match=r"pip install '\.\[video\]'"):
        engine.watch(video)


@pytest.mark.parametrize(
    "settings",
    [
        {"every": -1},
        {"every": float("nan")},
        {"timeout": 0},
        {"timeout": (1.0, float("inf"))},
        {"reconnect": -1},
        {"min_score": 1.5},
        {"max_faces": 0},
    ],
)
def test_settings_that_cannot_be_are_refused(engine: Engine, video: Path, settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        engine.watch(video, **settings)


def test_a_password_is_not_in_a_name() -> None:
    assert parse_source("rtsp://me:secret@camera:554/x").name == "rtsp://me:***@camera:554/x"
    assert parse_source("rtsp://me:secret@camera:554/x").url == "rtsp://me:secret@camera:554/x"
    assert parse_source("http://a/b@c:d@e").name == "http://a/b@c:d@e"


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nhttp://127.0.0.1:{port}/x.ts\n",
        "ffconcat version 1.0\nfile 'http://127.0.0.1:{port}/x.ts'\n",
    ],
    ids=["playlist", "concat"],
)
def test_a_file_that_names_a_url_opens_no_connection(engine: Engine, tmp_path: Path, text: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        path = write(tmp_path / "list.m3u8", text.format(port=server.getsockname()[1]).encode())
        with pytest.raises(SourceError):
            list(engine.watch(path, timeout=1))
        with pytest.raises(TimeoutError):
            server.accept()


# Live sources


def test_a_live_source_drops_what_nobody_takes(engine: Engine, video: Path) -> None:
    with engine.watch(video, live=True) as watch:
        first = next(watch)
        watch._reader._thread.join(30)  # until all have come
        frames = [first, *watch]
    assert len(frames) <= 2, "the newest, unless that was the first to be taken"
    assert frames[-1].index == COUNT - 1
    assert watch.dropped == COUNT - len(frames)


def test_a_camera_is_live_and_a_file_is_not(engine: Engine) -> None:
    graph = "lavfi:testsrc2=size=64x48:rate=50:duration=0.4"
    with engine.watch(f"{graph},realtime") as watch:
        next(watch)
        while watch.dropped < 5 and watch._reader._thread.is_alive():
            time.sleep(0.01)
        rest = list(watch)
    assert watch.dropped >= 5
    assert watch.dropped + 1 + len(rest) == 20
    assert len(list(engine.watch(graph))) == 20


@pytest.mark.parametrize("scheme", ["http", "rtsp"])
def test_a_mute_server_is_an_error_in_time(engine: Engine, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"{scheme}://127.0.0.1:{server.getsockname()[1]}/x"
        with pytest.raises(SourceError, match=r"no answer within 0\.3 s") as raised:
            engine.watch(url, timeout=0.3)
    assert raised.value.kind is Kind.TIMEOUT


class Camera:
    """Sends a stream over HTTP to whoever asks, and breaks off at its end as if there were more, `times` times."""

    def __init__(self, data: bytes, times: int) -> None:
        self._data, self._times = data, times
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}/x.ts"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with self._server:
            for _ in range(self._times):
                connection, _ = self._server.accept()
                with connection:
                    connection.recv(4096)
                    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(self._data) + 9999}\r\n\r\n"
                    connection.sendall(head.encode() + self._data)


def test_a_stream_that_is_lost_is_opened_again(
    engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "FIRST_PAUSE", 0.05)
    data = write_video(folder / "stream.ts", moving(12)).read_bytes()
    watch = engine.watch(Camera(data, 2).url, reconnect=2, live=True, timeout=5)
    frames, error = fail(watch)
    assert error.kind is Kind.UNREADABLE
    assert "lost; 2 of 2 tries to open it again failed" in error.message
    assert "Connection refused" in error.message
    assert 12 <= frames[-1].index < 24, "frames are counted on"
    assert all(before.time < after.time for before, after in pairwise(frames))
    assert len(frames) + watch.dropped + watch.damaged >= 20


def test_a_file_is_never_opened_again(engine: Engine, folder: Path) -> None:
    data = write_video(folder / "stream.ts", moving(12)).read_bytes()
    frames, error = fail(engine.watch(Camera(data, 2).url, reconnect=0, live=True, timeout=5))
    assert error.kind is Kind.UNREADABLE
    assert frames[-1].index < 12


def test_the_size_of_frames_may_change(engine: Engine, folder: Path) -> None:
    """As of a stream that adapts to the network. The face stays where it is in the picture."""
    large = (SIZE[0] * 3 // 2, SIZE[1] * 3 // 2)
    places = [[(40, 30)]] * 8
    small = write_video(folder / "small.ts", places).read_bytes()
    scaled = [draw(frame).resize(large) for frame in places]
    grown = write_video(folder / "large.ts", scaled, size=large).read_bytes()
    path = write(folder / "grows.ts", small + grown)
    watch = engine.watch(path, search_size=160)
    frames = list(watch)
    assert {frame.size for frame in frames} == {SIZE, large}
    assert watch.tracks == 1
    assert ids_of(frames)[-1] == [1]


# The end


def test_nothing_runs_on_once_a_watch_is_dropped(engine: Engine, video: Path) -> None:
    watch = engine.watch(video)
    next(watch)
    thread = watch._reader._thread
    del watch
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_a_closed_watch_is_at_its_end(engine: Engine, video: Path) -> None:
    watch = engine.watch(video)
    next(watch)
    watch.close()
    watch.close()
    assert next(watch, None) is None


def test_a_closed_engine_says_so(video: Path) -> None:
    engine = Engine.load(backend="onnxruntime", threads=1)
    watch = engine.watch(video)
    next(watch)
    engine.close()
    with pytest.raises(ClosedError):
        next(watch)
    with pytest.raises(ClosedError):
        engine.watch(video)


def test_frames_hold_no_pixels(engine: Engine, video: Path) -> None:
    """A list of all frames of a long video fits into memory; the pixels are the watch's, and the last frame's."""
    with engine.watch(video) as watch:
        frames = list(watch)
        assert watch.image is not None
        assert watch.image.shape == (SIZE[1], SIZE[0], 3)
    for frame in frames:
        assert not [name for name in Frame.__slots__ if isinstance(getattr(frame, name), np.ndarray)]
        assert frame.faces[0].prediction.source == str(video)


def test_stamps_of_frames_are_exact(engine: Engine, video: Path) -> None:
    with av.open(str(video)) as container:
        stamps = [frame.time for frame in container.decode(video=0)]
    assert [frame.time for frame in engine.watch(video)] == stamps
    assert Fraction(1, RATE) == pytest.approx(stamps[1], abs=1e-4)
