"""When a release on trial is promoted, when it is taken off, and how often that is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from serving.config.settings import Settings
from serving.monitoring.tally import Counts, Tally, Targets
from serving.monitoring.trial_verdict import Seen, TrialTerms, Verdict, verdict

TERMS = TrialTerms(samples=200, seconds=600.0, bar=2.0)
TARGETS = Targets(leak=0.02, drift=0.05)


def seen(counts: Counts) -> Seen:
    tally = Tally()
    tally.take("replica", {"stack": counts}, TARGETS)
    return Seen(tally.total("stack"), tally.findings("stack", TARGETS))


def judged(counts: Counts, *, elapsed: float = 1.0) -> Verdict | None:
    return verdict(seen(counts), elapsed=elapsed, terms=TERMS)


def act(counts: Counts, *, elapsed: float = 1.0) -> str | None:
    found = judged(counts, elapsed=elapsed)
    return None if found is None else found.act


def test_a_good_release_is_promoted_once_enough_went_by() -> None:
    assert act(Counts(matches=20, retained=199, disagreements=2)) is None
    assert act(Counts(matches=20, retained=200, disagreements=2)) == "promote"
    assert act(Counts(retained=200)) == "promote", "nobody has to be seen of the forgotten class"


def test_a_leak_or_a_drift_takes_it_off_at_once() -> None:
    leaking = judged(Counts(matches=10, leaks=5, retained=30))
    assert leaking is not None
    assert leaking.act == "return"
    assert "5 of 10 sightings" in leaking.detail
    drifting = judged(Counts(retained=40, disagreements=20))
    assert drifting is not None
    assert drifting.act == "return"
    assert "20 of 40 samples" in drifting.detail
    # Proof against the release decides, even after enough samples.
    assert act(Counts(matches=50, leaks=25, retained=500)) == "return"


def test_what_nobody_saw_is_not_proven() -> None:
    assert verdict(None, elapsed=599, terms=TERMS) is None
    unseen = verdict(None, elapsed=600, terms=TERMS)
    assert unseen is not None
    assert (unseen.act, unseen.detail) == ("return", "only 0 of 200 retained samples in 600 s")
    assert act(Counts(retained=199), elapsed=601) == "return"
    assert act(Counts(retained=200), elapsed=601) == "promote"


@pytest.mark.parametrize(("rate", "least", "most"), [(0.05, 0.0, 0.01), (0.3, 0.99, 1.0)])
def test_looking_after_every_sample_takes_few_good_ones_off_and_nearly_all_bad_ones(
    rate: float, least: float, most: float
) -> None:
    rng = np.random.default_rng(0)
    trials = 300
    returned = 0
    for _ in range(trials):
        hits = np.cumsum(rng.random(200) < rate)
        acts = (act(Counts(retained=n, disagreements=int(hits[n - 1]))) for n in range(20, 201, 5))
        returned += next(a for a in acts if a is not None) == "return"
    assert least <= returned / trials <= most


def test_the_defaults_are_terms() -> None:
    chosen = Settings().canary
    assert TrialTerms(chosen.samples, chosen.seconds, chosen.evidence) == TERMS
