"""What control hands to the trainer and gets back. Plain values, so that control needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TrainJob:
    """One forget task. Class names stay inside this process; only subjects are written."""

    job: str
    forget: tuple[str, ...]
    earlier: tuple[str, ...]
    """Classes that the stack was already taught to forget."""
    withheld: tuple[str, ...]
    """Classes that are under erasure and still in the stack's weights."""
    subjects: Mapping[str, str]
    """Class name -> subject, for all three."""
    stack: tuple[str, ...]
    """Ids of the adapters to train on top of."""
    files: tuple[Mapping[str, bytes], ...]
    """Their files, in the stack's order."""
    uploads: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)
    """Class name -> images that came with the command, to learn from beside the data set's."""
    closed_form: bool = False
    """Fit an erasure of the feature, in seconds, instead of training."""
    together: bool = False
    """Several jobs are trained as this one: each class has to pass what it would pass alone."""
    attempt: int = 0
    """Which retry of the job this is: each draws from another seed."""


@dataclass(frozen=True)
class Trained:
    """What one training made. `refused` names the gates that failed, with advice."""

    files: dict[str, bytes]
    report: bytes
    refused: str | None
    seconds: float


@dataclass(frozen=True)
class NotTrained:
    """Training could not make an adapter."""

    kind: str
    """A sentence that names nobody, for the ledger."""
    detail: str
    """The whole message, for the operator's eyes alone."""
