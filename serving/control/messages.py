"""The arguments and answers of control's methods: plain values that cross processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Images = Mapping[str, tuple[bytes, ...]]
"""Class name -> image files. Each file was decoded once, so all are readable."""


@dataclass(frozen=True)
class ForgetRequest:
    """Put `classes` under erasure and train them away."""

    classes: tuple[str, ...]
    images: Images = field(default_factory=dict)
    """To train on, in addition to the data set's."""
    canary: int | None = None
    """Percentage of the requests on which the adapter is tried first; None: no trial."""
    batch: bool = False
    """The job may be trained as one task with others that allow it too."""


@dataclass(frozen=True)
class RollbackRequest:
    """Serve the adapters of release `to` again, as a new release. Every guard stays."""

    to: int
    instead_of: int | None = None
    """Refuse the rollback when the active stack is not that of this release; None: don't check."""


@dataclass(frozen=True)
class RestoreRequest:
    """End the erasure of a class, given by its name or its subject, and serve it again."""

    class_name: str | None = None
    subject: str | None = None


@dataclass(frozen=True)
class RetryRequest:
    """Train a refused or cancelled job again, with another seed and with `images` added."""

    job: str
    images: Images = field(default_factory=dict)


@dataclass(frozen=True)
class Rejection:
    """A command that can't be carried out: an HTTP status, why, and what to do about it."""

    status: int
    detail: str
    advice: str = ""


Answer = dict[str, Any] | Rejection
"""The JSON for the operator, or why there is none."""
