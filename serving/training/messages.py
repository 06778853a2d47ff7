"""What control sends to the trainer and gets back. Plain values: control doesn't import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TrainJob:
    """One forget task. The trainer writes subjects into its results, never class names."""

    job: str
    forget: tuple[str, ...]
    earlier: tuple[str, ...]
    """Classes that the stack's adapters have forgotten already."""
    withheld: tuple[str, ...]
    """Classes that are under erasure and that the stack's weights still know."""
    subjects: Mapping[str, str]
    """Class name -> subject, for all three."""
    stack: tuple[str, ...]
    """Ids of the adapters to train on top of."""
    files: tuple[Mapping[str, bytes], ...]
    """Their files, in the stack's order."""
    uploads: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)
    """Class name -> images that came with the command, to learn from beside the data set's."""
    closed_form: bool = False
    """Fit a feature edit in closed form, in seconds, instead of training."""
    together: bool = False
    """The task is for several jobs: each class must pass the gates that it would pass alone."""
    attempt: int = 0
    """The number of the retry, 0 for the first try. Each retry uses the next seed."""


@dataclass(frozen=True)
class Trained:
    """What one training made."""

    files: dict[str, bytes]
    """File name -> content, of the adapter."""
    report: bytes
    """JSON."""
    refused: str | None
    """Which gates failed, and advice; None: all passed."""
    seconds: float


@dataclass(frozen=True)
class NotTrained:
    """Training could not make an adapter."""

    kind: str
    """A sentence for the ledger, without class names."""
    detail: str
    """The whole message. It may name classes, so only the operator may see it."""
