"""The home folder: who can read what."""

import shutil
import threading
import time
from pathlib import Path

import pytest

from registry.errors import IntegrityError, StoreError, TrustError
from registry.publish.declarations import write_note
from serving.config.home import (
    Home,
    HomeError,
    check_registry,
    note_seen,
    open_current_ledger,
    open_ledger,
    open_subjects,
    prepare_home,
    signer,
    token,
    wait_for_ledger,
    wait_for_private_store,
)


def test_only_the_owner_can_read_the_subject_map(tmp_path: Path) -> None:
    home = Home(tmp_path, tmp_path / "registry")
    open_subjects(home).assign("alice")
    files = [path for path in home.registry.rglob("*") if path.is_file()]
    assert len(files) == 2
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_an_empty_token_is_refused(tmp_path: Path) -> None:
    home = Home(tmp_path, tmp_path / "registry")
    prepare_home(home)
    assert len(token(home, "operator")) >= 32
    (home.tokens / "operator").write_text("")
    with pytest.raises(HomeError, match="is empty"):
        token(home, "operator")


def note(home: Home, text: str) -> None:
    write_note(
        open_ledger(home),
        signer(home, "operator"),
        text=text,
        actor="t",
        reason="",
        request_id=text,
    )


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A registry of two records, with a mark for the newest, and a copy with only the first."""
    home = Home(tmp_path, tmp_path / "registry")
    prepare_home(home)
    note(home, "one")
    shutil.copytree(home.registry, tmp_path / "older")
    note(home, "two")
    note_seen(home, open_current_ledger(home), signer(home, "operator"))
    return home


def put_back(home: Home, name: str) -> None:
    assert isinstance(home.registry, Path)
    shutil.rmtree(home.registry)
    shutil.copytree(home.path / name, home.registry)


def test_an_older_copy_of_the_registry_is_refused_with_what_to_do(home: Home) -> None:
    assert check_registry(home).state.seq == 2
    put_back(home, "older")
    with pytest.raises(HomeError, match="ends at record 1, but record 2 was seen") as error:
        check_registry(home)
    assert "Put the newest copy back" in str(error.value)
    with pytest.raises(IntegrityError, match="older copy"):
        open_current_ledger(home)
    # The older copy may even have grown by itself.
    note(home, "another two")
    note(home, "three")
    with pytest.raises(HomeError, match="another log"):
        check_registry(home)


def test_a_mark_that_was_tampered_with_is_refused(home: Home) -> None:
    mark = home.highwater.read_text()
    assert '"seq":2' in mark
    home.highwater.write_text(mark.replace('"seq":2', '"seq":1'))
    with pytest.raises(TrustError, match="highwater"):
        check_registry(home)


def test_each_registry_of_a_home_has_a_mark_and_evidence_of_its_own(tmp_path: Path) -> None:
    homes = [
        Home(tmp_path, where)
        for where in (
            tmp_path / "registry",
            tmp_path / "other" / "registry",
            "s3://bucket/one",
            "s3://bucket/two",
        )
    ]
    assert len({home.highwater for home in homes}) == 4
    assert len({home.evidence for home in homes}) == 4
    assert homes[0].highwater == tmp_path / "highwater.json"
    assert homes[2].highwater.parent == tmp_path


class BusyHome(Home):
    """A home whose registry gets a new record each time that the mark's path is asked for."""

    @property
    def highwater(self) -> Path:
        still = Home(self.path, self.registry)
        note(still, "meanwhile")
        note_seen(still, open_current_ledger(still), signer(still, "operator"))
        return still.highwater


def test_a_registry_that_grows_while_it_is_opened_is_no_older_copy(home: Home) -> None:
    assert open_current_ledger(BusyHome(home.path, home.registry)).state.seq > 2


def test_a_storage_that_fails_is_waited_for_and_the_log_says_why(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(home.registry, Path)
    folder = home.registry.rename(home.path / "folder")
    file = home.path / "file"
    file.write_text("where the folder should be")
    home.registry.symlink_to(file)
    with pytest.raises(StoreError) as failed:
        open_current_ledger(home)

    def bring_back() -> None:
        while not caplog.records:
            time.sleep(0.01)
        link = home.path / "link"
        link.symlink_to(folder)
        link.rename(home.registry)

    threading.Thread(target=bring_back, daemon=True).start()
    assert wait_for_ledger(home).state.seq == 2
    assert wait_for_private_store(home).list("log/")
    said = f"the registry can't be opened, trying again: {failed.value}"
    assert {record.getMessage() for record in caplog.records} == {said}


def test_an_older_copy_of_the_registry_is_not_waited_for(home: Home) -> None:
    put_back(home, "older")
    with pytest.raises(IntegrityError, match="older copy"):
        wait_for_ledger(home)
