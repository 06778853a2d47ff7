"""Which compaction the coordinator serves, and what its report says."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.errors import ConflictError
from registry.records.declarations import Sealed
from registry.records.releases import Activated
from serving.cli.compact import carried_figures, check_foldable
from serving.coordination.unserved import ATTEMPTS, compaction_to_serve, releases_of
from tests.unit.registry.histories import (
    A1,
    A2,
    FOLDED,
    S1,
    S2,
    SERVED,
    TWO,
    UNKNOWN_ADAPTER,
    C,
    compacted,
    compaction,
    rolled_back,
    then,
)
from tests.unit.serving.coordination.test_unserved_restorations import acts_in


def test_a_recorded_compaction_of_the_active_stack_is_to_be_served_until_it_is() -> None:
    assert compaction_to_serve(TWO) is None
    assert compaction_to_serve(FOLDED) == C.adapter
    assert compaction_to_serve(then(FOLDED, compaction(4, C.adapter, S1, S2, parent=3))) == (
        C.adapter
    )
    assert compaction_to_serve(SERVED) is None
    assert releases_of(SERVED, C.adapter) == [4]


def test_one_that_was_rolled_back_is_left_alone() -> None:
    back = then(SERVED, rolled_back(5, 3, S1, S2, adapters=(A1, A2), parent=4), Activated(5))
    assert back.active_release.adapters == (A1, A2)
    assert compaction_to_serve(back) is None


def test_one_of_a_stack_that_is_not_active_waits() -> None:
    state = then(FOLDED, rolled_back(4, 2, S1, S2, adapters=(A1,), parent=3), Activated(4))
    assert compaction_to_serve(state) is None


def test_one_that_could_not_be_built_again_and_again_gives_way_to_another() -> None:
    state = FOLDED
    for release in range(4, 4 + ATTEMPTS):
        assert compaction_to_serve(state) == C.adapter
        state = then(state, compaction(release, C.adapter, S1, S2, parent=3))
    assert compaction_to_serve(state) is None
    another = compacted(A1, A2, content=2)
    assert compaction_to_serve(then(state, another)) == another.adapter


def test_a_closed_form_is_not_folded_before_its_job_is_trained(tmp_path: Path) -> None:
    """The trained adapter must replace it, which is impossible once it is folded."""
    acts = acts_in(tmp_path)
    acts.erase(1)
    job = acts.forget(2)
    acts.train(job.id, provisional=True)
    acts.serve(acts.publish("adapter", job.id).number)
    with pytest.raises(ConflictError, match=f"until {job.id} is trained"):
        check_foldable(acts.state)
    acts.refuse(job.id)  # the job was refused, so the closed form stays
    check_foldable(acts.state)


def test_a_sealed_registry_serves_none() -> None:
    assert compaction_to_serve(then(FOLDED, Sealed(3, UNKNOWN_ADAPTER))) is None


def test_a_compaction_carries_the_worst_forgetting_and_the_top_adapters_retained_side() -> None:
    reports = [
        {"acc_f_after": {"value": 0.02, "n": 50}, "acc_r_after": {"value": 0.9}, "method": "x"},
        {"acc_f_after": {"value": 0.0, "n": 40}, "acc_r_after": {"value": 0.8}},
    ]
    assert carried_figures(reports) == {
        "acc_f_after": {"value": 0.02, "n": 50},
        "acc_r_after": {"value": 0.8},
    }
    assert carried_figures([{}, {"acc_r_after": "unreadable"}]) == {"acc_r_after": "unreadable"}
    assert carried_figures([]) == {}
