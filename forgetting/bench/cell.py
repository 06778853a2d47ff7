"""A cell of the tables: one method, one seed, one setting, with the figures of every task.

On disk a cell is one JSON file. Its name says what it is, and has a digest of all that determines
its figures. A file that can't be read counts as absent.
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

from forgetting.durable_file import replace_file
from forgetting.measure.accuracy import Share, drop, h_mean

FORMAT = 2


class CellError(ValueError):
    """A cell's file is damaged, or has another format."""


@dataclass(frozen=True)
class MarginFigures:
    """Accuracies as in the papers: an image is right if its class wins by the head's margin."""

    acc_r: float
    acc_r_before: float
    acc_f: float
    acc_f_before: float
    acc_o: float | None

    @property
    def h(self) -> float:
        return h_mean(self.acc_r, self.acc_f_before - self.acc_f)


@dataclass(frozen=True)
class ServedFigures:
    """Accuracies with the method's feature edits in place."""

    acc_r: float
    acc_f: float
    acc_o: float | None


@dataclass(frozen=True)
class TaskFigures:
    """What one task did to the test images, by the weights: every feature edit is taken out.

    "Before" is the bare backbone on the same images.

    Attributes:
        number: Number of the task, from 1.
        name: The papers' name of the task, such as `80-20`.
        acc_r: Plain top-1 accuracy on retained classes.
        acc_r_before: `acc_r` of the bare backbone.
        acc_r_previous: `acc_r` of the model before this task.
        acc_f: Accuracy on this task's classes.
        acc_f_before: `acc_f` of the bare backbone.
        worst_class: Highest accuracy of any one class under erasure.
        acc_o: Accuracy on classes of earlier tasks; None in the first task.
        acc_o_before: `acc_o` of the bare backbone.
        acc_m: Accuracy on retained classes without training images; None if there are none.
        acc_m_before: `acc_m` of the bare backbone.
        margin: Accuracies with the head's margin; None if the head has none.
        sure_r: Share of retained images that are right and whose highest logit is above the
            threshold at which 1 % of the strangers are accepted (each model's own); None without
            strangers.
        sure_r_before: `sure_r` of the bare backbone.
        served: The accuracies with the feature edits in place; None if there is none.
        dump: Share of this task's images that the most-hit retained class receives.
        dump_masked: The same share with the bare backbone's answers only masked.
        ece: Expected calibration error on retained classes.
        ece_before: `ece` of the bare backbone.
        js: Jensen-Shannon divergence in bits from the retrained reference, on images of all classes
            under erasure; None without a reference.
        parameters: How many numbers the backbone has.
        trainable: How many numbers the optimizer could change.
        stored: How many numbers are kept to serve the result.
        stored_bytes: Size of the adapter's files, or 4 bytes for each stored number.
        steps: Optimizer steps.
        cpu_seconds: CPU time of the method.
        groups_kept: Number of groups that aren't zero; None if the method has no groups.
        groups_total: Number of groups in the backbone; None if the method has no groups.
        update_norms: Frobenius norm of the change of each block's FFN by this task, bottom to top.
        leak: What the attacks won back, over all classes under erasure; None if there was none.
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
    sure_r: float | None
    sure_r_before: float | None
    served: ServedFigures | None
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
        method: Name of the method.
        seed: The seed.
        setting: Name of the setting.
        tasks: Figures by task. A reference may lack some tasks.
        failed: Why the sequence ended early, in a sentence; None if it didn't.
        determined_by: All that determines the figures. Its digest is in the file's name.
        code: Digest of the source code that computed the figures.
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
    """The cell's file. `setting` is its folder, named by data and setting."""
    content = json.dumps(determined_by, sort_keys=True, default=list)
    digest = hashlib.sha256(content.encode()).hexdigest()[:10]
    return work / "cells" / setting / f"{method}-seed{seed}-{digest}.json"


def samples_file(cell: Path) -> Path:
    """The file with the cell's answer to each test image."""
    return cell.with_suffix(".samples.json.gz")


def write_cell(path: Path, cell: Cell, samples: Sequence[Mapping[str, Any]]) -> None:
    """Write the samples first and then the cell, so that a cell always has its samples."""
    content = gzip.compress(json.dumps(list(samples)).encode(), mtime=0)
    replace_file(samples_file(path), content)
    facts = {"format": FORMAT, **asdict(cell)}
    replace_file(path, json.dumps(facts, indent=1, sort_keys=True, default=list).encode() + b"\n")


def read_cell(path: Path) -> Cell:
    """Read what `write_cell` wrote.

    Raises:
        CellError: The file is damaged, or has another format.
        FileNotFoundError: There is no such file.
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
    """Read a dataclass from JSON, with exactly its fields and their types."""
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
    if hint in (Share, MarginFigures, ServedFigures):
        return _read(hint, value)
    if get_origin(hint) is tuple:
        return tuple(float(number) for number in value)
    wanted: Any = {float: (int, float), int: int, str: str}.get(hint, dict)
    if isinstance(value, bool) or not isinstance(value, wanted):
        raise CellError(f"{name}: expected {hint}, found {value!r}")
    return float(value) if hint is float else value
