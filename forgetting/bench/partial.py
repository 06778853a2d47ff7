"""A cell in the making: what a stopped run needs to go on after the last finished task.

The file holds models and whatever a method carries to its next task, so it is a pickle. It is
written to and read from the user's own work folder only, and is deleted once the cell is finished.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from forgetting.bench.cell import TaskFigures
from forgetting.bench.figures import Measured
from forgetting.durable_file import replace_file


@dataclass(frozen=True)
class Partial:
    """The state after some tasks.

    Attributes:
        figures: Figures of the finished tasks.
        samples: Their answers to each test image.
        previous: The model after the last of them.
        carried: What the method's next task gets.
    """

    figures: tuple[TaskFigures, ...]
    samples: tuple[dict[str, Any], ...]
    previous: Measured
    carried: Any


def partial_file(cell: Path, *, code: str) -> Path:
    """The file beside the cell's. Other code doesn't go on with it."""
    return cell.with_suffix(f".{code}.partial")


def write_partial(path: Path, partial: Partial) -> None:
    content = io.BytesIO()
    torch.save(partial, content)
    replace_file(path, content.getvalue())


def read_partial(path: Path) -> Partial | None:
    """What was kept; None if there is nothing, or nothing that can be read."""
    try:
        found = torch.load(path, weights_only=False)
    except (OSError, RuntimeError, EOFError, AttributeError, ImportError, pickle.UnpicklingError):
        return None
    return found if isinstance(found, Partial) else None
