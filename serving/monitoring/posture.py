"""The posture: how forgetting is watched in live traffic.

`shadow` compares a share of the traffic with the unadapted backbone. The backbone has to be kept
for that, so the settings may name a date at which shadowing ends. `shadow` also probes canary
classes, if the settings name some, and goes on with that after the date. `canary` only sends these
probes, and `off` watches nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from serving.config.settings import MonitorSettings, Settings

PostureName = Literal["shadow", "canary", "off"]
POSTURES: tuple[PostureName, ...] = ("shadow", "canary", "off")
BlindReason = Literal["off", "ended", "no_probes", "no_matches", "no_numbers"]
BLIND_REASONS: tuple[BlindReason, ...] = ("off", "ended", "no_probes", "no_matches", "no_numbers")
BLIND_AFTER_S = MonitorSettings().blind_after_hours * 3600


@dataclass(frozen=True)
class Posture:
    """What the settings ask for, and what is in force now."""

    asked: PostureName = "shadow"
    share: float = 1.0
    """Share of the requests that is shadowed now."""
    until: float = 0.0
    """Unix time when shadowing ends; 0: never."""
    ended: bool = False
    """Whether the date has passed at which shadowing ends."""
    canaries: int = 0
    """How many canary classes are to be probed."""
    blind_after: float = BLIND_AFTER_S
    """Seconds without a match after which the monitor reports that it is blind."""

    @property
    def in_force(self) -> PostureName:
        if self.share > 0:
            return "shadow"
        return "canary" if self.asked != "off" and self.canaries else "off"


class Stance:
    """Tells which posture is in force now. Once shadowing has ended, it stays off in this process,
    even if the clock is set back."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
        """`clock`: Unix time."""
        chosen = settings.monitor
        self._asked = chosen.posture
        self._share = chosen.share if chosen.posture == "shadow" else 0.0
        self._until = chosen.shadow_until.timestamp() if chosen.shadow_until else 0.0
        self._blind_after = chosen.blind_after_hours * 3600
        self._canaries = 0 if chosen.posture == "off" else len(settings.probes.classes)
        self._clock = clock
        self._ended = False

    @property
    def share(self) -> float:
        """Share of the requests to shadow now."""
        return self._share if self.shadowing else 0.0

    @property
    def shadowing(self) -> bool:
        """Whether the unadapted backbone may score any requests now."""
        if not self._ended and 0 < self._until <= self._clock():
            self._ended = True
        return self._asked == "shadow" and not self._ended

    def now(self) -> Posture:
        return Posture(
            asked=self._asked,
            share=self.share,
            until=self._until,
            ended=self._ended and self._asked == "shadow",
            canaries=self._canaries,
            blind_after=self._blind_after,
        )


def why_blind(
    posture: Posture | None, *, forgotten: int, probed: bool, quiet_for: float
) -> BlindReason | None:
    """Why a leak could not be seen now; None if it could, or if nothing can leak.

    Args:
        posture: Of the replica with the newest release; None if no replica has reported lately.
        forgotten: How many classes the weights of that release have forgotten.
        probed: Whether a forgotten canary class was probed lately.
        quiet_for: Seconds since the last match or, if shorter, since matches became possible.
    """
    if posture is None:
        return "no_numbers"
    if not forgotten:
        return None
    if posture.in_force == "off":
        return "ended" if posture.ended else "off"
    if posture.in_force == "canary" and not probed:
        return "no_probes"
    return "no_matches" if quiet_for > posture.blind_after else None
