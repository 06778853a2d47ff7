"""A cell of the tables: one method, one seed, one setting, with the figures of every task.

On disk a cell is one JSON file, named by what it is and by a digest of all that determines it. It
is written whole or not at all; one that can't be read counts as absent.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from forgetting.data.durable_file import replace_file
from forgetting.measure.accuracy import Share, drop, h_mean

FORMAT = 1


class CellError(ValueError):
    """A cell's file is damaged or of another format."""


@dataclass(frozen=True)
class MarginFigures:
    """The papers' accuracies: the label's row must win by the head's margin."""

    acc_r: float
    acc_r_before: float
    acc_f: float
    acc_f_before: float
    acc_o: float | None

    @property
    def h(self) -> float:
        return h_mean(self.acc_r, self.acc_f_before - self.acc_f)


@dataclass(frozen=True)
class TaskFigures:
    """What one task did to the test images. "Before" is the bare backbone on the same images.

    Attributes:
        number: From 1.
        name: As in the papers, `80-20`.
        acc_r: Retained classes, plain top-1.
        acc_r_before: Of the bare backbone.
        acc_r_previous: Of the model that the task before left.
        acc_f: This task's classes.
        acc_f_before: Of the bare backbone.
        worst_class: Largest accuracy of any one class under erasure.
        acc_o: Classes of the tasks before; None in the first.
        acc_o_before: Of the bare backbone.
        acc_m: Retained classes without training images; None where there are none.
        acc_m_before: Of the bare backbone.
        margin: The same with the head's margin; None where the head has none.
        dump: Share of this task's images that the most-hit retained class receives.
        dump_masked: The same where the bare backbone's answers are merely masked.
        ece: Expected calibration error on retained classes.
        ece_before: Of the bare backbone.
        js: Jensen-Shannon divergence in bits to the retrained reference, on images of all classes
            under erasure; None where there is no reference.
        parameters: Of the backbone.
        trainable: Numbers that the optimizer could change.
        stored: Numbers kept to serve the result.
        stored_bytes: Of the adapter's files, or 4 bytes a stored number.
        steps: Of the optimizer.
        cpu_seconds: Of the method.
        groups_kept: Non-zero groups; None where the method knows none.
        groups_total: Likewise.
        update_norms: Frobenius norm by which this task changed each block's FFN, bottom to top.
        leak: What the attacks won back, over all classes under erasure; None where not attacked.
    """

    number: int
    name: str
    acc_r: Share
    acc_r_before: Share
    acc_r_previous: Share
    acc_f: Share
    acc_f_before: Share
    worst_class: float
    acc_o: Share | None
    acc_o_before: Share | None
    acc_m: Share | None
    acc_m_before: Share | None
    margin: MarginFigures | None
    dump: Share
    dump_masked: Share
    ece: float
    ece_before: float
    js: float | None
    parameters: int
    trainable: int
    stored: int
    stored_bytes: int
    steps: int
    cpu_seconds: float
    groups_kept: int | None
    groups_total: int | None
    update_norms: tuple[float, ...] | None
    leak: Mapping[str, Any] | None

    @property
    def drop_f(self) -> float:
        """Acc_f(before) - Acc_f(after)."""
        return drop(self.acc_f_before, self.acc_f)

    @property
    def h(self) -> float:
        """2 * Acc_r * Drop / (Acc_r + Drop)."""
        return h_mean(self.acc_r.value, self.drop_f)


@dataclass(frozen=True)
class Cell:
    """Figures of one method with one seed.

    Attributes:
        method: Its name.
        seed: The seed.
        setting: Name of the setting.
        tasks: Figures by task; a reference may lack some.
        failed: Why the sequence ended early, in a sentence; None where it didn't.
        determined_by: All that determines the figures; the file's name has its digest.
        code: Digest of the package's source that computed it.
    """

    method: str
    seed: int
    setting: str
    tasks: tuple[TaskFigures, ...]
    failed: str | None
    determined_by: Mapping[str, Any]
    code: str

    def task(self, number: int) -> TaskFigures | None:
        return next((task for task in self.tasks if task.number == number), None)


def cell_file(work: Path, *, setting: str, method: str, seed: int, determined_by: object) -> Path:
    """Where a cell is kept; `setting` is the folder, named by data and setting."""
    content = json.dumps(determined_by, sort_keys=True, default=list)
    digest = hashlib.sha256(content.encode()).hexdigest()[:10]
    return work / "cells" / setting / f"{method}-seed{seed}-{digest}.json"


def samples_file(cell: Path) -> Path:
    """The cell's per-sample answers."""
    return cell.with_suffix(".samples.json.gz")


def write_cell(path: Path, cell: Cell, samples: Sequence[Mapping[str, Any]]) -> None:
    """Samples first, then the cell: where a cell is, its samples are."""
    content = gzip.compress(json.dumps(list(samples)).encode(), mtime=0)
    replace_file(samples_file(path), content)
    facts = {"format": FORMAT, **asdict(cell)}
    replace_file(path, json.dumps(facts, indent=1, sort_keys=True, default=list).encode() + b"\n")


def read_cell(path: Path) -> Cell:
    """Read what `write_cell` wrote.

    Raises:
        CellError: Damaged, or of another format.
        FileNotFoundError: There is none.
    """
    try:
        facts = json.loads(path.read_bytes())
        if facts.pop("format") != FORMAT:
            raise CellError("it is of another format")
        tasks = tuple(_read(TaskFigures, task) for task in facts.pop("tasks"))
        cell = Cell(tasks=tasks, **facts)
    except FileNotFoundError:
        raise
    except CellError as error:
        raise CellError(f"{path.name}: {error}") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CellError(f"{path.name}: {type(error).__name__} {error}") from error
    if not samples_file(path).is_file():
        raise CellError(f"{path.name}: its samples are missing")
    return cell


def _read(kind: type[Any], raw: object) -> Any:
    """A dataclass from JSON, strict about its fields and their types."""
    if not isinstance(raw, dict):
        raise CellError(f"expected an object for {kind.__name__}, found {type(raw).__name__}")
    names = {f.name for f in fields(kind)}
    if set(raw) != names:
        odd = ", ".join(sorted(names ^ set(raw)))
        raise CellError(f"fields of {kind.__name__} missing or too many: {odd}")
    hints = get_type_hints(kind)
    return kind(**{name: _value(hints[name], value, name) for name, value in raw.items()})


def _value(hint: Any, value: Any, name: str) -> Any:
    if isinstance(hint, types.UnionType):
        options = get_args(hint)
        if value is None and types.NoneType in options:
            return None
        hint = next(option for option in options if option is not types.NoneType)
    if hint in (Share, MarginFigures):
        return _read(hint, value)
    if get_origin(hint) is tuple:
        return tuple(float(number) for number in value)
    wanted: Any = {float: (int, float), int: int, str: str}.get(hint, dict)
    if isinstance(value, bool) or not isinstance(value, wanted):
        raise CellError(f"{name}: expected {hint}, found {value!r}")
    return float(value) if hint is float else value
