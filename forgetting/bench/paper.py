"""The papers' tables as files: what to run, and their numbers to print beside ours."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forgetting.errors import DataError


@dataclass(frozen=True)
class PaperRow:
    """One row of a paper's table, in percent, by the task's name (`80-20`).

    `ours` is our name for the row's method; None if we don't have it.
    """

    title: str
    ours: str | None
    tasks: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class PaperConfig:
    """What a file says. A field that it leaves out is None or empty."""

    path: Path
    data: str | None = None
    backbone: str | None = None
    setting: str | None = None
    shots: int | None = None
    missing: int = 0
    methods: tuple[str, ...] = ()
    rows: tuple[PaperRow, ...] = field(default=(), repr=False)


def read_paper(path: Path) -> PaperConfig:
    """Read `benchmarks/papers/*.toml`.

    Raises:
        DataError: The file can't be read, or an entry has the wrong type.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"config file {path} can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"config file {path} is not valid TOML: {error}") from error
    kinds = {"data": str, "backbone": str, "setting": str, "shots": int, "missing": int}
    kinds |= {"methods": list, "paper": dict}
    for key, kind in kinds.items():
        if key in raw and (not isinstance(raw[key], kind) or isinstance(raw[key], bool)):
            raise DataError(f"{path}: expected {key} to be of type {kind.__name__}")
    try:
        rows = tuple(_row(name, entry) for name, entry in raw.get("paper", {}).items())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: an entry of [paper] is of the wrong kind: {error}") from error
    return PaperConfig(
        path=path,
        data=raw.get("data") or None,
        backbone=raw.get("backbone") or None,
        setting=raw.get("setting"),
        shots=raw.get("shots"),
        missing=raw.get("missing", 0),
        methods=tuple(str(name) for name in raw.get("methods", [])),
        rows=rows,
    )


def _row(name: str, entry: Mapping[str, Any]) -> PaperRow:
    tasks = {
        str(task["name"]): {key: float(v) for key, v in task.items() if key != "name"}
        for task in entry["tasks"]
    }
    return PaperRow(name, entry.get("method"), tasks)
