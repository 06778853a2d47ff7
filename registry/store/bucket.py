"""A registry's objects in a bucket: S3, GCS or Azure, by URL, through obstore (the extra `s3`).

Credentials, region and endpoint come from the provider's usual environment variables, which
obstore reads; nothing secret passes through here.

Creations and deletions are sent without obstore's own retries: a request that is repeated after a
lost answer would find its own object, or delete a newer one.

Touching against deleting: no object store has "delete unless it was touched". So a touch and a
deletion first announce themselves and then look (Dekker's algorithm). This needs a strongly
consistent store, and all three are.

    touch(k):         write .touched/k     then wait until no .condemned/k/*, then look for k
    delete_older(k):  write .condemned/k/x then look at the ages of .touched/k and k, then delete k

The one that announces itself second sees the notice of the other. If that is the deletion, it keeps
k. If it is the touch, it waits until the deletion has ended, and then looks whether k is there.

A deletion with unknown outcome (killed, or no answer) leaves its `.condemned` behind. Then touching
k fails, with an error that names it, until `leftovers` removes the notice after the grace. Ages are
by the store's clock, `before` by the caller's: the grace must be far longer than their difference.
"""

import os
import secrets
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, cast

import obstore
from obstore.exceptions import AlreadyExistsError as TakenError
from obstore.exceptions import BaseError
from obstore.store import ObjectStore as Client
from obstore.store import from_url
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_incrementing

from registry.errors import AlreadyExistsError, NotFoundError, StoreError
from registry.store.contract import check_key, check_prefix, is_key

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config

SCHEMES = ("s3", "gs", "az")
_TOUCHED = ".touched/"
_CONDEMNED = ".condemned/"
_PROBE = ".probe/"
_PATIENCE_S = 10.0
_ATTEMPTS = 3
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "bucket does not exist")


class ObjectStore:
    """A `Store` in a bucket. Don't use it in a process forked from the one that opened it.

    Invariant: nothing is written unless the server was seen to refuse a second creation.
    """

    def __init__(
        self,
        url: str,
        *,
        config: Mapping[str, str] | None = None,
        read_only: bool = False,
        timeout_s: float = 30.0,
    ) -> None:
        """`url`: s3://bucket/folder, gs://..., az://.... `config`: for obstore, in addition to the
        environment. `read_only`: leave out the probe, and refuse to write.

        Raises: StoreError (no such bucket, no permission, no answer, or a server that lets an
        object be created twice).
        """
        self.url = url.rstrip("/")
        self._read_only = read_only
        self._process = os.getpid()
        try:
            self._reads = _client(self.url, config=config, timeout_s=timeout_s, retries=2)
            self._writes = _client(self.url, config=config, timeout_s=timeout_s, retries=0)
        except (BaseError, ValueError, TypeError) as error:
            raise StoreError(f"{self.url}: can't be opened: {_reason(error)}") from None
        with self._errors("", verb="opened"):
            next(iter(obstore.list(self._reads, chunk_size=1)), None)
        if not read_only:
            self._probe()

    def create(self, key: str, data: bytes) -> None:
        check_key(key)
        self._check_writable(key)
        tries = Retrying(
            retry=retry_if_exception_type(StoreError),
            stop=stop_after_attempt(_ATTEMPTS),
            wait=wait_incrementing(start=0.1, increment=0.1),
            reraise=True,
        )
        for attempt in tries:
            with attempt:
                try:
                    self._put_new(key, data)
                except AlreadyExistsError:
                    # After a lost answer the object that is there may be ours.
                    first = attempt.retry_state.attempt_number == 1
                    if first or self.read(key, at_most=len(data) + 1) != data:
                        raise

    def create_all(
        self, objects: Mapping[str, bytes], *, then: tuple[str, bytes] | None = None
    ) -> tuple[str, ...]:
        with ThreadPoolExecutor(max_workers=min(8, max(1, len(objects)))) as pool:
            free = pool.map(lambda key: self._is_created(key, objects[key]), objects)
            taken = tuple(key for key, created in zip(objects, free, strict=True) if not created)
        if then is not None and not taken and not self._is_created(*then):
            return (then[0],)
        return taken

    def read(self, key: str, *, at_most: int | None = None) -> bytes:
        check_key(key)
        parts: list[bytes] = []
        left = at_most
        with self._errors(key, verb="read"):
            for chunk in obstore.get(self._reads, key).stream():
                part = bytes(chunk) if left is None else bytes(chunk)[:left]
                parts.append(part)
                if left is not None:
                    left -= len(part)
                    if left <= 0:
                        break
        return b"".join(parts)

    def list(self, prefix: str) -> list[str]:
        check_prefix(prefix)
        return sorted(key for key, _ in self._listed(prefix))

    def delete(self, key: str) -> None:
        check_key(key)
        self._check_writable(key)
        with self._errors(key, verb="deleted"):
            # S3 reports success for an object that isn't there, so look first.
            obstore.head(self._reads, key)
            obstore.delete(self._writes, key)

    def touch(self, key: str) -> None:
        check_key(key)
        self._check_writable(key)
        if self._changed(key) is not None:
            with self._errors(key, verb="touched"):
                obstore.put(self._writes, _TOUCHED + key, b"", mode="overwrite")
        self._wait_for_deletions(key)
        if self._changed(key) is None:
            raise NotFoundError(f"{key}: not found in {self.url}")

    def older(self, prefix: str, *, before: datetime) -> tuple[str, ...]:
        check_prefix(prefix)
        touched = {
            name.removeprefix(_TOUCHED)
            for name, changed in self._names(_TOUCHED)
            if changed >= before
        }
        old = {key for key, changed in self._listed(prefix) if changed < before}
        return tuple(sorted(old - touched))

    def delete_older(self, key: str, *, before: datetime) -> bool:
        check_key(key)
        self._check_writable(key)
        if self._changed(key) is None or self._is_young(key, before=before):
            return False
        notice = f"{_CONDEMNED}{key}/{secrets.token_hex(8)}"
        with self._errors(key, verb="deleted"):
            obstore.put(self._writes, notice, b"", mode="overwrite")
        changed = self._changed(key)
        young = self._is_young(_TOUCHED + key, before=before)
        if deleted := changed is not None and changed < before and not young:
            # On an error the notice stays: the request may still arrive.
            with self._errors(key, verb="deleted"):
                obstore.delete(self._writes, key)
        with self._errors(key, verb="deleted"):
            obstore.delete(self._writes, notice)
        return deleted

    def leftovers(self, *, before: datetime, delete: bool) -> tuple[str, ...]:
        found = [
            name
            for folder in (_TOUCHED, _CONDEMNED, _PROBE)
            for name, changed in self._names(folder)
            if changed < before
        ]
        if delete:
            self._check_writable("leftovers")
            for name in found:
                # A mark that was renewed meanwhile still protects its object.
                if self._is_young(name, before=before):
                    continue
                with self._errors(name, verb="deleted"), suppress(FileNotFoundError):
                    obstore.delete(self._writes, name)
        return tuple(sorted(found))

    def _put_new(self, key: str, data: bytes) -> None:
        with self._errors(key, verb="stored"):
            obstore.put(self._writes, key, data, mode="create", use_multipart=False)

    def _is_created(self, key: str, data: bytes) -> bool:
        try:
            self.create(key, data)
        except AlreadyExistsError:
            return False
        return True

    def _probe(self) -> None:
        """Check that the server refuses to create an object twice. Leaves nothing behind."""
        name = f"{_PROBE}{secrets.token_hex(8)}"
        with self._errors("", verb="opened for writing"):
            obstore.put(self._writes, name, b"1", mode="create", use_multipart=False)
            try:
                obstore.put(self._writes, name, b"2", mode="create", use_multipart=False)
            except TakenError:
                return
            finally:
                obstore.delete(self._writes, name)
        raise StoreError(
            f"{self.url}: the server lets an object be created twice (it ignores If-None-Match), "
            "so two writers would overwrite each other's records; use a server that refuses it"
        )

    def _wait_for_deletions(self, key: str) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while notices := [name for name, _ in self._names(f"{_CONDEMNED}{key}/")]:
            if time.monotonic() > deadline:
                raise StoreError(
                    f"{key}: is being deleted, or a deletion was cut off ({notices[0]}); try "
                    "again, or let `lethe gc` remove what was left"
                )
            time.sleep(0.1)

    def _changed(self, name: str) -> datetime | None:
        try:
            with self._errors(name, verb="looked at"):
                return obstore.head(self._reads, name)["last_modified"]
        except NotFoundError:
            return None

    def _is_young(self, name: str, *, before: datetime) -> bool:
        changed = self._changed(name)
        return changed is not None and changed >= before

    def _listed(self, prefix: str) -> Iterator[tuple[str, datetime]]:
        # obstore's prefixes are whole segments.
        folder = prefix.rpartition("/")[0]
        for name, changed in self._names(f"{folder}/" if folder else ""):
            if name.startswith(prefix) and is_key(name):
                yield name, changed

    def _names(self, folder: str) -> Iterator[tuple[str, datetime]]:
        with self._errors(folder, verb="listed"):
            for chunk in obstore.list(self._reads, prefix=folder.rstrip("/") or None):
                for found in chunk:
                    yield found["path"], found["last_modified"]

    def _check_writable(self, key: str) -> None:
        if self._read_only:
            raise StoreError(f"{key}: can't be changed: {self.url} was opened for reading alone")

    @contextmanager
    def _errors(self, key: str, *, verb: str) -> Iterator[None]:
        if os.getpid() != self._process:
            raise StoreError(
                f"{key}: can't be {verb}: {self.url} was opened in another process; open it in this"
            )
        where = f"{self.url}/{key}" if key else self.url
        try:
            yield
        except TakenError:
            raise AlreadyExistsError(f"{key}: exists already in {self.url}") from None
        except FileNotFoundError as error:
            # A bucket that is gone must not look like an empty log.
            if not key or any(sign in str(error) for sign in _NO_BUCKET):
                raise StoreError(f"{where}: can't be {verb}: there is no such bucket") from None
            raise NotFoundError(f"{key}: not found in {self.url}") from None
        except (BaseError, OSError) as error:
            if any(sign in str(error) for sign in _NO_BUCKET):
                raise StoreError(f"{where}: can't be {verb}: there is no such bucket") from None
            raise StoreError(f"{where}: can't be {verb}: {_reason(error)}") from None


def _client(
    url: str, *, config: Mapping[str, str] | None, timeout_s: float, retries: int
) -> Client:
    client_options: ClientConfig = {
        "timeout": timedelta(seconds=timeout_s),
        # Plain HTTP is used only where the endpoint that was configured says http://.
        "allow_http": True,
    }
    retry_config: RetryConfig = {
        "max_retries": retries,
        "retry_timeout": timedelta(seconds=timeout_s),
    }
    # obstore takes the kind of store from the URL, its type stubs from the type of `config`.
    return from_url(
        url,
        config=cast("S3Config", dict(config or {})),
        client_options=client_options,
        retry_config=retry_config,
    )


def _reason(error: Exception) -> str:
    """The first line of what obstore says, without the server's XML and the dump of Rust structures
    that follow.
    """
    return str(error).partition("\n")[0].partition(": <?xml")[0].strip()[:400]
