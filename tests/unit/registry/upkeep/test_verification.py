"""The corruption matrix: for any damage to a file, `verify` names the file and the check."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from registry.errors import CheckError
from registry.log.ledger import FORMAT_KEY, Ledger, blob_key, log_key
from registry.records.bodies import Note
from registry.records.record import seal_record
from registry.signing.keys import Role, Signer, Trust
from registry.store.directory import DirectoryStore
from registry.subjects.subject_map import SubjectMap
from registry.upkeep.verification import verify
from tests.unit.registry.registry_acts import Acts, record_after


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, trust: Trust, signers: dict[Role, Signer]
) -> Path:
    """A registry with every kind of file: two erasures, a refusal, a rollback, the subject map."""
    root = tmp_path_factory.mktemp("whole")
    acts = Acts(Ledger(DirectoryStore(root), trust), signers)
    acts.erase(1)
    acts.forget(2)
    acts.train("job-2")
    acts.refuse("job-2")
    acts.serve(acts.roll_back(1).number)
    acts.note("the end")
    subjects = SubjectMap(DirectoryStore(root))
    for name in ("alice", "bob"):
        subjects.assign(name)
    return root


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> DirectoryStore:
    shutil.copytree(whole, tmp_path / "registry")
    return DirectoryStore(tmp_path / "registry")


def problems(store: DirectoryStore, trust: Trust) -> list[tuple[str, str]]:
    return [(problem.check, problem.where) for problem in verify(store, trust).problems]


def test_a_sound_registry_has_no_problems(copy: DirectoryStore, trust: Trust) -> None:
    found = verify(copy, trust)
    assert found.problems == found.orphans == found.strays == ()
    assert found.seq == len(copy.list("log/")) == 15
    assert found.blobs == len(copy.list("blobs/")) == 6
    assert found.blob_bytes == sum(len(copy.read(key)) for key in copy.list("blobs/"))
    assert found.head == Ledger(copy, trust).refresh().head


def test_an_empty_place_is_a_sound_and_empty_registry(store: DirectoryStore, trust: Trust) -> None:
    found = verify(store, trust)
    assert (found.seq, found.blobs, found.problems) == (0, 0, ())


def test_progress_counts_up_to_the_number_of_blobs(copy: DirectoryStore, trust: Trust) -> None:
    steps: list[tuple[int, int]] = []
    verify(copy, trust, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(step, 6) for step in range(1, 7)]


def test_a_flipped_bit_in_any_region_of_any_file_is_found_and_named(
    copy: DirectoryStore, trust: Trust
) -> None:
    flips = 0
    for key in copy.list(""):
        path = copy.root / key
        good = path.read_bytes()
        step = max(1, len(good) // 7)
        for position in {*range(0, len(good), step), len(good) - 1}:
            changed = bytearray(good)
            changed[position] ^= 1 << (position % 7)
            path.write_bytes(changed)
            found = [where for _, where in problems(copy, trust)]
            assert found, f"byte {position} of {key} changed unnoticed"
            assert any(names(where, key) for where in found), f"{key} not named, but {found}"
            flips += 1
        path.write_bytes(good)
    assert flips > 180
    assert problems(copy, trust) == []


def names(where: str, key: str) -> bool:
    """Whether `where` is this file. For a changed claim it may be the entry that it leads to."""
    return where == key or (where.startswith("subjects/") and key.startswith("subjects/"))


def test_a_truncated_or_emptied_file_is_found_and_named(copy: DirectoryStore, trust: Trust) -> None:
    for key in copy.list(""):
        path = copy.root / key
        good = path.read_bytes()
        for size in {0, 1, len(good) // 2, len(good) - 1}:
            path.write_bytes(good[:size])
            assert key in [where for _, where in problems(copy, trust)], f"{key} cut to {size}"
        path.write_bytes(good)


def test_a_longer_file_is_found_and_named(copy: DirectoryStore, trust: Trust) -> None:
    for key in copy.list(""):
        path = copy.root / key
        good = path.read_bytes()
        for more in (b"x", b"\n"):
            path.write_bytes(good + more)
            assert key in [where for _, where in problems(copy, trust)], f"{key} and {more!r}"
        path.write_bytes(good)


def test_a_missing_file_is_found_and_named(copy: DirectoryStore, trust: Trust) -> None:
    last = copy.list("log/")[-1]
    for key in copy.list(""):
        if key == last or key.startswith("subjects/"):
            continue  # an older copy and a deleted subject are sound
        path = copy.root / key
        good = path.read_bytes()
        path.unlink()
        assert key in [where for _, where in problems(copy, trust)], f"{key} gone unnoticed"
        path.write_bytes(good)


def test_any_two_swapped_files_of_a_kind_are_found(copy: DirectoryStore, trust: Trust) -> None:
    for prefix in ("log/", "blobs/"):
        keys = copy.list(prefix)
        for first, second in zip(keys, keys[1:], strict=False):
            one, two = copy.read(first), copy.read(second)
            (copy.root / first).write_bytes(two)
            (copy.root / second).write_bytes(one)
            found = [where for _, where in problems(copy, trust)]
            assert first in found
            (copy.root / first).write_bytes(one)
            (copy.root / second).write_bytes(two)


def extended(copy: DirectoryStore, trust: Trust, seal: Callable[[int], bytes]) -> str:
    """Add one object after the last record; returns its key."""
    key = log_key(Ledger(copy, trust).refresh().seq + 1)
    copy.create(key, seal(0))
    return key


def test_a_replayed_record_is_found(copy: DirectoryStore, trust: Trust) -> None:
    for seq in (1, 7, 15):
        key = extended(copy, trust, lambda _, seq=seq: copy.read(log_key(seq)))  # type: ignore[misc]
        assert problems(copy, trust) == [("prev", key)]
        copy.delete(key)


@pytest.fixture
def strangers(signers: dict[Role, Signer]) -> Iterator[tuple[Signer, str]]:
    return iter(
        [
            (Signer(Ed25519PrivateKey.generate()), "key"),
            (signers["publisher"], "role"),
            (signers["eraser"], "role"),
        ]
    )


def test_a_record_signed_with_a_wrong_key_is_found(
    copy: DirectoryStore, trust: Trust, strangers: Iterator[tuple[Signer, str]]
) -> None:
    record = record_after(Ledger(copy, trust).refresh(), Note("forged"))
    for signer, check in strangers:
        key = extended(copy, trust, lambda _, signer=signer: seal_record(record, signer))  # type: ignore[misc]
        assert problems(copy, trust) == [(check, key)]
        copy.delete(key)


def test_a_record_signed_with_a_retired_key_is_found(
    copy: DirectoryStore, trust: Trust, signers: dict[Role, Signer]
) -> None:
    operator = signers["operator"]
    last = [*Ledger(copy, trust).refresh().releases.values()][-1].at
    assert last is not None
    late = last.replace(year=last.year + 2)
    record = record_after(Ledger(copy, trust).refresh(), Note("late"), at=late)
    key = extended(copy, trust, lambda _: seal_record(record, operator))
    retired = replace(trust.keys[operator.key_id], not_after=last.replace(year=last.year + 1))
    assert problems(copy, trust) == []
    assert problems(copy, Trust({**trust.keys, operator.key_id: retired})) == [("retired", key)]


def test_an_older_copy_is_sound_in_itself_and_found_by_who_has_seen_more(
    copy: DirectoryStore, trust: Trust
) -> None:
    copy.delete(log_key(15))
    assert problems(copy, trust) == []
    (problem,) = verify(copy, trust, at_least=15).problems
    assert (problem.check, problem.where) == ("replay", log_key(15))
    assert verify(copy, trust, at_least=14).problems == ()


def test_all_damage_is_told_at_once(copy: DirectoryStore, trust: Trust) -> None:
    first, second, *_ = copy.list("blobs/")
    (copy.root / first).write_bytes(b"")
    (copy.root / second).unlink()
    (copy.root / FORMAT_KEY).write_bytes(b"{}")
    found = problems(copy, trust)
    assert ("schema", FORMAT_KEY) in found
    (copy.root / FORMAT_KEY).write_bytes(b'{"format":"lethe-registry","version":1}')
    assert {where for _, where in problems(copy, trust)} == {first, second}


def test_orphans_and_strays_are_told_apart_from_damage(copy: DirectoryStore, trust: Trust) -> None:
    digest = Ledger(copy, trust).put_blob(b"no record names this")
    copy.create("log/README.txt", b"hello")
    copy.create("blobs/notes", b"hello")
    found = verify(copy, trust)
    assert found.problems == ()
    assert found.orphans == (blob_key(digest),)
    assert found.strays == ("blobs/notes", "log/README.txt")


def test_an_orphan_with_other_bytes_than_its_name_says_is_damage(
    copy: DirectoryStore, trust: Trust
) -> None:
    key = blob_key(Ledger(copy, trust).put_blob(b"no record names this"))
    (copy.root / key).write_bytes(b"no record names thus")
    assert problems(copy, trust) == [("sha256", key)]


def test_no_message_shows_a_class_name(copy: DirectoryStore, trust: Trust) -> None:
    for key in copy.list("subjects/by-class/"):
        (copy.root / key).write_bytes(b'{"subject":"00000000000000000000000000000000"}')
    found: list[CheckError] = list(verify(copy, trust).problems)
    assert len(found) == 2
    assert not any("alice" in str(problem) or "bob" in str(problem) for problem in found)
