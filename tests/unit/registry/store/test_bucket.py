"""The object store with a real S3 API in its own process: the directory store's contract, and the
faults that only a server can have."""

import http.client
import http.server
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.unit.registry.registry_acts import Acts

pytest.importorskip("obstore", reason="the extra `s3` is not installed")
pytest.importorskip("moto", reason="moto, the S3 server of these tests, is not installed")

from registry.errors import AlreadyExistsError, NotFoundError, StoreError
from registry.log.ledger import Ledger, blob_key, utc_now
from registry.publish.jobs import request_forget
from registry.signing.keys import Role, Signer, Trust
from registry.store.bucket import ObjectStore
from registry.store.contract import Store
from registry.store.directory import open_store
from registry.upkeep.collection import collect
from registry.upkeep.verification import verify
from serving.config.home import Home, open_private_store, wait_for_private_store

DAY = timedelta(days=1)
KEYS = [f"log/{number:04d}" for number in range(12)]


class Server:
    """moto's S3 in a process of its own. Its objects are lost when the process ends."""

    def __init__(self) -> None:
        self.port = free_port()
        arguments = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self._process = subprocess.Popen(
            arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._make_bucket()

    def config(self) -> dict[str, str]:
        return {
            "endpoint": f"http://127.0.0.1:{self.port}",
            "access_key_id": "test",
            "secret_access_key": "test",
            "region": "us-east-1",
        }

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(30)

    def _make_bucket(self) -> None:
        url = f"http://127.0.0.1:{self.port}/bucket"
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(urllib.request.Request(url, method="PUT", data=b"")).close()
                return
            except OSError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.1)


class Proxy(http.server.ThreadingHTTPServer):
    """A proxy that makes the server worse: it drops conditions, or loses answers to PUTs."""

    def __init__(self, server: Server, *, forget_conditions: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Forward)
        self.behind = server
        self.forget_conditions = forget_conditions
        self.answers_to_lose = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def config(self) -> dict[str, str]:
        return {**self.behind.config(), "endpoint": f"http://127.0.0.1:{self.server_port}"}


class _Forward(http.server.BaseHTTPRequestHandler):
    server: Proxy

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = dict(self.headers)
        if self.server.forget_conditions:
            headers = {k: v for k, v in headers.items() if k.lower() != "if-none-match"}
        behind = http.client.HTTPConnection("127.0.0.1", self.server.behind.port)
        behind.request(self.command, self.path, body, headers)
        answer = behind.getresponse()
        data = answer.read()
        behind.close()
        self.close_connection = True
        if self.command == "PUT" and self.server.answers_to_lose > 0:
            self.server.answers_to_lose -= 1
            return
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _forward

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.kill()


@pytest.fixture
def opened(server: Server, request: pytest.FixtureRequest) -> Callable[..., ObjectStore]:
    # A folder of its own for each test.
    url = f"s3://bucket/{abs(hash(request.node.nodeid))}/registry"

    def open_it(*, read_only: bool = False) -> ObjectStore:
        return ObjectStore(url, config=server.config(), read_only=read_only, timeout_s=10.0)

    return open_it


@pytest.fixture
def store(opened: Callable[..., ObjectStore]) -> ObjectStore:
    return opened()


def test_bytes_read_back_as_they_were_created(store: ObjectStore) -> None:
    data = bytes(range(256)) * 400
    store.create("blobs/sha256/ab/abc", data)
    store.create("empty", b"")
    assert store.read("blobs/sha256/ab/abc") == data
    assert store.read("blobs/sha256/ab/abc", at_most=300) == data[:300]
    assert store.read("blobs/sha256/ab/abc", at_most=0) == b""
    assert store.read("empty") == b""


def test_the_bucket_refuses_a_taken_key_and_keeps_the_object(store: ObjectStore) -> None:
    store.create("log/1", b"first")
    for data in (b"second", b"first"):
        with pytest.raises(AlreadyExistsError, match="log/1"):
            store.create("log/1", data)
    assert store.read("log/1") == b"first"


def test_a_bucket_takes_several_objects_and_tells_the_taken_keys(store: ObjectStore) -> None:
    store.create("a/2", b"first")
    objects = {"a/1": b"one", "a/2": b"two", "b/c/3": b""}
    assert store.create_all(objects) == ("a/2",)
    assert {key: store.read(key) for key in objects} == {**objects, "a/2": b"first"}
    assert store.create_all({}) == ()


def test_a_bucket_lists_exact_string_prefixes(store: ObjectStore) -> None:
    for key in ("log/3", "log/10", "log/1", "logs", "blobs/a/b"):
        store.create(key, b"")
    assert store.list("log/") == ["log/1", "log/10", "log/3"]
    assert store.list("log/1") == ["log/1", "log/10"]
    assert store.list("log") == ["log/1", "log/10", "log/3", "logs"]
    assert store.list("") == ["blobs/a/b", "log/1", "log/10", "log/3", "logs"]
    assert store.list("nothing/") == []


@pytest.mark.parametrize("verb", ["read", "delete", "touch"])
def test_a_missing_object_of_a_bucket_is_named(store: ObjectStore, verb: str) -> None:
    with pytest.raises(NotFoundError, match=r"^log/7: not found in s3://bucket/\S+$"):
        getattr(store, verb)("log/7")


@pytest.mark.parametrize("key", ["", "/a", "../x", "a//b", ".touched/a", ".probe/1", "a b", "é"])
def test_a_key_that_could_leave_the_folder_is_refused(store: ObjectStore, key: str) -> None:
    for act in (store.read, store.delete, store.touch, lambda name: store.create(name, b"")):
        with pytest.raises(ValueError, match="a key is"):
            act(key)


def test_deleting_removes_and_opening_leaves_nothing(store: ObjectStore) -> None:
    store.create("subjects/a", b"")
    store.delete("subjects/a")
    assert store.list("") == []
    assert store.leftovers(before=utc_now() + DAY, delete=False) == ()


def test_a_touched_object_is_kept_and_an_old_one_goes(store: ObjectStore) -> None:
    store.create("blobs/a", b"data")
    time.sleep(1.1)  # S3's dates have whole seconds
    since = utc_now().replace(microsecond=0)
    assert store.older("blobs/", before=since) == ("blobs/a",)
    store.touch("blobs/a")
    assert store.older("blobs/", before=since) == ()
    assert not store.delete_older("blobs/a", before=since)
    assert store.read("blobs/a") == b"data"
    assert store.delete_older("blobs/a", before=utc_now() + DAY)
    assert not store.delete_older("blobs/a", before=utc_now() + DAY)
    assert store.list("") == []
    assert store.leftovers(before=utc_now() + DAY, delete=True) == (".touched/blobs/a",)
    assert store.leftovers(before=utc_now() + DAY, delete=True) == ()


def test_touching_waits_out_a_deletion_and_refuses_one_cut_off(
    store: ObjectStore, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    import obstore
    from obstore.store import from_url

    store.create("blobs/a", b"data")
    # The state after a collector was killed between its announcement and its deletion.
    raw = from_url(store.url, config=server.config(), client_options={"allow_http": True})
    obstore.put(raw, ".condemned/blobs/a/1234", b"")
    monkeypatch.setattr("registry.store.bucket._PATIENCE_S", 0.3)
    with pytest.raises(StoreError, match="deletion was cut off"):
        store.touch("blobs/a")
    assert ".condemned/blobs/a/1234" in store.leftovers(before=utc_now() + DAY, delete=True)
    store.touch("blobs/a")
    assert store.read("blobs/a") == b"data"


def test_a_registry_in_a_bucket_is_sound_and_loses_only_orphans(
    store: ObjectStore, trust: Trust, signers: dict[Role, Signer]
) -> None:
    acts = Acts(Ledger(store, trust), signers)
    acts.erase(1)
    orphan = blob_key(acts.ledger.put_blob(b"orphan"))
    assert verify(store, trust).orphans == (orphan,)
    assert collect(store, acts.ledger, now=utc_now()).blobs == ()
    assert collect(store, acts.ledger, now=utc_now() + 3 * DAY).blobs == (orphan,)
    found = verify(store, trust)
    assert found.problems == found.orphans == found.strays == ()
    assert Ledger(store, trust).refresh() == acts.ledger.state


def test_a_store_opened_for_reading_alone_writes_nothing(
    store: ObjectStore, opened: Callable[..., ObjectStore]
) -> None:
    store.create("log/1", b"data")
    reader = opened(read_only=True)
    assert reader.read("log/1") == b"data"
    for act in (lambda: reader.create("log/2", b""), lambda: reader.delete("log/1")):
        with pytest.raises(StoreError, match="for reading alone"):
            act()


def test_a_missing_bucket_is_no_empty_registry(server: Server) -> None:
    for read_only in (True, False):
        with pytest.raises(StoreError, match="no such bucket"):
            ObjectStore("s3://elsewhere/r", config=server.config(), read_only=read_only)


def test_a_server_that_lets_an_object_be_created_twice_is_refused(server: Server) -> None:
    with Proxy(server, forget_conditions=True) as proxy:
        with pytest.raises(StoreError, match="created twice"):
            ObjectStore("s3://bucket/twice", config=proxy.config())
        proxy.shutdown()
    behind = ObjectStore("s3://bucket/twice", config=server.config(), read_only=True)
    assert behind.leftovers(before=utc_now() + DAY, delete=False) == ()


def test_an_object_whose_answer_was_lost_is_known_as_ours(server: Server) -> None:
    with Proxy(server) as proxy:
        store = ObjectStore("s3://bucket/lost", config=proxy.config(), timeout_s=5.0)
        proxy.answers_to_lose = 1
        store.create("log/1", b"ours")
        assert store.read("log/1") == b"ours"
        proxy.answers_to_lose = 1
        with pytest.raises(AlreadyExistsError):
            store.create("log/1", b"of another")
        assert store.read("log/1") == b"ours"
        proxy.shutdown()


def test_a_command_whose_outcome_was_unknown_is_the_same_command_when_repeated(
    server: Server, trust: Trust, signers: dict[Role, Signer]
) -> None:
    with Proxy(server) as proxy:
        store = ObjectStore("s3://bucket/again", config=proxy.config(), timeout_s=5.0)
        acts = Acts(Ledger(store, trust), signers)
        acts.erase(1)
        before = acts.ledger.state
        proxy.answers_to_lose = 3  # all attempts at one record

        def request() -> object:
            return request_forget(
                acts.ledger,
                signers["operator"],
                subjects=("f" * 32,),
                backbone=before.backbone,
                actor="ops",
                reason="a test",
                request_id="the-same",
            )

        with pytest.raises(StoreError, match="can't be stored"):
            request()
        assert request() == request()
        # The record was stored although the answer was lost, and the repetition added none.
        assert acts.ledger.state.seq == before.seq + 1
        proxy.shutdown()


def test_a_publisher_cut_off_by_a_killed_server_loses_nothing_and_hears_why(
    trust: Trust, signers: dict[Role, Signer]
) -> None:
    server = Server()
    store = ObjectStore("s3://bucket/r", config=server.config(), timeout_s=2.0)
    acts = Acts(Ledger(store, trust), signers)
    acts.erase(1)
    before = acts.ledger.state
    server.kill()
    with pytest.raises(StoreError, match="s3://bucket/r"):
        acts.erase(2)
    assert acts.ledger.state == before


@pytest.mark.parametrize("where", ["http://example.org/x", "memory:///x", "ftp://x/y"])
def test_a_url_of_another_kind_is_refused(where: str) -> None:
    with pytest.raises(StoreError, match="expected a path or one of s3, gs, az"):
        open_store(where)


def test_a_forked_process_is_refused_instead_of_hanging(store: ObjectStore) -> None:
    child = os.fork()
    if child == 0:
        try:
            store.list("")
        except StoreError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_killed_server_fails_clearly_and_says_no_rust(tmp_path: Path) -> None:
    server = Server()
    store = ObjectStore("s3://bucket/r", config=server.config(), timeout_s=2.0)
    store.create("log/1", b"data")
    server.kill()
    for act in (lambda: store.create("log/2", b""), lambda: store.read("log/1")):
        with pytest.raises(StoreError, match="s3://bucket/r/log/. can't be|: can't be") as caught:
            act()
        assert "\n" not in str(caught.value)


def create_all(url: str, config: dict[str, str], name: str, results: Connection) -> None:
    store = ObjectStore(url, config=config)
    won = []
    results.send("ready")
    results.recv()
    for key in KEYS:
        try:
            store.create(key, name.encode() * 1000)
        except AlreadyExistsError:
            continue
        won.append(key)
    results.send(won)


def test_of_racing_processes_exactly_one_creates_each_object_of_a_bucket(
    store: ObjectStore, server: Server
) -> None:
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for name in "abc":
        ours, theirs = context.Pipe()
        process = context.Process(
            target=create_all, args=(store.url, server.config(), name, theirs)
        )
        process.start()
        pipes.append(ours)
        processes.append(process)
    for pipe in pipes:
        assert pipe.recv() == "ready"
    for pipe in pipes:
        pipe.send("go")
    won = {name: pipe.recv() for name, pipe in zip("abc", pipes, strict=True)}
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert sorted(key for keys in won.values() for key in keys) == KEYS
    for name, keys in won.items():
        assert all(store.read(key) == name.encode() * 1000 for key in keys)


def test_an_actor_waits_for_a_bucket_that_can_not_be_opened(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its constructor must not raise, because Ray would not start it again."""
    for name, value in server.config().items():
        monkeypatch.setenv(f"AWS_{name.upper()}", value)
    home = Home(tmp_path, "s3://later/registry")
    with pytest.raises(StoreError, match="no such bucket"):
        open_private_store(home)
    stores: list[Store] = []
    waiting = threading.Thread(
        target=lambda: stores.append(wait_for_private_store(home)), daemon=True
    )
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    later = f"http://127.0.0.1:{server.port}/later"
    urllib.request.urlopen(urllib.request.Request(later, method="PUT", data=b"")).close()
    waiting.join(30)
    assert len(stores) == 1
