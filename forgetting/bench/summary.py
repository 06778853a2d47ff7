"""Summary of the cells: mean and interval over seeds, for each method, setting and task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from forgetting.bench.cell import Cell, TaskFigures
from forgetting.bench.intervals import mean_interval
from forgetting.bench.leaks import LEAK_COLUMNS, LeakColumn
from forgetting.bench.protocol import BACKBONE, RETRAINED

Read = Callable[[TaskFigures], float | None]


@dataclass(frozen=True)
class Column:
    """One task of one setting. `number` starts at 1."""

    setting: str
    number: int
    name: str


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds, and half of its 95 % t-interval (None for a single seed)."""

    mean: float
    half: float | None
    n: int


def estimate(values: Sequence[float]) -> Estimate | None:
    """The estimate from some values; None without values."""
    if not values:
        return None
    interval = mean_interval(values)
    half = None if len(values) == 1 else interval.high - interval.mean
    return Estimate(interval.mean, half, len(values))


@dataclass(frozen=True)
class Summary:
    """All cells of a run. Methods and columns have the order of the tables."""

    cells: tuple[Cell, ...]

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(cell.method for cell in self.cells))

    @property
    def settings(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(cell.setting for cell in self.cells))

    @property
    def columns(self) -> tuple[Column, ...]:
        found = [
            Column(cell.setting, task.number, task.name)
            for cell in self.cells
            if cell.method == BACKBONE
            for task in cell.tasks
        ]
        return tuple(dict.fromkeys(found))

    def of(self, method: str, setting: str) -> tuple[Cell, ...]:
        """The cells of one row, one for each seed."""
        return tuple(c for c in self.cells if (c.method, c.setting) == (method, setting))

    def tasks(self, method: str, column: Column) -> dict[int, TaskFigures]:
        """Figures of one task of a method, by seed."""
        found = {c.seed: c.task(column.number) for c in self.of(method, column.setting)}
        return {seed: task for seed, task in found.items() if task is not None}

    def mean(self, method: str, column: Column, read: Read) -> Estimate | None:
        """A figure's mean over seeds; None if nothing was measured."""
        values = [read(task) for task in self.tasks(method, column).values()]
        return estimate([v for v in values if v is not None])

    def over_tasks(self, method: str, setting: str, read: Read) -> Estimate | None:
        """The mean over seeds of each seed's mean over its tasks."""
        means = []
        for cell in self.of(method, setting):
            values = [v for task in cell.tasks if (v := read(task)) is not None]
            if values:
                means.append(sum(values) / len(values))
        return estimate(means)

    def excess(
        self, method: str, column: Column, read: Read, *, reference: Read | None = None
    ) -> Estimate | None:
        """The excess of a figure over the retrained reference of the same seed.

        `reference` reads the reference's figure, if `read` can't.
        """
        own, other = self.tasks(method, column), self.tasks(RETRAINED, column)
        pairs = [(read(own[s]), (reference or read)(other[s])) for s in own if s in other]
        return estimate([a - b for a, b in pairs if a is not None and b is not None])


def leak_reader(column: LeakColumn, *, served: bool = False) -> Read:
    """A function that reads one leak figure of a task, by the weights or as served.

    It gives None without attacks, and without a feature edit for a served figure.
    """

    def read(task: TaskFigures) -> float | None:
        leak = task.leak
        if served and leak is not None:
            leak = leak["served"]
        return None if leak is None else column.read(leak)

    return read


def leak(key: str) -> Read:
    """A function that reads the leak figure with this key."""
    return leak_reader(next(column for column in LEAK_COLUMNS if column.key == key))
