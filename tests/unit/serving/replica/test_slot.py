"""A flip changes one reference, a batch keeps the release that it began with, tickets drain."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from torch import nn

from forgetting.adapter.stack import EffectiveState
from serving.replica.engines.torch_eager import TorchEngine
from serving.replica.slot import BuildError, Measured, ReadyRelease, Slot, Ticket, Wish

NOTHING = Measured(leak=0.0, drift=0.0)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3)).eval()


@pytest.fixture
def slot(model: nn.Module) -> Slot:
    return Slot(TorchEngine(model), torch.zeros(1, 4), resident=3)


def release(slot: Slot, number: int) -> ReadyRelease:
    return ReadyRelease(number, number - 1, slot.bare, frozenset(), frozenset(), 0, "bare", NOTHING)


def test_a_built_forward_uses_the_new_weights_and_leaves_the_old_ones_alone(
    model: nn.Module, slot: Slot
) -> None:
    images = torch.randn(5, 4)
    before = slot.bare(images)
    weight = torch.zeros(8, 4)
    changed = slot.forward_for(("x",), lambda: EffectiveState({"0": weight}))
    assert not torch.allclose(changed(images), before)
    torch.testing.assert_close(slot.bare(images), before, rtol=0, atol=0)
    with torch.no_grad():
        expected = model[2](model[1](nn.functional.linear(images, weight, model[0].bias)))
    torch.testing.assert_close(changed(images), expected)


def test_unchanged_tensors_are_shared_between_releases(model: nn.Module) -> None:
    built = TorchEngine(model).build(EffectiveState({"0": torch.zeros(8, 4)})).model
    own, theirs = dict(built.named_parameters()), dict(model.named_parameters())
    shared = {name for name in own if own[name].data_ptr() == theirs[name].data_ptr()}
    assert shared == {"0.bias", "2.weight", "2.bias"}


def test_weights_that_are_not_finite_are_not_built(slot: Slot) -> None:
    with pytest.raises(BuildError, match="not finite"):
        slot.forward_for(("x",), lambda: EffectiveState({"0": torch.full((8, 4), float("nan"))}))


def test_resident_forwards_are_bounded_and_the_bare_one_stays(slot: Slot) -> None:
    built = []

    def state(name: str) -> EffectiveState:
        built.append(name)
        return EffectiveState({"0": torch.zeros(8, 4)})

    for name in ("a", "b", "c", "a"):
        slot.forward_for((name,), lambda name=name: state(name))
    assert built == ["a", "b", "c", "a"]
    assert slot.forward_for((), EffectiveState) is slot.bare


def test_an_older_release_is_never_flipped_to(slot: Slot) -> None:
    assert slot.flip(release(slot, 5))
    assert not slot.flip(release(slot, 4))
    assert not slot.flip(release(slot, 5))
    assert slot.active is not None
    assert slot.active.number == 5


def test_drain_waits_for_the_ticket_of_an_older_release(slot: Slot) -> None:
    slot.flip(release(slot, 1))
    old, young = Ticket(slot), Ticket(slot)
    slot.pin([Wish(old)])
    slot.flip(release(slot, 2))
    slot.pin([Wish(young)])
    assert not slot.drain(2, timeout=0.05)
    drained = threading.Event()
    thread = threading.Thread(target=lambda: slot.drain(2, timeout=5) and drained.set())
    thread.start()
    old.close()
    thread.join(timeout=5)
    assert drained.is_set()
    young.close()


def test_a_ticket_lets_go_once_however_often_it_is_closed(slot: Slot) -> None:
    slot.flip(release(slot, 1))
    one, other = Ticket(slot), Ticket(slot)
    slot.pin([Wish(one), Wish(other)])
    one.close()
    one.close()
    assert not slot.drain(2, timeout=0.01)
    other.close()
    assert slot.drain(2, timeout=0.01)


def test_a_batch_of_abandoned_requests_holds_nothing(slot: Slot) -> None:
    slot.flip(release(slot, 1))
    slot.pin([])
    slot.flip(release(slot, 2))
    assert slot.drain(2, timeout=0.01)


def test_nothing_is_answered_before_a_release_is_active(slot: Slot) -> None:
    with pytest.raises(BuildError, match="no release"):
        slot.pin([Wish(Ticket(slot))])


def test_a_canary_answers_its_share_and_ends_with_the_release_that_it_was_defined_on(
    slot: Slot,
) -> None:
    slot.flip(release(slot, 1))
    assert not slot.try_out(release(slot, 3), 0.1), "it was defined on release 2"
    assert slot.try_out(release(slot, 2), 0.1)
    ticket = Ticket(slot)
    chosen = slot.pin([Wish(ticket, lot=lot) for lot in (0.0, 0.099, 0.1, 0.9)])
    assert [ready.number for ready in chosen] == [2, 2, 1, 1]
    slot.flip(release(slot, 3))
    assert slot.trial is None
    assert not slot.drain(3, timeout=0.01)
    ticket.close()
    assert slot.drain(3, timeout=0.01)


def test_what_an_auditor_asks_for_is_masked_as_now_and_holds_up_the_next_guard_only(
    slot: Slot,
) -> None:
    old = release(slot, 1)
    slot.flip(replace(release(slot, 4), guard=frozenset({2})))
    ticket = Ticket(slot)
    (ready,) = slot.pin([Wish(ticket, asked=old)])
    assert (ready.number, ready.guard) == (1, frozenset({2}))
    assert slot.drain(4, timeout=0.01)
    assert not slot.drain(5, timeout=0.01)
    ticket.close()
    assert slot.drain(5, timeout=0.01)


def test_the_forwards_in_service_stay_resident_whatever_an_auditor_asks_for(slot: Slot) -> None:
    forward = slot.forward_for(("in service",), lambda: EffectiveState({"0": torch.ones(8, 4)}))
    slot.flip(replace(release(slot, 1), forward=forward))
    for name in ("a", "b", "c", "d"):
        slot.forward_for((name,), lambda: EffectiveState({"0": torch.zeros(8, 4)}))
    rebuilt = slot.forward_for(("in service",), EffectiveState)
    assert rebuilt is forward
