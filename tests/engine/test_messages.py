"""What the engine and its workers say to each other arrives as it was sent, and nonsense is recognised as such."""

import json
import select
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmengine.errors import Kind
from fmengine.pipeline.messages import (
    MAX_ANSWER,
    MAX_MESSAGE,
    Answer,
    AnswerReader,
    NonsenseError,
    Request,
    receive_request,
    send,
    wait_for,
)

WAIT = 20.0  # seconds after which something hangs

# Text as Python has it: also what no file's name can be, such as NUL, and halves of surrogate pairs.
paths = st.text(st.characters(codec=None), max_size=40) | st.text("\0\n\ud800\udcffé/", max_size=6)
blobs = st.binary(max_size=200)
floats = st.floats(0, 1e9, allow_nan=False)
numbers = st.integers(0, 2**32 - 1)
requests = st.builds(
    Request,
    generation=numbers,
    slot=st.integers(0, 1),
    network=st.booleans(),
    observe=st.booleans(),
    folder=st.binary(max_size=60),
    contents=st.lists(paths, min_size=1, max_size=9) | st.lists(paths | blobs, min_size=1, max_size=9),
)
answers = st.builds(
    Answer,
    generation=numbers,
    slot=st.integers(0, 255),
    pictures=st.integers(0, 65_535),
    failures=st.lists(st.tuples(st.integers(0, 63), st.sampled_from(Kind), st.text(max_size=20)), max_size=4),
    unplaced=st.lists(st.integers(0, 63), max_size=4),
    observed=st.lists(st.tuples(st.sampled_from(["read", "decode"]), floats, floats), max_size=2),
    error=st.text(max_size=20),
)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


@given(st.lists(requests, min_size=1, max_size=3))
def test_requests_arrive_as_they_were_sent(sent: list[Request]) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            for request in sent:
                send(ours, request.pack(), not_needed)
        for request in sent:
            assert receive_request(theirs) == request._replace(contents=[*request.contents])
        assert receive_request(theirs) is None


def not_needed() -> None:
    raise AssertionError("a short request is waited for")


def test_a_request_larger_than_what_a_socket_holds(ends) -> None:
    ours, theirs = ends
    contents = [bytes([number]) * 3_000_000 for number in range(5)]
    request = Request(1, 0, True, False, b"/", [*contents, "a path"])
    wait = partial(wait_for, ours, select.POLLOUT, WAIT)
    thread = threading.Thread(target=send, args=(ours, request.pack(), wait))
    thread.start()
    assert receive_request(theirs) == request
    thread.join()


def test_a_request_that_is_not_taken_can_be_given_up(ends) -> None:
    ours, _ = ends

    def give_up() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        send(ours, [bytes(4_000_000)], give_up)


@pytest.mark.parametrize("cut", [0, 1, 19, 20, 29])
def test_an_engine_that_ends_within_a_request(ends, cut: int) -> None:
    ours, theirs = ends
    ours.sendall(b"".join(Request(1, 0, True, False, b"/folder", ["a", "b"]).pack())[:cut])
    ours.close()
    assert receive_request(theirs) is None


@given(st.lists(answers, min_size=1, max_size=3), st.integers(5, 400))
def test_answers_arrive_as_they_were_sent_however_cut(sent: list[Answer], size: int) -> None:
    ours, theirs = socket.socketpair()
    data = b"".join(answer.pack() for answer in sent)
    ours.setblocking(False)
    reader = AnswerReader(ours)
    found: list[Answer] = []
    with ours, theirs:
        for start in range(0, len(data), size):
            theirs.sendall(data[start : start + size])
            while (answer := reader.read()) is not None:
                found.append(answer)
        theirs.close()
        with pytest.raises(ConnectionError):
            reader.read()
    assert found == sent


def test_what_came_of_an_answer_is_kept(ends) -> None:
    ours, theirs = ends
    reader, answer = AnswerReader(ours), Answer(7, 1, 3, [(2, Kind.CORRUPT, "so")], [1], [("read", 0.5, 1.5)])
    for byte in answer.pack()[:-1]:
        theirs.sendall(bytes([byte]))
        assert reader.read() is None
    theirs.sendall(answer.pack()[-1:])
    assert reader.read() == answer


@pytest.mark.parametrize("end", [0, 5, 11, 15])
def test_a_worker_that_ends_within_an_answer(ends, end: int) -> None:
    ours, theirs = ends
    theirs.sendall(Answer(7, 1, 3, error="so").pack()[:end])
    theirs.close()
    with pytest.raises(ConnectionError):
        AnswerReader(ours).read()


def read_body(ends: tuple[socket.socket, socket.socket], body: bytes) -> Answer:
    ours, theirs = ends
    theirs.sendall(struct.pack("<IBHI", 1, 0, 2, len(body)) + body)
    return read_whole(ours)


def read_whole(ours: socket.socket) -> Answer:
    reader = AnswerReader(ours)
    while (answer := reader.read()) is None:
        wait_for(ours, select.POLLIN, WAIT)
    return answer


NO_FAILURES = [
    *('[0, "of no kind", "x"]', '[0, "corrupt", 1]', '[0, "corrupt"]', '["0", "corrupt", "x"]', "0", "[]", "null"),
    *('[true, "corrupt", "x"]', '[0.0, "corrupt", "x"]', '[0, ["corrupt"], "x"]', '[0, {}, "x"]', "{}", '"text"'),
]
NO_INDICES = ["0.5", '"0"', "null", "[]", "true", "1" + "0" * 5000]
NO_OBSERVATIONS = ['["read", 1, 2.0]', "[1, 1.0, 2.0]", '["read", 1.0]', "0", '"text"']
NO_BODIES = [
    *(" ", "0", "null", "true", '"text"', "[]", "[[], [], []]", '[[], [], [], "", 1]', "{}", "[1, 2, 3, 4]", "[["),
    *("[[], [], [], null]", '[[], 1, [], ""]', "[" * 200_000, '{"a":' * 100_000),
    *(f'[[{failure}], [], [], ""]' for failure in NO_FAILURES),
    *(f'[[], [{index}], [], ""]' for index in NO_INDICES),
    *(f'[[], [], [{observation}], ""]' for observation in NO_OBSERVATIONS),
]


@pytest.mark.parametrize("body", NO_BODIES, ids=lambda body: body[:40])
def test_a_body_that_makes_no_sense(ends, body: str) -> None:
    ours, theirs = ends
    data = struct.pack("<IBHI", 1, 0, 2, len(body)) + body.encode()
    sender = threading.Thread(target=theirs.sendall, args=(data,))
    sender.start()
    with pytest.raises(NonsenseError):
        read_whole(ours)
    sender.join()


@given(st.binary(min_size=1, max_size=300))
def test_bytes_of_any_sort_are_an_answer_or_nonsense(body: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, suppress(NonsenseError):
        assert isinstance(read_body((ours, theirs), body), Answer)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(Kind),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
)


@given(st.lists(json_values, min_size=4, max_size=4))
def test_json_of_any_sort_is_an_answer_or_nonsense(values: list) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            answer = read_body((ours, theirs), json.dumps(values).encode())
        except NonsenseError:
            return
    assert all(
        type(index) is int and type(kind) is Kind and type(text) is str for index, kind, text in answer.failures
    )
    assert all(type(index) is int for index in answer.unplaced)
    assert type(answer.error) is str


def test_a_length_that_no_answer_has(ends) -> None:
    ours, theirs = ends
    theirs.sendall(struct.pack("<IBHI", 1, 0, 1, MAX_ANSWER + 1))
    with pytest.raises(NonsenseError, match=f"an answer of {MAX_ANSWER + 1} bytes"):
        AnswerReader(ours).read()


def test_a_message_is_cut(ends) -> None:
    ours, theirs = ends
    theirs.sendall(Answer(1, 0, 1, [(0, Kind.CORRUPT, "x" * 10_000)], error="y" * 10_000).pack())
    answer = AnswerReader(ours).read()
    assert answer.failures == [(0, Kind.CORRUPT, "x" * MAX_MESSAGE)]
    assert answer.error == "y" * MAX_MESSAGE


def test_the_longest_answer_is_below_what_is_taken_for_nonsense() -> None:
    failures = [(number, Kind.CORRUPT, "\ud800" * MAX_MESSAGE) for number in range(64)]
    observed = [("preprocess", 1e9 + 0.123456789, 1e9 + 0.987654321)] * 300
    assert len(Answer(2**32 - 1, 1, 64, failures, observed=observed).pack()) < MAX_ANSWER


def test_a_message_to_one_who_is_gone_is_an_error_and_no_signal(ends) -> None:
    """A program that does not ignore SIGPIPE would end."""
    ours, theirs = ends
    theirs.close()
    before = signal.signal(signal.SIGPIPE, lambda *_: pytest.fail("SIGPIPE"))
    try:
        for parts in ([b"short"], [bytes(1 << 20), b"long"]):
            with pytest.raises(BrokenPipeError):
                send(ours, parts, not_needed)
    finally:
        signal.signal(signal.SIGPIPE, before)
