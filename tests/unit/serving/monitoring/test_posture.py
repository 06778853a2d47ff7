"""Which posture is in force, and until when."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from serving.config.settings import Settings
from serving.config.sources import SettingsError, load_settings
from serving.monitoring.posture import Stance

END = datetime(2026, 12, 1, tzinfo=UTC).timestamp()


class Clock:
    """A clock that the test sets, as Unix time."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def settings(folder: Path, toml: str) -> Settings:
    path = folder / "lethe.toml"
    path.write_text(toml)
    return load_settings(path)


def test_shadowing_ends_at_its_date_and_no_clock_brings_it_back(tmp_path: Path) -> None:
    clock = Clock(END - 1)
    stance = Stance(settings(tmp_path, "[monitor]\nshadow_until = 2026-12-01\n"), clock=clock)
    assert (stance.share, stance.shadowing) == (0.05, True)
    assert stance.now().in_force == "shadow"
    clock.now = END
    assert (stance.share, stance.shadowing) == (0.0, False)
    assert (stance.now().in_force, stance.now().ended) == ("off", True)
    clock.now = END - 1e6  # the clock was set back, or had been ahead
    assert stance.share == 0.0


def test_probes_go_on_when_shadowing_has_ended(tmp_path: Path) -> None:
    canaries = f"[probes]\nclasses = ['3']\nimages = '{tmp_path}'\n"
    toml = f"[monitor]\nshadow_until = '2026-12-01T00:00:00+00:00'\n{canaries}"
    stance = Stance(settings(tmp_path, toml), clock=Clock(END))
    assert (stance.now().in_force, stance.now().until) == ("canary", END)


@pytest.mark.parametrize(
    ("posture", "share", "in_force"),
    [("shadow", 0.05, "shadow"), ("canary", 0.0, "canary"), ("off", 0.0, "off")],
)
def test_each_posture_does_what_it_says(
    posture: str, share: float, in_force: str, tmp_path: Path
) -> None:
    canaries = f"[probes]\nclasses = ['3']\nimages = '{tmp_path}'\n"
    stance = Stance(settings(tmp_path, f"[monitor]\nposture = '{posture}'\n{canaries}"))
    assert (stance.share, stance.now().in_force) == (share, in_force)
    assert not stance.now().ended


@pytest.mark.parametrize(
    ("toml", "word"),
    [
        ("[monitor]\nposture = 'sometimes'\n", "posture"),
        ("[monitor]\nshadow_until = 'soon'\n", "shadow_until"),
        ("[probes]\nclasses = ['3']\n", "probes.images"),
        ("[probes]\nclasses = ['3', '3']\nimages = 'x'\n", "twice"),
        ("[reactions]\ndrift = 'maybe'\n", "reactions.drift"),
    ],
)
def test_a_mistake_is_named(toml: str, word: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=word):
        settings(tmp_path, toml)
