"""How live forgetting is watched: by shadowing, by probes of canary classes alone, or not at all.

`shadow` compares a share of the traffic with the unadapted backbone, which has to be kept for that:
so it may have a date after which it ends by itself. Probes of canary classes, where the settings
name some, go on after that date, and are all there is in the posture `canary`.
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
    """What the settings ask for, and how much of it is in force now."""

    asked: PostureName = "shadow"
    share: float = 1.0
    """Of the requests, that is shadowed now."""
    until: float = 0.0
    """Unix time when shadowing ends; 0: never."""
    ended: bool = False
    """Whether shadowing has ended by itself."""
    canaries: int = 0
    """Canary classes that are to be probed."""
    blind_after: float = BLIND_AFTER_S
    """Seconds without a match after which the monitor calls itself blind."""

    @property
    def in_force(self) -> PostureName:
        if self.share > 0:
            return "shadow"
        return "canary" if self.asked != "off" and self.canaries else "off"


class Stance:
    """What of a settings' posture is in force. The end of shadowing is final in this process: a
    clock that is set back does not bring it back."""

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
        """Whether the unadapted backbone may be asked now, for however many requests."""
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
    """Why a leak could not be seen now; None where it could, or where there is nothing to leak.

    `posture`: of the newest release's replica, None where none was heard of lately. `forgotten`:
    classes that its weights have forgotten. `probed`: whether a forgotten canary class was probed
    lately. `quiet_for`: seconds since the last match, or since there could have been one.
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
