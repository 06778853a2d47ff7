"""An immutable mapping with cheap changed copies.

The fold makes a new state for each record, and after 10,000 records a state has thousands of
releases. Copying a dict for each record would make reading a log quadratic. Here the versions
share one large dict, and each has a small one on top of it. The two are merged when the small one
has grown to the square root of the large one's size.
"""

from collections.abc import Iterator, Mapping
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")

_LEAST = 32
"""A small dict of at most this many entries is not merged."""


class PersistentMap(Mapping[K, V]):
    """Ordered by first insertion, as a dict. A change takes O(sqrt n), a look-up O(1).

    Invariant: neither dict is written to after the object was made, so versions can share them.
    """

    __slots__ = ("_added", "_base", "_late")

    def __init__(self, entries: Mapping[K, V] | None = None) -> None:
        self._base: dict[K, V] = dict(entries or {})
        self._late: dict[K, V] = {}
        self._added = 0  # how many keys of `_late` are not in `_base`

    def with_entries(self, changes: Mapping[K, V]) -> "PersistentMap[K, V]":
        """This mapping with entries added or replaced."""
        after: PersistentMap[K, V] = PersistentMap.__new__(PersistentMap)
        late = {**self._late, **changes}
        if len(late) > _LEAST and len(late) ** 2 > len(self._base):
            after._base, after._late, after._added = {**self._base, **late}, {}, 0
        else:
            after._base, after._late = self._base, late
            after._added = self._added + sum(key not in self for key in changes)
        return after

    def with_entry(self, key: K, value: V) -> "PersistentMap[K, V]":
        return self.with_entries({key: value})

    def __getitem__(self, key: K) -> V:
        if key in self._late:
            return self._late[key]
        return self._base[key]

    def __contains__(self, key: object) -> bool:
        return key in self._late or key in self._base

    def __iter__(self) -> Iterator[K]:
        yield from self._base
        yield from (key for key in self._late if key not in self._base)

    def __len__(self) -> int:
        return len(self._base) + self._added

    def __repr__(self) -> str:
        return f"PersistentMap({dict(self)!r})"
