"""What of a failed training may go into the ledger."""

from __future__ import annotations

import pytest

from forgetting.errors import DataError, TrainingError
from serving.learning import kind_of


@pytest.mark.parametrize(
    "error",
    [
        DataError("image faces/ada/3.png can't be decoded"),
        TrainingError("forgetting ada would leave 1 class"),
        MemoryError("while ada was loaded"),
    ],
)
def test_the_sentence_for_the_ledger_names_nobody(error: Exception) -> None:
    assert "ada" not in kind_of(error)
    assert len(kind_of(error)) > 20


def test_kinds_of_failure_are_told_apart() -> None:
    assert kind_of(DataError("x")) != kind_of(TrainingError("x")) != kind_of(ValueError("x"))
