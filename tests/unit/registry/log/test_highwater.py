"""The high-water mark: a reader that has seen newer records notices an older copy."""

import json
import multiprocessing
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from registry.errors import CheckError, IntegrityError, StoreError, TrustError
from registry.log.highwater import Mark, check_mark, raise_mark, read_mark
from registry.log.ledger import Ledger
from registry.records.record import GENESIS
from registry.signing.keys import Role, Signer, Trust
from registry.store.directory import DirectoryStore
from registry.upkeep.verification import verify
from tests.unit.registry.registry_acts import NOON, Acts


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "highwater.json"


def seen(path: Path, acts: Acts, trust: Trust) -> Mark:
    mark = raise_mark(
        path,
        seq=acts.state.seq,
        head=acts.state.head,
        signer=acts.signers["operator"],
        trust=trust,
        clock=lambda: NOON,
    )
    assert mark is not None
    return mark


def test_a_mark_reads_back_as_it_was_made(acts: Acts, trust: Trust, path: Path) -> None:
    acts.erase(1)
    assert read_mark(path, trust) is None
    assert seen(path, acts, trust) == Mark(8, acts.state.head, NOON) == read_mark(path, trust)


def test_a_mark_only_rises(acts: Acts, trust: Trust, path: Path) -> None:
    acts.erase(1)
    first = seen(path, acts, trust)
    lower = raise_mark(path, seq=3, head=GENESIS, signer=acts.signers["operator"], trust=trust)
    assert lower == read_mark(path, trust) == first
    acts.note("more")
    assert seen(path, acts, trust).seq == 9


def test_an_empty_log_leaves_no_mark(acts: Acts, trust: Trust, path: Path) -> None:
    operator = acts.signers["operator"]
    assert raise_mark(path, seq=0, head=GENESIS, signer=operator, trust=trust) is None
    assert not path.exists()


def test_an_older_copy_put_back_is_noticed(
    acts: Acts, store: DirectoryStore, trust: Trust, path: Path, tmp_path: Path
) -> None:
    acts.erase(1)
    shutil.copytree(store.root, tmp_path / "older")
    acts.erase(2)
    mark = seen(path, acts, trust)
    check_mark(acts.ledger, mark, path=path)
    older = DirectoryStore(tmp_path / "older")
    assert verify(older, trust).problems == ()
    ledger = Ledger(older, trust)
    ledger.refresh()
    with pytest.raises(IntegrityError, match="ends at record 8, but record 16 was seen") as caught:
        check_mark(ledger, mark, path=path)
    assert caught.value.check == "replay"
    assert [problem.check for problem in verify(older, trust, mark=mark).problems] == ["replay"]


def test_an_older_copy_that_went_on_by_itself_is_noticed(
    acts: Acts, store: DirectoryStore, trust: Trust, path: Path, tmp_path: Path
) -> None:
    acts.erase(1)
    shutil.copytree(store.root, tmp_path / "older")
    acts.erase(2)
    mark = seen(path, acts, trust)
    other = Acts(Ledger(DirectoryStore(tmp_path / "older"), trust), acts.signers, requests=500)
    other.ledger.refresh()
    other.erase(3)
    other.note("longer than what was seen")
    with pytest.raises(IntegrityError, match="went on by itself") as caught:
        check_mark(other.ledger, mark, path=path)
    assert caught.value.where.endswith("016.json")
    (problem,) = verify(DirectoryStore(tmp_path / "older"), trust, mark=mark).problems
    assert problem.check == "replay"


def test_a_longer_log_is_no_older_copy(acts: Acts, trust: Trust, path: Path) -> None:
    acts.erase(1)
    mark = seen(path, acts, trust)
    acts.erase(2)
    check_mark(acts.ledger, mark, path=path)
    check_mark(acts.ledger, None, path=path)


@pytest.mark.parametrize("field", ["seq", "head", "at", "key_id", "sig"])
def test_a_mark_with_any_field_changed_is_refused(
    field: str, acts: Acts, trust: Trust, path: Path
) -> None:
    acts.erase(1)
    seen(path, acts, trust)
    value = json.loads(path.read_bytes())
    changed = {
        "seq": 7,
        "head": GENESIS,
        "at": "2026-11-20T12:00:00.124Z",
        "key_id": "0" * 16,
        "sig": "A" * 86 + "==",
    }
    path.write_text(json.dumps({**value, field: changed[field]}))
    with pytest.raises(TrustError, match="highwater.json"):
        read_mark(path, trust)
    for data in (b"", b"{}", json.dumps({**value, "more": 1}).encode()):
        path.write_bytes(data)
        with pytest.raises(CheckError, match="highwater.json"):
            read_mark(path, trust)


def test_a_mark_is_an_operators_alone(
    acts: Acts, signers: dict[Role, Signer], trust: Trust, path: Path
) -> None:
    acts.erase(1)
    publisher = signers["publisher"]
    with pytest.raises(TrustError, match="role operator"):
        raise_mark(path, seq=8, head=acts.state.head, signer=publisher, trust=trust)
    assert not path.exists()
    every = frozenset[Role]({"publisher", "operator"})
    once = replace(trust.keys[publisher.key_id], roles=every)
    before = Trust({**trust.keys, publisher.key_id: once})
    raise_mark(path, seq=8, head=acts.state.head, signer=publisher, trust=before)
    with pytest.raises(TrustError, match="role operator"):
        read_mark(path, trust)


def test_a_key_that_was_retired_meanwhile_leaves_the_mark_as_it_was(
    acts: Acts, trust: Trust, path: Path
) -> None:
    """A process that still has the old key must not lock out every reader."""
    acts.erase(1)
    mark = seen(path, acts, trust)
    operator = acts.signers["operator"]
    ended = replace(trust.keys[operator.key_id], not_after=NOON + timedelta(hours=1))
    later = Trust({**trust.keys, operator.key_id: ended})
    acts.note("more")
    with pytest.raises(TrustError, match="retired"):
        raise_mark(
            path,
            seq=acts.state.seq,
            head=acts.state.head,
            signer=operator,
            trust=later,
            clock=lambda: NOON + timedelta(hours=2),
        )
    assert read_mark(path, later) == mark


def test_a_mark_by_a_retired_key_counts_only_from_before(
    acts: Acts, trust: Trust, path: Path
) -> None:
    acts.erase(1)
    mark = seen(path, acts, trust)
    key_id = acts.signers["operator"].key_id
    for days, good in ((1, True), (-1, False)):
        retired = replace(trust.keys[key_id], not_after=NOON + timedelta(days=days))
        changed = Trust({**trust.keys, key_id: retired})
        if good:
            assert read_mark(path, changed) == mark
        else:
            with pytest.raises(TrustError, match="retired"):
                read_mark(path, changed)


def test_a_record_signature_is_no_mark(
    acts: Acts, signers: dict[Role, Signer], trust: Trust
) -> None:
    payload = b"the same bytes"
    signature = signers["operator"].sign(payload)
    trust.signer_of(payload, signature, where="x")
    with pytest.raises(TrustError, match="signature"):
        trust.signer_of(payload, signature, where="x", kind="another")


def test_a_mark_that_can_not_be_kept_says_where(acts: Acts, trust: Trust, tmp_path: Path) -> None:
    acts.erase(1)
    with pytest.raises(StoreError, match=r"no/highwater\.json: can't be written"):
        seen(tmp_path / "no" / "highwater.json", acts, trust)


def _raise_many(path: Path, keys: Path, start: int) -> None:
    signer, trust = Signer.load(keys / "operator.pem"), Trust.load(keys / "trust.json")
    for seq in range(start, 30, 2):
        raise_mark(path, seq=seq, head=GENESIS, signer=signer, trust=trust)


def test_two_writers_never_lower_the_mark(trust: Trust, path: Path, keys_directory: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [
        context.Process(target=_raise_many, args=(path, keys_directory, start)) for start in (1, 2)
    ]
    for writer in writers:
        writer.start()
    highest = 0
    while any(writer.is_alive() for writer in writers):
        mark = read_mark(path, trust)
        assert (mark.seq if mark else 0) >= highest
        highest = mark.seq if mark else 0
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    mark = read_mark(path, trust)
    assert mark is not None
    assert mark.seq == 29
