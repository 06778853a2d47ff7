"""The clients: every failure is one sentence, whatever the transport raised."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from serving import client as client_module
from serving.client import Client, ClientError, InferenceClient


def answering(*answers: bytes, asked: list[bytes] | None = None) -> Iterator[str]:
    """The URL of a server that gives these answers, the last of them for ever; it closes the
    connection after each. `asked` gets every request."""
    listener = socket.create_server(("127.0.0.1", 0))
    left = list(answers)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                request = connection.recv(65536)
                if asked is not None:
                    asked.append(request)
                connection.sendall(left.pop(0) if len(left) > 1 else left[0])

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


@pytest.fixture
def breaking() -> Iterator[str]:
    """The URL of a server that breaks every answer off in its middle."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 99\r\n\r\n"
    yield from answering(head + b"{}\n")


@pytest.fixture
def another() -> Iterator[str]:
    """The URL of a server that answers everything with a page."""
    page = b"<p>Welcome"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n"
    yield from answering(head % len(page) + page)


BUSY = b'HTTP/1.1 503 Busy\r\nContent-Length: 19\r\n\r\n{"detail": "Busy."}'
WELL = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
WRONG = b'HTTP/1.1 409 Wrong\r\nContent-Length: 20\r\n\r\n{"detail": "Wrong."}'
NOTHING = b""


@contextmanager
def asking(*answers: bytes) -> Iterator[tuple[Client, list[bytes]]]:
    """A client of a server that answers so, and what it was asked."""
    asked: list[bytes] = []
    serving = answering(*answers, asked=asked)
    with Client(next(serving), "token") as client:
        yield client, asked
    next(serving, None)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "RETRY_S", 0.01)


@pytest.mark.usefixtures("soon")
def test_a_busy_or_broken_server_is_asked_again() -> None:
    with asking(BUSY, NOTHING, NOTHING, BUSY, WELL) as (client, asked):
        assert client.status() == {}
        assert len(asked) == 5


@pytest.mark.usefixtures("soon")
def test_a_command_is_sent_again_with_its_key() -> None:
    with asking(NOTHING, BUSY, WELL) as (client, asked):
        assert client.suspend(reason="why", key="mine") == {}
        assert [request.count(b"Idempotency-Key: mine") for request in asked] == [1, 1, 1]


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    ("answer", "sentence"), [(BUSY, r"Busy\."), (NOTHING, "GET /v1/status got no answer")]
)
def test_a_server_that_goes_on_like_this_is_given_up(answer: bytes, sentence: str) -> None:
    with asking(answer) as (client, asked):
        with pytest.raises(ClientError, match=sentence):
            client.status()
        assert len(asked) == client_module.TRIES == 8


@pytest.mark.usefixtures("soon")
def test_what_was_refused_is_not_asked_again() -> None:
    with asking(WRONG, WELL) as (client, asked):
        with pytest.raises(ClientError, match=r"Wrong\."):
            client.status()
        assert len(asked) == 1


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("answer", [BUSY, NOTHING])
def test_a_prediction_is_sent_once(answer: bytes) -> None:
    asked: list[bytes] = []
    serving = answering(answer, WELL, asked=asked)
    with InferenceClient(next(serving)) as client, pytest.raises(ClientError):
        client.predict(b"image", content_type="image/png")
    assert len(asked) == 1
    next(serving, None)


@pytest.mark.parametrize("url", ["http://[::", "localhost:8001", "ftp://localhost"])
def test_what_is_no_url_is_named(url: str) -> None:
    with pytest.raises(ClientError, match="is no URL of a server"):
        Client(url, "token")


def test_an_answer_that_breaks_off_is_a_sentence(breaking: str) -> None:
    with Client(breaking, "token") as client, pytest.raises(ClientError, match="broke off"):
        list(client.events("job-1"))
    with InferenceClient(breaking) as client, pytest.raises(ClientError, match="broke off"):
        list(client.predict_batch([b"data"]))


def test_another_server_is_a_sentence(another: str) -> None:
    for ask in (Client.status, lambda client: list(client.events("job-1"))):
        with Client(another, "token") as client, pytest.raises(ClientError, match="is not a Lethe"):
            ask(client)
    with InferenceClient(another) as client, pytest.raises(ClientError, match="is not a Lethe"):
        client.embed(b"image", content_type="image/png")


def test_a_server_that_is_not_there_is_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with Client(url, "token") as client, pytest.raises(ClientError, match="lethe serve"):
        list(client.events("job-1"))
