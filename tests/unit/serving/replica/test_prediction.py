"""A batch is scored once, and each request gets its own rows."""

from __future__ import annotations

import torch

from serving.replica.prediction import TOP_K, Scored, best_of, scores_of
from serving.replica.slot import Measured, ReadyRelease

LOGITS = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0, -2.0, -3.0], [0.0, 9.0, 1.0, 2.0, 3.0, 4.0, 5.0]])


def release(guard: frozenset[int]) -> ReadyRelease:
    return ReadyRelease(2, 1, lambda images: images, guard, guard, 0, "s", Measured(0.0, 0.0))


def test_the_mask_takes_a_class_from_the_answer_and_not_from_what_the_weights_say() -> None:
    scores = scores_of(LOGITS, frozenset({1}))
    assert scores.named == [0, 1]
    assert torch.equal(scores.logits, LOGITS)
    assert bool((scores.masked[:, 1] == float("-inf")).all())
    assert [row[0][0] for row in scores.best] == [0, 6]
    assert all(index != 1 for row in scores.best for index, _ in row)


def test_the_best_are_the_softmax_of_what_is_left() -> None:
    (best,) = best_of(LOGITS[:1], 7)
    assert [index for index, _ in best] == list(range(7))
    shares = LOGITS[0].softmax(-1).tolist()
    assert [share for _, share in best] == shares


def test_a_request_sees_its_own_rows_and_as_many_labels_as_it_asks_for() -> None:
    scores = scores_of(LOGITS, frozenset())
    second = Scored(scores, 1, 1, release(frozenset()), 0.0, 0.0)
    assert second.named == [1]
    assert torch.equal(second.logits, LOGITS[1:])
    assert len(second.best(2)) == 2
    assert len(second.best(TOP_K)) == TOP_K
    assert len(second.best(100)) == 7
    assert second.best(100)[:TOP_K] == second.best(TOP_K)


def test_where_all_but_one_class_are_masked_only_that_one_is_named() -> None:
    scores = scores_of(LOGITS, frozenset(range(1, 7)))
    whole = Scored(scores, 0, 2, release(frozenset(range(1, 7))), 0.0, 0.0)
    assert whole.best(TOP_K) == [(0, 1.0)]
    assert whole.best(7) == [(0, 1.0)]
