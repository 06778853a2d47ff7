"""What control is asked, and what it answers: plain values that cross processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Images = Mapping[str, tuple[bytes, ...]]
"""Class name -> image files, all of them checked."""


@dataclass(frozen=True)
class ForgetRequest:
    """Put `classes` under erasure and train them away."""

    classes: tuple[str, ...]
    images: Images = field(default_factory=dict)
    """To learn from, beside those of the data set."""
    canary: int | None = None
    """Percentage of the requests that the adapter is tried on before all of them get it."""
    batch: bool = False
    """It may be trained as one task with other requests that say so."""


@dataclass(frozen=True)
class RollbackRequest:
    """Serve the adapters of release `to` again, as a new release. Every guard stays."""

    to: int
    instead_of: int | None = None
    """The rollback is refused when the stack is no longer that of this release."""


@dataclass(frozen=True)
class RestoreRequest:
    """End the erasure of a class, named by itself or by its subject, and serve it again."""

    class_name: str | None = None
    subject: str | None = None


@dataclass(frozen=True)
class RetryRequest:
    """Train a refused or cancelled job again, from another seed, and from `images` as well."""

    job: str
    images: Images = field(default_factory=dict)


@dataclass(frozen=True)
class Rejection:
    """A command that can't be carried out: an HTTP status, why, and what to do about it."""

    status: int
    detail: str
    advice: str = ""


Answer = dict[str, Any] | Rejection
"""What the operator is shown as JSON, or why there is nothing to show."""
