"""The clients: what goes wrong is one sentence, whatever the transport raised."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from serving.client import Client, ClientError, InferenceClient


def answering(answer: bytes) -> Iterator[str]:
    """The URL of a server that answers every request so, then closes the connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

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


def test_a_server_that_is_not_there_is_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with Client(url, "token") as client, pytest.raises(ClientError, match="lethe serve"):
        list(client.events("job-1"))
