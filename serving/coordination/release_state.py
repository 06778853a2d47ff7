"""How far a release has come on one replica: plain values, which cross processes.

    fetched -> verified -> built -> checked -> resident -> active

A failure at any step leaves what is active as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Stage = Literal["fetched", "verified", "built", "checked", "resident", "active"]


@dataclass(frozen=True)
class ReleaseState:
    """The last stage that was reached, or with `problem` the one that was not, and why."""

    release: int
    stage: Stage
    problem: str | None = None
