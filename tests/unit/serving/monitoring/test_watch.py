"""What the watch does by itself: reactions, each once, and probes while they are asked for.

The evidence is the real monitor's, the commands go to the real control, and probes cross real HTTP
to a real replica.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.records.bodies import Note
from registry.records.record import Record
from serving.control.control import Control
from serving.monitoring import watch as module
from serving.monitoring.messages import Snapshot
from serving.monitoring.metrics_page import Look, look
from serving.monitoring.posture import Posture, PostureName
from serving.monitoring.reactions import ACTOR
from serving.monitoring.tally import Counts, Targets, stack_name
from serving.monitoring.watch import wanted
from serving.replica import recognizer
from serving.replica.recognizer import Recognizer
from tests.ports import free_port
from tests.unit.serving.in_process import LocalMonitor, Process
from tests.unit.serving.listening import listening
from tests.unit.serving.small_server import SmallServer, predict, settings_for, until

MakeServer = Callable[..., SmallServer]
LEAK = Counts(matches=6, leaks=6)
DRIFT = Counts(retained=200, disagreements=60)
A_LOOK_S = 0.4
"""Long enough for several looks of a watch that is quick."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch looks all the time."""
    monkeypatch.setattr(module, "REPORT_S", 0.05)
    monkeypatch.setattr(module, "REACT_S", 0.05)
    monkeypatch.setattr(module, "AGAIN_S", 0.2)


def see(server: SmallServer, counts: Counts, *, asked: PostureName = "shadow") -> None:
    """What one more replica has counted of the active release."""
    active = server.state.active_release
    snapshot = Snapshot(
        families=[],
        taken=time.monotonic(),
        release=active.number,
        stack=stack_name(active.adapters),
        targets=Targets(leak=0.02, drift=0.05),
        counts={stack_name(active.adapters): counts},
        expected=1,
        posture=Posture(asked=asked),
    )
    LocalMonitor(server.monitor.handle).push("one more replica", snapshot, timeout=5)


def page(server: SmallServer) -> Look:
    text = LocalMonitor(server.monitor.handle).page(None, timeout=5)
    return look(text.decode(), at=time.monotonic())


def reactions(server: SmallServer, reaction: str, outcome: str) -> float:
    return page(server).total("lethe_reactions_total", reaction=reaction, outcome=outcome)


def probes(server: SmallServer, outcome: str) -> float:
    return page(server).total("lethe_probes_total", outcome=outcome)


def notes(server: SmallServer) -> list[Record]:
    server.ledger.refresh()
    found = [entry.record for entry in server.ledger.records(0)]
    return [record for record in found if isinstance(record.body, Note)]


def control_of(server: SmallServer) -> Process[Control]:
    """Control, whose trainer is away: nothing is trained here."""
    control = server.control()
    server.trainer.kill()
    return control


# -- reactions


def test_a_proven_leak_is_remarked_once_in_the_ledger_also_by_a_watch_that_starts_again(
    small_server: MakeServer,
) -> None:
    server = small_server(reactions={"leak": True})
    server.replica()
    server.forget("zoe")
    control = control_of(server)
    server.watch(control)
    see(server, Counts(matches=200))
    time.sleep(A_LOOK_S)
    assert notes(server) == [], "nothing is proven"
    see(server, Counts(matches=400, leaks=200))
    until(lambda: reactions(server, "leak", "done") == 1)
    (remark,) = notes(server)
    assert isinstance(remark.body, Note)
    assert "leak proven in release 2" in remark.body.text
    assert remark.actor == ACTOR
    assert "zoe" not in remark.body.text
    server.watch(control)
    time.sleep(A_LOOK_S)
    assert len(notes(server)) == 1


def test_a_release_that_is_proven_to_harm_others_is_rolled_back_once_and_the_mask_stays(
    small_server: MakeServer,
) -> None:
    server = small_server(reactions={"drift": True, "hold_off_hours": 0.0})
    replica = server.replica()
    harmful = server.forget("zoe")
    control = control_of(server)
    server.watch(control)
    see(server, DRIFT)
    until(lambda: reactions(server, "drift", "done") == 1)
    made = server.state.active_release
    assert (made.kind, made.to, made.actor) == ("rollback", 1, ACTOR)
    assert made.adapters == ()
    assert made.guard == server.state.erasing
    assert "zoe" not in [guess.label for guess in predict(replica, "zoe").guesses]
    # An operator who wants it back gets it, whatever the evidence goes on to say.
    back = server.roll_back(harmful)
    see(server, DRIFT + DRIFT)
    server.watch(control)
    time.sleep(A_LOOK_S)
    assert server.state.active == server.state.last_release == back


def test_a_rollback_that_was_refused_is_not_tried_again_at_every_look(
    small_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AGAIN_S", 600.0)
    server = small_server(reactions={"drift": True, "hold_off_hours": 0.0})
    replica = server.replica()
    server.forget("zoe")
    server.stop_replica(replica)  # so that nobody could build what is gone back to
    control = control_of(server)
    server.watch(control)
    see(server, DRIFT)
    until(lambda: reactions(server, "drift", "refused") == 1)
    time.sleep(A_LOOK_S)
    assert reactions(server, "drift", "refused") == 1
    assert server.state.active == server.state.last_release == 2, "no release is defined in vain"


def test_a_rollback_that_was_refused_is_made_once_it_can_be(small_server: MakeServer) -> None:
    server = small_server(reactions={"drift": True, "hold_off_hours": 0.0})
    replica = server.replica()
    server.forget("zoe")
    server.stop_replica(replica)
    server.watch(control_of(server))
    see(server, DRIFT)
    until(lambda: reactions(server, "drift", "refused") >= 1)
    server.replica()
    until(lambda: reactions(server, "drift", "done") == 1)
    assert server.state.active_release.kind == "rollback"


def test_a_watch_outlives_whatever_is_away(
    small_server: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    server = small_server(reactions={"leak": True, "drift": True})
    server.replica()
    server.forget("zoe")
    control = control_of(server)
    server.watch(control)
    control.kill()
    see(server, LEAK)
    until(lambda: any("leaks: failed" in line for line in caplog.messages))
    server.monitor.kill()
    for name in ("report", "leaks", "drift"):
        until(lambda name=name: any(f"{name}: failed" in line for line in caplog.messages))
    assert notes(server) == []
    control.start()
    server.monitor.start()
    see(server, LEAK)
    until(lambda: len(notes(server)) == 1)
    until(lambda: reactions(server, "leak", "done") == 1)


@pytest.mark.parametrize(
    ("changes", "is_wanted"),
    [
        ({}, False),
        ({"reactions": {"leak": True}}, True),
        ({"reactions": {"drift": True}}, True),
        ({"monitor": {"ray_metrics": True}}, True),
        ({"monitor": {"posture": "off"}}, False),
    ],
)
def test_a_watch_is_wanted_where_there_is_anything_to_do(
    tiny: Path, tmp_path: Path, changes: dict[str, object], is_wanted: bool
) -> None:
    assert wanted(settings_for(tiny, tmp_path, **changes)) is is_wanted


# -- probes


@pytest.fixture
def probed(small_server: MakeServer, tiny: Path) -> SmallServer:
    """A server whose canary class is zoe, probed all the time."""
    chosen = {"classes": ["zoe"], "images": tiny / "images", "per_minute": 6000}
    return small_server(
        port=free_port(), probes=chosen, reactions={"leak": True}, monitor={"share": 1.0}
    )


def test_probes_are_sent_while_the_monitor_asks_for_them(
    probed: SmallServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recognizer, "PUSH_S", 600.0)  # the test speaks for the replica
    replica = probed.replica()
    control = control_of(probed)
    with listening(probed, replica, control):
        probed.watch(control)
        time.sleep(A_LOOK_S)
        assert computed(replica) == 0, "no replica was heard of"
        see(probed, Counts(), asked="shadow")
        until(lambda: probes(probed, "waiting") >= 3)
        see(probed, Counts(), asked="off")
        time.sleep(A_LOOK_S)
        before = computed(replica)
        time.sleep(A_LOOK_S)
        assert computed(replica) == before
        see(probed, Counts(), asked="canary")
        until(lambda: computed(replica) > before)
        assert probes(probed, "failed") == 0
        assert replica.shadow.counts() == {}, "a probe is no traffic"


def computed(replica: Recognizer) -> float:
    return sum(
        sample.value
        for family in replica.metrics.families()
        for sample in family.samples
        if sample.name == "lethe_images_total"
    )


def test_a_probe_that_finds_the_class_beneath_the_mask_is_a_leak_and_reacted_to(
    probed: SmallServer,
) -> None:
    replica = probed.replica()
    control = control_of(probed)
    probed.watch(control)
    with listening(probed, replica, control):
        until(lambda: probes(probed, "waiting") >= 1)
        probed.forget("zoe")  # with an adapter that forgets nothing
        until(lambda: reactions(probed, "leak", "done") == 1)
        assert probes(probed, "leak") >= 2
        assert probes(probed, "exposed") == probes(probed, "quiet") == 0
    (remark,) = notes(probed)
    assert isinstance(remark.body, Note)
    assert "canary log10" in remark.body.text
