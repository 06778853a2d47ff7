"""The persistent map is a dict whose older versions stay as they were."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.fold.persistent_map import PersistentMap

KEYS = st.integers(0, 120)


@given(
    st.dictionaries(KEYS, st.integers(), max_size=60),
    st.lists(st.dictionaries(KEYS, st.integers(), max_size=9), max_size=60),
)
def test_every_version_stays_equal_to_the_dict_of_its_time(
    start: dict[int, int], changes: list[dict[int, int]]
) -> None:
    versions: list[tuple[PersistentMap[int, int], dict[int, int]]] = []
    mapping, model = PersistentMap(start), dict(start)
    for change in changes:
        versions.append((mapping, model))
        mapping, model = mapping.with_entries(change), {**model, **change}
    versions.append((mapping, model))
    for mapping, model in versions:
        assert mapping == model
        assert list(mapping.items()) == list(model.items())
        assert len(mapping) == len(model)
        for key in range(121):
            assert mapping.get(key) == model.get(key)
            assert (key in mapping) == (key in model)


def test_a_missing_key_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        PersistentMap({1: 2})[3]


def test_neither_the_first_dict_nor_a_version_changes_another() -> None:
    start = {1: "one"}
    first = PersistentMap(start)
    start[2] = "two"
    second = first.with_entry(1, "uno")
    assert (first, second) == ({1: "one"}, {1: "uno"})
    assert repr(second) == "PersistentMap({1: 'uno'})"


def entries_copied(entries: int) -> int:
    """How many entries are written while a map grows one by one, including merges."""
    copied = 0
    mapping: Mapping[int, int]
    mapping = PersistentMap[int, int]()
    for number in range(entries):
        before = mapping
        mapping = before.with_entry(number, number)
        copied += len(mapping._late) if mapping._base is before._base else len(mapping._base)
    return copied


def test_growing_sixteen_times_as_long_costs_no_more_than_the_root_says() -> None:
    """O(n sqrt n): 64 (16 x 4) times as much; copying a dict each time would take 16 x 16."""
    assert entries_copied(16_000) < 16 * 4 * 1.5 * entries_copied(1000)
