"""Imitates a power cut: records what was synced, and builds what a cut at any moment may leave.

It reads the directory under test before and after every system call that changes something; the
calls are really made. From that it can build the directory that a power cut after any of them may
leave: what was synced is there, and of the rest nothing, a part or all.
"""

import os
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CALLS = ("open", "write", "fsync", "link", "unlink", "rename", "replace", "mkdir", "rmdir", "utime")


@dataclass(frozen=True)
class Seen:
    """What a path leads to. `number`: the inode's, never used twice; `data`: None for a folder."""

    number: int
    data: bytes | None


@dataclass(frozen=True)
class Call:
    """One finished system call. Paths are relative to the disk's top directory.

    `tree`: every path after the call. `synced`: the number of the inode that the call synced.
    """

    name: str
    paths: tuple[str, ...]
    tree: Mapping[str, Seen]
    synced: int | None = None


@dataclass
class Inode:
    """A file's bytes or a directory's names, as written and as synced."""

    data: bytes | None
    durable_data: bytes = b""
    names: dict[str, "Inode"] = field(default_factory=dict)
    durable_names: dict[str, "Inode"] = field(default_factory=dict)

    def sync(self) -> None:
        self.durable_data, self.durable_names = self.data or b"", dict(self.names)


@contextmanager
def watched(before: Callable[[str], None], after: Callable[..., None]) -> Iterator[None]:
    """Call `before(name)` and `after(name, arguments, result)` around the system calls of `CALLS`.

    Only one call runs at a time, so that the notes are in the order of the calls.
    """
    one_at_a_time = threading.Lock()

    def wrapped(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            with one_at_a_time:
                before(name)
                result = real(*arguments, **keywords)
                after(name, arguments, result)
                return result

        return call

    real_calls = {name: getattr(os, name) for name in CALLS}
    for name in CALLS:
        setattr(os, name, wrapped(name))
    try:
        yield
    finally:
        for name, real in real_calls.items():
            setattr(os, name, real)


class Disk:
    """Records the system calls below `top`, in order.

    Writes that don't go through Python's `os` (those of `open` or of a library) are noticed at the
    next call and recorded as the call "unseen".
    """

    def __init__(self, top: Path) -> None:
        self.top = top
        self.calls: list[Call] = []
        self._numbers: dict[int, int] = {}  # by the inode's number on the real disk, while in use
        self._given = 0
        self._start: Mapping[str, Seen] = {}
        self._tree: Mapping[str, Seen] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record while the block lasts. What exists at its start counts as durable."""
        self._start = self._tree = self._looked_at()
        with watched(self._note_unseen, self._note):
            yield
            self._note_unseen("")

    def _note_unseen(self, name: str) -> None:
        tree = self._looked_at()
        if tree != self._tree:
            self._tree = tree
            self.calls.append(Call("unseen", (), tree))

    def _note(self, name: str, arguments: tuple[Any, ...], result: Any) -> None:
        if name == "open":
            if not arguments[1] & os.O_CREAT:
                return
            name, arguments = "create", arguments[:1]
        paths, synced = tuple(filter(None, map(self._relative, arguments[:2]))), None
        if name in ("write", "fsync"):
            number = self._numbers.get(os.fstat(arguments[0]).st_ino)
            paths = tuple(path for path, seen in self._tree.items() if seen.number == number)
            synced = number if name == "fsync" else None
        if paths:
            self._tree = self._looked_at()
            self.calls.append(Call(name, paths, self._tree, synced))

    def _relative(self, path: Any) -> str | None:
        if not isinstance(path, str | Path):
            return None
        path = os.path.abspath(path)
        return os.path.relpath(path, self.top) if path.startswith(str(self.top)) else None

    def _looked_at(self) -> Mapping[str, Seen]:
        paths = [self.top, *self.top.rglob("*")]
        inodes = {path: path.stat().st_ino for path in paths}
        gone = self._numbers.keys() - set(inodes.values())
        for inode in gone:  # the file system may give the number to another file
            del self._numbers[inode]
        for inode in inodes.values():
            if inode not in self._numbers:
                self._given += 1
                self._numbers[inode] = self._given
        return {
            str(path.relative_to(self.top)): Seen(
                self._numbers[inode], None if path.is_dir() else path.read_bytes()
            )
            for path, inode in inodes.items()
        }

    def after_power_cut(self, calls: int, target: Path, *, kept: float, rng: random.Random) -> None:
        """Build in `target` what a power cut after the first `calls` calls may leave.

        `kept` is the share of what was not synced that reached the disk: 0, 1 or between. Between,
        chance decides on each name and on the number of bytes.
        """
        inodes: dict[int, Inode] = {}
        _play(inodes, self._start)
        for inode in inodes.values():
            inode.sync()
        for call in self.calls[:calls]:
            _play(inodes, call.tree)
            if call.synced is not None:
                inodes[call.synced].sync()
        _build(inodes[self._start["."].number], target, kept=kept, rng=rng)


def _play(inodes: dict[int, Inode], tree: Mapping[str, Seen]) -> None:
    for seen in tree.values():
        inode = inodes.setdefault(seen.number, Inode(seen.data))
        inode.data, inode.names = seen.data, {}
    for path, seen in tree.items():
        if path != ".":
            folder = tree[os.path.dirname(path) or "."]
            inodes[folder.number].names[os.path.basename(path)] = inodes[seen.number]


def _build(inode: Inode, target: Path, *, kept: float, rng: random.Random) -> None:
    if inode.data is not None:
        target.write_bytes(_kept_of(inode.data, inode.durable_data, kept=kept, rng=rng))
        return
    target.mkdir()
    names = dict(inode.durable_names)
    for name in sorted(inode.names.keys() | names.keys()):
        if rng.random() < kept:
            if name in inode.names:
                names[name] = inode.names[name]
            else:
                names.pop(name, None)
    for name, child in names.items():
        _build(child, target / name, kept=kept, rng=rng)


def _kept_of(data: bytes, durable: bytes, *, kept: float, rng: random.Random) -> bytes:
    if kept == 1:
        return data
    if kept == 0 or rng.random() >= kept:
        return durable
    least = len(durable) if data.startswith(durable) else 0
    return data[: rng.randint(least, len(data))]
