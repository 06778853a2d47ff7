"""How the shadow counts samples, for each stack of adapters."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from serving.monitoring.metrics import Metrics
from serving.monitoring.tally import Counts
from serving.replica.shadow import Shadow, sampled
from serving.replica.slot import Measured, ReadyRelease

SURE = 9.0


def image_of(cls: int, *, logit: float = SURE) -> torch.Tensor:
    """An image whose pixels are its logits, (K,): the backbone here is the identity."""
    image = torch.zeros(5)
    image[cls] = logit
    return image


def release(stack: str, *, erased: set[int], guard: set[int]) -> ReadyRelease:
    measured = Measured(leak=0.0, drift=0.0)
    return ReadyRelease(
        1, 0, torch.nn.Identity(), frozenset(guard), frozenset(erased), 1, stack, measured
    )


@pytest.fixture
def shadow() -> Shadow:
    return Shadow(torch.nn.Identity(), Metrics("replica"), queue_size=64, confidence=0.5)


def settled(shadow: Shadow, trials: int) -> dict[str, Counts]:
    """The counts once `trials` were counted."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        counts = shadow.counts()
        if sum(c.matches + c.retained for c in counts.values()) >= trials:
            return counts
        time.sleep(0.01)
    raise AssertionError(f"{trials} trials were not counted in time: {shadow.counts()}")


def test_a_batch_that_can_not_be_scored_is_dropped_and_counted_and_ends_nothing() -> None:
    metrics = Metrics("replica")
    shadow = Shadow(torch.nn.Identity(), metrics, queue_size=64, confidence=0.5)
    ready = release("s", erased={0}, guard={0})
    shadow.offer(torch.zeros(5), 0, ready)
    shadow.offer(torch.zeros(4), 0, ready)  # of another size: they don't stack
    deadline = time.monotonic() + 20
    while not (dropped := dropped_by(metrics)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert dropped == 2
    shadow.offer(image_of(0), 0, ready)
    assert settled(shadow, 1) == {"s": Counts(matches=1, leaks=1)}


def dropped_by(metrics: Metrics) -> float:
    (family,) = [f for f in metrics.families() if f.name == "lethe_shadow_drops"]
    return sum(sample.value for sample in family.samples if sample.name.endswith("_total"))


def test_matches_leaks_and_disagreements_are_told_apart(shadow: Shadow) -> None:
    ready = release("s", erased={0}, guard={0, 1})
    shadow.offer(image_of(0), 0, ready)  # still named: a leak
    shadow.offer(image_of(0), 2, ready)
    shadow.offer(image_of(1), 1, ready)  # masked only: says nothing about the weights
    shadow.offer(image_of(2, logit=0.0), 3, ready)  # the backbone isn't sure
    shadow.offer(image_of(2), 3, ready)
    shadow.offer(image_of(3), 3, ready)
    expected = Counts(matches=2, leaks=1, retained=2, disagreements=1)
    assert settled(shadow, 4) == {"s": expected}


def test_counts_are_kept_for_the_stack_that_answered(shadow: Shadow) -> None:
    shadow.offer(image_of(0), 0, release("one", erased={0}, guard={0}))
    shadow.offer(image_of(0), 2, release("two", erased={0}, guard={0}))
    shadow.offer(image_of(0), 2, release("one", erased={0}, guard={0, 1}))
    assert settled(shadow, 3) == {"one": Counts(matches=2, leaks=1), "two": Counts(matches=1)}


def test_only_the_latest_stacks_are_reported(shadow: Shadow) -> None:
    for number in range(30):
        shadow.offer(image_of(0), 2, release(f"s{number}", erased={0}, guard={0}))
    deadline = time.monotonic() + 20
    while "s29" not in shadow.counts() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert list(shadow.counts()) == [f"s{number}" for number in range(14, 30)]


def test_the_sample_is_of_the_size_that_was_asked_for() -> None:
    chosen = sum(sampled(f"request-{number}", 0.05) for number in range(20_000))
    assert 900 <= chosen <= 1100
    assert not sampled("request", 0.0)
    assert sampled("request", 1.0)


def test_a_flood_of_samples_holds_nobody_up_and_is_counted() -> None:
    free = threading.Event()

    def stuck(images: torch.Tensor) -> torch.Tensor:
        free.wait(20)
        return images

    metrics = Metrics("replica")
    shadow = Shadow(stuck, metrics, queue_size=64, confidence=0.5)
    ready = release("s", erased={0}, guard={0})
    started = time.monotonic()
    for _ in range(5_000):
        shadow.offer(image_of(0), 2, ready)
    took = time.monotonic() - started
    free.set()
    dropped = sum(
        sample.value
        for family in metrics.families()
        for sample in family.samples
        if sample.name == "lethe_shadow_drops_total"
    )
    assert settled(shadow, int(5_000 - dropped))["s"].matches == 5_000 - dropped
    assert dropped >= 5_000 - 64 - 16, "the queue, and the batch that is being scored"
    assert took < 5, "an offer never waits"


def test_scoring_lets_requests_go_first_and_goes_on_when_there_are_none() -> None:
    busy = threading.Event()
    busy.set()

    def costly(images: torch.Tensor) -> torch.Tensor:
        until = time.thread_time() + 0.05
        while time.thread_time() < until:
            pass
        return images

    shadow = Shadow(costly, Metrics("replica"), queue_size=64, confidence=0.5, busy=busy.is_set)
    ready = release("s", erased={0}, guard={0})
    for _ in range(48):  # three batches
        shadow.offer(image_of(0), 2, ready)
    settled(shadow, 16)
    time.sleep(1.5)  # 50 ms at 1 % are 5 s
    assert shadow.counts()["s"].matches == 16
    busy.clear()
    assert settled(shadow, 48)["s"].matches == 48
