"""Automatic reactions, on real ledgers: each is made once and never undoes itself."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from registry.publish.releases import activate_release, roll_back
from serving.monitoring.messages import Proof
from serving.monitoring.reactions import (
    ACTOR,
    RETRY_S,
    Rollback,
    due_remark,
    due_rollback,
    stack_before,
)
from serving.monitoring.tally import Counts, Tally, Targets, entry, stack_name
from tests.unit.registry.registry_acts import Acts

TARGETS = Targets(leak=0.02, drift=0.05)
BAD = Counts(retained=200, disagreements=60)
GOOD = Counts(retained=200, disagreements=4)
LEAK = Counts(matches=6, leaks=6)
NOTHING = Counts()
LATER = datetime.now(UTC) + timedelta(days=3)
HOLD_OFF_S = 24 * 3600.0


def proof(
    acts: Acts, counts: Counts, *, release: int | None = None, probed: Counts = NOTHING
) -> Proof:
    """What the monitor would report about a release's stack."""
    number = acts.state.active if release is None else release
    stack = stack_name(acts.state.releases[number].adapters)
    tally = Tally()
    tally.take("a", {stack: counts, entry(stack, "canary"): probed}, TARGETS)
    return Proof(
        release=number,
        stack=stack,
        targets=TARGETS,
        findings={
            "shadow": tally.findings(stack, TARGETS),
            "canary": tally.findings(entry(stack, "canary"), TARGETS),
        },
        counts={"shadow": counts, "canary": probed},
    )


def due(
    acts: Acts, counts: Counts, *, before: Counts = GOOD, now: datetime = LATER
) -> Rollback | None:
    below = stack_before(acts.state)
    earlier = None if below is None else proof(acts, before, release=below[0])
    return due_rollback(acts.state, proof(acts, counts), earlier, now=now, hold_off_s=HOLD_OFF_S)


def carry_out(acts: Acts, rollback: Rollback) -> int:
    """Make the rollback as control does."""
    said = {"actor": ACTOR, "reason": rollback.reason, "request_id": rollback.request_id}
    made = roll_back(acts.ledger, acts.signers["operator"], to=rollback.to, **said)
    activate_release(acts.ledger, acts.signers["operator"], release=made.number, **said)
    acts.confirm(made.number)
    return made.number


def test_a_new_release_that_harms_retained_classes_is_rolled_back_with_its_evidence(
    acts: Acts,
) -> None:
    acts.erase(1)
    kept = acts.state.active_release.adapters
    acts.erase(2)
    assert due(acts, GOOD) is None
    found = due(acts, BAD)
    assert found is not None
    assert "60 of 200 retained samples" in found.reason
    assert "target 0.05" in found.reason
    number = carry_out(acts, found)
    assert acts.state.releases[number].adapters == kept
    assert acts.state.releases[number].guard == acts.state.erasing, "every guard is kept"


def test_one_release_is_rolled_back_once_however_often_it_comes_back(acts: Acts) -> None:
    acts.erase(1)
    acts.erase(2)
    bad = acts.state.active
    found = due(acts, BAD)
    assert found is not None
    carry_out(acts, found)
    assert due(acts, BAD) is None, "nothing is rolled back further"
    acts.serve(acts.roll_back(bad).number)
    assert due(acts, BAD) is None, "an operator wants it"


def test_two_rollbacks_are_a_hold_off_apart(acts: Acts) -> None:
    for number in (1, 2):
        acts.erase(number)
    first = due(acts, BAD)
    assert first is not None
    carry_out(acts, first)
    acts.erase(3)
    assert due(acts, BAD, now=datetime.now(UTC) + timedelta(hours=1)) is None
    assert due(acts, BAD, now=LATER) is not None


def test_a_rollback_that_was_not_carried_out_is_tried_less_and_less_often(acts: Acts) -> None:
    acts.erase(1)
    acts.erase(2)
    for tries in range(1, 4):
        found = due(acts, BAD, now=LATER)
        assert found is not None
        said = {"actor": ACTOR, "reason": found.reason, "request_id": found.request_id}
        roll_back(acts.ledger, acts.signers["operator"], to=found.to, **said)
        now = datetime.now(UTC)
        assert due(acts, BAD, now=now + timedelta(seconds=RETRY_S * 2**tries - 5)) is None
        assert due(acts, BAD, now=now + timedelta(seconds=RETRY_S * 2**tries + 5)) == found


def test_a_mask_on_top_hides_no_harm(acts: Acts) -> None:
    acts.erase(1)
    harmful = acts.state.active
    job = acts.forget(2)
    acts.serve(acts.publish("guard", job.id).number)
    found = due(acts, BAD)
    assert found is not None
    assert found.to == acts.state.releases[harmful].parent
    assert found.instead_of == acts.state.active


def test_going_back_to_what_was_as_bad_is_no_remedy(acts: Acts) -> None:
    acts.erase(1)
    acts.erase(2)
    assert due(acts, BAD, before=BAD) is None


def test_nothing_is_rolled_back_while_suspended_or_on_another_stacks_evidence(acts: Acts) -> None:
    acts.erase(1)
    first = acts.state.active
    acts.erase(2)
    stale = proof(acts, BAD, release=first)
    assert due_rollback(acts.state, stale, None, now=LATER, hold_off_s=0) is None
    acts.suspend("suspended")
    assert due(acts, BAD) is None


def test_the_bare_backbone_calls_for_nothing(acts: Acts) -> None:
    assert stack_before(acts.state) is None
    assert due_rollback(acts.state, proof(acts, BAD), None, now=LATER, hold_off_s=0) is None
    assert due_remark(acts.state, proof(acts, GOOD)) is None


def test_a_proven_leak_is_remarked_once_for_each_stack_and_says_who_saw_it(acts: Acts) -> None:
    acts.erase(1)
    assert due_remark(acts.state, proof(acts, Counts(matches=200))) is None
    seen = due_remark(acts.state, proof(acts, LEAK))
    probed = due_remark(acts.state, proof(acts, GOOD, probed=LEAK))
    assert seen is not None
    assert probed is not None
    assert seen.text.count("6 of 6 matches") == 1
    assert "shadow" in seen.text
    assert "canary" in probed.text
    assert seen.request_id == probed.request_id, "one stack, one remark"
    job = acts.forget(2)
    acts.serve(acts.publish("guard", job.id).number)
    again = due_remark(acts.state, proof(acts, LEAK))
    assert again is not None
    assert (again.request_id, again.since) == (seen.request_id, seen.since)
    acts.train(job.id)
    acts.serve(acts.publish("adapter", job.id).number)
    other = due_remark(acts.state, proof(acts, LEAK))
    assert other is not None
    assert other.request_id != seen.request_id
