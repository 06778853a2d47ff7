"""A disk that remembers what was really durable: for cutting the power at any moment.

It listens to the system calls of the store under test (they are really made), and can then build
the directory that a power cut after any of them may leave: what was synced is there, and of the
rest, anything between nothing and all.
"""

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CALLS = ("open", "write", "fsync", "link", "unlink", "rename", "mkdir", "utime")


@dataclass
class Inode:
    """A file's bytes, or a directory's names: as written, and as synced."""

    is_directory: bool
    data: bytes = b""
    durable_data: bytes = b""
    names: dict[str, "Inode"] = field(default_factory=dict)
    durable_names: dict[str, "Inode"] = field(default_factory=dict)

    def sync(self) -> None:
        self.durable_data, self.durable_names = self.data, dict(self.names)


@dataclass(frozen=True)
class Call:
    """One finished system call; paths are relative to the disk's top directory."""

    name: str
    paths: tuple[str, ...]
    data: bytes = b""


@contextmanager
def watched(before: Callable[[str], None], after: Callable[..., None]) -> Iterator[None]:
    """Call `before(name)` and `after(name, arguments, result)` around the store's system calls.

    One call at a time, so that what is noted has the order of what happened.
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
    """The calls made below `top`, in order."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.calls: list[Call] = []
        self._opened: dict[int, str] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        with watched(lambda name: None, self._note):
            yield

    def _note(self, name: str, arguments: tuple[Any, ...], result: Any) -> None:
        if name == "open":
            path = self._relative(arguments[0])
            if path is not None:
                self._opened[result] = path
                if arguments[1] & os.O_CREAT:
                    self.calls.append(Call("create", (path,)))
        elif name in ("write", "fsync"):
            data = bytes(arguments[1][:result]) if name == "write" else b""
            self.calls.append(Call(name, (self._opened[arguments[0]],), data))
        elif name != "utime":
            paths = [self._relative(argument) for argument in arguments[:2]]
            self.calls.append(Call(name, tuple(path for path in paths if path is not None)))

    def _relative(self, path: Any) -> str | None:
        if not isinstance(path, str | Path):
            return None
        path = os.path.abspath(path)
        return os.path.relpath(path, self.top) if path.startswith(str(self.top)) else None

    def after_power_cut(self, calls: int, target: Path, *, kept: float, rng: random.Random) -> None:
        """Build in `target` what may be left after the first `calls` calls.

        `kept` is the share of what was not synced that reached the disk all the same: 0, 1, or
        between, and then each name and byte count by chance.
        """
        top = Inode(is_directory=True)
        for call in self.calls[:calls]:
            _play(top, call)
        _build(top, target, kept=kept, rng=rng)


def _play(top: Inode, call: Call) -> None:
    first = call.paths[0]
    if call.name == "create":
        _parent(top, first).names[_name(first)] = Inode(is_directory=False)
    elif call.name == "mkdir":
        _parent(top, first).names[_name(first)] = Inode(is_directory=True)
    elif call.name == "write":
        _at(top, first).data += call.data
    elif call.name == "fsync":
        _at(top, first).sync()
    elif call.name == "link":
        _parent(top, call.paths[1]).names[_name(call.paths[1])] = _at(top, first)
    elif call.name == "unlink":
        del _parent(top, first).names[_name(first)]
    elif call.name == "rename":
        _parent(top, call.paths[1]).names[_name(call.paths[1])] = _at(top, first)
        del _parent(top, first).names[_name(first)]
    else:
        raise ValueError(f"no model of {call.name}")


def _build(inode: Inode, target: Path, *, kept: float, rng: random.Random) -> None:
    if not inode.is_directory:
        written = len(inode.data) - len(inode.durable_data)
        extra = written if kept == 1 else rng.randint(0, written) if kept > 0 else 0
        target.write_bytes(inode.data[: len(inode.durable_data) + extra])
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


def _at(top: Inode, path: str) -> Inode:
    inode = top
    if path != ".":
        for name in path.split(os.sep):
            inode = inode.names[name]
    return inode


def _parent(top: Inode, path: str) -> Inode:
    return _at(top, os.path.dirname(path) or ".")


def _name(path: str) -> str:
    return os.path.basename(path)
