"""A registry's objects in a directory, and which store a path or URL means."""

import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from registry.errors import AlreadyExistsError, NotFoundError, StoreError
from registry.store.contract import Store, check_key, check_prefix, is_key
from registry.store.durable_file import (
    TEMPORARY_PREFIX,
    sync_folder,
    temporary_beside,
    write_new,
)

T = TypeVar("T")

_pool: ThreadPoolExecutor


class DirectoryStore:
    """A `Store` in a local directory (or NFSv4/EFS: it needs hard links).

    An object is written to a temporary file, synced, and linked to its name: a name always stands
    for complete bytes. Then the directory is synced, so that the name lasts.
    """

    def __init__(
        self, root: Path | str, *, file_mode: int = 0o644, directory_mode: int = 0o755
    ) -> None:
        self.root = Path(root)
        self._prefix = f"{self.root}{os.sep}"
        self._file_mode = file_mode
        self._directory_mode = directory_mode
        self._durable_directories: set[Path] = set()
        self._lock = threading.Lock()

    def create(self, key: str, data: bytes) -> None:
        if self.create_all({key: data}):
            raise AlreadyExistsError(f"{key}: exists already in {self.root}")

    def create_all(
        self, objects: Mapping[str, bytes], *, then: tuple[str, bytes] | None = None
    ) -> tuple[str, ...]:
        # Three rounds: the files, the names of `objects`, the name of `then`. The syncs of a round
        # run side by side, because a file system commits them in one go, and the number of these
        # commits decides how long a publish takes.
        files = {**objects, **dict([then] if then is not None else [])}
        paths = {key: Path(self._path(key)) for key in files}
        with _os_errors(", ".join(files), verb="stored"):
            made = self._make({path.parent for path in paths.values()})
            temporaries = {key: temporary_beside(path) for key, path in paths.items()}
            try:
                _each(
                    lambda key: write_new(temporaries[key], files[key], mode=self._file_mode), files
                )
                taken = self._name({key: temporaries[key] for key in objects}, paths, made=made)
                if then is not None and not taken:
                    taken = self._name({then[0]: temporaries[then[0]]}, paths, made=made)
            finally:
                for temporary in temporaries.values():
                    with suppress(FileNotFoundError):
                        os.unlink(temporary)
        return taken

    def read(self, key: str, *, at_most: int | None = None) -> bytes:
        path = self._path(key)
        with _os_errors(key, verb="read"):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                raise NotFoundError(f"{key}: not found in {self.root}") from None
            try:
                return _content(descriptor, at_most)
            finally:
                os.close(descriptor)

    def list(self, prefix: str) -> list[str]:
        check_prefix(prefix)
        start = os.path.join(self.root, prefix.rpartition("/")[0])
        with _os_errors(prefix, verb="listed"):
            keys = [path.removeprefix(self._prefix) for path in _files_below(start)]
        return sorted(key for key in keys if key.startswith(prefix) and is_key(key))

    def delete(self, key: str) -> None:
        path = self._path(key)
        with _os_errors(key, verb="deleted"):
            try:
                os.unlink(path)
            except FileNotFoundError:
                raise NotFoundError(f"{key}: not found in {self.root}") from None
            sync_folder(Path(path).parent)

    def touch(self, key: str) -> None:
        path = Path(self._path(key))
        with _os_errors(key, verb="touched"):
            try:
                os.utime(path)
            except FileNotFoundError:
                raise NotFoundError(f"{key}: not found in {self.root}") from None
            self._sync({path.parent}, made=self._make({path.parent}))

    def older(self, prefix: str, *, before: datetime) -> tuple[str, ...]:
        return tuple(key for key in self.list(prefix) if _is_older(self._path(key), before=before))

    def delete_older(self, key: str, *, before: datetime) -> bool:
        path = self._path(key)
        # First move it away, then look at its age. A touch before the move shows in the age, and
        # the object is put back. A touch after the move finds no object.
        aside = temporary_beside(Path(path))
        with _os_errors(key, verb="deleted"):
            if not _is_older(path, before=before):
                return False
            try:
                os.rename(path, aside)
            except FileNotFoundError:
                return False
            old = _is_older(aside, before=before)
            if not old:
                with suppress(FileExistsError):
                    os.link(aside, path)
            os.unlink(aside)
            sync_folder(Path(path).parent)
        return old

    def leftovers(self, *, before: datetime, delete: bool) -> tuple[str, ...]:
        found = []
        with _os_errors("leftovers", verb="listed"):
            for path in _files_below(str(self.root)):
                name = os.path.basename(path)
                if name.startswith(TEMPORARY_PREFIX) and _is_older(path, before=before):
                    found.append(path.removeprefix(self._prefix))
                    if delete:
                        with suppress(FileNotFoundError):
                            os.unlink(path)
        return tuple(sorted(found))

    def _path(self, key: str) -> str:
        check_key(key)
        return f"{self._prefix}{key}"

    def _name(
        self, temporaries: Mapping[str, Path], paths: Mapping[str, Path], *, made: set[Path]
    ) -> tuple[str, ...]:
        """Give written files their names, durably, and return those keys that were taken."""
        taken = []
        for key, temporary in temporaries.items():
            try:
                os.link(temporary, paths[key])
            except FileExistsError:
                taken.append(key)
            os.unlink(temporary)
        # Also if a name was taken: the caller relies on the other writer's object, and that writer
        # may not have synced the name yet.
        self._sync({paths[key].parent for key in temporaries}, made=made)
        return tuple(taken)

    def _make(self, directories: Iterable[Path]) -> set[Path]:
        """Make directories and those above them. Returns those whose names may not be durable.

        These are all that this process hasn't synced itself: another process may have made them
        and been killed before its sync.
        """
        made: set[Path] = set()
        with self._lock:
            durable = set(self._durable_directories)
        for directory in directories:
            if directory in durable:
                continue
            chain = [directory]
            while chain[-1] != self.root and chain[-1].parent not in durable:
                chain.append(chain[-1].parent)
            while not chain[-1].parent.is_dir():
                chain.append(chain[-1].parent)
            for path in reversed(chain):
                path.mkdir(mode=self._directory_mode, exist_ok=True)
            made.update(chain)
        return made

    def _sync(self, directories: Iterable[Path], *, made: set[Path]) -> None:
        """Make the names in `directories`, and those of the `made` ones, outlive a power cut."""
        with self._lock:
            new = made - self._durable_directories
        _each(sync_folder, {*directories, *(path.parent for path in new)})
        with self._lock:
            self._durable_directories.update(new)


def open_store(where: Path | str, *, read_only: bool = False, file_mode: int = 0o644) -> Store:
    """The store at a path, or in a bucket at s3://, gs:// or az:// (the extra `s3`).

    `read_only`: a bucket can be read with credentials that may not write. `file_mode`: for the
    files of a directory.

    Raises: StoreError (the bucket can't be used, or obstore is not installed).
    """
    scheme, separator, _ = str(where).partition("://")
    if not separator:
        return DirectoryStore(where, file_mode=file_mode)
    try:
        from registry.store.bucket import SCHEMES, ObjectStore
    except ImportError as error:
        raise StoreError(
            f"{where}: buckets need obstore: pip install 'lethe[s3]' ({error})"
        ) from None
    if scheme not in SCHEMES:
        raise StoreError(f"{where}: expected a path or one of {', '.join(SCHEMES)}://")
    return ObjectStore(str(where), read_only=read_only)


def _new_pool() -> None:
    """Threads for syncs. They are kept: starting them took longer than syncing on a fast disk."""
    global _pool
    _pool = ThreadPoolExecutor(max_workers=8, thread_name_prefix="store")


_new_pool()
os.register_at_fork(after_in_child=_new_pool)  # threads don't live on in a fork


def _each(act: Callable[[T], None], items: Collection[T]) -> None:
    """Call `act` on all items side by side, because fsync only waits. Returns when all are done."""
    if not items:
        return
    first, *others = items
    pending = [_pool.submit(act, item) for item in others]
    try:
        act(first)
    finally:
        wait(pending)
    for done in pending:
        done.result()


def _is_older(path: str | Path, *, before: datetime) -> bool:
    """Whether there is a file, last written or touched before `before`."""
    try:
        return os.stat(path).st_mtime < before.timestamp()
    except FileNotFoundError:
        return False


def _files_below(directory: str) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        # By default os.walk skips what it can't list: an unreadable log would look empty.
        if not isinstance(error, FileNotFoundError):
            raise error

    for folder, _, names in os.walk(directory, onerror=refuse):
        start = os.path.join(folder, "")  # once: a log has thousands of names
        for name in names:
            yield f"{start}{name}"


def _content(descriptor: int, at_most: int | None) -> bytes:
    chunks = []
    # Not more than the file's size: a reader of the log allows a megabyte for each record.
    size = os.fstat(descriptor).st_size
    left = size if at_most is None else min(at_most, size)
    while left > 0 and (chunk := os.read(descriptor, min(left, 1 << 20))):
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)


@contextmanager
def _os_errors(key: str, *, verb: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(f"{key}: can't be {verb}: {reason} ({error.filename})") from error
